"""Limits the bytes that this node sends to its peers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

AHEAD = 0.05
"""Seconds that sending may be ahead of the limit: timers are no more exact than that."""


class UploadLimit:
    """``rate`` bytes a second for all readers together; 0: no limit. Who wants to send first may send first."""

    def __init__(
        self,
        rate: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free = float("-inf")
        """When everything that was asked for will have been sent."""

    @property
    def piece(self) -> int:
        """Bytes to send at once: less than a tenth of a second's, so that all readers go on."""
        return max(4 << 10, min(_PIECE, int(self._rate / 16))) if self._rate else _PIECE

    @property
    def backlog(self) -> float:
        """Seconds until further bytes may be sent."""
        return max(0.0, self._free - self._clock()) if self._rate else 0.0

    async def take(self, size: int) -> None:
        """Wait until ``size`` bytes may be sent."""
        if not self._rate:
            return
        now = self._clock()
        self._free = max(self._free, now - AHEAD) + size / self._rate
        if self._free > now:
            await self._sleep(self._free - now)


_PIECE = 256 << 10
