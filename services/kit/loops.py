"""Loops that a process needs for as long as it lives, and tasks that nobody waits for: none ends in silence.

asyncio tells of a task that failed when it is collected as garbage, which one that somebody keeps never is; and what it did is then no longer done, though the process looks well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)

PAUSE, LONGEST = 1.0, 60.0
"""Seconds until a loop that failed begins anew: at first, and doubled each time up to the second."""


async def lasting(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work``, which should never end, until cancelled. If it fails, or ends, the log says so and it begins anew after a pause."""
    pause, loop = PAUSE, asyncio.get_running_loop()
    while True:
        begun = loop.time()
        try:
            await work()
        except Exception:
            log.exception("%s failed, and begins anew in %g s", name, pause)
        else:
            log.error("%s ended, and begins anew in %g s", name, pause)
        await asyncio.sleep(pause)
        pause = PAUSE if loop.time() - begun > 2 * LONGEST else min(2 * pause, LONGEST)


def start(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """:func:`lasting` as a task, whose end is the caller's to bring about: by cancelling it."""
    return asyncio.create_task(lasting(name, work), name=name)


def told(task: asyncio.Task[Any]) -> None:
    """For ``add_done_callback`` of a task whose result nobody asks for: a failure is logged at once."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)
