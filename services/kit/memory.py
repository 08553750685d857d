"""What a process freed goes back to the kernel once a burst is over.

Python's free lists and glibc keep it, and half of what 5,000 connections took would stay ours for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from services.kit import loops

_LOOK, _LOOK_AGAIN = 5.0, 15.0
_GROWN = 4 << 20
_LARGE = 48 << 20
"""What a process has grown by that has, or had, much to do: then it has so many objects that a look for cycles among them all may take 100 ms and more."""
_IDLE = 0.1
"""Of the time, what a process uses of a processor that has nothing to do."""

_libc = ctypes.CDLL(None, use_errno=True)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _trim() -> None:
    _libc.malloc_trim(0)


def giving_back(**how: Any) -> contextlib.AbstractAsyncContextManager[None]:
    """:func:`give_back` while the block lasts."""
    return loops.running("giving back memory", functools.partial(give_back, **how))


async def give_back(*, look: float = _LOOK, resident: Callable[[], int] = _resident, trim: Callable[[], None] = _trim,
                    used: Callable[[], float] = time.process_time, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Return to the kernel what was freed, for ever.

    It is looked for every ``look`` seconds, while more is ``resident`` (bytes) than there once was, in about a thousandth of the time: it takes some milliseconds, in which nothing else happens.
    A large process looks for cycles only when it is idle, by the seconds that it ``used`` of a processor, and once for each second that it worked: a failed call's frames are often one, with all that
    they hold. ``trim`` gives back what is free.
    """
    least, pause, frozen, looked = resident(), look, 0, 0.0
    while True:
        worked = used()
        await sleep(pause)
        idle = used() - worked < _IDLE * pause
        pause = look
        if resident() > least + _GROWN:
            start = time.monotonic()
            if resident() <= least + _LARGE:
                gc.collect()
                if idle and len(sys.modules) != frozen:  # what stays is not looked through again if modules are among it, which are most of it; not what calls have in their hands
                    gc.freeze()
                    frozen = len(sys.modules)
            elif idle and used() > looked + 1:
                gc.unfreeze()
                gc.collect()
                looked, frozen = used(), 0
            else:
                gc.freeze()  # hides them all, and costs nothing
                gc.collect()  # empties the free lists
                gc.unfreeze()
                frozen = 0
            trim()
            pause = min(max(pause, 1000 * (time.monotonic() - start)), _LOOK_AGAIN)
        least = min(least, resident())
