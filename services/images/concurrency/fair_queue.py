"""A queue that lets callers run one at a time and in turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observing:
    """What a trace has to know of a turn. A worker program, which makes no spans, imports this file too."""

    here: Callable[[], str] = str
    """A name for whoever has the turn."""
    waiting: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext
    """Surrounds a wait for the one that has the turn, given its name."""


class FairQueue:
    """One runs at a time, and callers take turns: a caller that asks a hundred times does not delay one that asks
    once.
    """

    def __init__(self) -> None:
        self._busy = False
        self._holder = ""
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, who: Hashable, observing: Observing | None = None) -> AsyncIterator[None]:
        """Run the block when no other block runs. Requests of the same ``who`` run in their order."""
        seen = observing or Observing()
        if self._busy:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(who, deque()).append(place)
            try:
                with seen.waiting(self._holder):
                    await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # the place was given to a caller that no longer wants it
                    self._next()
                raise
        self._busy, self._holder = True, seen.here()
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            who, places = self._waiting.popitem(last=False)
            place = places.popleft()
            if places:
                self._waiting[who] = places
            if not place.done():
                place.set_result(None)
                return
        self._busy = False
