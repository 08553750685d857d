"""What the time of a block went for that stays in one thread and waits for nothing but the disk: it ran on a processor,
no processor was free, or it was blocked.

The kernel counts the first two for each thread (/proc/thread-self/schedstat). Without its counters, what had no
processor is in ``disk``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.kit import tracing


@dataclass(slots=True)
class Times:
    """The time of a block, in nanoseconds. The parts add up to it, and are 0 until it has ended."""

    cpu: int = 0
    runqueue: int = 0
    disk: int = 0

    @property
    def whole(self) -> int:
        """All of it."""
        return self.cpu + self.runqueue + self.disk

    def add(self, other: Times, share: float = 1.0) -> None:
        """Add a share of another's."""
        self.cpu += round(other.cpu * share)
        self.runqueue += round(other.runqueue * share)
        self.disk += round(other.disk * share)

    def attributes(self, prefix: str = "splitd.time") -> dict[str, float]:
        """For the span of the block."""
        return {
            f"{prefix}.cpu_ms": self.cpu / 1e6,
            f"{prefix}.runqueue_ms": self.runqueue / 1e6,
            f"{prefix}.disk_ms": self.disk / 1e6,
        }


class _Counters:
    """The kernel's counters of the thread that makes it; they are kept open, since opening costs more than reading."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def runqueue(self) -> int:
        """Nanoseconds without a processor, so far."""
        return int(os.pread(self._fd, 64, 0).split()[1]) if self._fd >= 0 else 0

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the end of a process os may be gone
        if self._fd >= 0:
            close(self._fd)


class _Own(threading.local):
    counters: _Counters | None = None


_own = _Own()


def _counters() -> _Counters:
    """Those of the calling thread. They are opened by their first use and not at import, since a process may be a copy
    of one that has imported this: what that had open is another's.
    """
    if _own.counters is None:
        _own.counters = _Counters()
    return _own.counters


class Starved:
    """The share of the time in which this thread wanted a processor and had none, each time since the one before."""

    def __init__(self) -> None:
        self._seen = time.monotonic_ns(), _counters().runqueue()

    def share(self) -> float:
        """0 to 1; 0 without the kernel's counters."""
        before, self._seen = self._seen, (time.monotonic_ns(), _counters().runqueue())
        return (self._seen[1] - before[1]) / max(self._seen[0] - before[0], 1)


@contextlib.contextmanager
def measured() -> Iterator[Times]:
    """Measure the block."""
    times, counters = Times(), _counters()
    begun, ran, late = time.monotonic_ns(), time.thread_time_ns(), counters.runqueue()
    try:
        yield times
    finally:
        times.cpu = time.thread_time_ns() - ran
        times.runqueue = counters.runqueue() - late
        times.disk = max(0, time.monotonic_ns() - begun - times.cpu - times.runqueue)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """A span around the block, which says what its time went for."""
    with tracing.span(name) as span:
        try:
            with measured() as times:
                yield
        finally:
            span.put(times.attributes())
