"""How long a write waits for an etcd that does not answer: its members may be electing a leader, for 1 to 2 s.

The time counts from etcd's last sign of life. So writes wait once, and not each of them, and an etcd that has been away
for longer makes them fail at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.kit import errors
from services.metadata.etcd_mirror import now

T = TypeVar("T")

PATIENCE = 5.0
ATTEMPTS = 4
"""How many calls may hang during this time."""
_PAUSE = 0.1
"""Seconds between attempts."""


class Patience:
    """``seconds`` in all, and seconds for each ``attempt``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.attempt = seconds / ATTEMPTS
        self._failing: tuple[float, float] | None = None
        """When calls began to fail, and when one did so last."""

    def worked(self) -> None:
        """A call has been answered."""
        self._failing = None

    def end(self, away: float | None) -> float:
        """When a write that begins now gives up; ``away``: since when etcd is (:func:`etcd_mirror.now`)."""
        since = min(self._since(), away or now())
        return since + self.seconds

    def _since(self) -> float:
        """Since when calls have failed: now, if the last failure was long ago."""
        return self._failing[0] if self._failing is not None and now() < self._failing[1] + self.seconds else now()

    async def failed(self, end: float, error: Exception) -> None:
        """A call has failed that may be made again: wait for a moment, or raise its error if the time is over."""
        self._failing = self._since(), now()
        if now() >= end:
            raise error
        await asyncio.sleep(min(_PAUSE, self.attempt))

    async def asked(self, ask: Callable[[float], Awaitable[T]], end: float) -> T:
        """The answer to what may be asked twice. It is given the seconds of an attempt."""
        while True:
            try:
                return await ask(self.attempt)
            except errors.Unavailable as error:
                await self.failed(end, error)
