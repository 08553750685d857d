"""Locks by key."""

from __future__ import annotations

import asyncio

from services.images.concurrency.keyed_locks import KeyedLocks


async def test_one_turn_at_a_time_for_each_key() -> None:
    """Other keys do not wait, and unused locks are dropped."""
    locks, order = KeyedLocks(), list[str]()

    async def take(key: str) -> None:
        async with locks.held(key):
            order.append(f"{key}+")
            await asyncio.sleep(0)
            order.append(f"{key}-")

    await asyncio.gather(take("a"), take("a"), take("b"))
    assert [each for each in order if each[0] == "a"] == ["a+", "a-", "a+", "a-"]
    assert order.index("b+") < order.index("a-")
    assert not locks._locks
