"""Conversion between protobuf messages and domain values, both directions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.splitd.fleet.v1 import fleet_pb2 as pb
from services.fleet.store import Claim, Peer


def peer_to_pb(peer: Peer) -> pb.Peer:
    return pb.Peer(node=peer.node, address=peer.address, size=peer.size, have=peer.have)


def peer_from_pb(message: pb.Peer) -> Peer:
    return Peer(message.node, message.address, message.size, message.have)


def claim_to_pb(claim: Claim) -> pb.FetchResponse:
    return pb.FetchResponse(node=claim.node, ours=claim.ours)


def claim_from_pb(message: pb.FetchResponse) -> Claim:
    return Claim(message.node, message.ours)


def node_to_pb(name: str, said: Mapping[str, Any]) -> pb.Node:
    """A node, with what it says of itself; what makes no sense of that is left out."""
    since = said.get("since")
    return pb.Node(
        name=name,
        address=str(said.get("address", "")),
        since=since if type(since) is int and 0 <= since < 1 << 63 else 0,
        version=str(said.get("version", "")),
    )
