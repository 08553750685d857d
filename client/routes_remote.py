"""The routes of a node, over a channel to its internal socket: only for operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.splitd.routes.v1 import routes_pb2 as pb
from api.splitd.routes.v1 import routes_stubs
from gateway.candidates import Terms
from gateway.routes_convert import terms_from_pb, terms_to_pb
from gateway.store import Object
from services.kit.rpc import Channel

_LONG = 600.0
"""Seconds for what looks at all records."""


@dataclass(frozen=True, slots=True)
class Stands:
    """A candidate as it stands."""

    terms: Terms
    trouble: str
    """Why it is down; empty: it is there."""
    drained: str
    """Why it takes no new objects; empty: it does."""
    since: float
    """When it began to take some, in seconds since 1970."""
    configured: bool
    """Whether the configuration names it."""
    objects: int
    """How many it has; -1: not known, or it has none by its kind."""
    chosen: int
    """New objects, or calls, that went to it since the gateway began."""
    sent_home: int
    """Those that went home, since it was down."""
    calls: int
    """Those that were judged since it takes new objects."""
    failures: int
    failed: float
    """Percent of its last calls."""
    instruments: tuple[str, ...]
    """What stands around its calls, in words."""


@dataclass(frozen=True, slots=True)
class RouteStands:
    """A route with its home and its candidates."""

    name: str
    address: str
    """Home's."""
    trouble: str
    """Why home cannot be used; empty: it can."""
    foreign: bool
    """Whether home is a proxy plugin."""
    candidates: tuple[Stands, ...]
    instruments: tuple[str, ...]


class RemoteRoutes:
    """A gateway's routes."""

    def __init__(self, gateway: Channel) -> None:
        self._routes = gateway.client(routes_stubs.ROUTES)

    async def all(self) -> list[RouteStands]:
        """All of them, by name."""
        answer = await self._routes.List(pb.ListRequest(), timeout=_LONG)
        return [
            RouteStands(
                each.name,
                each.address,
                each.trouble,
                each.foreign,
                tuple(map(_stands, each.candidates)),
                tuple(each.instruments),
            )
            for each in answer.routes
        ]

    async def replace(self, terms: Terms) -> tuple[Stands, str]:
        """Have a candidate. Answers it, and where it was before if it has moved."""
        answer = await self._routes.Replace(pb.ReplaceRequest(terms=terms_to_pb(terms)), timeout=_LONG)
        return _stands(answer.candidate), answer.moved_from

    async def restore(self, route: str, name: str = "") -> list[Stands]:
        """Have it, or all of the route, take no new objects any more."""
        answer = await self._routes.Restore(pb.RestoreRequest(route=route, name=name), timeout=_LONG)
        return list(map(_stands, answer.candidates))

    async def objects(self, route: str, name: str = "", limit: int = 0) -> tuple[int, Sequence[Object]]:
        """How many objects it has, and some of them."""
        answer = await self._routes.Objects(pb.ObjectsRequest(route=route, name=name, limit=limit), timeout=_LONG)
        return answer.total, [
            Object(each.namespace, each.kind, each.name, tuple(each.containers)) for each in answer.objects
        ]

    async def forget(self, route: str, name: str = "") -> int:
        """Drop the records of its objects, and it. Answers how many they were."""
        return int((await self._routes.Forget(pb.ForgetRequest(route=route, name=name), timeout=_LONG)).forgotten)


def _stands(message: pb.Candidate) -> Stands:
    return Stands(
        terms_from_pb(message.terms),
        message.trouble,
        message.drained,
        message.since,
        message.configured,
        message.objects,
        message.chosen,
        message.sent_home,
        message.calls,
        message.failures,
        message.failed,
        tuple(message.instruments),
    )
