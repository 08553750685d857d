"""Waits for programs that work on trees of files, for as long as they make progress (``diff/standstill.py``); and for a
killed program, but not for ever.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.kit import errors, loops, progress
from services.snapshots.diff import standstill

T = TypeVar("T")


async def watched(what: str, process: Process, work: Coroutine[Any, Any, T], limit: float = standstill.LIMIT) -> T:
    """The result of ``work``, which waits for ``process``. Internal once the process has made no progress for ``limit``
    seconds; the caller then kills it.
    """
    working = loops.task(f"the wait for {what}", work)
    try:
        still = standstill.Watch(limit)
        with progress.elsewhere():  # this limit is the one that counts
            while not (await asyncio.wait((working,), timeout=standstill.look_interval(limit)))[0]:
                if still.seconds(process.pid) >= limit:
                    raise stood_still(what, limit)
        return working.result()
    finally:
        working.cancel()


def stood_still(what: str, limit: float) -> errors.NodeError:
    """The error for a program that was killed because it made no progress."""
    return errors.Internal(
        f"{what} stood still for {limit:g} s and was killed: a file system that it reads or writes does not answer"
    )


async def gone(process: Process) -> None:
    """Wait for the end of a killed process, but not for one that does not end (state D)."""
    await asyncio.wait((loops.task("the wait for a killed program", process.wait()),), timeout=standstill.KILL_WAIT)
