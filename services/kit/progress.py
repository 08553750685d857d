"""Limits on calls that count only the time in which nothing moves.

A disk that works may need minutes for one fsync: everything that was written before waits in its queue, too. So a call
between the node's own processes has no limit on its duration. It has a *stall*: seconds for which it may make no
progress. Its caller sends it (``kit.call.STALL``), and the process that does the work keeps it, because only that
process knows. A handler makes progress

- while it waits for a call of its own to another process, which has a limit of its own;
- when messages come or go, and while it waits for its client;
- while one of the process's threads works, or waits for a disk that moves (:mod:`services.kit.at_work`).

While a thread waits for a disk that does not move, a call has more time: a limit on the bytes of a second, as cgroups
set it, lets a large request pass only after a long silence.

The loop's own thread does not count: if it stands still, the watchdog ends the process (docs/adr/0007).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator

from services.kit import at_work
from services.kit.at_work import Signs
from services.kit.call import CURRENT, STALL, Call
from services.kit.deadlines import Deadlines

_LOOKS = 5
"""Looks within the time of a stall."""
_OF_DISKS, _OF_DISKS_MOST = 10, 300.0
"""A disk may stand still for so many times the stall, but not for longer than these seconds, unless the stall is."""


def stall_of(call: Call) -> float | None:
    """The stall that the caller has sent, in seconds; None if there is none that means anything."""
    try:
        seconds = float(call.headers.get(STALL, "inf"))
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


class Watch:
    """The progress of one call that this process handles. ``expired`` is called with a sentence once the call has made
    none for ``stall`` seconds. A pause between two looks, as of a machine that slept, counts as at most two intervals.
    """

    __slots__ = ("_call", "_deadlines", "_every", "_expired", "_looked", "_seconds", "_signs", "_size", "_stall")

    def __init__(self, call: Call, stall: float, deadlines: Deadlines, expired: Callable[[str], None]) -> None:
        self._call = call
        self._stall = stall
        self._deadlines = deadlines
        self._expired = expired
        self._every = stall / _LOOKS
        self._looked = time.monotonic()
        self._seconds = 0.0
        self._size = call.size
        self._signs: Signs = {}
        deadlines.add(self, self._every)

    def end(self) -> None:
        """The call has ended."""
        self._deadlines.discard(self)

    def expire(self) -> None:
        """It is time to look (:class:`~services.kit.deadlines.Bounded`)."""
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        self._seconds = 0.0 if self._moved() else self._seconds + min(passed, 2 * self._every)
        limit = max(self._stall, min(_OF_DISKS * self._stall, _OF_DISKS_MOST)) if self._signs else self._stall
        if self._seconds > limit - self._every / 2:
            doing = at_work.described(self._signs)
            self._expired(f"{self._call.method} made no progress for {limit:g} s: {doing}")
        else:
            self._deadlines.add(self, self._every)

    def _moved(self) -> bool:
        """Whether it has made progress since the last look."""
        call = self._call
        if call.elsewhere > 0 or call.size != self._size:
            self._size = call.size
            return True
        before, self._signs = self._signs, at_work.signs()
        return at_work.moved(before, self._signs)


def deadlines() -> Deadlines:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    global _deadlines
    if _deadlines is None or _deadlines.loop is not loop:
        _deadlines = Deadlines(loop)
    return _deadlines


_deadlines: Deadlines | None = None


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """The current call waits for something that has a limit of its own: that is progress."""
    call = CURRENT.get()
    if call is None:
        yield
        return
    call.waits(1)
    try:
        yield
    finally:
        call.waits(-1)
