"""Beginning many things at once without waiting for all of them: a few first, the others together right after.

What begins together goes to a process as one call (``kit.many``), which is cheap, but one that is answered for the first only when it has been looked at among all the others.
"""

from __future__ import annotations

import asyncio

_FIRST = 8
"""As many as are fetched at once, by default."""
_BEHIND = 0.003
"""Seconds: enough for the first to be on their way."""


async def wave(number: int) -> None:
    """Returns when the thing of that number, of those that begin now, is to begin: with its wave."""
    if number >= _FIRST:
        await asyncio.sleep(_BEHIND)
