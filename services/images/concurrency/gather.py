"""Several things done at once, as one: the first failure ends the others, and is the whole's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from services.kit import loops

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of ``work`` at once. When one fails, or the caller is cancelled, the others are cancelled; it returns
    when none is left running.
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
    """Do ``work`` for all of ``things``, for ``most`` of them at once; otherwise as :func:`together`."""
    left = iter(things)

    async def some() -> None:
        for thing in left:
            await work(thing)

    await together(some() for _ in range(min(most, len(things))))


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _forget(tasks: list[asyncio.Task[None]]) -> None:
    """The first failure was the reason; the others are seen.

    Its traceback holds the frame of :func:`together`. If that frame held the tasks, it would hold the failure, and the
    documents that this is about, until the garbage collector looks for cycles.
    """
    while tasks:
        task = tasks.pop()
        if not task.cancelled():
            task.exception()
