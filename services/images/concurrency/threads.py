"""Blocking work in threads that is always waited for: a file descriptor that is closed while a thread uses it may by
then be the number of another file.

:class:`Handover` gives a thread a file whose bytes come from the event loop.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def to_thread(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """As ``asyncio.to_thread``, but a cancellation waits for the end of ``work``: for work that ends soon."""
    return await run(None, lambda: work(*arguments, **named), lambda: None)


async def run(executor: Executor | None, work: Callable[[], T], stop: Callable[[], None]) -> T:
    """The result of ``work``. A cancellation calls ``stop``, which makes the work end soon, and waits for that."""
    working = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop()
        while not working.done():
            await _settled(working)
        if not working.cancelled():
            working.exception()  # the exception counts as retrieved
        raise


async def _settled(working: asyncio.Future[T]) -> None:
    try:
        await asyncio.wait((working,))
    except asyncio.CancelledError:  # cancelled again; the work still uses the descriptor
        return


class Handover(io.RawIOBase):
    """A file for one thread, with the bytes that the event loop puts into it, at most ``limit`` of them ahead."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self.stopped = False
        """The thread's results are not wanted any more."""
        self._ended = False
        self._changed = threading.Condition()
        self._room = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Add bytes, once there is room."""
        while self._waiting >= self._limit:
            self._room.clear()
            await self._room.wait()
        with self._changed:
            self._pieces.append(data)
            self._waiting += len(data)
            self._changed.notify()

    def end(self) -> None:
        """End the file after the bytes that were put."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def stop(self) -> None:
        """End the file here."""
        with self._changed:
            self._pieces.clear()
            self._ended = self.stopped = True
            self._changed.notify()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """In the thread: the next bytes, at most ``size``; empty at the end."""
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            if not self._pieces:
                return b""
            data = self._pieces.popleft()
            if 0 <= size < len(data):
                self._pieces.appendleft(data[size:])
                data = data[:size]
            full = self._waiting >= self._limit
            self._waiting -= len(data)
            if full and self._waiting < self._limit:
                self._loop.call_soon_threadsafe(self._room.set)
        return data
