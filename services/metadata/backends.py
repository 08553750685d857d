"""The raw services as the metadata process reaches them: through the gateway's internal socket, with the header that
names the backend.
"""

from __future__ import annotations

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from services.kit.rpc import RAW, Channel
from services.metadata.convert import KINDS_FROM_PB
from services.metadata.store import Kind, snapshotter_of


class RemoteBackends:
    """Asks raw services over ``gateway``, a channel to internal.sock."""

    def __init__(self, gateway: Channel) -> None:
        self._content = gateway.client(content_stubs.CONTENT)
        self._snapshots = gateway.client(snapshots_stubs.SNAPSHOTS)

    async def blob_size(self, backend: str, digest: str) -> int:
        answer: content_pb2.InfoResponse = await self._content.Info(
            content_pb2.InfoRequest(digest=digest), headers={RAW: backend}
        )
        return answer.info.size

    async def ingest_offset(self, backend: str, raw_ref: str) -> int:
        answer: content_pb2.StatusResponse = await self._content.Status(
            content_pb2.StatusRequest(ref=raw_ref), headers={RAW: backend}
        )
        return answer.status.offset

    async def snapshot_kind(self, backend: str, raw_key: str) -> Kind:
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter_of(backend), key=raw_key)
        answer: snapshots_pb2.StatSnapshotResponse = await self._snapshots.Stat(request, headers={RAW: backend})
        return KINDS_FROM_PB.get(answer.info.kind, "active")
