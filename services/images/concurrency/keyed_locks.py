"""A lock for each key: if several callers want to do the same thing at once, one does it, and the others wait and look
again.

A wait is a span ``wait.lock`` that links to the span that held the lock when the wait began, and to the one that held
it last.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable

from services.images import waits
from services.kit import tracing


class KeyedLocks:
    """Locks that exist while a caller wants them. ``what`` says in traces what a caller waits for."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._locks: dict[Hashable, _Counted] = {}

    def wanted(self, key: Hashable) -> int:
        """How many hold a lock, or wait for it."""
        counted = self._locks.get(key)
        return counted.wanted if counted is not None else 0

    @contextlib.asynccontextmanager
    async def held(self, key: Hashable) -> AsyncIterator[None]:
        """Run the block when no other block of the same key runs, in the order of requests."""
        counted = self._locks.setdefault(key, _Counted())
        counted.wanted += 1
        try:
            if counted.lock.locked():
                with (
                    waits.noted(waits.LOCK, f"waiting for {self._what} by another pull"),
                    tracing.wait("lock", counted.holder, **{"splitd.wait.for": self._what}) as waiting,
                ):
                    before = counted.holder
                    await counted.lock.acquire()
                    if counted.holder != before:
                        waiting.link(counted.holder)
            else:
                await counted.lock.acquire()
            try:
                counted.holder = tracing.current().ref()
                yield
            finally:
                counted.lock.release()
        finally:
            counted.wanted -= 1
            if not counted.wanted:
                del self._locks[key]


class _Counted:
    """A lock, the number of callers that want it, and the span that has or had it last."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0
        self.holder = ""
