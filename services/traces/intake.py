"""The queue before the store: spans are taken in at once, and written a moment later, many together.

The queue is bounded in bytes. Beyond the bound, the sender that has most in it loses what it sent last: so one that
sends without end loses spans, and the others do not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from services.kit import loops
from services.traces import convert
from services.traces.store import Figures, Piece, Query, Span, Summary, Tidied, Trace

log = logging.getLogger(__name__)

GATHER = 0.5
"""Seconds for which spans gather before they are written."""
TOGETHER = 1 << 20
"""Bytes of pieces that are written in one transaction; the last ones may exceed it."""
PATIENCE = 20.0
"""Seconds for which a question waits until all that came before it is written. On a slow disk that takes a while just
when somebody asks why.
"""
ENDING = 2.0
"""The same for the end of the process."""
TIDY = 6.0
"""Seconds from the writing of spans to the next tidying."""
SELDOM = 600.0
"""Seconds from one tidying to the next if no spans come."""


@dataclass(slots=True)
class _Waiting:
    """What one sender has in the queue."""

    pieces: deque[Piece] = field(default_factory=deque)
    size: int = 0


def _size(piece: Piece) -> int:
    """The bytes of memory that a piece takes, about."""
    return len(piece.data) + 1000 + 150 * len(piece.spans)


class Intake:
    """A ``Store`` that takes in at once, with the queue before another store. A question is answered with what came
    before it.
    """

    def __init__(self, store: Tidied, most: int, *, gather: float = GATHER, tidy: float = TIDY) -> None:
        self._store = store
        self._most = most
        self._gather = gather
        self._pause = tidy
        self._senders: dict[str, _Waiting] = {}
        self._size = 0
        self._dropped = 0
        self._told = 0
        self._arrived = asyncio.Event()
        self._wrote = asyncio.Event()
        self._tasks = loops.Tasks()
        self._draining: asyncio.Task[None] | None = None

    def offer(self, sender: str, piece: Piece) -> int:
        """Take in what ``sender`` sent. The result is how many of these spans are dropped at once."""
        waiting = self._senders.setdefault(sender, _Waiting())
        waiting.pieces.append(piece)
        waiting.size += _size(piece)
        self._size += _size(piece)
        refused = 0
        while self._size > self._most:
            name, loser = max(self._senders.items(), key=lambda each: each[1].size)
            lost = loser.pieces.pop()
            loser.size -= _size(lost)
            self._size -= _size(lost)
            if not loser.pieces:
                del self._senders[name]
            self._dropped += len(lost.spans)
            refused += len(lost.spans) * (lost is piece)
        self._arrived.set()
        return refused

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write and tidy while the block lasts; at its end, write what is left."""
        async with loops.running("the writing of spans", self.write), loops.running("the tidying of traces", self.tidy):
            yield
        await self.written(ENDING)
        await self._tasks.wait(ENDING)

    async def write(self) -> None:
        """Write what has gathered, again and again."""
        while True:
            if not self._size:
                self._arrived.clear()
                await self._arrived.wait()
            await asyncio.sleep(self._gather if self._size < TOGETHER else 0)
            await self.written()
            if self._dropped > self._told:
                log.warning("%d spans were dropped: they came faster than they could be written", self._dropped)
                self._told = 2 * self._dropped

    async def tidy(self) -> None:
        """Let the store tidy up, a while after spans came, and now and then."""
        while True:
            try:
                async with asyncio.timeout(SELDOM):
                    await self._wrote.wait()
                await asyncio.sleep(self._pause)
            except TimeoutError:
                pass  # nothing came: traces still grow old
            self._wrote.clear()
            try:
                await self._store.tidy()
            except BaseException:
                self._wrote.set()
                raise

    async def written(self, seconds: float | None = None) -> None:
        """Wait until all that is in the queue now is written, but not longer than ``seconds``, or ``PATIENCE``."""
        if self._draining is None or self._draining.done():
            if not self._size:
                return
            self._draining = self._tasks.start("a write of spans", self._drain())
        await asyncio.wait((self._draining,), timeout=PATIENCE if seconds is None else seconds)

    async def _drain(self) -> None:
        """Write until the queue is empty."""
        while pieces := [*self._next()]:
            try:
                await self._store.take(pieces)
            except BaseException:
                self._dropped += sum(len(piece.spans) for piece in pieces)
                raise
            self._wrote.set()

    def _next(self) -> Iterator[Piece]:
        """The oldest pieces, of all senders in turn."""
        size = 0
        while self._senders and size < TOGETHER:
            for sender, waiting in [*self._senders.items()]:
                if not waiting.pieces:
                    del self._senders[sender]
                    continue
                piece = waiting.pieces.popleft()
                waiting.size -= _size(piece)
                self._size -= _size(piece)
                size += _size(piece)
                yield piece

    # ---------------------------------------------------------------- the store

    async def add(self, spans: Sequence[Span]) -> None:
        await self.take([*convert.pieces(convert.spans_to_pb(spans).resource_spans)])

    async def take(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self.offer("", piece)

    async def traces(self, query: Query) -> list[Summary]:
        await self.written()
        return await self._store.traces(query)

    async def trace(self, prefix: str) -> Trace:
        await self.written()
        return await self._store.trace(prefix)

    async def encoded(self, prefix: str) -> Sequence[bytes]:
        await self.written()
        return await self._store.encoded(prefix)

    async def delete(self, trace: str) -> None:
        await self.written()
        await self._store.delete(trace)

    async def figures(self) -> Figures:
        await self.written()
        found = await self._store.figures()
        return Figures(found.traces, found.spans, found.bytes, found.oldest, found.dropped + self._dropped)
