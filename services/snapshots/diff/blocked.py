"""What the time of a worker goes for, as another process sees it; above all, how long its main thread is blocked by
the kernel, by samples.

A worker knows how long its main thread was blocked, but not why: its threads also wait for each other, since one of
them at a time has the interpreter. The kernel names the function in which a thread sleeps (/proc/PID/wchan). A lock of
the process is a futex; what is not, and no poll, is the disk or the file system.

A worker that fails, or is killed, cannot say what its time went for. Then what was seen from outside has to do.
"""

from __future__ import annotations

import os
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EVERY = 0.01
"""Seconds between two samples, of some microseconds each, at the beginning."""
_SAMPLES = 200
"""Samples of a worker until the pauses grow with its age. They show 1 % of its time, and what counts is more."""
_LONGEST = 0.25


class Seen(namedtuple("Seen", "blocked cpu runqueue")):  # noqa: PYI024 typing's would bring re into each worker
    """Microseconds, as far as they were seen: the main thread was blocked, all threads ran on a processor, and the main
    thread had none.
    """

    __slots__ = ()
    blocked: int
    cpu: int
    runqueue: int

    def __str__(self) -> str:
        """As words of a packet, for :meth:`parse`."""
        return "\0".join(map(str, self))

    @classmethod
    def parse(cls, words: Sequence[str]) -> Seen:
        """What :meth:`__str__` has made."""
        return cls(*map(int, words))


class Sampler:
    """Samples of the leading thread of the process ``pid``, from now on."""

    def __init__(self, pid: int) -> None:
        self.blocked = 0.0
        """Seconds for which it was blocked."""
        self._begun = self._looked = time.monotonic()
        self._pid = pid
        self._first = self._last = self._counters()
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

    def seen(self) -> Seen:
        """What its time went for until now, or until it ended."""
        self._last = max(self._last, self._counters())
        cpu, runqueue = (max(0, last - first) // 1000 for last, first in zip(self._last, self._first, strict=True))
        return Seen(round(self.blocked * 1e6), cpu, runqueue)

    def _counters(self) -> tuple[int, int]:
        """Nanoseconds on a processor, of all threads, and without one, of the main thread; 0 once it is gone."""
        try:
            # the clock of a process's time, as clock_getcpuclockid(3) makes it
            cpu = time.clock_gettime_ns(~self._pid << 3 | 2)
            with open(f"/proc/{self._pid}/schedstat", "rb", buffering=0) as file:
                return cpu, int(file.read().split()[1])
        except (OSError, IndexError):
            return 0, 0

    def close(self) -> None:
        """No further samples."""
        if self._wchan >= 0:
            os.close(self._wchan)
            self._wchan = -1
