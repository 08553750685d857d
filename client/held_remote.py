"""What metadata's collector holds back, asked of metadata itself (an operator's matter: nobody else is told)."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.splitd.records.v1 import records_stubs
from services.kit.rpc import UNARY_TIMEOUT, Channel

_RECORDS = records_stubs.RECORDS


class RemoteHeld:
    """Over a channel to metadata's own socket."""

    def __init__(self, metadata: Channel) -> None:
        self._records = metadata.client(_RECORDS)

    async def held(self, seconds: float = UNARY_TIMEOUT) -> tuple[str, float]:
        """Why and since when (seconds since the epoch) what the database does not know is held back; "" if nothing
        is. ``seconds`` for the answer.
        """
        found = await self._records.GetHeld(Empty(), timeout=seconds)
        return found.reason, found.since / 1e9

    async def release(self) -> None:
        """It may go."""
        await self._records.Release(Empty())


class Namespaces:
    """Over a channel to the node's API."""

    def __init__(self, gateway: Channel) -> None:
        self._namespaces = gateway.client(namespaces_stubs.NAMESPACES)

    async def names(self) -> list[str]:
        """All that are known."""
        return [each.name for each in (await self._namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces]
