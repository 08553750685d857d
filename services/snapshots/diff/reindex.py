"""The worker program that makes the index of an erofs layer again, from the layer's tar, on top of other layers.

    python -S -c 'from services.snapshots.diff.reindex import main; main()' PARENT LAYER UPPER LOWER...

PARENT is the pid of the process that it must not outlive. LAYER is the directory of the layer, which was unpacked
there; its root directory gets the attributes of UPPER. The LOWERs are the layers below, topmost first, each its
index or its mount; without any, the layer is the lowest. The last line of its output is ``ok``, or ``error TEXT``.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

from services.kit import tar
from services.snapshots.diff import mounts
from services.snapshots.diff.extract import EntryError
from services.snapshots.erofs import place
from services.snapshots.erofs.below import of_layers, opened
from services.snapshots.erofs.image import ImageError


def main() -> None:
    """Run as a program."""
    parent, layer, upper, *lowers = sys.argv[1:]
    os.setpgid(0, 0)
    mounts.die_with_parent(int(parent))
    faulthandler.register(signal.SIGUSR1)  # the stack goes into the service's log, and the worker goes on
    sys.setrecursionlimit(20_000)
    try:
        place.remake(layer, upper, of_layers(list(map(opened, lowers))) if lowers else None)
        answer = "ok"
    except (EntryError, ImageError, tar.TarError) as error:
        answer = f"error {error}"
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        answer = f"error {name}{mounts.words(error.errno) if error.errno else error}"
    sys.stdout.buffer.write(answer.replace("\n", "\\n").encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()
    os._exit(0)
