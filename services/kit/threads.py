"""Work in a thread of its own, that may never end: nobody waits for it, the end of the process neither (as it does
for those of ``asyncio.to_thread``, which are few, too).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from services.kit import loops

T = TypeVar("T")


async def apart(name: str, work: Callable[[], T]) -> T:
    """What ``work`` returns or raises. A cancellation leaves it alone."""
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
