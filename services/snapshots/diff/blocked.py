"""How long the main thread of a worker is blocked by the kernel, as another process sees it, by samples.

A worker knows how long its main thread was blocked, but not why: its threads also wait for each other, since one of
them at a time has the interpreter. The kernel names the function in which a thread sleeps (/proc/PID/wchan). A lock of
the process is a futex; what is not, and no poll, is the disk or the file system.
"""

from __future__ import annotations

import os
import time

EVERY = 0.01
"""Seconds between two samples, of some microseconds each, at the beginning."""
_SAMPLES = 200
"""Samples of a worker until the pauses grow with its age. They show 1 % of its time, and what counts is more."""
_LONGEST = 0.25


class Sampler:
    """Samples of the leading thread of the process ``pid``, from now on."""

    def __init__(self, pid: int) -> None:
        self.blocked = 0.0
        """Seconds for which it was blocked."""
        self._begun = self._looked = time.monotonic()
        try:
            self._wchan = os.open(f"/proc/{pid}/wchan", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # gone, or hidden from this process
            self._wchan = -1

    def pause(self) -> float:
        """Seconds until the next sample is due."""
        age = self._looked - self._begun
        return max(0.0, self._looked + min(max(EVERY, age / _SAMPLES), _LONGEST) - time.monotonic())

    def look(self) -> None:
        """Take a sample; it stands for the time since the last one."""
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        try:
            where = os.pread(self._wchan, 64, 0)
        except OSError:
            return
        if where not in (b"", b"0") and b"futex" not in where and b"poll" not in where:
            self.blocked += passed

    def close(self) -> None:
        """No further samples."""
        if self._wchan >= 0:
            os.close(self._wchan)
            self._wchan = -1
