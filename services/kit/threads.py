"""Work that may never end, in a thread of its own. Not even the end of the process waits for it, as it does for the
threads of ``asyncio.to_thread``, which are also few.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from services.kit import loops

T = TypeVar("T")


async def apart(name: str, work: Callable[[], T]) -> T:
    """Run ``work`` in the thread, and return or raise its result. A cancellation does not stop the work."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(tell, result, failure)

    loops.thread(name, run)
    return await done


async def to_its_end(work: Callable[[], T]) -> T:
    """As ``asyncio.to_thread``, but a caller that is cancelled goes on only once the work has ended."""
    working = loops.task("work in a thread", asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((working,))
        if not working.cancelled():
            working.exception()  # nobody waits for it
        raise
