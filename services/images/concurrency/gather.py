"""Several coroutines as one: the first failure cancels the others and is the result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from services.kit import loops

T = TypeVar("T")


async def run_all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of ``work`` at once. If one fails, or the caller is cancelled, the others are cancelled. Returns when
    none is running any more.
    """
    tasks = [loops.task("one of several", each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        _cancel(tasks)
        if tasks:
            await asyncio.wait(tasks)
        _forget(tasks)


async def for_each(things: Sequence[T], work: Callable[[T], Coroutine[Any, Any, None]], most: int) -> None:
    """Run ``work`` for all ``things``, at most ``most`` at a time; otherwise as :func:`run_all`."""
    left = iter(things)

    async def some() -> None:
        for thing in left:
            await work(thing)

    await run_all(some() for _ in range(min(most, len(things))))


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _forget(tasks: list[asyncio.Task[None]]) -> None:
    """Retrieve the exceptions of the others; the first failure was raised.

    Its traceback refers to the frame of :func:`run_all`. If that frame kept the tasks, it would keep the failure, and
    the documents involved, until the garbage collector looks for cycles.
    """
    while tasks:
        task = tasks.pop()
        if not task.cancelled():
            task.exception()
