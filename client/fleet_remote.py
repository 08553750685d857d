"""The fleet as the node's process ``fleet`` knows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from api.splitd.fleet.v1 import fleet_pb2 as pb
from api.splitd.fleet.v1 import fleet_stubs
from services.kit.rpc import Channel
from services.oci.digests import Digest


@dataclass(frozen=True, slots=True)
class Standing:
    """How the node stands in its fleet."""

    node: str
    address: str
    """HOST:PORT where the others get blobs; empty: they get none."""
    troubles: tuple[str, ...]
    blobs: int
    """That the others are told of."""
    left_out: int
    """Further ones, of which they are not."""
    arriving: int
    sent: int
    """Bytes of blobs that the others got since the process started."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the fleet, as it says itself."""

    name: str
    address: str
    since: int
    """Nanoseconds since the epoch, by its own clock."""
    version: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that has a blob, or a part of it."""

    node: str
    address: str
    size: int
    have: int
    """Bytes that it had when it last said so."""


class FleetView:
    """What the process behind ``channel`` says. ``seconds`` is how long an answer may take."""

    def __init__(self, channel: Channel, seconds: float) -> None:
        self._fleet = channel.client(fleet_stubs.FLEET)
        self._seconds = seconds

    async def status(self) -> Standing:
        """How this node stands in the fleet. It is known if etcd is away, too."""
        found = await self._fleet.Status(Empty(), timeout=self._seconds)
        return Standing(
            found.node, found.address, tuple(found.troubles), found.blobs, found.left_out, found.arriving, found.sent
        )

    async def nodes(self) -> AsyncIterator[Member]:
        """All nodes of the fleet, by name."""
        async for page in self._fleet.Nodes(Empty(), timeout=self._seconds):
            for node in page.nodes:
                yield Member(node.name, node.address, node.since, node.version)

    async def why(self, digest: Digest) -> tuple[list[Holder], str]:
        """Who has a blob, and the node that fetches it from a registry, "" if none does."""
        found = await self._fleet.Why(pb.WhyRequest(digest=str(digest)), timeout=self._seconds)
        holders = [Holder(each.node, each.address, each.size, each.have) for each in found.peers]
        return holders, found.fetching
