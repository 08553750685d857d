"""The only way to run something in the background. Nothing that runs in this way fails silently.

asyncio reports a failed task only when the task is garbage collected. A task that its owner keeps never is, so nobody
does its work any more, though the process looks healthy. So each task is begun by a function that says who learns of
its failure. Only this module makes tasks and threads (``tests/unit/deploy/test_loops.py`` checks this):

=================  ====================================================================================================
:func:`running`    a loop that never ends by itself. It lasts as long as a block, and begins anew if it fails
:func:`start`      the same without a block: its owner cancels it
:func:`task`       its owner awaits it, and so learns of its failure
:func:`aside`      its failure is logged at once, since no other code awaits it
:class:`Tasks`     many such tasks of one owner, kept until they end
:func:`vital`      other code waits for its work, but does not await it: its failure ends the process
:func:`thread`     a thread of its own, whose failure is logged, or ends the process if it is vital
=================  ====================================================================================================

A process that ends is started again by its supervisor, and loses nothing that was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE, LONGEST = 1.0, 60.0
"""Seconds until a loop that failed begins anew: first ``PAUSE``, then doubled each time, up to ``LONGEST``."""


class Explained(Exception):
    """A failure of a loop's work that its words explain, such as an address that is taken. It is logged as one line
    without a traceback, and only once until the loop fails in another way.
    """


# ---------------------------------------------------------------------------------------------- loops


async def lasting(
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    pause: float = PAUSE,
    longest: float = LONGEST,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Run ``work``, which should never end, until cancelled.

    If it fails or ends, this is logged, and it begins anew after ``pause`` seconds. The pause doubles each time, up to
    ``longest``, and is reset once ``work`` has lasted twice ``longest``. A cancellation that was not meant for this
    task, but for something that ``work`` awaited, is a failure like any other.
    """
    own, loop, wait, said = asyncio.current_task(), asyncio.get_running_loop(), pause, ""
    assert own is not None
    while True:
        begun = loop.time()
        failure: BaseException | None = None
        try:
            await work()
        except (Exception, asyncio.CancelledError) as error:
            if own.cancelling() and isinstance(error, asyncio.CancelledError):
                raise
            failure = error
        if own.cancelling():
            log.error("%s failed at its end", name, exc_info=failure)
            raise asyncio.CancelledError
        words = str(failure) if isinstance(failure, Explained) else ""
        if not words:
            log.error(
                "%s %s, and begins anew in %g s", name, "ended" if failure is None else "failed", wait, exc_info=failure
            )
        elif words != said:
            log.error("%s: %s (it is tried again until it works)", name, words)
        said = words
        del failure  # its traceback holds this frame
        await sleep(wait)
        wait = pause if loop.time() - begun > 2 * longest else min(2 * wait, longest)


def start(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """:func:`lasting` as a task. Its owner cancels it."""
    return asyncio.create_task(lasting(name, work), name=name)


@contextlib.asynccontextmanager
async def running(name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """:func:`lasting` while the block lasts. At the end of the block the loop is cancelled, and has ended."""
    loop = start(name, work)
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.wait((loop,))


# ---------------------------------------------------------------------------------------------- tasks


def task(name: str, work: Coroutine[Any, Any, T], *, context: contextvars.Context | None = None) -> asyncio.Task[T]:
    """A task that its owner awaits, where its failure is raised. It runs in ``context``, or in a copy of the current
    one.
    """
    return asyncio.get_running_loop().create_task(work, name=name, context=context)


def aside(name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that nobody awaits: its failure is logged. Its owner keeps it, and cancels it if necessary."""
    begun = task(name, work)
    begun.add_done_callback(_told)
    return begun


def vital(name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task without which this process cannot work, since others wait for it: its failure ends the process."""
    begun = task(name, work)
    begun.add_done_callback(_survived)
    return begun


class Tasks:
    """The tasks of one owner that nobody awaits. They are kept until they end, and their failures are logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        """The tasks that run now."""
        return iter(list(self._running))

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin one more, as :func:`aside`."""
        return self.keep(aside(name, work))

    def keep(self, begun: asyncio.Task[T]) -> asyncio.Task[T]:
        """Keep a task that its owner awaits, but perhaps not to its end."""
        self._running.add(begun)
        begun.add_done_callback(self._running.discard)
        return begun

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for the tasks that run now, for at most ``seconds``."""
        if self._running:
            await asyncio.wait(list(self._running), timeout=seconds)

    async def cancel(self) -> None:
        """Cancel the tasks that run now, and wait until they have ended."""
        for each in self:
            each.cancel()
        await self.wait()


def _told(ended: asyncio.Task[Any]) -> None:
    if not ended.cancelled() and (error := ended.exception()) is not None:
        log.error("%s failed", ended.get_name(), exc_info=error)


def _survived(ended: asyncio.Task[Any]) -> None:
    if not ended.cancelled() and (error := ended.exception()) is not None:
        _end(ended.get_name(), error)


# ---------------------------------------------------------------------------------------------- threads


def thread(name: str, work: Callable[[], object], *, vital: bool = False) -> threading.Thread:
    """A thread that has begun. The end of the process does not wait for it. If it is ``vital``, its failure ends the
    process.
    """

    def run() -> None:
        try:
            work()
        except Exception as error:
            if vital:
                _end(name, error)
            log.exception("%s failed", name)

    begun = threading.Thread(target=run, name=name, daemon=True)
    begun.start()
    return begun


def _end(name: str, error: BaseException) -> None:
    """End at once, as by SIGKILL: whatever waited for the task would also delay an orderly end."""
    log.critical("%s failed, and this process cannot go on without it: it ends", name, exc_info=error)
    os._exit(1)
