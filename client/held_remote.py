"""Asks metadata what its collector holds back. This is for operators; other clients are not told."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.splitd.records.v1 import records_stubs
from services.kit.rpc import UNARY_STALL, Channel

_RECORDS = records_stubs.RECORDS


class RemoteHeld:
    """The held-back state over a channel to metadata's own socket."""

    def __init__(self, metadata: Channel) -> None:
        self._records = metadata.client(_RECORDS)

    async def held(self, seconds: float = UNARY_STALL) -> tuple[str, float]:
        """Why, and since when (seconds since the epoch), metadata holds back what its database does not know; "" if it
        holds nothing back. ``seconds`` limits the wait for the answer.
        """
        found = await self._records.GetHeld(Empty(), timeout=seconds)
        return found.reason, found.since / 1e9

    async def release(self) -> None:
        """Release what is held back, so that it is collected."""
        await self._records.Release(Empty())


class Namespaces:
    """The namespaces of a node, over a channel to its API."""

    def __init__(self, gateway: Channel) -> None:
        self._namespaces = gateway.client(namespaces_stubs.NAMESPACES)

    async def names(self) -> list[str]:
        """All known namespaces."""
        return [each.name for each in (await self._namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces]
