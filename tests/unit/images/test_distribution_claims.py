"""How much a node claims at once."""

from __future__ import annotations

import asyncio

from services.images.distribution.claims import Claims


class Blob:
    """A blob of which ``left`` bytes are still to come."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> int:
        return self.left


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_who_has_enough_leaves_the_next_blob_to_others() -> None:
    """Until little is left of what it has; then blobs have their turns in their order."""
    claims = Claims(100, alone=1e9, still=1e9)
    first, second, third = Blob(60), Blob(60), Blob(60)
    assert claims.take("host", first, first)
    assert claims.take("host", second, second)
    assert not claims.take("host", third, third)
    fourth = Blob(1)
    assert not claims.take("host", fourth, fourth)
    second.left = 30
    assert not claims.take("host", fourth, fourth)
    assert claims.take("host", third, third)
    claims.drop("host", first)
    assert claims.take("host", fourth, fourth)


async def test_registries_have_nothing_to_do_with_each_other() -> None:
    """Of another one blobs are claimed all the same. What is fetched or given up leaves nothing behind."""
    claims = Claims(100, alone=1e9, still=1e9)
    one, other, waiting = Blob(200), Blob(200), Blob(1)
    assert claims.take("one", one, one)
    assert claims.take("other", other, other)
    assert not claims.take("one", waiting, waiting)
    for host, blob in (("one", one), ("one", waiting), ("other", other), ("other", other)):
        claims.drop(host, blob)
    assert not claims._registries


async def test_who_is_alone_waits_for_nobody() -> None:
    """It claims all that it wants after a while; but not if another node has claimed a blob meanwhile."""
    for others in (False, True):
        clock = Clock()
        claims = Claims(100, alone=1.0, still=1e9, clock=clock)
        blobs = [Blob(200) for _ in range(4)]
        assert claims.take("host", blobs[0], blobs[0])
        assert not claims.take("host", blobs[1], blobs[1])
        claims.drop("host", blobs[3], others=others)
        clock.now += 1.1
        assert claims.take("host", blobs[1], blobs[1]) is not others
        assert claims.take("host", blobs[2], blobs[2]) is not others


async def test_a_registry_that_gives_nothing_holds_up_nobody() -> None:
    """While its bytes come, blobs wait; else one more is claimed each time."""
    clock = Clock()
    claims = Claims(100, alone=1e9, still=1.0, clock=clock)
    silent, second, third = Blob(1000), Blob(1000), Blob(1000)
    assert claims.take("host", silent, silent)
    for _ in range(5):
        clock.now += 0.9
        silent.left -= 1
        assert not claims.take("host", second, second)
    clock.now += 1.1
    assert claims.take("host", second, second)
    assert not claims.take("host", third, third)


async def test_who_waits_hears_of_a_change() -> None:
    """Or looks by itself after a while. A claim that the node has already counts at once."""
    claims = Claims(100, alone=1e9, still=1e9)
    first, second = Blob(200), Blob(200)
    assert claims.take("host", first, first)
    assert claims.take("host", second, second, must=True)
    await claims.changed("host", 0.001)
    waiting = asyncio.ensure_future(claims.changed("host", 60))
    await asyncio.wait((waiting,), timeout=0.001)
    assert not waiting.done()
    claims.drop("host", first)
    await asyncio.wait_for(waiting, 15)
