"""Locks by key."""

from __future__ import annotations

import asyncio

from services.images.concurrency.keyed_locks import KeyedLocks
from services.kit import tracing
from tests.spans import attribute, recorded
from tests.support import turns


async def test_one_turn_at_a_time_for_each_key() -> None:
    """Other keys do not wait, and unused locks are dropped."""
    locks, order = KeyedLocks("the lock"), list[str]()

    async def take(key: str) -> None:
        async with locks.held(key):
            order.append(f"{key}+")
            await asyncio.sleep(0)
            order.append(f"{key}-")

    await asyncio.gather(take("a"), take("a"), take("b"))
    assert [each for each in order if each[0] == "a"] == ["a+", "a-", "a+", "a-"]
    assert order.index("b+") < order.index("a-")
    assert not locks._locks


async def test_a_wait_names_who_has_the_lock() -> None:
    """The third of three callers links to the one that had the lock when it came, and to the one before it. A lock that
    is free makes no span.
    """
    locks, go = KeyedLocks("the fetch of the same blob"), asyncio.Event()

    async def take(name: str) -> None:
        with tracing.span(name):
            async with locks.held("a"):
                await go.wait()

    with recorded() as spans:
        tasks = []
        for name in ("first", "second", "third"):
            tasks.append(asyncio.ensure_future(take(name)))
            await turns()
        go.set()
        await asyncio.gather(*tasks)
        second, third = spans.named("wait.lock")
        assert attribute(second, "splitd.wait.for") == "the fetch of the same blob"
        assert [spans.parent(each).name for each in (second, third)] == ["second", "third"]
        assert [each.name for each in spans.linked(second)] == ["first"]
        assert [each.name for each in spans.linked(third)] == ["first", "second"]
