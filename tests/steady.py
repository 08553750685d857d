"""A clock for tests that stands still while the machine does.

A virtual machine may stop for seconds, with all that runs on it. Then a timeout of half a second is over though nothing
had the time to happen, and a test that says "at once" or "not before" is wrong about code that is right. Installed in
the place of ``time.monotonic``, which our code, asyncio's timers and the tests' own measurements all ask, this clock
leaves those seconds out: what takes long because somebody waits or works still takes long on it, what takes long
because nobody ran does not.

It knows by a thread that wakes every 20 ms: if nobody has looked at the clock for longer than 0.1 s, not even that
thread, then no thread of this process could run, and the rest does not count. Other processes, and what the kernel
waits for (sockets' own timeouts, locks), have the machine's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TICK = 0.02
LONGEST = 0.1
"""Seconds between two looks that count in full."""


class SteadyClock:
    """``monotonic`` of ``real``, less what was more than LONGEST between any two looks at it."""

    def __init__(self, real: Callable[[], float]) -> None:
        self._real = real
        self._seen = real()
        self._left_out = 0.0
        self._lock = threading.RLock()  # a signal's handler may look while its own thread does

    def monotonic(self) -> float:
        """Seconds that this process could have used, since some moment."""
        with self._lock:
            now = self._real()
            self._left_out += max(0.0, now - self._seen - LONGEST)
            self._seen = now
            return now - self._left_out


def install() -> None:
    """From now on ``time.monotonic`` is steady in this process."""
    clock = SteadyClock(time.monotonic)

    def look() -> None:
        while True:
            time.sleep(TICK)
            clock.monotonic()

    threading.Thread(target=look, name="steady clock", daemon=True).start()
    time.monotonic = clock.monotonic
