"""A lock for each key: of several that want to do the same thing at once, one does it, and the others wait and look
again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class KeyedLocks:
    """Locks that are there while somebody wants them."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, _Counted] = {}

    @contextlib.asynccontextmanager
    async def held(self, key: Hashable) -> AsyncIterator[None]:
        """The block runs when no other's block of the same key does; in the order of asking."""
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
    """A lock, and how many want it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0
