"""The numbers of connections, layers and uploads at once, and the order in which they start."""

from __future__ import annotations

import asyncio

from services.images.concurrency.budget import Budget, Gate
from services.kit import tracing
from tests.spans import attribute, recorded
from tests.support import turns


async def test_the_lowest_layer_goes_first() -> None:
    """Of two equal layers the one that came first goes first."""
    gate, order = Gate(1, "places"), list[str]()

    async def enter(name: str, rank: int) -> None:
        async with gate.entered(rank):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(enter("first", 9), enter("high", 5), enter("low", 0), enter("low too", 0), enter("middle", 3))
    assert order == ["first", "low", "low too", "middle", "high"]


async def test_a_cancelled_waiter_does_not_lose_a_place() -> None:
    """It may be cancelled while it waits, or in the moment in which it is given the place."""
    gate = Gate(1, "places")
    entered = asyncio.Event()

    async def wait() -> None:
        async with gate.entered(0):
            entered.set()

    async with gate.entered(0):
        early, given, last = (asyncio.ensure_future(wait()) for _ in range(3))
        await turns()
        early.cancel()
        await turns()
    given.cancel()  # the place is its, and it has not run yet
    await last
    assert entered.is_set()
    assert given.cancelled()
    async with asyncio.timeout(10), gate.entered(0):
        pass


async def test_places_are_added_for_those_that_wait() -> None:
    """The others are free."""
    gate, leave = Gate(1, "places"), asyncio.Event()
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with gate.entered(0):
            inside += 1
            await leave.wait()

    entering = [asyncio.ensure_future(enter()) for _ in range(3)]
    await turns()
    assert inside == 1
    gate.widen(3)
    await turns()
    assert inside == 3
    async with asyncio.timeout(10), gate.entered(0):
        pass
    leave.set()
    await asyncio.gather(*entering)


async def test_documents_pass_beside_layers() -> None:
    """They do so as long as there are free connections."""
    budget = Budget(connections=2, layers=1)
    async with budget.layer(0), budget.connection(0), asyncio.timeout(10), budget.document():
        pass


async def test_a_wait_names_the_places_and_who_had_them() -> None:
    """It links to the span that had its place for longest when the wait began, and to the one that gave way. A free
    place makes no span.
    """
    gate, give_way = Gate(2, "workers"), asyncio.Event()

    async def hold(name: str, until: asyncio.Event) -> None:
        with tracing.span(name):
            async with gate.entered(0):
                await until.wait()

    with recorded() as spans:
        stay = asyncio.Event()
        holders = [asyncio.ensure_future(hold("long", stay)), asyncio.ensure_future(hold("short", give_way))]
        await turns()
        assert not spans.named("wait.budget")
        waiter = asyncio.ensure_future(hold("waiter", stay))
        await turns()
        give_way.set()
        await turns()
        stay.set()
        await asyncio.gather(waiter, *holders)
        waited = spans.one("wait.budget")
        assert attribute(waited, "splitd.wait.for") == "workers"
        assert [each.name for each in spans.linked(waited)] == ["long", "short"]
        assert spans.parent(waited).name == "waiter"
