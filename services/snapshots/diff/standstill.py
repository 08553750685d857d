"""Whether a worker stands still: a disk, a file system on the network, or a program that serves its mount may never
answer it, and nobody who waits for the worker would hear of that.

A layer may take whatever time it needs, so only progress counts: while a worker does anything at all, one of its
threads runs now and then. Where a thread waits for others who have a limit of their own (whoever fetches a blob that
still arrives) it wakes up once in a while (``stream.py``), so that this does not look like standing still.
"""

from __future__ import annotations

import os
import time

LIMIT = 600.0
"""Seconds. One system call may take minutes on a disk that works: syncfs does, of all that a large memory holds
back.
"""
LOOK = 10.0
"""Seconds from one look to the next, or a quarter of the limit, if that is less."""
DYING = 10.0
"""Seconds after which nobody waits any more for the end of a worker that was killed: one in state D does not end."""


def look_every(limit: float) -> float:
    """Seconds from one look to the next."""
    return min(LOOK, limit / 4)


class Still:
    """How long a process has stood still, as far as somebody has looked; time in which nobody did counts as one
    look.
    """

    def __init__(self, limit: float) -> None:
        self._every = look_every(limit)
        self._signs: bytes | None = None
        self._looked = time.monotonic()
        self._seconds = 0.0

    def seconds(self, pid: int) -> float:
        """Look again: how many seconds it is by now. One that was stopped (SIGSTOP, a debugger) does not stand
        still.
        """
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        signs = _signs(pid)
        self._seconds = (
            self._seconds + min(passed, 2 * self._every) if signs is not None and signs == self._signs else 0.0
        )
        self._signs = signs
        return self._seconds


def _signs(pid: int) -> bytes | None:
    """What is another whenever one of its threads has run: their time on a processor, and how often they left one.
    None for a process that was stopped or is gone.
    """
    try:
        found = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if found[0] in (b"T", b"t"):
            return None
        switches = [
            line
            for thread in os.listdir(f"/proc/{pid}/task")
            for line in _read(f"/proc/{pid}/task/{thread}/status").splitlines()
            if b"ctxt_switches" in line
        ]
        return b" ".join((*found[11:13], *switches))
    except (OSError, IndexError):
        return None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
