"""Threads for whose end a process does not wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.kit import threads


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
