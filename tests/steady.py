"""A clock for tests that stops while the machine stops.

A virtual machine may stop for seconds, with everything that runs on it. Then a timeout of half a second expires though
nothing had time to happen, and a test that says "at once" or "not before" fails although the code is right. This clock
is installed in place of ``time.monotonic``, which our code, asyncio's timers and the tests' own measurements use. It
leaves those seconds out: time that something waits or works still counts, time in which nothing could run does not.

A thread wakes every 20 ms and reads the clock. If nothing has read the clock for longer than 0.1 s, not even that
thread, then no thread of this process could run, and the rest does not count. Other processes, and waits in the kernel
(sockets' own timeouts, locks), use the machine's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TICK = 0.02
LONGEST = 0.1
"""The longest interval between two reads that counts in full, in seconds."""


class SteadyClock:
    """``monotonic`` of ``real``, without the part of each interval between two reads that exceeds LONGEST."""

    def __init__(self, real: Callable[[], float]) -> None:
        self._real = real
        self._seen = real()
        self._left_out = 0.0
        self._lock = threading.RLock()  # reentrant: a signal handler may read while its own thread does

    def monotonic(self) -> float:
        """Seconds that this process could have used, since some moment."""
        with self._lock:
            now = self._real()
            self._left_out += max(0.0, now - self._seen - LONGEST)
            self._seen = now
            return now - self._left_out

    def left_out(self) -> float:
        """Seconds that it has left out so far."""
        self.monotonic()
        return self._left_out


def left_out() -> float:
    """Seconds that this process's clock has left out so far: another clock is that much ahead."""
    return 0.0 if _installed is None else _installed.left_out()


_installed: SteadyClock | None = None


def install() -> None:
    """Make ``time.monotonic`` steady in this process."""
    global _installed
    clock = _installed = SteadyClock(time.monotonic)

    def look() -> None:
        while True:
            time.sleep(TICK)
            clock.monotonic()

    threading.Thread(target=look, name="steady clock", daemon=True).start()
    time.monotonic = clock.monotonic
