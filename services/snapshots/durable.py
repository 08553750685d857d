"""The files of committed snapshots survive a power cut: one syncfs of their filesystem for all commits that wait.

A syncfs takes what was written before it began. So whoever comes while one is under way waits for the next, with all
others that came meanwhile. It has little left to do where writing to the disk was begun before, as the workers that
unpack layers do (``diff/writeback.py``); and it waits for what others wrote to the same filesystem.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from services.kit import loops
from services.snapshots import disk

Synced = Callable[[], Awaitable[None]]


class FilesystemSync:
    """Makes durable what is on the filesystem of ``directory``; ``lossy`` is called whenever some of it could not
    be, before anybody who waits hears of it. Used in one event loop.
    """

    def __init__(self, directory: str, lossy: Callable[[], None]) -> None:
        self._lossy = lossy
        # kept open: an error since the last syncfs on this file is told to the next, whoever else asks
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._next: asyncio.Future[OSError | None] | None = None
        """Those that wait for a syncfs that has not begun."""
        self._running: asyncio.Task[None] | None = None

    def begun(self) -> Synced:
        """Begin. What is answered waits until all that was written there before is on the disk. OSError if some of
        it could not be written, which is told once.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        mine = self._next
        if self._running is None:
            self._running = loops.aside("the syncing of snapshots", self._run())

        async def synced() -> None:
            error = await asyncio.shield(mine)
            if error is not None:
                raise error

        return synced

    async def _run(self) -> None:
        try:
            while (waiting := self._next) is not None:
                self._next = None
                try:
                    error = await asyncio.to_thread(self._sync)
                    if error is not None:
                        self._lossy()
                    waiting.set_result(error)
                finally:
                    if not waiting.done():
                        waiting.cancel()  # else those that wait would do so for ever
        finally:
            self._running = None

    def _sync(self) -> OSError | None:
        try:
            disk.sync_filesystem(self._fd)
        except OSError as error:
            return error
        return None

    async def aclose(self) -> None:
        """Wait for the one under way."""
        if self._running is not None:
            await asyncio.wait((self._running,))
        os.close(self._fd)
