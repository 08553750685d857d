"""Begins and ends the shadows of a node, and reads what they found."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.empty_pb2 import Empty

from api.splitd.shadows.v1 import shadows_pb2 as pb
from api.splitd.shadows.v1 import shadows_stubs
from services.kit.addresses import Address
from services.kit.rpc import Channel
from services.shadows.convert import method_from_pb
from services.shadows.store import Report, Shadow

ALL = 100.0
"""Percent."""


class Shadows:
    """The shadows of a node, over a channel to its internal socket."""

    def __init__(self, gateway: Channel) -> None:
        self._shadows = gateway.client(shadows_stubs.SHADOWS)

    async def start(self, route: str, where: Address, *, share: float = ALL, root: str = "") -> Shadow:
        """Begin one, with so many percent of the reads. AlreadyExists if the route has one, NotFound for the route,
        Disconnected for the candidate.
        """
        request = pb.StartRequest(
            route=route,
            address=where.address,
            share=share / ALL,
            root=root,
            tls=where.tls,
            ca=where.ca,
            cert=where.cert,
            key=where.key,
            server_name=where.server_name,
        )
        return _shadow(await self._shadows.Start(request))

    async def stop(self, route: str) -> Report:
        """End it, and return its last report. NotFound."""
        return _report(await self._shadows.Stop(pb.StopRequest(route=route)))

    async def list(self) -> Sequence[Shadow]:
        """All, by route."""
        return [_shadow(each) for each in (await self._shadows.List(Empty())).shadows]

    async def report(self, route: str) -> Report:
        """What it found so far. NotFound."""
        return _report(await self._shadows.Get(pb.GetRequest(route=route)))


def _shadow(message: pb.Shadow) -> Shadow:
    return Shadow(
        message.route, message.address, message.share * ALL, message.writes, message.since / 1e9, message.trouble
    )


def _report(message: pb.Report) -> Report:
    return Report(_shadow(message.shadow), [method_from_pb(each) for each in message.methods])
