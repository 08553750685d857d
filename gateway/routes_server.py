"""splitd.routes.v1.Routes on the internal socket: what an operator sees of the routes, and does to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from api.splitd.routes.v1 import routes_pb2 as pb
from api.splitd.routes.v1 import routes_stubs
from gateway import routes_convert as convert
from gateway.candidates import KINDS, Candidate, Terms, kind_of
from gateway.remote import asked_for_records
from gateway.replacing import Replacing
from gateway.routes import Routes
from gateway.upstream import Upstream
from services.kit import errors
from services.kit.rpc import NAMESPACE, Call, Channel

_PATIENCE = 2.0
"""Seconds that a new candidate has to connect, and to answer. One that takes longer is down, which is no error."""
_WHY = 0.3
"""Seconds in which one that could not be reached usually says why."""
_LISTED = 1000
_NOBODY = {NAMESPACE: "default"}
_NOTHING = f"sha256:{'0' * 64}"


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
        terms.check()
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
        if KINDS[kind_of(candidate.terms.route)] in ("objects", "containers"):
            try:
                count = (await self._replacing.objects(candidate)).total
            except errors.NodeError:  # metadata's trouble is shown by its own route
                count = -1
        trouble = "" if upstream is None else upstream.trouble()
        described = convert.candidate_to_pb(candidate, trouble, count)
        described.instruments.extend([] if upstream is None else _instruments(upstream))
        return described

    async def _refuse_strangers(self, terms: Terms) -> bool:
        """InvalidArgument for a process that answers, and does not serve this kind of route. Whether there is one."""
        async with self._routes.reaching(terms) as channel:
            if not await channel.wait_connected(_PATIENCE):
                return False
            try:
                if (asked := _QUESTIONS.get(kind_of(terms.route))) is not None:
                    await asked(channel)
            except errors.Unimplemented as error:
                raise errors.InvalidArgument.verbatim(
                    f"{terms.address} does not serve what {terms.route} needs: {error}"
                ) from None
            except errors.NodeError:  # it knows the method
                return True
            return True


async def _content(channel: Channel) -> None:
    await channel.client(content_stubs.CONTENT).Info(
        content_pb2.InfoRequest(digest=_NOTHING), headers=_NOBODY, timeout=_PATIENCE
    )


async def _snapshots(channel: Channel) -> None:
    await channel.client(snapshots_stubs.SNAPSHOTS).Stat(
        snapshots_pb2.StatSnapshotRequest(key="splitd-asks"), headers=_NOBODY, timeout=_PATIENCE
    )


async def _images(channel: Channel) -> None:
    await channel.client(images_stubs.IMAGES).Get(
        images_pb2.GetImageRequest(name="splitd-asks"), headers=_NOBODY, timeout=_PATIENCE
    )


async def _tasks(channel: Channel) -> None:
    await channel.client(tasks_stubs.TASKS).Get(
        tasks_pb2.GetRequest(container_id="splitd-asks"), headers=_NOBODY, timeout=_PATIENCE
    )


_QUESTIONS: Mapping[str, Callable[[Channel], Awaitable[None]]] = {
    "content": _content,
    "snapshots": _snapshots,
    "images": _images,
    "tasks": _tasks,
    "metadata": lambda channel: asked_for_records(channel, _PATIENCE),
}
"""Calls that change nothing, by the kind of route. Diff has none."""


def _instruments(upstream: Upstream) -> list[str]:
    """What stands around its calls, in words."""
    return [words for each in upstream.instruments if (words := getattr(each, "words", ""))]
