"""The worker program that makes the index of an erofs layer: of the layer's tar, on top of other layers; or of what was
written by hand.

    python -S -c 'from services.snapshots.diff.reindex import main; main()' PARENT again LAYER UPPER LOWER...
    python -S -c 'from services.snapshots.diff.reindex import main; main()' PARENT written LAYER UPPER

PARENT is the pid of the process that it must not outlive. LAYER is the directory of the layer. *again*: it was unpacked
there; its root directory gets the attributes of UPPER. The LOWERs are the layers below, topmost first, each its index
or its mount; without any, the layer is the lowest. *written*: UPPER has what was written, whose data go to standard
input, which is the file of data, open for reading and writing. The last line of its output is ``ok``, or ``error
TEXT``.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

from services.kit import tar
from services.snapshots.diff import mounts
from services.snapshots.diff.extract import EntryError
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs import place, written
from services.snapshots.erofs.below import of_layers, opened
from services.snapshots.erofs.image import ImageError


def main() -> None:
    """Run as a program."""
    parent, what, layer, upper, *lowers = sys.argv[1:]
    os.setpgid(0, 0)
    mounts.die_with_parent(int(parent))
    faulthandler.register(signal.SIGUSR1)  # the stack goes into the service's log, and the worker goes on
    sys.setrecursionlimit(20_000)
    try:
        if what == "written":
            os.ftruncate(0, 0)  # a smaller attempt may have begun
            root, size = written.collect(upper, 0)
            place.write_index(root, layer, size)
        else:
            place.remake(layer, upper, of_layers(list(map(opened, lowers))) if lowers else None)
        answer = "ok"
    except (EntryError, ImageError, MountError, tar.TarError) as error:
        answer = f"error {error}"
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        answer = f"error {name}{mounts.words(error.errno) if error.errno else error}"
    sys.stdout.buffer.write(answer.replace("\n", "\\n").encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()
    os._exit(0)
