"""Makes everything in a loop fail once: each await in it, and in the tasks that it makes, raises once when it is done.

:func:`failing` replaces the event loop's task factory during a block, so the tested code does not know about it. A
place is where a coroutine awaits: the functions and lines from the loop's own down to the innermost. The pause after a
failure (``kit.loops``) takes no time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterator
from fnmatch import fnmatch
from typing import Any

from services.kit import loops

Place = tuple[tuple[str, int], ...]


class Failures:
    """The exceptions raised so far, by place."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        self._error = error
        self.raised: dict[Place, Exception] = {}

    def at(self, place: Place) -> Exception | None:
        """The exception to raise at a place now; none the second time."""
        if not place or place in self.raised:
            return None
        self.raised[place] = error = self._error()
        return error


@contextlib.contextmanager
def failing(name: str, error: Callable[[], Exception]) -> Iterator[Failures]:
    """During the block, loops whose name matches the pattern ``name`` get an ``error`` at each place."""
    found = Failures(error)
    faulty: set[asyncio.Task[Any]] = set()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        ours = _is_loop(coroutine, name) or _running(loop) in faulty
        task = asyncio.Task(_Faulty(coroutine, found) if ours else coroutine, loop=loop, **named)
        if ours:
            faulty.add(task)
        return task

    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        yield found
    finally:
        loop.set_task_factory(before)


def _is_loop(coroutine: Any, name: str) -> bool:
    return getattr(coroutine, "cr_code", None) is loops.lasting.__code__ and fnmatch(
        coroutine.cr_frame.f_locals["name"], name
    )


def _running(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
    with contextlib.suppress(RuntimeError):
        return asyncio.current_task(loop)
    return None


class _Faulty(Coroutine[Any, Any, Any]):
    """A coroutine that fails once at each await, unless it is cancelled."""

    def __init__(self, coroutine: Any, failures: Failures) -> None:
        self._coroutine = coroutine
        self._failures = failures
        self._place: Place = ()

    def send(self, value: Any) -> Any:
        task = asyncio.current_task()
        error = None if task is None or task.cancelling() else self._failures.at(self._place)
        return self._go_on(self._coroutine.send, value) if error is None else self._go_on(self._coroutine.throw, error)

    def throw(self, *error: Any) -> Any:
        return self._go_on(self._coroutine.throw, *error)

    def _go_on(self, step: Callable[..., Any], *arguments: Any) -> Any:
        self._place = ()
        waits_for = step(*arguments)
        if self._pauses():
            waits_for.set_result(None)
        else:
            self._place = self._where()
        return waits_for

    def _pauses(self) -> bool:
        """Whether the loops' own runner is awaiting."""
        inner = getattr(self._coroutine, "cr_await", None)
        return (
            getattr(self._coroutine, "cr_code", None) is loops.lasting.__code__
            and getattr(inner, "cr_code", None) is asyncio.sleep.__code__
        )

    def _where(self) -> Place:
        found, coroutine = [], self._coroutine
        while (code := getattr(coroutine, "cr_code", None)) is not None:
            if coroutine.cr_frame is not None:
                found.append((code.co_qualname, coroutine.cr_frame.f_lineno))
            coroutine = coroutine.cr_await
        return tuple(found)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("it is for a task")
