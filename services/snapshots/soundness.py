"""A snapshotter's database that may not be whole is said to be so: in the log, by the health of the process, and to
whoever would remove what it does not know (``hold``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from services.kit import damage, loops, threads

log = logging.getLogger(__name__)


class Server(Protocol):
    """Whose health says how it is, as ``kit.rpc``'s."""

    def ail(self, trouble: str = "") -> None:
        """It is not well, and this is why."""


class Soundness:
    """Of the database in ``path``, which its owner has opened. ``hold`` is told, once, why what it does not know is
    not to be removed any more.
    """

    def __init__(self, path: Path, hold: Callable[[str], None]) -> None:
        self._path = path
        self._hold = hold
        self._servers: tuple[Server, ...] = ()
        self._found = ""
        self._checking: asyncio.Task[None] | None = None

    def told_by(self, *servers: Server) -> None:
        """From here on the health of ``servers`` says what is found, and what was found before."""
        self._servers = servers
        if self._found:
            self._tell(self._found)

    async def checked(self) -> bool:
        """Check all pages, in a thread; whether they are what they were, as far as is known. A check that is broken
        off says nothing.
        """
        if self._checking is None or self._checking.done():
            self._checking = loops.aside("the check of all pages", self._check())
        checking = self._checking
        await asyncio.wait([checking])
        return not (checking.cancelled() or checking.exception() or self._found)

    async def _check(self) -> None:
        if found := await threads.apart("check of all pages", lambda: damage.quick_check(self._path)):
            self.damaged(f"{found}; {damage.WHAT_TO_DO}")

    async def aclose(self) -> None:
        """Look no further. A check that runs is left alone: its thread ends with the process."""
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking

    def damaged(self, why: str) -> None:
        """Somebody has met with damage."""
        if self._found:
            return
        self._found = why
        log.error("%s", why)
        self._hold(why)
        self._tell(why)

    def _tell(self, why: str) -> None:
        for server in self._servers:
            server.ail(why)
