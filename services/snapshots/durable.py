"""The files of committed snapshots survive a power cut: one syncfs of their filesystem for all commits that wait.

A syncfs takes what was written before it began. So whoever comes while one is under way waits for the next, with all others that came meanwhile. It has little left to do where writing to the disk
was begun before, as the workers that unpack layers do with each file (``diff/extract.py``); and it waits for what others wrote to the same filesystem.
"""

from __future__ import annotations

import asyncio
import os

from services.kit import loops
from services.snapshots import disk


class FilesystemSync:
    """Makes durable what is on the filesystem of ``directory``. Used in one event loop."""

    def __init__(self, directory: str) -> None:
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # kept open: an error since the last syncfs on this file is told to the next, whoever else asks
        self._next: asyncio.Future[OSError | None] | None = None
        """Those that wait for a syncfs that has not begun."""
        self._running: asyncio.Task[None] | None = None

    async def synced(self) -> None:
        """Returns when all that was written there before the call is on the disk. OSError if some of it could not be written, which is told once."""
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.create_future()
        mine = self._next
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
            self._running.add_done_callback(loops.told)
        error = await asyncio.shield(mine)
        if error is not None:
            raise error

    async def _run(self) -> None:
        try:
            while (waiting := self._next) is not None:
                self._next = None
                try:
                    waiting.set_result(await asyncio.to_thread(self._sync))
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
