"""Start a coroutine now, not at the loop's next turn: most handlers end without ever waiting, and then no task is
needed, nor a turn.

Python 3.12 has this (``asyncio.Task(eager_start=True)``); for 3.11 it is made here of what 3.11 has: the first step
runs with a stand-in for the current task, and if it waits, a task goes on where it stopped. Whoever kept the stand-in
(``asyncio.timeout`` does) reaches that task through it.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any, cast


def start(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Run it until it waits; the task that goes on with it, or None if it has ended. Its exceptions are raised here
    if it ends by one at once.
    """
    if asyncio.current_task(loop) is not None:  # called from within a task, which is in the way
        return loop.create_task(coroutine)
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        return None if task.done() and task.result() is None else task
    return _start(coroutine, loop)


def _start(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    context = copy_context()
    current = _StandIn()
    _enter_task(loop, cast("asyncio.Task[Any]", current))
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration:
        return None
    finally:
        _leave_task(loop, cast("asyncio.Task[Any]", current))
    task = loop.create_task(_Rest(coroutine, waits_for), context=context)
    current.become(task)
    return task


class _StandIn:
    """The current task of a first step. Cancelled before there is a task, it cancels that."""

    __slots__ = ("_cancels", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._cancels = 0

    def become(self, task: asyncio.Task[None]) -> None:
        self._task = task
        for _ in range(self._cancels):
            task.cancel()

    def cancel(self, msg: object = None) -> bool:
        if self._task is not None:
            return self._task.cancel(msg)
        self._cancels += 1
        return True

    def cancelling(self) -> int:
        return self._cancels if self._task is None else self._task.cancelling()

    def uncancel(self) -> int:
        if self._task is not None:
            return self._task.uncancel()
        self._cancels = max(0, self._cancels - 1)
        return self._cancels

    def done(self) -> bool:
        return self._task is not None and self._task.done()

    def get_name(self) -> str:
        return "first step" if self._task is None else self._task.get_name()


class _Rest(Coroutine[Any, Any, None]):
    """A coroutine that has been started, as one that has not: the first ``send`` answers what it waits for."""

    __slots__ = ("_started", "_waits_for", "coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self.coroutine = coroutine
        self._waits_for = waits_for
        self._started = False

    def send(self, value: Any) -> Any:
        if not self._started:
            self._started = True
            waits_for, self._waits_for = self._waits_for, None
            return waits_for
        return self.coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        if not self._started:
            self._started = True
            if (
                isinstance(error[0], asyncio.CancelledError)
                and isinstance(self._waits_for, asyncio.Future)
                and self._waits_for.cancel()
            ):
                return self._waits_for  # as Task.cancel() does: what it waits for is cancelled, and tells it
        return self.coroutine.throw(*error)

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("it is for a task")
