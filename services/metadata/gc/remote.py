"""The raw stores through the gateway's internal socket: calls with the header ``splitd-raw``, and without a namespace.
The gateway limits how long they may stand still ([gateway] raw_timeout).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.splitd.removals.v1 import removals_pb2, removals_stubs
from api.splitd.stamp.v1 import stamp_pb2, stamp_stubs
from services.kit import errors, removals
from services.kit.rpc import RAW, Channel
from services.metadata.gc.raw import ListedSnapshot, Listing
from services.metadata.store import Raw, snapshotter_of

_REFERENCE = "containerd.io/snapshot.ref"


class RemoteRawStores:
    """Raw stores reached through ``gateway``, a channel to its internal socket."""

    def __init__(self, gateway: Channel) -> None:
        self._content = gateway.client(content_stubs.CONTENT)
        self._snapshots = gateway.client(snapshots_stubs.SNAPSHOTS)
        self._removals = gateway.client(removals_stubs.REMOVALS)
        self._stamp = gateway.client(stamp_stubs.STAMP)

    async def stamp(self, backend: str) -> str | None:
        try:
            answer = await self._stamp.Get(stamp_pb2.GetRequest(), headers={RAW: backend})
        except errors.Unimplemented:
            return None
        found: str = answer.store_id
        return found

    async def set_stamp(self, backend: str, store_id: str, *, replaces: str = "") -> None:
        await self._stamp.Set(stamp_pb2.SetRequest(store_id=store_id, replaces=replaces), headers={RAW: backend})

    async def list(self, backend: str) -> Listing:
        headers = {RAW: backend}
        if backend.startswith("snapshots."):
            request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter_of(backend))
            snapshots: dict[str, ListedSnapshot] = {}
            async for answer in self._snapshots.List(request, headers=headers):
                for info in answer.info:
                    snapshots[info.name] = ListedSnapshot(info.name, info.parent, info.labels.get(_REFERENCE, ""))
            return Listing(backend, snapshots=snapshots)
        statuses = await self._content.ListStatuses(content_pb2.ListStatusesRequest(), headers=headers)
        blobs = [
            info.digest
            async for answer in self._content.List(content_pb2.ListContentRequest(), headers=headers)
            for info in answer.info
        ]
        return Listing(backend, frozenset(blobs), frozenset(status.ref for status in statuses.statuses))

    async def remove(self, raw: Raw) -> None:
        headers: Any = {RAW: raw.backend}
        if raw.kind == "blob":
            await self._content.Delete(content_pb2.DeleteContentRequest(digest=raw.name), headers=headers)
        elif raw.kind == "ingest":
            await self._content.Abort(content_pb2.AbortRequest(ref=raw.name), headers=headers)
        else:
            request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter_of(raw.backend), key=raw.name)
            await self._snapshots.Remove(request, headers=headers)

    async def remove_all(self, backend: str, raws: Sequence[Raw]) -> Sequence[errors.NodeError | None]:
        if all(raw.kind == "blob" for raw in raws):
            blobs = removals_pb2.RemoveRequest(blobs=[raw.name for raw in raws])
            answer = await self._removals.Remove(blobs, headers={RAW: backend})
            if answer.all:
                return [None] * len(raws)
            if answer.outcomes:
                return _outcomes(answer, backend, len(raws))
            # an older release, which knows things only, and has removed nothing
        request = removals_pb2.RemoveRequest(things=[removals_pb2.Thing(kind=raw.kind, name=raw.name) for raw in raws])
        answer = await self._removals.Remove(request, headers={RAW: backend})
        return _outcomes(answer, backend, len(raws))

    async def cleanup(self, backend: str) -> None:
        try:
            await self._snapshots.Cleanup(
                snapshots_pb2.CleanupRequest(snapshotter=snapshotter_of(backend)), headers={RAW: backend}
            )
        except errors.Unimplemented:
            return  # few snapshotters have Cleanup


def _outcomes(answer: removals_pb2.RemoveResponse, backend: str, count: int) -> Sequence[errors.NodeError | None]:
    if len(answer.outcomes) != count:
        raise errors.Internal(f"backend {backend} answered about {len(answer.outcomes)} of {count} removals")
    return [removals.from_pb(outcome) for outcome in answer.outcomes]
