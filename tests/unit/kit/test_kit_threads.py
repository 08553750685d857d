"""Threads for whose end a process does not wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.kit import threads
from tests.support import turns


async def test_what_it_returns_and_raises() -> None:
    """They are those of the function."""
    assert await threads.apart("one", lambda: threading.current_thread().name) == "one"
    with pytest.raises(ZeroDivisionError):
        await threads.apart("two", lambda: 1 // 0)


def test_a_loop_ends_while_it_goes_on() -> None:
    """So does a process that is told to stop in the middle of a long call."""
    begun, go = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work() -> None:
        begun.set()
        ended.append(go.wait(60))

    async def main() -> None:
        waiting = asyncio.create_task(threads.apart("long", work))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(main())
    assert not ended
    go.set()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_waits_for_the_end(fails: bool) -> None:
    """However often it is cancelled, and also of work that fails."""
    begun, go = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work() -> float:
        begun.set()
        ended.append(go.wait(60))
        return 1 / (not fails)

    waiting = asyncio.create_task(threads.to_its_end(work))
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        waiting.cancel()
        await turns()
    assert not waiting.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended
    if fails:
        with pytest.raises(ZeroDivisionError):
            await threads.to_its_end(work)
    else:
        assert await threads.to_its_end(work) == 1
