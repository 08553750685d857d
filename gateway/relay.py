"""Calls that need no coordination pass through unread. This decides where each of them goes, for how long, and whether
it may be made twice.

A read that is interrupted by its service's death is made again once the service is back; a Wait too, as often as it
takes. Any other call that was under way answers UNAVAILABLE: only its caller can know whether to repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from google.protobuf import descriptor_pool

from gateway.config import Config
from gateway.containers import Containers
from gateway.routes import Routes
from gateway.upstream import onward
from services.kit import errors
from services.kit.rpc import LONG, RAW, STREAMS, UNARY, Arity, Call, Coordinated, Remembered, Route

READS = frozenset(
    {
        "Get",
        "List",
        "ListStream",
        "Info",
        "Stat",
        "Status",
        "ListStatuses",
        "Usage",
        "Mounts",
        "ListPids",
        "ListResources",
        "Metrics",
        "Version",
        "Check",
    }
)
"""Methods that change nothing, so that an interrupted one may be called again."""

UNBOUNDED = frozenset(
    {
        "/containerd.services.tasks.v1.Tasks/Wait",
        "/containerd.services.images.v1.Images/Delete",  # sync: as long as a collection takes
        "/containerd.services.leases.v1.Leases/Delete",
        "/containerd.services.diff.v1.Diff/Apply",
        "/containerd.services.diff.v1.Diff/Diff",
        "/containerd.services.transfer.v1.Transfer/Transfer",
        "/splitd.records.v1.Records/Collect",
    }
)
"""Unary calls without a limit: only keepalive ends them."""


class Relay:
    """Decides for one socket; ``internal`` says that it is that of our own processes, which may make raw calls.

    The gateway answers the streaming methods in ``coordinated`` message by message; of those in ``joined`` it reads the
    request, and then relays them. So it does with tasks while they have candidates: ``containers`` knows where each is.
    ``remembered`` has what is remembered of the answers of a method (:mod:`gateway.remembered`).
    """

    def __init__(
        self,
        routes: Routes,
        config: Config,
        *,
        internal: bool,
        coordinated: Mapping[str, Coordinated] = {},
        joined: Mapping[str, Callable[[Call], Route]] = {},
        containers: Containers | None = None,
        remembered: Mapping[str, Remembered] = {},
    ) -> None:
        self._routes = routes
        self._config = config
        self._internal = internal
        self._coordinated = coordinated
        self._joined = joined
        self._containers = containers
        self._remembered = remembered

    def arity(self, method: str) -> Arity:
        """As the descriptors say; two streams for a method that they do not know."""
        service, _, name = method.strip("/").rpartition("/")
        try:
            descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        except KeyError:
            return STREAMS
        return Arity(descriptor.client_streaming, descriptor.server_streaming)

    def coordinated(self, call: Call) -> Coordinated | None:
        """The handler of a method that the gateway answers itself, unless the call is raw."""
        return None if RAW in call.headers else self._coordinated.get(call.method)

    def route(self, call: Call) -> Route:
        """The way of the call; Unimplemented, NotFound or PermissionDenied if there is none."""
        raw = call.headers.get(RAW)
        if raw is not None:
            if not self._internal:
                raise errors.PermissionDenied(f"header {RAW} is for the node's own processes")
            hop = self._routes.backend(str(raw))
        elif call.method in self._joined:
            return self._joined[call.method](call)
        else:
            hop = self._routes.of_method(call.method)
        headers = onward(call, hop.name)
        headers.pop(RAW, None)
        name = call.method.rpartition("/")[2]
        repeats = math.inf if name in LONG else 2 if name in READS else 0
        if hop.name == "tasks":  # shims and runc do its work, and only their time can be seen
            limit = None if call.method in UNBOUNDED else self._config.task_timeout
            admit = self._containers.admit if self._containers is not None and hop.candidates else None
            return Route(hop, headers, limit, repeats=repeats, admit=admit)
        if call.method in UNBOUNDED or (self.arity(call.method) != UNARY and raw is None):
            return Route(hop, headers, repeats=repeats)
        stall = self._config.unary_timeout if raw is None else self._config.raw_timeout
        remembered = self._remembered.get(call.method) if raw is None else None
        return Route(hop, headers, stall=stall, repeats=repeats, remembered=remembered)
