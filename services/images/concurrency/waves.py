"""Calls that go in waves: those that come while some waves are under way go together as the next. So they gather for as
long as the other side needs for a wave, and no call waits if there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.images import waits
from services.kit import tracing

AT_ONCE = 2
"""Waves that may be under way: while one waits for the disk, the other has the processors."""


class Waves:
    """The waves of one caller. All members of a wave begin in the same turn of the loop (``kit.many``).

    ``name`` is that of a member's span, and ``what`` says for what those wait that link to it.
    """

    def __init__(self, name: str, what: str, at_once: int = AT_ONCE) -> None:
        self._name, self._what = name, what
        self._at_once = at_once
        self._under_way: list[_Wave] = []
        self._next: list[asyncio.Future[_Wave]] = []

    @contextlib.asynccontextmanager
    async def member(self) -> AsyncIterator[None]:
        """The block is a member of a wave that begins now, or of the next."""
        wave = self._begun() if len(self._under_way) < self._at_once else await self._waited()
        try:
            # a span of its own to link to: that of the caller may be one of those that wait
            with tracing.span(self._name) as span:
                wave.first = wave.first or span.ref()
                yield
        finally:
            self._leave(wave)

    def _begun(self, left: int = 1) -> _Wave:
        wave = _Wave(left)
        self._under_way.append(wave)
        return wave

    async def _waited(self) -> _Wave:
        turn: asyncio.Future[_Wave] = asyncio.get_running_loop().create_future()
        self._next.append(turn)
        held_up = self._under_way[0].first
        with (
            waits.noted(waits.LOCK, f"waiting for {self._what}"),
            tracing.wait("lock", held_up, **{"splitd.wait.for": self._what}) as waiting,
        ):
            try:
                wave = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the wave counts on it
                    self._leave(turn.result())
                raise
            if wave.before != held_up:
                waiting.link(wave.before)
        return wave

    def _leave(self, wave: _Wave) -> None:
        wave.left -= 1
        if wave.left:
            return
        self._under_way.remove(wave)
        waiting, self._next = self._next, []
        members = [turn for turn in waiting if not turn.done()]
        if not members:
            return
        following = self._begun(len(members))
        following.before = wave.first
        for turn in members:
            turn.set_result(following)


class _Wave:
    """A wave, of which so many members are ``left``; the span of the ``first`` of them that began, and that of the wave
    ``before``, which gave way to it.
    """

    __slots__ = ("before", "first", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.first = self.before = ""
