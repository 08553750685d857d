"""Conversion between protobuf messages and domain values, both directions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.splitd.fleet.v1 import fleet_pb2 as pb
from services.fleet import told
from services.fleet.orders import News, NodePull, Order, State
from services.fleet.store import Claim, Container, Image, Peer, Standing, Target


def peer_to_pb(peer: Peer) -> pb.Peer:
    return pb.Peer(node=peer.node, address=peer.address, size=peer.size, have=peer.have)


def peer_from_pb(message: pb.Peer) -> Peer:
    return Peer(message.node, message.address, message.size, message.have)


def claim_to_pb(claim: Claim) -> pb.FetchResponse:
    return pb.FetchResponse(node=claim.node, ours=claim.ours, address=claim.address)


def claim_from_pb(message: pb.FetchResponse) -> Claim:
    return Claim(message.node, message.ours, message.address)


def standing_to_pb(standing: Standing) -> pb.StatusResponse:
    return pb.StatusResponse(
        node=standing.node,
        address=standing.address,
        troubles=standing.troubles,
        blobs=standing.blobs,
        left_out=standing.left_out,
        arriving=standing.arriving,
        sent=standing.sent,
    )


def standing_from_pb(message: pb.StatusResponse) -> Standing:
    return Standing(
        message.node,
        message.address,
        tuple(message.troubles),
        message.blobs,
        message.left_out,
        message.arriving,
        message.sent,
    )


def node_to_pb(name: str, said: Mapping[str, Any]) -> pb.Node:
    """A node, with what it says of itself; what makes no sense of that is left out."""
    since = said.get("since")
    return pb.Node(
        name=name,
        address=told.text(said.get("address")),
        since=since if type(since) is int and 0 <= since < 1 << 63 else 0,
        version=told.text(said.get("version")),
    )


def target_to_pb(target: Target | None) -> pb.ImageResponse:
    return pb.ImageResponse() if target is None else pb.ImageResponse(digest=target.digest, size=target.size)


def target_from_pb(message: pb.ImageResponse) -> Target | None:
    return Target(message.digest, message.size) if message.digest else None


def image_to_pb(image: Image) -> pb.Image:
    return pb.Image(
        node=image.node,
        namespace=image.namespace,
        name=image.name,
        digest=image.target.digest,
        size=image.target.size,
        updated=image.updated,
    )


def image_from_pb(message: pb.Image) -> Image:
    target = Target(message.digest, message.size)
    return Image(message.node, message.namespace, message.name, target, message.updated)


def container_to_pb(container: Container) -> pb.Container:
    return pb.Container(
        node=container.node,
        namespace=container.namespace,
        id=container.id,
        image=container.image,
        created=container.created,
    )


def container_from_pb(message: pb.Container) -> Container:
    return Container(message.node, message.namespace, message.id, message.image, message.created)


def order_to_pb(order: Order) -> pb.PullRequest:
    return pb.PullRequest(
        image=order.image, namespace=order.namespace, nodes=order.nodes, on=order.on, at_once=order.at_once
    )


def order_from_pb(message: pb.PullRequest) -> Order:
    return Order(
        image=message.image,
        namespace=message.namespace,
        nodes=message.nodes,
        on=tuple(message.on),
        at_once=message.at_once,
    )


def news_to_pb(news: News) -> pb.PullResponse:
    pulls = [
        pb.NodePull(
            node=each.node, state=each.state, done=each.done, total=each.total, digest=each.digest, error=each.error
        )
        for each in news.pulls
    ]
    return pb.PullResponse(pulls=pulls, trouble=news.trouble)


def news_from_pb(message: pb.PullResponse) -> News:
    pulls = [
        NodePull(each.node, State(each.state), each.done, each.total, each.digest, each.error) for each in message.pulls
    ]
    return News(tuple(pulls), message.trouble)
