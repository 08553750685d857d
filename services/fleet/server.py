"""The node's other processes ask of the fleet here: splitd.fleet.v1.Fleet."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from google.protobuf.empty_pb2 import Empty

from api.splitd.fleet.v1 import fleet_pb2 as pb
from api.splitd.fleet.v1 import fleet_stubs
from services.fleet import convert
from services.fleet.local import FleetNode
from services.fleet.prefetch import Prefetches
from services.fleet.store import Standing
from services.kit import errors
from services.kit.rpc import Call
from services.oci.digests import Digest

_PAGE = 500
"""Nodes in one message."""


class FleetServicer:
    """What this node knows of the fleet."""

    SERVICE = fleet_stubs.FLEET

    def __init__(self, fleet: FleetNode, standing: Callable[[], Standing] | None = None) -> None:
        self._fleet = fleet
        self._standing = standing or fleet.standing
        self._prefetches = Prefetches(fleet)

    async def Find(self, request: pb.FindRequest, call: Call) -> pb.FindResponse:
        peers = await self._fleet.find(request.namespace, _digest(request.digest))
        return pb.FindResponse(peers=map(convert.peer_to_pb, peers))

    async def Fetch(self, requests: AsyncIterator[pb.FetchRequest], call: Call) -> AsyncIterator[pb.FetchResponse]:
        first = await anext(requests, None)
        if first is None:
            return
        if first.size < 1:
            raise errors.InvalidArgument(f"{first.digest}: invalid size {first.size}")
        async with self._fleet.fetching(first.namespace, _digest(first.digest), first.size) as fetch:
            request: pb.FetchRequest | None = first
            while request is not None:
                if request.path:
                    fetch.arrived(request.path, request.have, request.received)
                if request.claim:
                    yield convert.claim_to_pb(await fetch.claim(request.left))
                request = await anext(requests, None)

    async def Image(self, request: pb.ImageRequest, call: Call) -> pb.ImageResponse:
        return convert.target_to_pb(await self._fleet.image(request.namespace, request.name))

    async def Images(self, request: Empty, call: Call) -> AsyncIterator[pb.ImagesResponse]:
        async with contextlib.aclosing(self._fleet.images()) as pages:
            async for page in pages:
                yield pb.ImagesResponse(images=map(convert.image_to_pb, page))

    async def Containers(self, request: Empty, call: Call) -> AsyncIterator[pb.ContainersResponse]:
        async with contextlib.aclosing(self._fleet.containers()) as pages:
            async for page in pages:
                yield pb.ContainersResponse(containers=map(convert.container_to_pb, page))

    async def Status(self, request: Empty, call: Call) -> pb.StatusResponse:
        return convert.standing_to_pb(self._standing())

    async def Pull(self, request: pb.PullRequest, call: Call) -> AsyncIterator[pb.PullResponse]:
        async with contextlib.aclosing(self._prefetches.run(convert.order_from_pb(request))) as news:
            async for each in news:
                yield convert.news_to_pb(each)

    async def Nodes(self, request: Empty, call: Call) -> AsyncIterator[pb.NodesResponse]:
        page = pb.NodesResponse()
        async with contextlib.aclosing(self._fleet.nodes()) as nodes:
            async for name, said in nodes:
                page.nodes.append(convert.node_to_pb(name, said))
                if len(page.nodes) >= _PAGE:
                    yield page
                    page = pb.NodesResponse()
        yield page

    async def Why(self, request: pb.WhyRequest, call: Call) -> pb.WhyResponse:
        digest = _digest(request.digest)
        peers = await self._fleet.peers(digest)
        return pb.WhyResponse(peers=map(convert.peer_to_pb, peers), fetching=await self._fleet.fetcher(digest))


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise errors.InvalidArgument(str(error)) from None
