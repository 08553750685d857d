"""Many deadlines with one timer. Nearly all deadlines are cancelled before they pass, and a timer of the event loop for
each would cost more than the call that it bounds.

They pass up to :data:`TICK` late. A deadline of less than a second must be more exact, and has a timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

log = logging.getLogger(__name__)

TICK = 0.05
_EXACT = 1.0


class Bounded(Protocol):
    """An object with a deadline."""

    def expire(self) -> None:
        """The deadline has passed."""
        ...


class Deadlines:
    """The deadlines of one server or channel."""

    __slots__ = ("_due", "_exact", "_timer", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._due: dict[Bounded, float] = {}
        self._exact: dict[Bounded, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: Bounded, seconds: float) -> None:
        """Call ``item.expire()`` in ``seconds``."""
        if seconds < _EXACT:
            self._exact[item] = self.loop.call_later(seconds, self._pass, item)
            return
        self._due[item] = self.loop.time() + seconds
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)

    def discard(self, item: Bounded) -> None:
        """Cancel the deadline of ``item``."""
        if self._due.pop(item, None) is None and self._exact:
            timer = self._exact.pop(item, None)
            if timer is not None:
                timer.cancel()

    def _pass(self, item: Bounded) -> None:
        del self._exact[item]
        item.expire()

    def _tick(self) -> None:
        now = self.loop.time()
        for item in [item for item, when in self._due.items() if when <= now]:
            if self._due.pop(item, None) is not None:  # one may end another
                try:
                    item.expire()
                except Exception:
                    log.exception("a deadline could not be handled")
        self._timer = self.loop.call_later(TICK, self._tick) if self._due else None
