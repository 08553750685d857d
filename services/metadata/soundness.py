"""Reports a database that may be damaged: in the log, in the health of the process, and to the collector, which then
removes nothing.
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


FIRST_CHECK_WAIT = 60.0
"""Seconds for which the collector waits for the first check of all pages. A check takes about a second for each GiB,
and longer if the disk is slow.
"""


class Soundness:
    """The soundness of the database in ``path``, opened as ``database``.

    Damage is also noted in a file beside the database, PATH.damaged: the database may be too damaged to be written, and
    a database rescued from it (``splitd salvage``) looks whole.
    """

    def __init__(self, path: Path, database: Database) -> None:
        self._path = path
        self._note = path.with_name(f"{path.name}.damaged")
        self._database = database
        database.released = self._released
        self._server: rpc.Server | None = None
        self._found = ""
        self._copy = False
        self._checking: asyncio.Task[None] | None = None
        self._tasks = loops.Tasks()

    async def begin(self, lost: str, noted: Callable[[], None], *, copy: bool = False) -> None:
        """Start, before anything is served. ``lost`` says what the log has lost, and ``noted`` is called when that has
        been recorded. All pages are checked in a thread, now and whenever damage is met. The pages of a ``copy`` say
        nothing about the records.
        """
        self._copy = copy
        if lost:
            await guard.hold(self._database, lost)
            noted()
        if self._note.exists():
            await self._hold(self._noted())
        self._check()

    async def checked(self) -> None:
        """Wait for the first check, for at most :data:`FIRST_CHECK_WAIT` seconds."""
        if self._checking is not None:
            await asyncio.wait([self._checking], timeout=FIRST_CHECK_WAIT)

    @contextlib.asynccontextmanager
    async def reported_in(self, server: rpc.Server) -> AsyncIterator[None]:
        """Report damage in ``server``'s health during the block."""
        self._server = server
        if self._found:
            server.ail(self._found)
        yield

    async def close(self) -> None:
        """Stop, without waiting for a running check: its thread ends with the process."""
        await self._tasks.cancel()

    def damaged(self, why: str) -> None:
        """Damage was met: report it, and check all pages."""
        if self._met(why):
            self._tasks.start("the note of damage", self._hold(why))
            self._check()

    def _met(self, why: str) -> bool:
        """Log the damage and report it in the health. Returns whether it is the first."""
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
            log.error("cannot write %s, the note that the database is damaged: %s", self._note, error)
        try:
            await guard.hold(self._database, why, damaged=True)
        except errors.NodeError as error:
            log.error("cannot record that the collector is held: %s", error)

    def _noted(self) -> str:
        try:
            return self._note.read_text(errors="replace")[:1000].strip() or f"{self._path} was damaged"
        except OSError as error:
            return f"{self._path} was damaged ({error})"

    def _released(self) -> None:
        self._found = ""  # damage that is met from now on is news
        try:
            self._note.unlink(missing_ok=True)
        except OSError as error:
            log.error("cannot remove %s: the next start holds the collector again: %s", self._note, error)

    def _check(self) -> None:
        async def check() -> None:
            found = await threads.apart("check of all pages", lambda: damage.quick_check(self._path))
            if found and self._met(why := f"{found}; {damage.WHAT_TO_DO}"):
                await self._hold(why)
            elif found:
                log.error("all pages were checked: %s", found)  # the details of the damage that is already reported

        if not self._copy and (self._checking is None or self._checking.done()):
            self._checking = self._tasks.start("the check of all pages", check())
