"""A lease that is kept alive while its block lasts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable

from services.etcd import protocol
from services.etcd.answers import short
from services.etcd.cluster import Cluster, pause
from services.etcd.store import LEASE_LEAST
from services.kit import errors, loops

log = logging.getLogger(__name__)

LEASE_MOST = 9_000_000
"""Seconds of the longest lease, etcd's own bound."""
_REVOKE = 2.0
"""Seconds that the end of a block may wait for etcd: the lease ends by itself, too."""


class RemoteLease:
    """A lease of a cluster: ``keep`` renews it, three times in its life."""

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        ttl: float,
        granted: float,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.id = number
        self.lost = asyncio.Event()
        self._cluster = cluster
        self._ttl = ttl
        self._ends = granted + ttl
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()

    async def keep(self) -> None:
        """Renew the lease until it is lost. It never ends by itself."""
        failures = 0
        while not self.lost.is_set():
            left = self._ends - self._loop.time()
            await self._sleep(min(pause(failures), left) if failures else min(self._ttl / 3, left))
            asked = self._loop.time()
            if asked >= self._ends:
                self._lose("nobody could renew it in time")
                break
            try:
                ttl = await self._renewed(self._ends - asked)
            except errors.NodeError as error:
                failures += 1
                if failures == 1:
                    log.warning("etcd's lease %x could not be renewed, it is tried again: %s", self.id, short(error))
                continue
            failures = 0
            if ttl <= 0:
                self._lose("etcd has ended it")
            else:
                self._ends = asked + ttl
        await self._loop.create_future()

    def _lose(self, why: str) -> None:
        log.warning("etcd's lease %x is lost: %s", self.id, why)
        self.lost.set()

    async def _renewed(self, left: float) -> float:
        """The seconds that it lives from now on; 0: it has ended."""
        cluster = self._cluster
        seconds = min(left, cluster.config.timeout)
        answer = await cluster.exchange(
            protocol.LEASE, "LeaseKeepAlive", protocol.LeaseKeepAliveRequest(ID=self.id), seconds=seconds
        )
        return float(answer.TTL)

    async def revoke(self) -> None:
        """End it now, with its keys, if etcd is there."""
        if self.lost.is_set():
            return
        request = protocol.LeaseRevokeRequest(ID=self.id)
        try:
            await self._cluster.call(protocol.LEASE, "LeaseRevoke", request, seconds=_REVOKE)
        except errors.NotFound:
            return
        except errors.NodeError as error:
            log.warning("etcd's lease %x ends by itself, it could not be revoked: %s", self.id, short(error))


@contextlib.asynccontextmanager
async def leased(
    cluster: Cluster, ttl: float, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> AsyncIterator[RemoteLease]:
    """A lease for the block."""
    if not 0 < ttl <= LEASE_MOST:
        raise errors.InvalidArgument(f"a lease of {ttl:g} s: it lasts more than 0 s and at most {LEASE_MOST} s")
    asked = asyncio.get_running_loop().time()
    request = protocol.LeaseGrantRequest(TTL=math.ceil(max(ttl, LEASE_LEAST)))
    # a second one, if the first answer is lost, costs etcd nothing: the forgotten one ends
    granted = await cluster.call(protocol.LEASE, "LeaseGrant", request)
    lease = RemoteLease(cluster, granted.ID, float(granted.TTL), asked, sleep=sleep)
    try:
        async with loops.running(f"keeping etcd's lease {lease.id:x}", lease.keep):
            yield lease
    finally:
        await lease.revoke()
