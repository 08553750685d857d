"""Makes the files of committed snapshots survive a power cut: one syncfs of their filesystem serves all commits that
wait.

A syncfs covers what was written before it began. So a commit that comes while one is running waits for the next one,
together with all other commits that came meanwhile. The workers that unpack layers start the writing to the disk early
(``diff/writeback.py``), so that little is left for the syncfs. It also waits for what other programs have written to
the same filesystem.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from services.kit import loops
from services.snapshots import disk

Synced = Callable[[], Awaitable[None]]


class FilesystemSync:
    """Makes the filesystem of ``directory`` durable. ``lossy`` is called whenever some of it could not be written,
    before any waiting caller gets the error. Used in one event loop.
    """

    def __init__(self, directory: str, lossy: Callable[[], None]) -> None:
        self._lossy = lossy
        # Kept open: an error since the last syncfs on this file is reported to the next one, even if another program
        # got it.
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._next: asyncio.Future[OSError | None] | None = None
        """The callers that wait for a syncfs that has not begun."""
        self._running: asyncio.Task[None] | None = None

    def start(self) -> Synced:
        """Start a sync. The result is an awaitable function that returns when everything written before is on the disk.
        It raises OSError if some of it could not be written; the kernel reports that once.
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
                        waiting.cancel()  # otherwise the waiting callers would wait for ever
        finally:
            self._running = None

    def _sync(self) -> OSError | None:
        try:
            disk.sync_filesystem(self._fd)
        except OSError as error:
            return error
        return None

    async def aclose(self) -> None:
        """Wait for a running sync."""
        if self._running is not None:
            await asyncio.wait((self._running,))
        os.close(self._fd)
