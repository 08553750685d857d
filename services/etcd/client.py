"""The life of :class:`~services.etcd.store.Etcd` that a real cluster has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from services.etcd import protocol, store
from services.etcd.cluster import Cluster
from services.etcd.config import EtcdConfig
from services.etcd.leasing import leased
from services.etcd.store import (
    COMPARES,
    OPERATIONS,
    PAGE,
    PAGE_BYTES,
    Changes,
    ClusterStatus,
    Committed,
    Conflict,
    Delete,
    Etcd,
    KeyValue,
    Lease,
    Mod,
    Operation,
    Page,
    TooLarge,
)
from services.etcd.watching import Watching, pair
from services.kit import errors, loops

_FIRST = 100
"""Keys of a list's first page: how large they are is not known yet."""
_NEXT = "the next page of etcd's keys"


class RemoteEtcd:
    """A cluster, by its endpoints."""

    def __init__(self, config: EtcdConfig) -> None:
        self._cluster = Cluster(config)

    async def close(self) -> None:
        await self._cluster.close()

    async def status(self) -> ClusterStatus:
        return await self._cluster.status()

    async def get(self, key: bytes, *, seconds: float = 0.0) -> KeyValue | None:
        if not key:
            raise errors.InvalidArgument("an empty key")
        request = protocol.RangeRequest(key=key)
        found = (await self._cluster.call(protocol.KV, "Range", request, seconds=seconds)).kvs
        return pair(found[0]) if found else None

    async def pages(
        self, prefix: bytes, *, revision: int = 0, after: bytes = b"", count: int = PAGE
    ) -> AsyncIterator[Page]:
        if count < 1:
            raise errors.InvalidArgument(f"a page of {count} keys")
        start, end = max(prefix or b"\0", after + b"\0" if after else b""), store.end_of(prefix)
        if end != b"\0" and start >= end:  # etcd would take it for an empty range, too, but tells its own revision
            start = end
        limit = min(count, _FIRST)
        coming = loops.task(_NEXT, self._range(start, end, limit, revision))
        try:
            while True:
                answer, limit = await coming
                revision = revision or answer.header.revision
                if answer.more:
                    size = max(answer.ByteSize() // len(answer.kvs), 1)
                    limit = max(min(count, 8 * limit, PAGE_BYTES // size), 1)
                    coming = loops.task(_NEXT, self._range(answer.kvs[-1].key + b"\0", end, limit, revision))
                    await asyncio.sleep(0)  # it is asked for before this page is read
                yield Page(revision, tuple(map(pair, answer.kvs)))
                if not answer.more:
                    return
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _range(self, start: bytes, end: bytes, limit: int, revision: int) -> tuple[Any, int]:
        """A page of at most ``limit`` keys, or of fewer if these would be too large; and how many it may have."""
        while True:
            request = protocol.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
            try:
                return await self._cluster.call(protocol.KV, "Range", request), limit
            except TooLarge:  # than a message that we take
                if limit == 1:
                    raise
                limit = max(limit // 8, 1)

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        store.check(operations, compares)
        request = protocol.TxnRequest(
            compare=[
                protocol.Compare(key=each.key, target=protocol.Compare.MOD, mod_revision=each.revision)
                for each in compares
            ],
            success=nested([_operation(each) for each in operations], len(compares)),
        )
        answer = await self._cluster.call(protocol.KV, "Txn", request, writes=True, seconds=seconds)
        revision = answer.header.revision
        return Committed(revision) if answer.succeeded else Conflict(revision)

    @contextlib.asynccontextmanager
    async def watch(self, prefix: bytes, *, after: int) -> AsyncIterator[AsyncIterator[Changes]]:
        if after < 0:
            raise errors.InvalidArgument(f"a watch after revision {after}")
        async with contextlib.aclosing(await Watching(self._cluster, prefix, after).begin()) as changes:
            yield changes

    def lease(self, ttl: float) -> AbstractAsyncContextManager[Lease]:
        return leased(self._cluster, ttl)


def _operation(operation: Operation) -> Any:
    if isinstance(operation, Delete):
        return protocol.RequestOp(request_delete_range={"key": operation.key, "range_end": operation.end or b""})
    return protocol.RequestOp(request_put={"key": operation.key, "value": operation.value, "lease": operation.lease})


def nested(operations: list[Any], compares: int) -> list[Any]:
    """The operations of a transaction's one branch, in transactions without compares if they are too many for one."""
    if len(operations) <= OPERATIONS:
        return operations
    parts = next(n for n in range(1, COMPARES + 1) if n * (OPERATIONS - max(n, compares)) >= len(operations))
    size = OPERATIONS - max(parts, compares)
    chunks = (operations[at : at + size] for at in range(0, len(operations), size))
    return [protocol.RequestOp(request_txn={"success": chunk}) for chunk in chunks]


def connect(config: EtcdConfig) -> Etcd:
    """A cluster, which may be away. InvalidArgument without endpoints. It is called within the loop that uses it."""
    return RemoteEtcd(config)
