"""The queue before the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from services.traces import convert, intake
from services.traces.intake import Intake
from services.traces.memory import MemoryStore
from services.traces.store import Piece, Query, Span
from tests.suites.traces import TracesSuite, span


@pytest.fixture
async def store() -> AsyncIterator[Intake]:
    queue = Intake(MemoryStore(), 1 << 20)
    async with queue.running():
        yield queue


class TestQueued(TracesSuite):
    """The suite on a store behind the queue."""


class SlowStore(MemoryStore):
    """A store on a disk that does not answer until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.works = asyncio.Event()
        self.failing = 0

    async def take(self, pieces: Sequence[Piece]) -> None:
        await self.works.wait()
        if self.failing:
            self.failing -= 1
            raise OSError("the disk is gone")
        await super().take(pieces)


def piece(*spans: Span) -> Piece:
    [made] = convert.pieces(convert.spans_to_pb(spans).resource_spans)
    return made


async def test_a_flood_costs_only_its_sender() -> None:
    """What it sent last is dropped, and counted; the others lose nothing."""
    store = SlowStore()
    queue = Intake(store, 400_000)
    flood = [span(attributes={"x": "y" * 1000}) for _ in range(1000)]
    honest = [span() for _ in range(100)]
    refused = 0
    for number, each in enumerate(flood):
        refused += queue.offer("flood", piece(each))
        if number % 10 == 0:
            assert queue.offer(f"honest {number % 3}", piece(honest[number // 10])) == 0
    async with queue.running():
        store.works.set()
        there = {each.id for each in await queue.traces(Query(limit=10_000))}
    assert {each.trace for each in honest} <= there
    assert flood[0].trace in there
    figures = await queue.figures()
    assert figures.traces + figures.dropped == 1100
    assert figures.dropped >= refused > 800


async def test_taking_in_does_not_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question does, for a moment, and is then answered with what is there."""
    monkeypatch.setattr(intake, "PATIENCE", 0.05)
    store = SlowStore()
    queue = Intake(store, 1 << 20)
    async with queue.running():
        one, other = span(), span()
        assert queue.offer("a", piece(one)) == 0
        assert await queue.traces(Query()) == []
        assert queue.offer("a", piece(other)) == 0
        store.works.set()
        await queue.written()
        assert {each.id for each in await queue.traces(Query())} == {one.trace, other.trace}


async def test_spans_that_cannot_be_written_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The next ones are written."""
    store = SlowStore()
    store.works.set()
    store.failing = 1
    queue = Intake(store, 1 << 20)
    queue.offer("a", piece(span()))
    await queue.written()
    after = span()
    queue.offer("a", piece(after))
    assert [each.id for each in await queue.traces(Query())] == [after.trace]
    assert (await queue.figures()).dropped == 1
    assert "the disk is gone" in caplog.text


async def test_what_waits_is_written_at_the_end() -> None:
    """A process that is told to stop loses nothing."""
    store = MemoryStore()
    queue = Intake(store, 1 << 20)
    async with queue.running():
        queue.offer("a", piece(span()))
    assert (await store.figures()).spans == 1
