"""Starts many calls without waiting for all of them: a few first, the others together once one of the first is
answered.

Calls that start together reach a process as one call (``kit.many``). That is cheap, but the first of them is answered
only when all of them have been looked at.
"""

from __future__ import annotations

from services.kit import many

_FIRST = 8
"""As many as are fetched at once by default."""


async def may_start(number: int) -> None:
    """Return when call ``number``, of those that start now, may start: the first few at once, the others when one of
    the first few has its answer.
    """
    if number >= _FIRST:
        await many.answered()
