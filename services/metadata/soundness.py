"""A database that may not be whole is said to be so: in the log, by the health of the process, and to the
collector, which then takes only what this database knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from services.kit import damage, errors, loops, rpc, threads
from services.metadata.database import Database
from services.metadata.gc import guard

log = logging.getLogger(__name__)


FIRST = 60.0
"""Seconds for which the collector waits for the first check of all pages: that takes one for each GiB or so, more
where the disk is slow.
"""


class Soundness:
    """Of the database in ``path``, opened as ``database``.

    That pages were damaged is noted beside it too, in PATH.damaged: it may be too damaged to be written, and what is
    saved of it (``splitd salvage``) looks whole.
    """

    def __init__(self, path: Path, database: Database) -> None:
        self._path = path
        self._note = path.with_name(f"{path.name}.damaged")
        self._database = database
        database.released = self._released
        self._server: rpc.Server | None = None
        self._found = ""
        self._checking: asyncio.Task[None] | None = None
        self._tasks = loops.Tasks()

    async def begin(self, lost: str, noted: Callable[[], None]) -> None:
        """Before anything is served: ``lost`` is what the log has lost; ``noted`` is called when that is written
        down. All pages are checked, in a thread, now and whenever damage is met with.
        """
        if lost:
            await guard.hold(self._database, lost)
            noted()
        if self._note.exists():
            await self._hold(self._noted())
        self._check()

    async def checked(self) -> None:
        """Wait for the first check, for :data:`FIRST` at most."""
        if self._checking is not None:
            await asyncio.wait([self._checking], timeout=FIRST)

    @contextlib.asynccontextmanager
    async def said(self, server: rpc.Server) -> AsyncIterator[None]:
        """While it lasts ``server``'s health says what is found."""
        self._server = server
        if self._found:
            server.ail(self._found)
        yield

    async def close(self) -> None:
        """End what goes on. A check that runs is left alone: its thread ends with the process."""
        await self._tasks.cancel()

    def damaged(self, why: str) -> None:
        """Somebody has met with damage."""
        if self._met(why):
            self._tasks.start("the note of damage", self._hold(why))
            self._check()

    def _met(self, why: str) -> bool:
        """Whether it is news."""
        if self._found:
            return False
        self._found = why
        log.error("%s", why)
        if self._server is not None:
            self._server.ail(why)
        return True

    async def _hold(self, why: str) -> None:
        try:
            if not self._note.exists():
                await asyncio.to_thread(self._note.write_text, f"{why}\n")
        except OSError as error:
            log.error("it cannot be noted that the database is damaged: %s", error)
        try:
            await guard.hold(self._database, why, damaged=True)
        except errors.NodeError as error:
            log.error("it cannot be recorded that things are held back: %s", error)

    def _noted(self) -> str:
        try:
            return self._note.read_text(errors="replace")[:1000].strip() or f"{self._path} was damaged"
        except OSError as error:
            return f"{self._path} was damaged ({error})"

    def _released(self) -> None:
        self._found = ""  # what is met with from now on is news
        try:
            self._note.unlink(missing_ok=True)
        except OSError as error:
            log.error("all is held back again at the next start: %s", error)

    def _check(self) -> None:
        async def check() -> None:
            found = await threads.apart("check of all pages", lambda: damage.quick_check(self._path))
            if found and self._met(why := f"{found}; {damage.WHAT_TO_DO}"):
                await self._hold(why)
            elif found:
                log.error("all pages were checked: %s", found)  # where it is that somebody has met with

        if self._checking is None or self._checking.done():
            self._checking = self._tasks.start("the check of all pages", check())
