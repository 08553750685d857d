"""Finds workers that make no progress: a disk, a network file system, or a program that serves a mount may never
answer, and the worker's caller would wait for ever.

A layer may take any time it needs, so only progress counts: while a worker does anything at all, one of its threads
runs now and then, or the disk moves for which one waits: on a slow disk that has much to write, one system call may
take any time, too. A thread that waits for others who have a limit of their own (the download of a blob that is still
arriving) wakes up once in a while (``stream.py``), so that it does not look stuck.
"""

from __future__ import annotations

import os
import time

from services.kit import at_work

LIMIT = 600.0
"""Seconds. Not all disks tell whether they move, and one system call may take minutes on a disk that works: syncfs
does, if a large memory holds data back.
"""
LOOK = 10.0
"""Seconds between two looks, or a quarter of the limit, if that is less."""
KILL_WAIT = 10.0
"""Seconds after which the end of a killed worker is no longer waited for: a process in state D does not end."""


def look_interval(limit: float) -> float:
    """Seconds between two looks."""
    return min(LOOK, limit / 4)


class Watch:
    """How long a process has made no progress, as far as it was looked at. A pause between looks counts as at most two
    intervals.
    """

    def __init__(self, limit: float) -> None:
        self._every = look_interval(limit)
        self._signs: bytes | None = None
        self._looked = time.monotonic()
        self._seconds = 0.0

    def seconds(self, pid: int) -> float:
        """Look again, and return the seconds without progress so far. A process that was stopped (SIGSTOP, a debugger)
        is not stuck.
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
    """Counters that change whenever one of the process's threads has run, or a disk for which one waits has moved:
    processor time, context switches, and what these disks have done. None for a process that was stopped or is gone.
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
        return b" ".join((*found[11:13], *switches, at_work.waits(pid)))
    except (OSError, IndexError):
        return None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
