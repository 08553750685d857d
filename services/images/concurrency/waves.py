"""Calls that go in waves: those that come while some waves are under way go together as the next. So they gather for as
long as the other side needs for a wave, and no call waits if there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

AT_ONCE = 2
"""Waves that may be under way: while one waits for the disk, the other has the processors."""


class Waves:
    """The waves of one caller. All members of a wave begin in the same turn of the loop (``kit.many``)."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = at_once
        self._next: list[asyncio.Future[_Wave]] = []

    @contextlib.asynccontextmanager
    async def member(self) -> AsyncIterator[None]:
        """The block is a member of a wave that begins now, or of the next."""
        wave = self._begun() if self._free else await self._waited()
        try:
            yield
        finally:
            self._leave(wave)

    def _begun(self) -> _Wave:
        self._free -= 1
        return _Wave(1)

    async def _waited(self) -> _Wave:
        turn: asyncio.Future[_Wave] = asyncio.get_running_loop().create_future()
        self._next.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the wave counts on it
                self._leave(turn.result())
            raise

    def _leave(self, wave: _Wave) -> None:
        wave.left -= 1
        if wave.left:
            return
        waiting, self._next = self._next, []
        members = [turn for turn in waiting if not turn.done()]
        if not members:
            self._free += 1
            return
        wave = _Wave(len(members))
        for turn in members:
            turn.set_result(wave)


class _Wave:
    """A wave, of which so many members are ``left``."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left
