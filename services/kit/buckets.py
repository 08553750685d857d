"""Token buckets limit how much of something may happen at once, and in the long run."""

from __future__ import annotations

import time


class Bucket:
    """A token bucket: ``burst`` tokens, and ``rate`` more each second. Tokens that are given may fill it beyond the
    burst, up to ``most``.
    """

    __slots__ = ("_at", "_burst", "_most", "_rate", "_tokens")

    def __init__(self, burst: float, rate: float, most: float = 0.0) -> None:
        self._burst = burst
        self._most = max(burst, most)
        self._rate = rate
        self._tokens = burst
        self._at = time.monotonic()

    def take(self) -> bool:
        """Take one token; False if there is none."""
        now = time.monotonic()
        if self._tokens < self._burst:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give(self, count: int) -> None:
        """Add so many tokens."""
        self._tokens = min(self._most, self._tokens + count)

    def pass_over(self, seconds: float) -> None:
        """Do not count so many seconds: no tokens are added for them."""
        self._at += seconds
