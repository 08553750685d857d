"""Work of which one run serves all callers that asked before it began."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from services.kit import loops

T = TypeVar("T")


class Coalescing(Generic[T]):
    """Runs ``work`` on request, one run at a time."""

    def __init__(self, name: str, work: Callable[[], Awaitable[T]]) -> None:
        self._name = name
        self._work = work
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    def request(self) -> asyncio.Task[T]:
        """A run that begins after this call. Shield it: other callers may wait for it too. Its failure is logged, since
        perhaps nobody waits for it any more.
        """
        if self._next is None or self._next.done():  # a run may have failed before it began
            self._next = loops.aside(self._name, self._turn(self._running))
        return self._next

    async def _turn(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._work()

    async def close(self) -> None:
        """Cancel the current run and the next one."""
        tasks = [task for task in (self._next, self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
