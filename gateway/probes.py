"""The node's health over HTTP, for monitors and load balancers that speak no gRPC; served where [health] has an
address.

    GET /health            the node: 200 if it works, 503 if not
    GET /health/SERVICE    one service, by the name that the first shows: 200, 503, or 404 if there is none of it

The answer is JSON, in the words of grpc.health.v1; ``trouble`` says what is wrong::

    {"status": "NOT_SERVING", "services": {
      "gateway": {"status": "SERVING"},
      "images": {"status": "NOT_SERVING", "trouble": "service images has been unreachable for 3.0 s"}, ...}}

As for ``splitd status``, the node works if each service of its own says that it serves, and each of other people's that
stands in the place of one; a snapshotter of others beside ours, or a sandbox controller, is shown, and is their own
matter.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.routes import Routes
from gateway.upstream import Upstream
from services.kit import errors, health, http_server
from services.kit.http_server import Request, Response

PATH = "/health"
_GATEWAY = "gateway"

_PATIENCE = 3.0
"""Seconds for a service to say how it is; one that takes longer does not work."""

_FRESH = 1.0
"""Seconds for which an answer is good: however many ask, each service is asked once in that time."""


class Health(NamedTuple):
    """One service. ``counts``: without it the node does not work."""

    trouble: str = ""
    counts: bool = True

    def to_json(self) -> dict[str, str]:
        return {"status": "NOT_SERVING", "trouble": self.trouble} if self.trouble else {"status": "SERVING"}


@dataclass(slots=True)
class _Asked:
    """A service's last word about itself, until when that is good, and the lock of whoever asks it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    trouble: str = ""
    until: float = 0.0


class Probes:
    """Answers for the hops of ``routes``; ``ours`` tells the names of the snapshots service's snapshotters."""

    def __init__(
        self, routes: Routes, ours: Callable[[], Collection[str]], *, patience: float = _PATIENCE, fresh: float = _FRESH
    ) -> None:
        self._routes = routes
        self._ours = ours
        self._patience = patience
        self._fresh = fresh
        self._asked: dict[str, _Asked] = {}

    async def serve(self, address: str) -> None:
        """Serve at ``address``; for :func:`services.kit.loops.running`, which begins anew where it is taken."""
        await http_server.lasting("[health] address", address, self.answer)

    async def answer(self, request: Request) -> Response:
        """The page of a path."""
        names = (_GATEWAY, *self._routes.hops)
        name = request.path.removeprefix(f"{PATH}/")
        if request.path == PATH:
            all_of_them = dict(zip(names, await asyncio.gather(*map(self.of, names)), strict=True))
            works = not any(each.trouble for each in all_of_them.values() if each.counts)
            return _page(
                works,
                {
                    "status": "SERVING" if works else "NOT_SERVING",
                    "services": {name: each.to_json() for name, each in all_of_them.items()},
                },
            )
        if name == request.path or name not in names:
            return http_server.failure(404, f"{PATH} and {PATH}/SERVICE are here")
        one = await self.of(name)
        return _page(not one.trouble, one.to_json())

    async def of(self, name: str) -> Health:
        """How a service is; what it says of itself may be a moment old."""
        if name == _GATEWAY:
            return Health()
        upstream, asked = self._routes[name].home, self._asked.setdefault(name, _Asked())
        counts = _counts(name, upstream, self._ours())
        if trouble := upstream.trouble():
            return Health(trouble, counts)
        async with asked.lock:
            if time.monotonic() >= asked.until:
                asked.trouble = await self._said(upstream)
                asked.until = time.monotonic() + self._fresh
        return Health(asked.trouble, counts)

    async def _said(self, upstream: Upstream) -> str:
        """The trouble with a service, in its own words if it can be asked; "" if there is none."""
        try:
            serves, why = await health.check(upstream.channel, "", self._patience)
        except errors.Unimplemented:  # other people's may not have it
            return ""
        except errors.NodeError as error:
            return f"service {upstream.name}: {error}"
        return "" if serves else why or f"service {upstream.name} is not serving"


def _counts(name: str, upstream: Upstream, ours: Collection[str]) -> bool:
    kind, _, snapshotter = name.partition(".")
    return bool(upstream.program) or kind not in ("snapshots", "sandbox") or snapshotter in ours


def _page(works: bool, content: object) -> Response:
    return Response(
        status=200 if works else 503, body=json.dumps(content, indent=1).encode() + b"\n", type="application/json"
    )
