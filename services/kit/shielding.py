"""Work that is not stopped half way when its caller goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from services.kit import loops
from services.kit.call import CURRENT, Call

log = logging.getLogger(__name__)
T = TypeVar("T")

_shielded: set[asyncio.Task[Any]] = set()


async def shielded(work: Awaitable[T]) -> T:
    """Run ``work`` to its end, whatever happens to the caller. If the caller is cancelled, only its waiting ends.

    The work keeps its trace, but not the caller's deadline. A failure is logged if the caller does not wait any more.
    """

    async def without_deadline() -> T:
        call = CURRENT.get()
        if call is not None:
            CURRENT.set(Call(call.method, call.headers, outer=call))
        return await work

    task = loops.task("work that outlives its caller", without_deadline())
    _shielded.add(task)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failure)
        raise
    finally:
        task.add_done_callback(_shielded.discard)
        del task  # a failure's traceback holds this frame, which would hold the failure


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("work that outlived its caller failed: %s", error)


async def shielded_work_done(seconds: float) -> None:
    """Wait for what still runs under :func:`shielded`, before the process ends."""
    if _shielded:
        await asyncio.wait(list(_shielded), timeout=seconds)
