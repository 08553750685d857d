"""Long work in a loop that also answers short calls. It is done in slices, between which the loop turns.

A thread does not help: a thread that computes holds the GIL for a millisecond whenever the loop waits for anything, and
the loop's calls wait many times. So long work stays in the loop, looks at the clock, and waits for its next turn. Of
all the long work of a :class:`Lane`, one slice is done in each turn of the loop, however much work there is.

A call needs several turns: from its request's arrival to its work, and from the end of its work to its answer. Work
that nobody waits for should let them pass (:func:`others`), else each of these turns has a slice, and a call waits for
all of them.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in steps: it yields where it may be interrupted, and returns its result."""

SLICE = 0.001
"""Seconds of a slice; the last step that was begun may exceed it."""


TURNS = 5
"""Turns of the loop between the end of a call's work, as the thread of a commit reports it, and the call's answer. A
turn of a loop that has nothing to do takes some microseconds.
"""


async def others(turns: int = TURNS) -> None:
    """Let the calls whose work is done be answered."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Lane:
    """The long work of one process, one piece after the other. ``seconds`` is the length of a slice; between two slices
    ``apart`` turns of the loop have none.
    """

    def __init__(self, seconds: float = SLICE, *, apart: int = 0) -> None:
        self._seconds = seconds
        self._apart = apart
        self._waiting: deque[Callable[[], bool]] = deque()
        """Each continues a piece of work, and returns whether there was any."""
        self._scheduled = False
        self._end: float | None = None
        """The end of this turn's slice, on the clock; None while there is none."""

    def slice(self) -> Slice:
        """Begin a piece of work. Its first slice is now, or the rest of this turn's slice if other work has begun, too:
        a client may send ten at once.
        """
        return Slice(self, self.end())

    def end(self) -> float:
        """The time at which other work should get its turn."""
        if self._end is None:
            self._end = time.perf_counter() + self._seconds
            asyncio.get_running_loop().call_soon(self._turned)
        return self._end

    def _turned(self) -> None:
        self._end = None

    async def through(self, steps: Steps[T]) -> T:
        """Do work, one slice in each turn of the loop."""
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
        """Wait for the next turn of the loop that no other work has."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go_on() -> bool:
            if waiter.done():  # its caller was cancelled
                return False
            waiter.set_result(None)
            return True

        self._queue(go_on)
        await waiter

    def later(self, work: Callable[[], None]) -> None:
        """Do ``work`` in that turn, for code that is no coroutine. It should look at :meth:`end` now and then."""

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
            asyncio.get_running_loop().call_soon(self._next, self._apart)

    def _next(self, apart: int) -> None:
        if apart:
            asyncio.get_running_loop().call_soon(self._next, apart - 1)
            return
        self._scheduled = False
        try:
            while self._waiting:
                if self._waiting.popleft()():
                    break
        finally:
            self._schedule()


class Slice:
    """One piece of long work. Its loop asks now and then ``if piece.over(): await piece.next()``."""

    __slots__ = ("_end", "_lane")

    def __init__(self, lane: Lane, end: float) -> None:
        self._lane = lane
        self._end = end

    def over(self) -> bool:
        """Whether other work should get its turn."""
        return time.perf_counter() >= self._end

    async def next(self) -> None:
        """Let other work have its turn, then begin a new slice."""
        await self._lane.turn()
        self._end = self._lane.end()


_lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = WeakKeyDictionary()


def lane() -> Lane:
    """The lane of this loop, for work that belongs to no service: what connections bring."""
    loop = asyncio.get_running_loop()
    found = _lanes.get(loop)
    if found is None:
        found = _lanes[loop] = Lane()
    return found


_RUN = 2048
"""Things that are sorted without a pause: less than a millisecond."""


def sorting(things: Sequence[T], key: Callable[[T], Any], step: int) -> Steps[Sequence[T]]:
    """``sorted``, in steps of at most ``step`` things, apart from runs of :data:`_RUN`."""
    runs: list[list[T]] = []
    for start in range(0, len(things), _RUN):
        runs.append(sorted(things[start : start + _RUN], key=key))
        yield
    if len(runs) < 2:
        return runs[0] if runs else ()
    order: list[T] = []
    for number, thing in enumerate(heapq.merge(*runs, key=key)):
        order.append(thing)
        if not number % step:
            yield
    return order


def at_once(steps: Steps[T]) -> T:
    """Do all the work at once, without a turn for others."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
