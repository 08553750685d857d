"""A lock for each key: if several callers want to do the same thing at once, one does it, and the others wait and look
again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class KeyedLocks:
    """Locks that exist while a caller wants them."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, _Counted] = {}

    @contextlib.asynccontextmanager
    async def held(self, key: Hashable) -> AsyncIterator[None]:
        """Run the block when no other block of the same key runs, in the order of requests."""
        counted = self._locks.setdefault(key, _Counted())
        counted.wanted += 1
        try:
            async with counted.lock:
                yield
        finally:
            counted.wanted -= 1
            if not counted.wanted:
                del self._locks[key]


class _Counted:
    """A lock, and the number of callers that want it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0
