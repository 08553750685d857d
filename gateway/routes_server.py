"""splitd.routes.v1.Routes on the internal socket: what an operator sees of the routes, and does to them."""

from __future__ import annotations

from api.splitd.routes.v1 import routes_pb2 as pb
from api.splitd.routes.v1 import routes_stubs
from gateway import routes_convert as convert
from gateway import strangers
from gateway.candidates import KINDS, Candidate, Terms, kind_of
from gateway.replacing import Replacing
from gateway.routes import Routes
from gateway.upstream import Upstream
from services.kit import errors
from services.kit.rpc import Call

_PATIENCE = 2.0
"""Seconds that a new candidate has to connect, and to answer. One that takes longer is down, which is no error."""
_WHY = 0.3
"""Seconds in which one that could not be reached usually says why."""
_LISTED = 1000


class RoutesServicer:
    """The routes of a gateway, and their candidates."""

    SERVICE = routes_stubs.ROUTES

    def __init__(self, routes: Routes, replacing: Replacing) -> None:
        self._routes = routes
        self._replacing = replacing

    async def List(self, request: pb.ListRequest, call: Call) -> pb.ListResponse:
        found = []
        for name in self._replacing.names():
            hop = self._routes[name]
            found.append(
                pb.Route(
                    name=name,
                    address=hop.home.address,
                    trouble=hop.home.trouble(),
                    foreign=not hop.home.program,
                    candidates=[await self._described(each) for each in self._replacing.on(name)],
                    instruments=_instruments(hop.home),
                )
            )
        unknown = [each for each in self._replacing.candidates if each.terms.route not in self._replacing.names()]
        for name in sorted({each.terms.route for each in unknown}):
            found.append(
                pb.Route(
                    name=name,
                    trouble="the node has no such route now",
                    candidates=[await self._described(each) for each in unknown if each.terms.route == name],
                )
            )
        return pb.ListResponse(routes=found)

    async def Replace(self, request: pb.ReplaceRequest, call: Call) -> pb.ReplaceResponse:
        terms = convert.terms_from_pb(request.terms)
        self._replacing.route(terms.route)
        terms.check_wanted()
        reached = await self._refuse_strangers(terms)
        candidate, moved = await self._replacing.replace(terms)
        if (upstream := self._replacing.upstream(candidate)) is not None:
            await upstream.connected(_PATIENCE if reached else _WHY)
        return pb.ReplaceResponse(candidate=await self._described(candidate), moved_from=moved)

    async def Restore(self, request: pb.RestoreRequest, call: Call) -> pb.RestoreResponse:
        found = await self._replacing.restore(request.route, request.name)
        return pb.RestoreResponse(candidates=[await self._described(each) for each in found])

    async def Objects(self, request: pb.ObjectsRequest, call: Call) -> pb.ObjectsResponse:
        answer = pb.ObjectsResponse()
        for each in self._replacing.find(request.route, request.name):
            answer.MergeFrom(
                convert.objects_to_pb(await self._replacing.objects(each, max(request.limit, 0) or _LISTED))
            )
        return answer

    async def Forget(self, request: pb.ForgetRequest, call: Call) -> pb.ForgetResponse:
        return pb.ForgetResponse(forgotten=(await self._replacing.forget(request.route, request.name)).total)

    async def _described(self, candidate: Candidate) -> pb.Candidate:
        upstream = self._replacing.upstream(candidate)
        count = -1
        if KINDS[kind_of(candidate.terms.route)] in ("objects", "containers", "sandboxes"):
            try:
                count = (await self._replacing.objects(candidate)).total
            except errors.NodeError:  # metadata's trouble is shown by its own route
                count = -1
        trouble = "" if upstream is None else upstream.trouble()
        described = convert.candidate_to_pb(candidate, trouble, count)
        described.instruments.extend([] if upstream is None else _instruments(upstream))
        return described

    async def _refuse_strangers(self, terms: Terms) -> bool:
        """InvalidArgument for a process that answers, and cannot be this kind of service. Whether there is one."""
        async with self._routes.reaching(terms) as channel:
            if not await channel.wait_connected(_PATIENCE):
                return False
            await strangers.refuse(channel, terms.route, terms.address, _PATIENCE)
            return True


def _instruments(upstream: Upstream) -> list[str]:
    """What stands around its calls, in words."""
    return [words for each in upstream.instruments if (words := getattr(each, "words", ""))]
