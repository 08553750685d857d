"""Reports a snapshotter's database that may be damaged: in the log, in the health of the process, and to the code that
would remove what the database does not know (``hold``).
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
    """A server whose health can say what is wrong, as ``kit.rpc``'s."""

    def ail(self, trouble: str = "") -> None:
        """Report in the health what is wrong."""


class Soundness:
    """The soundness of the database in ``path``, which its owner has opened. ``hold`` is called once with the reason
    why things that the database does not know must stay.
    """

    def __init__(self, path: Path, hold: Callable[[str], None]) -> None:
        self._path = path
        self._hold = hold
        self._servers: tuple[Server, ...] = ()
        self._found = ""
        self._checking: asyncio.Task[None] | None = None

    def report_to(self, *servers: Server) -> None:
        """Let the health of ``servers`` report damage, also damage that was found before."""
        self._servers = servers
        if self._found:
            self._tell(self._found)

    async def checked(self) -> bool:
        """Check all pages, in a thread. Returns whether they are sound, as far as is known. A check that is cancelled
        says nothing about that.
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
        """Stop, without waiting for a running check: its thread ends with the process."""
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking

    def damaged(self, why: str) -> None:
        """Damage was met: report it."""
        if self._found:
            return
        self._found = why
        log.error("%s", why)
        self._hold(why)
        self._tell(why)

    def _tell(self, why: str) -> None:
        for server in self._servers:
            server.ail(why)
