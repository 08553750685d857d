"""What a node shows of its records in etcd: in its health, in its metrics. And what it does if their mirror is damaged:
the mirror is a copy, so this process begins anew with another one, and nobody has to do anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from services.etcd.store import ClusterStatus, Etcd
from services.kit import damage, loops, metrics, rpc, threads
from services.kit.metrics import Family, Sample
from services.metadata import etcd_mirror
from services.metadata.etcd import EtcdTransactions
from services.metadata.transactions import Standing

log = logging.getLogger(__name__)

TROUBLE = "etcd is back"
"""Until when the health says that it is away."""
_PATIENCE = 2.0
"""Seconds for the members' answers to a request for metrics; it shows the answers before, if they take longer."""


class EtcdNode:
    """``records`` are those in ``etcd``. ``again`` ends this process in order; its supervisor starts it again."""

    def __init__(self, records: EtcdTransactions, etcd: Etcd, again: Callable[[], None]) -> None:
        self._records = records
        self._etcd = etcd
        self._again = again
        self._path = records.file.path
        self._tasks = loops.Tasks()
        self._checking: asyncio.Task[None] | None = None
        self._broken = ""
        self._asked: asyncio.Task[None] | None = None
        self._members: ClusterStatus | None = None

    # -- the mirror

    def check(self, otherwise: Callable[[str], None]) -> None:
        """Read all pages of the mirror, in a thread. ``otherwise`` is told of damage that etcd itself may have."""
        self._checking = self._tasks.start("the check of the mirror", self._check("", otherwise))

    async def checked(self) -> None:
        """Wait for that."""
        if self._checking is not None:
            await asyncio.wait([self._checking])

    def damaged(self, why: str, otherwise: Callable[[str], None]) -> None:
        """A record could not be read. If the mirror has been made of etcd's by this process, and its pages are sound,
        etcd's own record is damaged, and ``otherwise`` is told; else the mirror is made anew.
        """
        if not self._broken:
            self._checking = self._tasks.start("the check of the mirror", self._check(why, otherwise))

    async def _check(self, why: str, otherwise: Callable[[str], None]) -> None:
        found = await threads.apart("the check of the mirror", lambda: damage.quick_check(self._path))
        if not (found or why) or self._broken:
            return
        if not found and self._records.listed:
            otherwise(why)
            return
        self._broken = found or why
        etcd_mirror.remove(self._path)
        log.error("the mirror of etcd's records is made anew, once etcd is there: %s", self._broken)
        await self._records.reached()
        self._again()

    # -- what is shown

    @contextlib.asynccontextmanager
    async def shown(self, server: rpc.Server) -> AsyncIterator[None]:
        """Report in ``server``'s health that etcd is away, and show the metrics, during the block."""
        metrics.source(self.families)
        try:
            async with loops.running("the health of the records in etcd", lambda: self._report(server)):
                yield
        finally:
            await self._tasks.cancel()

    async def _report(self, server: rpc.Server) -> None:
        while True:
            standing = self._records.standing
            if standing.away is None:
                server.recover(TROUBLE)
            else:
                server.ail(words(standing, time.time()), until=TROUBLE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(standing.reads + 0.01 if standing.reads else None):
                    await self._records.moved()

    async def families(self) -> Sequence[Family]:
        """The metrics that are looked up when somebody asks."""
        if self._asked is None or self._asked.done():
            self._asked = self._tasks.start("the question to etcd's members", self._ask())
        await asyncio.wait([self._asked], timeout=_PATIENCE)
        standing, status = self._records.standing, self._members
        found = [
            ("splitd_etcd_mirror_age_seconds", "Seconds since the mirror was in step with etcd.", standing.away or 0.0),
            ("splitd_etcd_mirror_revision", "The revision of etcd that the mirror shows.", standing.revision),
        ]
        if status is not None:
            reachable = sum(not member.error for member in status.members)
            found += [
                ("splitd_etcd_members", "Members of etcd in the configuration.", len(status.members)),
                ("splitd_etcd_members_reachable", "Members that answer, and can be used.", reachable),
            ]
        return [Family(name, text, "gauge", [Sample(float(value))]) for name, text, value in found]

    async def _ask(self) -> None:
        self._members = await self._etcd.status()


def words(standing: Standing, now: float) -> str:
    """That etcd is away, since when, and what that means. ``now``: seconds since the epoch."""
    since, until = (
        time.strftime("%H:%M:%S", time.localtime(moment))
        for moment in (now - (standing.away or 0.0), now + standing.reads)
    )
    meaning = f"reads go on until {until}, nothing is written" if standing.reads else "nothing is read or written"
    return f"etcd has been away since {since}: {meaning}; {standing.why}"
