"""Starts a coroutine now, not at the loop's next turn. Most handlers end without waiting; then neither a task nor a
turn is needed.

Python 3.12 has this (``asyncio.Task(eager_start=True)``). For 3.11 it is made here: the first step runs with a stand-in
for the current task, and if it waits, a task continues where it stopped. Code that kept the stand-in (as
``asyncio.timeout`` does) reaches that task through it.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any, cast


def start(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Run the coroutine until it waits. The result is the task that continues it, or None if it has ended. If it ends
    at once with an exception, that is raised here.
    """
    if asyncio.current_task(loop) is not None:  # called from within a task, which would be in the way
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
    """The current task of a first step. If it is cancelled before there is a task, it cancels the task."""

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
    """A coroutine that has been started, in the form of one that has not: the first ``send`` returns what it waits
    for.
    """

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
                return self._waits_for  # as Task.cancel() does: cancel what it waits for, which tells it
        return self.coroutine.throw(*error)

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("it is for a task")
