"""A Snapshotter as containerd.services.snapshots.v1.Snapshots, and the list of snapshotters as
splitd.snapshotters.v1.Snapshotters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.snapshotters.v1 import snapshotters_pb2, snapshotters_stubs
from services.kit.rpc import Call
from services.oci.mounts_convert import mounts_to_pb
from services.snapshots import convert
from services.snapshots.store import About, Snapshotter

_BLOCK = 100
"""Snapshots in one message of a List."""


class SnapshotsServicer:
    """One snapshotter. It ignores the name in requests."""

    SERVICE = snapshots_stubs.SNAPSHOTS

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        mounts = await self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=mounts_to_pb(mounts))

    async def View(self, request: pb.ViewSnapshotRequest, call: Call) -> pb.ViewSnapshotResponse:
        mounts = await self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=mounts_to_pb(mounts))

    async def Mounts(self, request: pb.MountsRequest, call: Call) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=mounts_to_pb(await self._snapshotter.mounts(request.key)))

    async def Commit(self, request: pb.CommitSnapshotRequest, call: Call) -> Empty:
        await self._snapshotter.commit(request.name, request.key, dict(request.labels), request.parent)
        return Empty()

    async def Remove(self, request: pb.RemoveSnapshotRequest, call: Call) -> Empty:
        await self._snapshotter.remove(request.key)
        return Empty()

    async def Stat(self, request: pb.StatSnapshotRequest, call: Call) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=convert.info_to_pb(await self._snapshotter.stat(request.key)))

    async def Update(self, request: pb.UpdateSnapshotRequest, call: Call) -> pb.UpdateSnapshotResponse:
        info = await self._snapshotter.update(
            request.info.name, dict(request.info.labels), list(request.update_mask.paths)
        )
        return pb.UpdateSnapshotResponse(info=convert.info_to_pb(info))

    async def List(self, request: pb.ListSnapshotsRequest, call: Call) -> AsyncIterator[pb.ListSnapshotsResponse]:
        block: list[pb.Info] = []
        async for info in self._snapshotter.list(request.filters):
            block.append(convert.info_to_pb(info))
            if len(block) == _BLOCK:
                yield pb.ListSnapshotsResponse(info=block)
                block = []
        if block:
            yield pb.ListSnapshotsResponse(info=block)

    async def Usage(self, request: pb.UsageRequest, call: Call) -> pb.UsageResponse:
        return convert.usage_to_pb(await self._snapshotter.usage(request.key))

    async def Cleanup(self, request: pb.CleanupRequest, call: Call) -> Empty:
        await self._snapshotter.cleanup()
        return Empty()


class Described(Protocol):
    """Something that announces itself."""

    async def about(self) -> About:
        """Its announcement, as of now."""
        ...


class SnapshottersServicer:
    """The snapshotters of this process."""

    SERVICE = snapshotters_stubs.SNAPSHOTTERS

    def __init__(self, snapshotters: Sequence[Described]) -> None:
        self._snapshotters = snapshotters

    async def List(self, request: Empty, call: Call) -> snapshotters_pb2.ListResponse:
        return snapshotters_pb2.ListResponse(
            snapshotters=[convert.about_to_pb(await each.about()) for each in self._snapshotters]
        )
