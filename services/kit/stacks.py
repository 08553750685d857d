"""SIGUSR1 makes a process write its stacks into its log, and continue. A process that dies in C code (SIGSEGV, SIGABRT,
SIGBUS, SIGFPE, SIGILL) writes them too.

faulthandler writes the stacks of all threads within the signal's handler, in C, so it also works if the loop hangs, and
while C code holds the GIL. If Python code still runs, the tasks of the loop follow, each with what it waits for. The
watchdog (deploy/inside/watchdog.py) asks for this before it kills; an operator may at any time.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

log = logging.getLogger(__name__)

MOST = 100
"""Different stacks of tasks that are written. Thousands of tasks have a few dozen."""
DEEPEST = 50
"""Lines of one task's stack, from its outermost function."""


def register() -> None:
    """Handle these signals from here on. Called in the main thread, before anything can hang."""
    faulthandler.enable(all_threads=True)
    signal.signal(signal.SIGUSR1, _log_tasks)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def _log_tasks(_number: int, _frame: FrameType | None) -> None:
    """Runs in the main thread, between two steps of whatever that does."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    log.warning("SIGUSR1: %s", tasks(loop))


def tasks(loop: asyncio.AbstractEventLoop) -> str:
    """The loop's tasks; those that wait in the same place are one entry, the most frequent first."""
    current = asyncio.current_task(loop)
    found = asyncio.all_tasks(loop)
    waiting = Counter(tuple(_stack(task.get_coro())) for task in found if task is not current)
    lines = [
        f"{len(found)} tasks"
        + ("" if current is None else f", {current.get_name()} is running (see its thread's stack)")
    ]
    for stack, count in waiting.most_common(MOST):
        lines.append(f"  {count} in")
        lines += [f"    {line}" for line in stack]
    if len(waiting) > MOST:
        lines.append(f"  and {len(waiting) - MOST} other places")
    return "\n".join(lines)


def _stack(coroutine: Any) -> Iterator[str]:
    """Where a task waits, from its own coroutine to the innermost one. asyncio itself tells only the outermost."""
    for _ in range(DEEPEST):
        coroutine = getattr(coroutine, "coroutine", coroutine)  # for a task of wire.eager
        for kind in ("cr", "gi", "ag"):
            code: CodeType | None = getattr(coroutine, f"{kind}_code", None)
            if code is not None:
                line = (
                    frame.f_lineno
                    if (frame := getattr(coroutine, f"{kind}_frame")) is not None
                    else code.co_firstlineno
                )
                yield f'File "{code.co_filename}", line {line} in {code.co_qualname}'
                coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            if coroutine is not None:
                yield f"waiting for {type(coroutine).__name__}"
            return
