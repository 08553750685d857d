"""Returns memory that a process took for a burst and does not need afterwards.

Python's free lists and glibc keep freed memory, and caches keep what was asked for once. :func:`give_back` returns it.
Caches register with :func:`when_idle`, to be cleared when it is time.
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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 32 << 20
"""Bytes that malloc may have free at the end of a heap, and of a piece that it takes from one: the most it allows."""

_LOOK, _LOOK_AGAIN = 5.0, 10.0
_GROWN = 4 << 20
_LARGE = 48 << 20
"""Bytes of growth above which a process has, or had, much to do. It then has so many objects that a garbage collection
of them all may take 100 ms and more.
"""
_MANY = 200_000
"""Objects beyond those at the start, of which a garbage collection takes some ten milliseconds."""
_SELDOM = 1000
"""A process with more collects again after so many times as long as the last collection took."""
_IDLE = 0.1
"""The share of a processor that a process with little to do uses."""
_RESTING = 0.02
"""The share of a process with nothing to do. Beside clients that keep two processors busy, images uses 0.05 while it
handles their documents.
"""
_PASSES = 2
"""How often caches are cleared after a burst: a cache may drop, at the second time, what was not used since the
first.
"""

_caches: list[Callable[[], None]] = []
_shares = False


def shares() -> None:
    """Note that this process shares the memory of what it had loaded at its start with others
    (deploy/inside/copies.py). A garbage collection writes to each object that it looks at, and the page would then be
    this process's own. So what is frozen now stays so; it is modules, which stay anyway.
    """
    global _shares
    gc.freeze()
    _shares = True


def when_idle(drop: Callable[[], None]) -> None:
    """Call ``drop``, in the loop's thread, when the process has grown and has little to do now. It must free what is
    not in use, quickly.
    """
    _caches.append(drop)


def forget_of(*packages: str) -> None:
    """Clear the memories (``functools.lru_cache``) of the functions of these packages, as :func:`when_idle` does. They
    are small, but otherwise a part of each megabyte that a burst took would stay in use for ever.
    """
    remembering = type(functools.lru_cache(len))

    def drop() -> None:
        for name, module in [*sys.modules.items()]:
            if name.startswith(packages):
                for each in [*vars(module).values()]:
                    if isinstance(each, remembering):
                        each.cache_clear()

    when_idle(drop)


class _Allocator(ctypes.Structure):
    """PyMemAllocatorEx."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free"))


def from_malloc() -> None:
    """Take new small objects from malloc, as PYTHONMALLOC=malloc does for a program. It is for a process that began as
    a copy of another, so that Python's allocator has objects already: its ``free`` and ``realloc`` stay, which pass
    what is not theirs to malloc's. So what begins with a ``realloc``, as the items of small lists, is still its own.
    """
    allocators = [_Allocator() for _ in range(3)]
    for domain, allocator in enumerate(allocators):
        ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(allocator))
    raw, *others = allocators
    for domain, allocator in enumerate(others, 1):
        allocator.malloc, allocator.calloc = raw.malloc, raw.calloc
        ctypes.pythonapi.PyMem_SetAllocator(domain, ctypes.byref(allocator))
    global _counts
    _counts = False


_counts = True
"""Whether Python counts its objects. It does not count those of malloc, so they are counted in another way."""


def few_arenas() -> None:
    """Limit malloc to two heaps, instead of eight for each core. Each heap keeps its own leftovers, and our threads
    nearly always hold the GIL when they allocate.
    """
    _libc.mallopt(_M_ARENA_MAX, 2)


def keep_freed() -> None:
    """Let malloc keep the large buffers that a process frees, until :func:`give_back` returns them. Else the kernel has
    to clear new pages for each.
    """
    _libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    _libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _objects() -> int:
    """The number of Python's objects. If they are malloc's (``PYTHONMALLOC``), Python does not count them: then those
    that can be in a cycle are counted, which are about a fourth.
    """
    return (_counts and sys.getallocatedblocks()) or 4 * (len(gc.get_objects()) + gc.get_freeze_count())


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
    objects: Callable[[], int] = _objects,
    clock: Callable[[], float] = time.monotonic,
    caches: Sequence[Callable[[], None]] = _caches,
    shared: bool | None = None,
) -> None:
    """Return freed memory to the kernel, once a burst is over. Otherwise half of what 5,000 connections took would stay
    for ever.

    It looks while more is resident than there once was, for about a thousandth of the time, since a look takes some
    milliseconds in which nothing else happens. Garbage is collected only in an idle process, since that takes 40 ms and
    more. All objects of the process are collected only when it rests, or once for each second that it worked: the
    frames of a failed call are often a cycle, with everything that they hold. A process with very many objects collects
    them seldom: 200 ms for ten thousand open Writes.

    If memory is ``shared`` with other processes, what is frozen stays so, and nothing else is frozen: it may become
    garbage. Default: whether this process :func:`shares`.
    """
    shared = _shares if shared is None else shared
    least, pause, frozen, looked = resident(), look, 0, 0.0
    many, seldom = objects() + _MANY, 0.0
    settled, passes = least, 0
    while True:
        worked = used()
        await sleep(pause)
        share = (used() - worked) / pause
        idle, resting = share < _IDLE, share < _RESTING
        pause = look
        if resident() > least + _GROWN:
            start = clock()
            may_look = idle and (objects() < many or start >= seldom)
            if resident() > settled + _GROWN:
                passes = _PASSES
            dropped = idle and passes > 0
            if dropped:
                passes -= 1
                for drop in caches:
                    drop()
            if shared:
                if idle and may_look and (resident() <= least + _LARGE or used() > looked + 1):
                    gc.collect()
                    looked = used()
            elif resting and may_look and (used() > looked + 1 or len(sys.modules) != frozen):
                gc.unfreeze()
                gc.collect()
                # the objects that stay, most of them modules, are not collected again soon; calls now hold nothing that
                # could become a cycle later
                gc.freeze()
                looked, frozen = used(), len(sys.modules)
            elif idle and may_look and resident() <= least + _LARGE:
                gc.collect()
            elif idle and may_look and used() > looked + 1:
                gc.unfreeze()
                gc.collect()
                looked, frozen = used(), 0
            elif idle or resident() > least + _LARGE:
                gc.freeze()  # hides all objects, and costs nothing
                gc.collect()  # empties the free lists
                gc.unfreeze()
                frozen, may_look = 0, False
            if may_look:
                seldom = clock() + _SELDOM * (clock() - start)
            trim()
            if dropped:
                settled = resident()
            pause = min(max(pause, _SELDOM * (clock() - start)), _LOOK_AGAIN)
        least = min(least, resident())
