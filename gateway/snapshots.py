"""Snapshots: each operation of a raw snapshotter joined with its record.

Stat and List are metadata's alone and are relayed. Everything else resolves the client's key to the raw one
(``NAMESPACE/NUMBER/KEY``) and calls the snapshotter; what creates does so under an intent. Removal takes only the
record: the collector removes the raw snapshot, as containerd does.

The mounts that one of our own snapshotters answered are kept (:mod:`gateway.mounts`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.records.v1 import records_pb2 as records_pb
from gateway.config import Config
from gateway.mounts import Mounts
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

log = logging.getLogger(__name__)
T = TypeVar("T")


class _NumberTakenError(errors.Unknown):
    """A backend has a raw key whose number is new."""


class _Raw(NamedTuple):
    """The raw snapshotter of one operation."""

    upstream: Upstream
    mounts: Mounts[Any]
    """Those of it that are kept."""

    def client(self) -> snapshots_stubs.Snapshots:
        return self.upstream.channel.client(SERVICE)


class SnapshotsServicer:
    """containerd.services.snapshots.v1.Snapshots, but for what metadata answers itself."""

    SERVICE = SERVICE

    def __init__(self, routes: Routes, records: Records, config: Config) -> None:
        self._routes = routes
        self._records = records
        self._timeout = config.raw_timeout
        self._mounts: dict[str, Mounts[Any]] = {}
        """By the name of the snapshotter's hop."""

    async def _raw(self, snapshotter: str, key: str, call: Call) -> _Raw:
        """Who has the snapshot ``key``, or is to have it."""
        hop = await self._routes.snapshotter(snapshotter, call)
        mounts = self._mounts.get(hop.name)
        if mounts is None:
            mounts = self._mounts[hop.name] = Mounts(hop)
        return _Raw(hop.to(call.optional_namespace, key), mounts)

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        return pb.PrepareSnapshotResponse(mounts=await self._create(request, call, view=False))

    async def View(self, request: pb.ViewSnapshotRequest, call: Call) -> pb.ViewSnapshotResponse:
        return pb.ViewSnapshotResponse(mounts=await self._create(request, call, view=True))

    async def _create(self, request: Any, call: Call, *, view: bool) -> Sequence[Any]:
        raw = await self._raw(request.snapshotter, request.key, call)
        return await shielded(self._numbered(lambda: self._create_once(request, call, raw, view), raw.upstream))

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

    async def _create_once(self, request: Any, call: Call, raw: _Raw, view: bool) -> Sequence[Any]:
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
        client, headers = raw.client(), with_headers(call)

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
                raise _lost(raw.upstream, request.parent, error) from None

        mounts = await self._records.outcome(intent, call, raw.upstream, attempt, created)
        finish = records_pb.FinishRequest(intent=intent.id)
        if mounts is not None:
            raw.mounts.put(raw.upstream, intent.raw_key, mounts)
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
        raw = await self._raw(request.snapshotter, request.key, call)
        return await shielded(self._numbered(lambda: self._commit_once(request, call, raw), raw.upstream))

    async def _commit_once(self, request: pb.CommitSnapshotRequest, call: Call, raw: _Raw) -> Empty:
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
        client, headers = raw.client(), with_headers(call)

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

        await self._records.outcome(intent, call, raw.upstream, commit, committed)
        await self._records.finish(records_pb.FinishRequest(intent=intent.id), call)
        return Empty()

    async def Mounts(self, request: pb.MountsRequest, call: Call) -> pb.MountsResponse:
        raw, key = await self._resolve(request, call)
        kept = raw.mounts.get(raw.upstream, key)
        if kept is not None:
            return pb.MountsResponse(mounts=kept)
        answer: pb.MountsResponse = await self._ask(
            raw, "Mounts", pb.MountsRequest(snapshotter=request.snapshotter, key=key), call, request.key
        )
        raw.mounts.put(raw.upstream, key, list(answer.mounts))
        return answer

    async def Usage(self, request: pb.UsageRequest, call: Call) -> pb.UsageResponse:
        raw, key = await self._resolve(request, call)
        answer: pb.UsageResponse = await self._ask(
            raw, "Usage", pb.UsageRequest(snapshotter=request.snapshotter, key=key), call, request.key
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
        raw = await self._raw(request.snapshotter, request.info.name, call)
        updated = await self._records.call("UpdateSnapshot", request, call)
        if updated.raw_labels or updated.raw_mask.paths:
            down = pb.UpdateSnapshotRequest(
                snapshotter=request.snapshotter,
                update_mask=updated.raw_mask,
                info=pb.Info(name=updated.raw_key, labels=updated.raw_labels),
            )
            await self._ask(raw, "Update", down, call, request.info.name)
        return pb.UpdateSnapshotResponse(info=updated.info)

    async def Cleanup(self, request: pb.CleanupRequest, call: Call) -> Empty:
        raw = await self._raw(request.snapshotter, "", call)
        await self._ask(raw, "Cleanup", request, call)
        return Empty()

    async def _resolve(self, request: Any, call: Call) -> tuple[_Raw, str]:
        raw = await self._raw(request.snapshotter, request.key, call)
        found = await self._records.call(
            "ResolveSnapshot", records_pb.ResolveSnapshotRequest(snapshotter=request.snapshotter, key=request.key), call
        )
        return raw, found.raw_key

    async def _ask(self, raw: _Raw, method: str, request: Any, call: Call, name: str = "") -> Any:
        """A raw call that may be repeated; about the snapshot ``name``."""
        for attempt in (1, 2):
            await raw.upstream.ready(call)
            try:
                return await getattr(raw.client(), method)(request, headers=with_headers(call), timeout=self._timeout)
            except errors.NotFound as error:  # of what metadata has just resolved
                raise _lost(raw.upstream, name, error) from None
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
