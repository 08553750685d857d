"""Long work in a loop that also answers short calls: done in slices, between which the loop turns.

A thread is no help there: who computes in one holds the GIL for a millisecond whenever the loop waits for anything, and
the loop's calls wait many times. So long work stays in the loop, looks at the clock, and waits for its next turn; of
all the long work of a :class:`Lane` one slice is done in each turn of the loop, however much there is of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that can be done bit by bit: it yields where it may be interrupted, and returns its result."""

SLICE = 0.001
"""Seconds, but for the last piece of work that was begun."""


class Lane:
    """The long work of one process, one piece behind the other. ``seconds``: of a slice."""

    def __init__(self, seconds: float = SLICE) -> None:
        self._seconds = seconds
        self._waiting: deque[Callable[[], bool]] = deque()
        """Each goes on with a piece of work, and says whether there was any."""
        self._scheduled = False
        self._end: float | None = None
        """Of the slice of this turn, on the clock; None as long as there is none."""

    def slice(self) -> Slice:
        """A piece of work begins. Its first slice is now, or what is left of this turn's if others have begun, too:
        a client may send ten at once.
        """
        return Slice(self, self.end())

    def end(self) -> float:
        """When it is time to let others do something."""
        if self._end is None:
            self._end = time.perf_counter() + self._seconds
            asyncio.get_running_loop().call_soon(self._turned)
        return self._end

    def _turned(self) -> None:
        self._end = None

    async def through(self, steps: Steps[T]) -> T:
        """Do work, one slice in a turn of the loop."""
        piece = self.slice()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if piece.over():
                await piece.next()

    async def turn(self) -> None:
        """Wait for the next turn of the loop that is nobody else's."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go_on() -> bool:
            if waiter.done():  # its caller was cancelled
                return False
            waiter.set_result(None)
            return True

        self._queue(go_on)
        await waiter

    def later(self, work: Callable[[], None]) -> None:
        """Have ``work`` done in that turn: for what is no coroutine. It is to look at :meth:`end` now and then."""

        def go_on() -> bool:
            work()
            return True

        self._queue(go_on)

    def _queue(self, go_on: Callable[[], bool]) -> None:
        self._waiting.append(go_on)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._scheduled = False
        try:
            while self._waiting:
                if self._waiting.popleft()():
                    break
        finally:
            self._schedule()


class Slice:
    """One piece of long work, whose loop asks now and then ``if piece.over(): await piece.next()``."""

    __slots__ = ("_end", "_lane")

    def __init__(self, lane: Lane, end: float) -> None:
        self._lane = lane
        self._end = end

    def over(self) -> bool:
        """Whether it is time to let others do something."""
        return time.perf_counter() >= self._end

    async def next(self) -> None:
        """Let them; go on with a new slice."""
        await self._lane.turn()
        self._end = self._lane.end()


_lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = WeakKeyDictionary()


def lane() -> Lane:
    """That of this loop, for work of no service's own: what connections bring."""
    loop = asyncio.get_running_loop()
    found = _lanes.get(loop)
    if found is None:
        found = _lanes[loop] = Lane()
    return found


def at_once(steps: Steps[T]) -> T:
    """Do work without letting others do anything meanwhile."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
