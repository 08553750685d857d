"""Of several that want to do the same thing at once, one does it, and the others wait and look again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class Turns:
    """One turn at a time for each key."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}

    @contextlib.asynccontextmanager
    async def alone(self, key: Hashable) -> AsyncIterator[None]:
        """The block runs when no other's block of the same key does; in the order of asking."""
        turn = self._turns.setdefault(key, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[key]


class _Turn:
    """Whose turn it is, and how many want one."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0
