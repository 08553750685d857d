"""How long to wait for something that may be alive but slow: longer, where it was slow lately. On a machine whose
processors are busy, everything takes many times as long as elsewhere, and a fixed limit would take that for a death.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

TIMES = 4.0
"""A wait of so many times the longest one lately is a sign that nothing will come."""
KEPT = 60.0
"""Seconds for which a wait counts."""


class Patience:
    """``TIMES`` the longest wait of the last ``KEPT`` seconds that ended well; at least ``least`` seconds, and at most
    ``most``.
    """

    def __init__(self, least: float, most: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._least = least
        self._most = most
        self._clock = clock
        self._waits: deque[tuple[float, float]] = deque()
        """When each ended, and how long it was; each is longer than those after it."""

    def took(self, seconds: float) -> None:
        """What was waited for came after so many seconds."""
        while self._waits and self._waits[-1][1] <= seconds:
            self._waits.pop()
        self._waits.append((self._clock(), seconds))

    @property
    def seconds(self) -> float:
        """How long to wait now."""
        while self._waits and self._waits[0][0] < self._clock() - KEPT:
            self._waits.popleft()
        longest = self._waits[0][1] if self._waits else 0.0
        return min(max(self._least, TIMES * longest), self._most)
