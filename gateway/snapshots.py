"""Snapshots: each operation of a raw snapshotter joined with its record.

Stat and List are metadata's alone and are relayed. Everything else resolves the client's key to the raw one
(``NAMESPACE/NUMBER/KEY``) and calls the snapshotter; what creates does so under an intent. Removal takes only the
record: the collector removes the raw snapshot, as containerd does.

How a snapshot of one of our own snapshotters is mounted never changes, and a raw key means one snapshot for ever. So
the mounts that it answered are kept, as long as its process lives: clients ask for them twice more in each ``ctr run``.
Whether the namespace has the snapshot is asked each time.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.records.v1 import records_pb2 as records_pb
from gateway.config import Config
from gateway.records import Records, with_headers
from gateway.routes import Routes
from gateway.upstream import Upstream
from services.kit import errors
from services.kit.rpc import Call, shielded

SERVICE = snapshots_stubs.SNAPSHOTS
_REF = "containerd.io/snapshot.ref"
_NUMBERS_SKIPPED = 10
"""New names of one snapshot that a backend may say it has. Only those of a database that was lost are there, and
each of them had this very name under another number.
"""
_MOUNTS = 256
"""Snapshots of a snapshotter whose mounts are kept."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class _NumberTakenError(errors.Unknown):
    """A backend has a raw key whose number is new."""


class SnapshotsServicer:
    """containerd.services.snapshots.v1.Snapshots, but for what metadata answers itself."""

    SERVICE = SERVICE

    def __init__(self, routes: Routes, records: Records, config: Config) -> None:
        self._routes = routes
        self._records = records
        self._clients: dict[str, snapshots_stubs.Snapshots] = {}
        self._timeout = config.raw_timeout
        self._mounts: dict[str, OrderedDict[str, Sequence[Any]]] = {}
        """By backend and raw key; only of those that are ours."""
        for upstream in routes.upstreams.values():
            self._added(upstream)
        routes.added.append(self._added)

    def _added(self, upstream: Upstream) -> None:
        if upstream.name.startswith("snapshots.") and upstream.program:
            self._mounts[upstream.name] = OrderedDict()
            upstream.on_connect.append(self._mounts[upstream.name].clear)  # its options may be others now

    def _client(self, upstream: Upstream) -> snapshots_stubs.Snapshots:
        if upstream.name not in self._clients:
            self._clients[upstream.name] = upstream.channel.client(SERVICE)
        return self._clients[upstream.name]

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        return pb.PrepareSnapshotResponse(mounts=await self._create(request, call, view=False))

    async def View(self, request: pb.ViewSnapshotRequest, call: Call) -> pb.ViewSnapshotResponse:
        return pb.ViewSnapshotResponse(mounts=await self._create(request, call, view=True))

    async def _create(self, request: Any, call: Call, *, view: bool) -> Sequence[Any]:
        upstream = await self._routes.snapshotter(request.snapshotter, call)
        return await shielded(self._create_shielded(request, call, upstream, view))

    async def _create_shielded(self, request: Any, call: Call, upstream: Upstream, view: bool) -> Sequence[Any]:
        return await self._numbered(lambda: self._create_once(request, call, upstream, view), upstream)

    async def _numbered(self, attempt: Callable[[], Awaitable[T]], upstream: Upstream) -> T:
        """A raw key is new: one that the backend has all the same was given out by a database that was lost. Skip
        its number, a few times.
        """
        said = ""
        for _ in range(_NUMBERS_SKIPPED):
            try:
                return await attempt()
            except _NumberTakenError as taken:
                log.warning("%s: a number that this metadata store never gave out is taken: %s", upstream.name, taken)
                said = str(taken)
        raise errors.FailedPrecondition(
            f"{upstream.name} says of {_NUMBERS_SKIPPED} new names, one after the other, that it has them ({said}): "
            "it holds snapshots of many other metadata stores, or does not look at names"
        )

    async def _create_once(self, request: Any, call: Call, upstream: Upstream, view: bool) -> Sequence[Any]:
        intent = await self._records.call(
            "BeginSnapshot",
            records_pb.BeginSnapshotRequest(
                incarnation=self._records.incarnation,
                snapshotter=request.snapshotter,
                key=request.key,
                parent=request.parent,
                view=view,
                labels=request.labels,
            ),
            call,
        )
        client, headers = self._client(upstream), with_headers(call)

        async def create() -> Sequence[Any]:
            names = {
                "snapshotter": request.snapshotter,
                "key": intent.raw_key,
                "parent": intent.raw_parent,
                "labels": intent.raw_labels,
            }
            if view:
                return list(
                    (await client.View(pb.ViewSnapshotRequest(**names), headers=headers, timeout=self._timeout)).mounts
                )
            return list(
                (
                    await client.Prepare(pb.PrepareSnapshotRequest(**names), headers=headers, timeout=self._timeout)
                ).mounts
            )

        async def created() -> Sequence[Any] | None:
            try:
                found = await client.Mounts(
                    pb.MountsRequest(snapshotter=request.snapshotter, key=intent.raw_key), headers=headers
                )
            except errors.NotFound:
                return None
            return list(found.mounts)

        async def attempt() -> Sequence[Any] | None:
            try:
                return await create()
            except errors.AlreadyExists as error:
                if intent.target:
                    return None  # the backend has it already, as remote snapshotters do
                raise _NumberTakenError(str(error)) from None
            except errors.NotFound as error:
                if not intent.raw_parent:
                    raise
                raise _lost(upstream, request.parent, error) from None

        mounts = await self._records.outcome(intent, call, upstream, attempt, created)
        finish = records_pb.FinishRequest(intent=intent.id)
        if mounts is not None:
            self._keep(upstream, intent.raw_key, mounts)
        else:
            finish.adopted.append(await self._target(request.snapshotter, intent, call, client))
        await self._records.finish(finish, call)  # of what was adopted metadata says ALREADY_EXISTS
        return mounts or ()

    async def _target(
        self, snapshotter: str, intent: records_pb.Intent, call: Call, client: snapshots_stubs.Snapshots
    ) -> pb.Info:
        """The committed snapshot that the backend made for the intent's target; the intent is cancelled if there is
        none.
        """
        wanted = pb.ListSnapshotsRequest(
            snapshotter=snapshotter, filters=[f'labels."{_REF}"=={intent.target},parent=="{intent.raw_parent}"']
        )
        try:
            async for response in client.List(wanted, headers=with_headers(call)):
                for info in response.info:  # a snapshotter need not respect filters
                    if (
                        info.kind == pb.COMMITTED
                        and info.labels.get(_REF) == intent.target
                        and info.parent == intent.raw_parent
                    ):
                        return info
        except errors.NodeError:
            await self._records.cancel(intent.id, call)
            raise
        await self._records.cancel(intent.id, call)
        raise errors.NotFound(f'target snapshot "{intent.target}" in backend')

    async def Commit(self, request: pb.CommitSnapshotRequest, call: Call) -> Empty:
        upstream = await self._routes.snapshotter(request.snapshotter, call)
        return await shielded(self._numbered(lambda: self._commit_once(request, call, upstream), upstream))

    async def _commit_once(self, request: pb.CommitSnapshotRequest, call: Call, upstream: Upstream) -> Empty:
        intent = await self._records.call(
            "BeginCommitSnapshot",
            records_pb.BeginCommitSnapshotRequest(
                incarnation=self._records.incarnation,
                snapshotter=request.snapshotter,
                name=request.name,
                key=request.key,
                labels=request.labels,
                parent=request.parent,
            ),
            call,
        )
        client, headers = self._client(upstream), with_headers(call)

        async def commit() -> bool:
            try:
                await client.Commit(
                    pb.CommitSnapshotRequest(
                        snapshotter=request.snapshotter,
                        name=intent.raw_name,
                        key=intent.raw_key,
                        labels=intent.raw_labels,
                        parent=intent.raw_parent,
                    ),
                    headers=headers,
                    timeout=self._timeout,
                )
            except errors.AlreadyExists as error:  # of a name that has a new number: not what a client means by it
                raise _NumberTakenError(str(error)) from None
            return True

        async def committed() -> bool | None:
            try:
                await client.Stat(
                    pb.StatSnapshotRequest(snapshotter=request.snapshotter, key=intent.raw_name), headers=headers
                )
            except errors.NotFound:
                return None
            return True

        await self._records.outcome(intent, call, upstream, commit, committed)
        await self._records.finish(records_pb.FinishRequest(intent=intent.id), call)
        return Empty()

    async def Mounts(self, request: pb.MountsRequest, call: Call) -> pb.MountsResponse:
        upstream, raw = await self._resolve(request, call)
        if upstream.name in self._mounts and raw in self._mounts[upstream.name]:
            return pb.MountsResponse(mounts=self._mounts[upstream.name][raw])
        answer: pb.MountsResponse = await self._ask(
            upstream, "Mounts", pb.MountsRequest(snapshotter=request.snapshotter, key=raw), call, request.key
        )
        self._keep(upstream, raw, list(answer.mounts))
        return answer

    def _keep(self, upstream: Upstream, raw_key: str, mounts: Sequence[Any]) -> None:
        kept = self._mounts.get(upstream.name)
        if kept is not None:
            kept[raw_key] = mounts
            while len(kept) > _MOUNTS:
                kept.popitem(last=False)

    async def Usage(self, request: pb.UsageRequest, call: Call) -> pb.UsageResponse:
        upstream, raw = await self._resolve(request, call)
        answer: pb.UsageResponse = await self._ask(
            upstream, "Usage", pb.UsageRequest(snapshotter=request.snapshotter, key=raw), call, request.key
        )
        return answer

    async def Remove(self, request: pb.RemoveSnapshotRequest, call: Call) -> Empty:
        await self._routes.snapshotter(request.snapshotter, call)
        finished = await self._records.call(
            "RemoveSnapshot", records_pb.ResolveSnapshotRequest(snapshotter=request.snapshotter, key=request.key), call
        )
        self._records.publish(finished)
        return Empty()

    async def Update(self, request: pb.UpdateSnapshotRequest, call: Call) -> pb.UpdateSnapshotResponse:
        upstream = await self._routes.snapshotter(request.snapshotter, call)
        updated = await self._records.call("UpdateSnapshot", request, call)
        if updated.raw_labels or updated.raw_mask.paths:
            down = pb.UpdateSnapshotRequest(
                snapshotter=request.snapshotter,
                update_mask=updated.raw_mask,
                info=pb.Info(name=updated.raw_key, labels=updated.raw_labels),
            )
            await self._ask(upstream, "Update", down, call, request.info.name)
        return pb.UpdateSnapshotResponse(info=updated.info)

    async def Cleanup(self, request: pb.CleanupRequest, call: Call) -> Empty:
        upstream = await self._routes.snapshotter(request.snapshotter, call)
        await self._ask(upstream, "Cleanup", request, call)
        return Empty()

    async def _resolve(self, request: Any, call: Call) -> tuple[Upstream, str]:
        upstream = await self._routes.snapshotter(request.snapshotter, call)
        found = await self._records.call(
            "ResolveSnapshot", records_pb.ResolveSnapshotRequest(snapshotter=request.snapshotter, key=request.key), call
        )
        return upstream, found.raw_key

    async def _ask(self, upstream: Upstream, method: str, request: Any, call: Call, name: str = "") -> Any:
        """A raw call that may be repeated; about the snapshot ``name``."""
        for attempt in (1, 2):
            await upstream.ready(call)
            try:
                return await getattr(self._client(upstream), method)(
                    request, headers=with_headers(call), timeout=self._timeout
                )
            except errors.NotFound as error:  # of what metadata has just resolved
                raise _lost(upstream, name, error) from None
            except errors.Disconnected:
                if attempt == 2:
                    raise
        raise AssertionError


def _lost(upstream: Upstream, name: str, error: errors.NotFound) -> errors.NodeError:
    """What a backend says of a snapshot that is recorded."""
    return (
        errors.NotFound.verbatim(
            f"snapshot {name} is recorded, and {upstream.name} does not have it (docs/damaged-database.md): {error}"
        )
        if name
        else error
    )
