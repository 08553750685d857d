"""The locks of refs: the next writer and one that is leaving."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.content.locks import RefLocks
from services.kit import errors


async def test_the_next_writer_waits_for_one_that_leaves() -> None:
    """A containerd above this store may open a writer before the stream of the last one has ended."""
    locks = RefLocks()
    locks.take("a")
    waiting = asyncio.ensure_future(locks.take_next("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    locks.free("a")
    await waiting
    leaving = threading.Timer(0.01, locks.free, ["a"])
    leaving.start()
    with locks.taking("a"):
        leaving.join()


async def test_a_writer_that_stays() -> None:
    """The next one is refused all the same, and an empty ref at once."""
    locks = RefLocks()
    locks.take("a")
    with pytest.raises(errors.Unavailable, match="^ref a locked for "):
        await locks.take_next("a")
    with pytest.raises(errors.Unavailable, match="^ref a locked for "), locks.taking("a"):
        pass
    with pytest.raises(errors.InvalidArgument):
        await locks.take_next("")
