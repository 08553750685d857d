"""The FIFOs of a process whose client is gone.

A shim opens a process's FIFOs in its Create, and waits until the other side has: for half a minute, if the client was
killed, and the name is taken meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from services.tasks.store import IO


@contextlib.contextmanager
def held(io: IO) -> Iterator[list[int]]:
    """The FIFOs among the paths of ``io``, as descriptors that open none of them; they can be opened by these even
    where a client has removed them.
    """
    with contextlib.ExitStack() as opened:
        found = []
        for path in {io.stdin, io.stdout, io.stderr} - {""}:
            with contextlib.suppress(OSError, ValueError):  # a URI; or removed already: then the shim says so
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    found.append(fd)
        yield found


@contextlib.contextmanager
def other_side(fifos: list[int]) -> Iterator[None]:
    """Be the other side of FIFOs that were ``held``: whoever waits for one goes on. Nothing is read or written."""
    with contextlib.ExitStack() as opened:
        for fifo in fifos:
            fd = os.open(f"/proc/self/fd/{fifo}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # for both: never waits
            opened.callback(os.close, fd)
        yield
