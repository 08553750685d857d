"""The leases of transfers: each ends with its transfer; where the process or the gateway was gone at that moment, as
soon as both are there again.

A lease that is left behind holds blobs and half-made snapshots until it expires, a day later. So each carries a label
with the *incarnation* of the process that made it, a UUID that is new at each start, and a process that starts ends
those of all others, in all namespaces. They are dead: a metadata database belongs to one node, which runs one images
process at a time (``__main__.py`` holds the lock on its directory). What a dead one was fetching is no lease's
(``RemoteNode.ingest``), so it can be gone on with.
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
"""Label of a lease: which process made it."""

EXPIRES = datetime.timedelta(hours=24)
"""A transfer's lease goes after this time whatever happens: the node may never start again."""

_PATIENCE = 5.0
"""Seconds to wait for the gateway where a transfer begins and it is not there; it comes back."""
_FIRST, _LONGEST = 0.1, 5.0
"""Seconds between attempts to end what is left."""


class Leases:
    """Leases through ``gateway``, of this process, and those that others have left."""

    def __init__(self, gateway: rpc.Channel) -> None:
        self._gateway = gateway
        self._leases = gateway.client(leases_stubs.LEASES)
        self._namespaces = gateway.client(namespaces_stubs.NAMESPACES)
        self._incarnation = str(uuid.uuid4())
        self._left: set[tuple[str, str]] = set()
        self._more = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lease(self, headers: Mapping[str, str | bytes]) -> AsyncIterator[str]:
        """The id of a lease that is there as long as the block, made as the caller whose ``headers`` these are."""
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
        finally:  # if the caller was cancelled, or the answer lost, it may be there nevertheless
            await rpc.shielded(self._ended(headers, lease))

    async def _ended(self, headers: Mapping[str, str | bytes], lease: str) -> None:
        try:
            await self._end(headers, lease)
        except errors.NodeError as error:
            log.warning("lease %s is ended later: %s", lease, error)
            self._left.add((str(headers.get(rpc.NAMESPACE, "")), lease))
            self._more.set()

    async def _end(self, headers: Mapping[str, str | bytes], lease: str) -> None:
        with contextlib.suppress(errors.NotFound):  # it has expired, or somebody has deleted it
            await self._leases.Delete(leases_pb2.DeleteRequest(id=lease), headers=headers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Leases]:
        """End what is left, in the background, while the block lasts; nobody waits for it."""
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
                    log.warning("leases of transfers that have ended wait: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST)
                continue
            pause = _FIRST
            await self._more.wait()
            self._more.clear()

    async def _end_left(self) -> None:
        """End all that can be ended; the last failure is raised."""
        failure: errors.NodeError | None = None
        for namespace, lease in list(self._left):
            try:
                await self._end({rpc.NAMESPACE: namespace}, lease)
            except errors.Unavailable:
                raise  # of the node, and so of all
            except errors.NodeError as error:
                failure = error
            else:
                self._left.discard((namespace, lease))
        if failure is not None:
            raise failure

    async def _find(self) -> None:
        """Note all leases of dead processes."""
        dead = leases_pb2.ListRequest(
            filters=[f'labels."{INCARNATION}"!="",labels."{INCARNATION}"!="{self._incarnation}"']
        )
        for namespace in (await self._namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces:
            answer = await self._leases.List(dead, headers={rpc.NAMESPACE: namespace.name})
            if answer.leases:
                log.info(
                    "namespace %s: %d leases are left of transfers that were cut off, and are ended",
                    namespace.name,
                    len(answer.leases),
                )
            self._left.update((namespace.name, lease.id) for lease in answer.leases)
