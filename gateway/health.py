"""The node's health, computed when it is asked for: "" is the gateway itself (dockerd waits for it); every hop and
every gRPC service has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.routes import SERVICES, Routes
from services.kit import errors
from services.kit.health import NOT_SERVING, SERVING
from services.kit.rpc import Call

_COORDINATED: Mapping[str, tuple[str, ...]] = {
    "containerd.services.content.v1.Content": ("metadata", "content"),
    "containerd.services.snapshots.v1.Snapshots": ("metadata",),
    "containerd.services.images.v1.Images": ("images", "metadata"),
}
"""Services that need more than the hop by which their calls leave."""

_OWN = (
    "",
    "gateway",
    "containerd.services.events.v1.Events",
    "containerd.services.introspection.v1.Introspection",
    "containerd.services.sandbox.v1.Controller",
    "containerd.services.version.v1.Version",
)


class NodeHealth(Mapping[str, int]):
    """Name to ServingStatus, for ``kit.health``."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def __getitem__(self, name: str) -> int:
        if name in _OWN:
            return SERVING
        if name in SERVICES:
            needed = _COORDINATED.get(name, (SERVICES[name],))
        elif name in self._routes.hops:
            needed = (name,)
        else:
            raise KeyError(name)
        return SERVING if all(self._routes[n].usual.up for n in needed) else NOT_SERVING

    def __iter__(self) -> Iterator[str]:
        yield from (*_OWN, *SERVICES, *self._routes.hops)

    def __len__(self) -> int:
        return len(list(iter(self)))

    async def state(self, name: str, call: Call) -> tuple[bool, str]:
        """Whether the service behind a hop is healthy, and why not. One that is away is waited for as if ``call`` went
        there: a node that starts is not broken.
        """
        upstream = self._routes[name].usual
        try:
            await upstream.ready(call)
        except errors.Unavailable:
            return False, upstream.trouble() or f"service {name} went away"
        return True, ""
