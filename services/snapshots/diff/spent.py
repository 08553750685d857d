"""Where a worker's time went, by measurement.

A worker has one thread that the end waits for, the *main* one, and often a *helper* that makes chunks for it
(``stream.ahead``). Each moment of the main thread is one of these:

cpu         it ran on a processor
runqueue    it could have run, and no processor was free
bytes       no bytes of the blob were there
disk        it was blocked otherwise: in open, mkdir, write, fsync and the like, by the disk, by the locks of the file
            system, or by a program that serves a mount

While the main thread waits for the helper, the same is asked of the helper. So the parts add up to the time, and what
the helper does beside the main thread is not counted: nobody waited for it.

Only one thread at a time has the interpreter. While the main thread waits for it, the helper has it, and runs or waits
for a processor. The worker cannot tell this from the disk. It takes up to a sixth of the time, so another process
looks (``blocked.py``), and :meth:`Spent.settled` divides.

The kernel counts the first two for each thread (/proc/self/task/TID/schedstat; that of a process is its leading
thread's). They are read when a thread begins to wait for chunks or bytes and when it ends to, never for each file. One
reading takes a microsecond. On a kernel without these counters ``disk`` contains ``runqueue``.
"""

from __future__ import annotations

import _thread  # the module threading cannot be imported any more once the root directory is another
import os
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


class Spent(namedtuple("Spent", "cpu runqueue disk bytes coding digest files busy beside delayed")):  # noqa: PYI024 typing's would bring re into each worker
    """The time of one layer, in microseconds. The first four add up to the whole."""

    __slots__ = ()
    cpu: int
    runqueue: int
    disk: int
    bytes: int
    coding: int
    """Of ``cpu``: inflating or compressing, and reading or writing the blob."""
    digest: int
    """Of ``cpu``: hashing."""
    files: int
    """The rest of ``cpu``: the tar stream, and the files."""
    busy: int
    """The processor time of all threads, also of what nobody waited for."""
    beside: int
    """The processor time of the helper while the main thread did not wait for chunks; and how long it was ``delayed``,
    with no processor free.
    """
    delayed: int

    @property
    def whole(self) -> int:
        """All of it."""
        return self.cpu + self.runqueue + self.disk + self.bytes

    def settled(self, blocked: int) -> Spent:
        """The same, when it is known for how long the main thread was ``blocked``: the rest of ``disk`` it waited for
        the helper, which had the interpreter.
        """
        shared = self.beside + self.delayed
        lock = max(0, self.disk - blocked) if shared else 0
        delayed = lock * self.delayed // shared if lock else 0
        return self._replace(cpu=self.cpu + lock - delayed, runqueue=self.runqueue + delayed, disk=self.disk - lock)

    def __str__(self) -> str:
        """As a word, for :meth:`parse`."""
        return ",".join(map(str, self))

    @classmethod
    def parse(cls, word: str) -> Spent:
        """What :meth:`__str__` has made."""
        return cls(*map(int, word.split(",")))


class Counters:
    """The counters of the thread that makes it, in nanoseconds: since then or, if it is ``new``, since it began."""

    def __init__(self, tasks: int, *, new: bool) -> None:
        self.ident = _thread.get_ident()
        self.coding = self.digest = 0
        """Processor time of these, as far as this thread does them."""
        self._bytes = self._since = self._runqueue_then = 0
        self._ended: tuple[int, int, int] | None = None
        self._clock = time.pthread_getcpuclockid(self.ident)
        try:
            self._schedstat = os.open(f"{_thread.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tasks)
        except FileNotFoundError:
            self._schedstat = -1
        self._first = 0, 0
        if not new:
            self._first = self.now()[:2]

    def now(self) -> tuple[int, int, int]:
        """Its cpu, runqueue and bytes until now; other threads may ask, too."""
        if self._ended is not None:
            return self._ended
        passed = time.monotonic_ns() - since if (since := self._since) else 0
        arriving = self._bytes + passed
        try:
            return time.clock_gettime_ns(self._clock) - self._first[0], self._runqueue() - self._first[1], arriving
        except OSError:
            if self._ended is not None:  # just now
                return self._ended
            raise

    def _runqueue(self) -> int:
        return int(os.pread(self._schedstat, 64, 0).split()[1]) if self._schedstat >= 0 else 0

    def begin_to_wait(self) -> None:
        """It has no bytes to go on with."""
        self._runqueue_then = self._runqueue()
        self._since = time.monotonic_ns()

    def end_to_wait(self) -> None:
        """It has some again. Once they were there, it may have waited for a processor."""
        passed, self._since = time.monotonic_ns() - self._since, 0
        self._bytes += max(0, passed - (self._runqueue() - self._runqueue_then))

    def end(self) -> None:
        """It counts no further: the kernel has no counters of a thread that is gone."""
        self._ended = self.now()

    def close(self) -> None:
        """Nobody will ask any more."""
        if self._schedstat >= 0:
            os.close(self._schedstat)


class Account:
    """The time from now on. It is made in the main thread while that sees /proc: it may change its root directory."""

    def __init__(self) -> None:
        self._begun = time.monotonic_ns()
        self._busy = time.process_time_ns()
        self._tasks = os.open("/proc/self/task", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._main = Counters(self._tasks, new=False)
        self._helper: Counters | None = None
        self._helped = [0, 0, 0]
        """What the helper did while the main thread waited for it: cpu, runqueue, bytes."""

    def here(self) -> Counters:
        """The current thread."""
        helper = self._helper
        return helper if helper is not None and helper.ident == _thread.get_ident() else self._main

    def help(self) -> Counters:
        """The current thread is the helper. It ends itself (:meth:`Counters.end`)."""
        self._helper = Counters(self._tasks, new=True)
        return self._helper

    def waited(self, get: Callable[[], T]) -> T:
        """The result of ``get``, in which the main thread waits for the helper."""
        begun, own = time.monotonic_ns(), self._main.now()
        others = self._helper.now() if self._helper is not None else (0, 0, 0)  # it is about to begin
        got = get()
        if (helper := self._helper) is None:  # it could not begin, which the caller has got
            return got
        left = time.monotonic_ns() - begun
        for then, now in zip(own, self._main.now(), strict=True):
            left -= now - then
        for part, (then, now) in enumerate(zip(others, helper.now(), strict=True)):
            took = max(0, min(left, now - then))  # once it had answered, it went on
            left -= took
            self._helped[part] += took
        return got

    def close(self) -> Spent:
        """What the time went for until now."""
        busy = time.process_time_ns() - self._busy
        whole = time.monotonic_ns() - self._begun
        main, helper = self._main, self._helper
        helped = self._helped[0]
        coding, digest = main.coding, main.digest
        beside = delayed = 0
        if helper is not None:
            own, late, _ = helper.now()
            coding += helped * helper.coding // max(own, 1)
            digest += helped * helper.digest // max(own, 1)
            beside, delayed = max(0, own - helped), max(0, late - self._helped[1])
        cpu, runqueue, arriving = (a + b for a, b in zip(main.now(), self._helped, strict=True))
        for each in (main, helper):
            if each is not None:
                each.close()
        os.close(self._tasks)
        disk = max(0, whole - cpu - runqueue - arriving)
        files = max(0, cpu - coding - digest)
        return Spent(
            *(each // 1000 for each in (cpu, runqueue, disk, arriving, coding, digest, files, busy, beside, delayed))
        )
