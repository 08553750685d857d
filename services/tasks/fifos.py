"""The FIFOs of a process whose client has gone.

A shim opens a process's FIFOs during Create, and waits until the other side is opened too. If the client was killed it
waits for half a minute, and the name is taken meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from services.tasks.store import IO


@contextlib.contextmanager
def held(io: IO) -> Iterator[list[int]]:
    """The FIFOs among the paths of ``io``, as O_PATH descriptors, which do not count as an opened side. Through them a
    FIFO can be opened even after the client has removed it.
    """
    with contextlib.ExitStack() as opened:
        found = []
        for path in {io.stdin, io.stdout, io.stderr} - {""}:
            with contextlib.suppress(OSError, ValueError):  # a URI, or a removed FIFO, which the shim reports
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    found.append(fd)
        yield found


@contextlib.contextmanager
def other_side(fifos: list[int]) -> Iterator[None]:
    """Open the other side of FIFOs that were ``held``, so that a shim that waits for it goes on. Nothing is read or
    written.
    """
    with contextlib.ExitStack() as opened:
        for fifo in fifos:
            # To open for both directions never waits.
            fd = os.open(f"/proc/self/fd/{fifo}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.callback(os.close, fd)
        yield
