"""Memory that a process took for a burst and does not need afterwards: how little of it stays.

Python's free lists and glibc keep what was freed, and caches are full of what was asked for once. :func:`give_back`
returns it, :func:`when_idle` is how caches hear that it is time.
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
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.kit import loops

_libc = ctypes.CDLL(None, use_errno=True)

_M_ARENA_MAX = -8

_LOOK, _LOOK_AGAIN = 5.0, 10.0
_GROWN = 4 << 20
_LARGE = 48 << 20
"""What a process has grown by that has, or had, much to do: then it has so many objects that a look for cycles
among them all may take 100 ms and more.
"""
_IDLE = 0.1
"""Of the time, what a process uses of a processor that has little to do."""
_RESTING = 0.02
"""And what one that has nothing to do. Beside strangers that keep two processors busy, images uses 0.05, with its
hands full of their documents.
"""
_PASSES = 2
"""How often caches are told after a burst: one may drop at the second time what was not in use since the first."""

_caches: list[Callable[[], None]] = []


def when_idle(drop: Callable[[], None]) -> None:
    """Call ``drop``, in the loop's thread, when the process has grown and has little to do now: it frees what is
    not in use. It must be quick.
    """
    _caches.append(drop)


def forget_of(*packages: str) -> None:
    """Have what the functions of these packages remember (``functools.lru_cache``) dropped, as by :func:`when_idle`:
    little as it is, a part of each megabyte that a burst took would be in use for ever.
    """
    remembering = type(functools.lru_cache(len))

    def drop() -> None:
        for name, module in [*sys.modules.items()]:
            if name.startswith(packages):
                for each in [*vars(module).values()]:
                    if isinstance(each, remembering):
                        each.cache_clear()

    when_idle(drop)


def few_arenas() -> None:
    """Of malloc's heaps two, not eight for each core: each keeps its own leftovers, and our threads hold the GIL
    nearly whenever they allocate.
    """
    _libc.mallopt(_M_ARENA_MAX, 2)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _trim() -> None:
    _libc.malloc_trim(0)


def giving_back(**how: Any) -> contextlib.AbstractAsyncContextManager[None]:
    """:func:`give_back` while the block lasts."""
    return loops.running("giving back memory", functools.partial(give_back, **how))


async def give_back(
    *,
    look: float = _LOOK,
    resident: Callable[[], int] = _resident,
    trim: Callable[[], None] = _trim,
    used: Callable[[], float] = time.process_time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    caches: Sequence[Callable[[], None]] = _caches,
) -> None:
    """Return to the kernel what was freed, once a burst is over: half of what 5,000 connections took would stay ours
    for ever.

    It is looked for while more is resident than there once was, in about a thousandth of the time: it takes some
    milliseconds, in which nothing else happens. A process looks for cycles only when it is idle, since that takes 40 ms
    and more, and any looks among all that it has only when it rests, or once for each second that it worked: a failed
    call's frames are often a cycle, with all that they hold.
    """
    least, pause, frozen, looked = resident(), look, 0, 0.0
    settled, passes = least, 0
    while True:
        worked = used()
        await sleep(pause)
        share = (used() - worked) / pause
        idle, resting = share < _IDLE, share < _RESTING
        pause = look
        if resident() > least + _GROWN:
            start = time.monotonic()
            if resident() > settled + _GROWN:
                passes = _PASSES
            dropped = idle and passes > 0
            if dropped:
                passes -= 1
                for drop in caches:
                    drop()
            if resting and (used() > looked + 1 or len(sys.modules) != frozen):
                gc.unfreeze()
                gc.collect()
                # what stays, most of it modules, is not looked through again soon; calls have nothing in their hands
                # that could be a cycle later
                gc.freeze()
                looked, frozen = used(), len(sys.modules)
            elif idle and resident() <= least + _LARGE:
                gc.collect()
            elif idle and used() > looked + 1:
                gc.unfreeze()
                gc.collect()
                looked, frozen = used(), 0
            elif idle or resident() > least + _LARGE:
                gc.freeze()  # hides them all, and costs nothing
                gc.collect()  # empties the free lists
                gc.unfreeze()
                frozen = 0
            trim()
            if dropped:
                settled = resident()
            pause = min(max(pause, 1000 * (time.monotonic() - start)), _LOOK_AGAIN)
        least = min(least, resident())
