"""splitd.shadows.v1.Shadows on the internal socket: operators begin shadows, end them, and read what they found."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from api.splitd.shadows.v1 import shadows_pb2 as pb
from api.splitd.shadows.v1 import shadows_stubs
from gateway import strangers
from gateway.routes import Routes
from gateway.shadows import Shadow, has_own_store
from services.kit import errors
from services.kit.rpc import Call, Channel
from services.shadows.convert import address_from_pb

_REACHED = 3.0
"""Seconds for which a candidate may stay unreachable when its shadow begins."""


class ShadowsServicer:
    """The shadows of a node, of which each route has one at most."""

    SERVICE = shadows_stubs.SHADOWS

    def __init__(self, routes: Routes, root: Path, state: Path) -> None:
        self._routes = routes
        self._root = root
        self._state = state
        self._shadows: dict[str, Shadow] = {}

    async def Start(self, request: pb.StartRequest, call: Call) -> pb.Shadow:
        self._check_free(request.route)
        if not 0 <= request.share <= 1:
            raise errors.InvalidArgument(f"share {request.share:g} is not between 0 and 1")
        try:
            ours = self._routes.backend(request.route).home
        except errors.NotFound:
            raise errors.NotFound(f"{request.route} is no store of this node (splitd routes lists them)") from None
        if request.root and Path(request.root).resolve().is_relative_to(self._root.resolve()):
            raise errors.InvalidArgument(f"{request.root} is within the root of this node, and no store of another")
        async with Channel(address_from_pb(request), f"{request.route}'s candidate", pings="never") as candidate:
            try:
                await candidate.reached(_REACHED)
            except errors.Unavailable as error:  # which would say that this node is away
                raise errors.FailedPrecondition(str(error).removesuffix(f": {error.suffix}")) from None
            await strangers.refuse(candidate, request.route, request.address, _REACHED)
            writes = bool(request.root) or await has_own_store(candidate, await ours.ready(call))
        self._check_free(request.route)  # another call may have been faster
        made = self._shadows[request.route] = Shadow(request, ours, self._state, writes=writes)
        return made.shown()

    async def Stop(self, request: pb.StopRequest, call: Call) -> pb.Report:
        shadow = self._of(request.route)
        try:
            report = await shadow.report()
        except errors.NodeError:
            report = pb.Report(shadow=shadow.shown())
        self._shadows.pop(request.route, None)
        await shadow.close()
        return report

    async def List(self, request: Empty, call: Call) -> pb.ListResponse:
        return pb.ListResponse(shadows=[shadow.shown() for _, shadow in sorted(self._shadows.items())])

    async def Get(self, request: pb.GetRequest, call: Call) -> pb.Report:
        return await self._of(request.route).report()

    def _of(self, route: str) -> Shadow:
        found = self._shadows.get(route)
        if found is None:
            raise errors.NotFound(f"{route} has no shadow")
        return found

    def _check_free(self, route: str) -> None:
        if route in self._shadows:
            raise errors.AlreadyExists(f"{route} has a shadow (splitd shadow stop {route} ends it)")

    async def close(self) -> None:
        """End all."""
        while self._shadows:
            _, shadow = self._shadows.popitem()
            await shadow.close()
