"""A Snapshotter in another process, and the list of a snapshots service's snapshotters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.snapshotters.v1 import snapshotters_stubs
from services.kit.rpc import Channel
from services.oci.mounts import Mount
from services.oci.mounts_convert import mounts_from_pb
from services.snapshots import convert
from services.snapshots.store import About, Info, Usage

LONG = 600.0
"""Seconds for which calls that copy, measure or remove a tree may make no progress."""


class RemoteSnapshotter:
    """A ``Snapshotter`` behind ``channel``: a raw one; or, if ``headers`` have a namespace, the one that a node calls
    ``snapshotter``.
    """

    def __init__(self, channel: Channel, *, snapshotter: str = "", headers: Mapping[str, str | bytes] = {}) -> None:
        self._client = channel.client(snapshots_stubs.SNAPSHOTS)
        self._name = snapshotter
        self._headers = dict(headers)

    async def stat(self, key: str) -> Info:
        response = await self._client.Stat(
            pb.StatSnapshotRequest(snapshotter=self._name, key=key), headers=self._headers
        )
        return convert.info_from_pb(response.info)

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        request = pb.UpdateSnapshotRequest(snapshotter=self._name, info=pb.Info(name=key, labels=labels))
        request.update_mask.paths.extend(paths)
        return convert.info_from_pb((await self._client.Update(request, headers=self._headers)).info)

    async def usage(self, key: str) -> Usage:
        return convert.usage_from_pb(
            await self._client.Usage(
                pb.UsageRequest(snapshotter=self._name, key=key), headers=self._headers, stall=LONG
            )
        )

    async def mounts(self, key: str) -> list[Mount]:
        return mounts_from_pb(
            (await self._client.Mounts(pb.MountsRequest(snapshotter=self._name, key=key), headers=self._headers)).mounts
        )

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return mounts_from_pb(
            (await self._client.Prepare(request, headers=self._headers, stall=LONG, together=True)).mounts
        )

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = pb.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return mounts_from_pb((await self._client.View(request, headers=self._headers, stall=LONG)).mounts)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        request = pb.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key, labels=labels, parent=parent)
        await self._client.Commit(request, headers=self._headers, stall=LONG, together=True)

    async def remove(self, key: str) -> None:
        await self._client.Remove(
            pb.RemoveSnapshotRequest(snapshotter=self._name, key=key), headers=self._headers, stall=LONG
        )

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        async for response in self._client.List(
            pb.ListSnapshotsRequest(snapshotter=self._name, filters=sources), headers=self._headers
        ):
            for message in response.info:
                yield convert.info_from_pb(message)

    async def cleanup(self) -> None:
        await self._client.Cleanup(pb.CleanupRequest(snapshotter=self._name), headers=self._headers, stall=LONG)


async def snapshotters(channel: Channel, timeout: float) -> tuple[About, ...]:
    """The snapshotters of the service behind ``channel``; the answer must come within ``timeout`` seconds.
    Unimplemented by an older release that does not announce them.
    """
    response = await channel.client(snapshotters_stubs.SNAPSHOTTERS).List(Empty(), timeout=timeout)
    return tuple(convert.about_from_pb(each) for each in response.snapshotters)
