"""A database that may not be whole is said to be so: in the log, by the health of the process, and to the collector, which then takes only what this database knows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from services.kit import errors, loops, rpc
from services.metadata import damage
from services.metadata.database import Database
from services.metadata.gc import guard

log = logging.getLogger(__name__)


class Soundness:
    """Of the database in ``path``, opened as ``database``."""

    def __init__(self, path: Path, database: Database) -> None:
        self._path = path
        self._database = database
        self._server: rpc.Server | None = None
        self._found = ""
        self._checking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, lost: str) -> None:
        """Before anything is served: ``lost`` is what the log has lost."""
        if lost:
            await guard.hold(self._database, lost)

    @contextlib.asynccontextmanager
    async def checking(self, server: rpc.Server) -> AsyncIterator[None]:
        """Check all pages, in a thread, now and whenever damage is met with. While it lasts ``server``'s health says what is found."""
        self._server = server
        self._check()
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def damaged(self, why: str) -> None:
        """Somebody has met with damage."""
        if self._found:
            return
        self._found = why
        log.error("%s", why)
        if self._server is not None:
            self._server.ail()
        self._start(self._hold(why))
        self._check()

    async def _hold(self, why: str) -> None:
        try:
            await guard.hold(self._database, why)
        except errors.NodeError as error:
            log.error("it cannot be recorded that things are held back: %s", error)

    def _check(self) -> None:
        async def check() -> None:
            if found := await asyncio.to_thread(damage.quick_check, self._path):
                self.damaged(f"{found}; {damage.WHAT_TO_DO}")

        if self._checking is None or self._checking.done():
            self._checking = self._start(check())

    def _start(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(loops.told)
        return task
