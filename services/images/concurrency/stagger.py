"""Beginning many things at once without waiting for all of them: a few first, the others together once one of those is
under way.

What begins together goes to a process as one call (``kit.many``), which is cheap, but one that is answered for the
first only when it has been looked at among all the others.
"""

from __future__ import annotations

from services.kit import many

_FIRST = 8
"""As many as are fetched at once, by default."""


async def wave(number: int) -> None:
    """Returns when the thing of that number, of those that begin now, is to begin: with its wave. The second comes
    when a call of the first has its answer.
    """
    if number >= _FIRST:
        await many.answered()
