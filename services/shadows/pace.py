"""How fast copies are made: at once where the machine has time, and rarely where it has not.

The comparing process has the lowest priority, but the two services that it asks have not. So it looks how long it waits
for a processor itself: where others want all of them, it waits long, and then it rests after each copy.
"""

from __future__ import annotations

import os
import time

BUSY = 0.5
"""The share of the time without a processor from which the machine counts as busy."""
REST = 0.05
"""Seconds of rest for each copy on a busy machine."""
_EVERY = 0.1
"""Seconds from one look at the kernel's counters to the next."""


class Pace:
    """The pace of this thread."""

    def __init__(self) -> None:
        try:
            self._counters = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without them: the priority must do
            self._counters = -1
        self._looked = 0.0
        self._before = (0, 0)
        self._rest = 0.0

    def rest(self) -> float:
        """Seconds to rest before the next copy."""
        now = time.monotonic()
        if self._counters >= 0 and now - self._looked >= _EVERY:
            ran, waited = (int(each) for each in os.pread(self._counters, 64, 0).split()[:2])
            self._rest = rest_after(ran - self._before[0], waited - self._before[1]) if self._looked else 0.0
            self._looked, self._before = now, (ran, waited)
        return self._rest

    def close(self) -> None:
        if self._counters >= 0:
            os.close(self._counters)
            self._counters = -1


def rest_after(ran: int, waited: int) -> float:
    """Seconds to rest for each copy, after so many nanoseconds on a processor and without one."""
    return REST if waited > BUSY * (ran + waited) else 0.0
