"""The leases of transfers. Each ends with its transfer or, if the process or the gateway was gone at that moment, as
soon as both are back.

A lease that is left behind protects blobs and half-made snapshots until it expires, a day later. So each lease has a
label with the *incarnation* of the process that made it, a UUID that is new at each start. A process that starts ends
the leases of all other incarnations, in all namespaces. Those processes are dead: a metadata database belongs to one
node, which runs one images process at a time (``__main__.py`` holds the lock on its directory). The ingests of a dead
process belong to no lease (``RemoteNode.ingest``), so they can be resumed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from services.kit import errors, loops, rpc

log = logging.getLogger(__name__)

INCARNATION = "splitd/images.incarnation"
"""Label of a lease with the incarnation of the process that made it."""

EXPIRES = datetime.timedelta(hours=24)
"""A transfer's lease expires after this time in any case: the node may never start again."""

_PATIENCE = 5.0
"""Seconds that a transfer waits at its start for a gateway that is away; it comes back."""
_FIRST, _LONGEST = 0.1, 5.0
"""Seconds between attempts to end leases: the first pause and the longest."""


class Leases:
    """Leases through ``gateway``: those of this process, and those that others have left."""

    def __init__(self, gateway: rpc.Channel) -> None:
        self._gateway = gateway
        self._leases = gateway.client(leases_stubs.LEASES)
        self._namespaces = gateway.client(namespaces_stubs.NAMESPACES)
        self._incarnation = str(uuid.uuid4())
        self._left: set[tuple[str, str]] = set()
        self._more = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lease(self, headers: Mapping[str, str | bytes]) -> AsyncIterator[str]:
        """The id of a lease that exists during the block, made as the caller with these ``headers``."""
        await self._gateway.reached(_PATIENCE)
        lease = f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
        until = datetime.datetime.now(datetime.UTC) + EXPIRES
        try:
            await self._leases.Create(
                leases_pb2.CreateRequest(
                    id=lease,
                    labels={
                        "containerd.io/gc.expire": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        INCARNATION: self._incarnation,
                    },
                ),
                headers=headers,
            )
            yield lease
        finally:  # if the caller was cancelled, or the answer lost, the lease may exist nevertheless
            await rpc.shielded(self._ended(headers, lease))

    async def _ended(self, headers: Mapping[str, str | bytes], lease: str) -> None:
        try:
            await self._end(headers, lease)
        except errors.NodeError as error:
            log.warning("lease %s will be ended later: %s", lease, error)
            self._left.add((str(headers.get(rpc.NAMESPACE, "")), lease))
            self._more.set()

    async def _end(self, headers: Mapping[str, str | bytes], lease: str) -> None:
        with contextlib.suppress(errors.NotFound):  # it has expired or was deleted
            await self._leases.Delete(leases_pb2.DeleteRequest(id=lease), headers=headers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Leases]:
        """End left-over leases in the background during the block."""
        async with loops.running("the end of leases", self._run):
            yield self

    async def _run(self) -> None:
        found, pause = False, _FIRST
        while True:
            try:
                if not found:
                    await self._find()
                    found = True
                await self._end_left()
            except errors.NodeError as error:
                if pause == _FIRST:
                    log.warning("leases of ended transfers cannot be ended yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST)
                continue
            pause = _FIRST
            await self._more.wait()
            self._more.clear()

    async def _end_left(self) -> None:
        """End all left-over leases that can be ended; raise the last failure."""
        failure: errors.NodeError | None = None
        for namespace, lease in list(self._left):
            try:
                await self._end({rpc.NAMESPACE: namespace}, lease)
            except errors.Unavailable:
                raise  # the node is away, so all others would fail too
            except errors.NodeError as error:
                failure = error
            else:
                self._left.discard((namespace, lease))
        if failure is not None:
            raise failure

    async def _find(self) -> None:
        """Find all leases of dead processes."""
        dead = leases_pb2.ListRequest(
            filters=[f'labels."{INCARNATION}"!="",labels."{INCARNATION}"!="{self._incarnation}"']
        )
        for namespace in (await self._namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces:
            answer = await self._leases.List(dead, headers={rpc.NAMESPACE: namespace.name})
            if answer.leases:
                log.info("namespace %s: ending %d leases of interrupted transfers", namespace.name, len(answer.leases))
            self._left.update((namespace.name, lease.id) for lease in answer.leases)
