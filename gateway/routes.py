"""Who serves what: one table of services, one of backends.

A *backend* is a raw service: one that knows no namespaces ("content", "snapshots.overlayfs"). A *route* leads a gRPC
service to the process that answers it; what the gateway coordinates itself is not in the table but in its servicers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.diff.v1 import diff_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.namespaces.v1 import namespaces_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.services.streaming.v1 import streaming_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from api.containerd.services.transfer.v1 import transfer_pb2
from gateway.config import Config, ProxyPlugin
from gateway.supervision import Supervision
from gateway.upstream import Upstream
from services.kit import errors
from services.kit.rpc import Call

SERVICES: Mapping[str, str] = {
    module.DESCRIPTOR.services_by_name[service].full_name: upstream
    for module, service, upstream in (
        (containers_pb2, "Containers", "metadata"),
        (content_pb2, "Content", "metadata"),  # Info, List, Update; the rest is coordinated
        (diff_pb2, "Diff", "diff"),
        (images_pb2, "Images", "images"),
        (leases_pb2, "Leases", "metadata"),
        (namespaces_pb2, "Namespaces", "metadata"),
        (snapshots_pb2, "Snapshots", "metadata"),  # Stat, List; the rest is coordinated
        (streaming_pb2, "Streaming", "images"),
        (tasks_pb2, "Tasks", "tasks"),
        (transfer_pb2, "Transfer", "images"),
    )
}
"""gRPC service to the upstream that its calls are relayed to. The modules are named, so that the relay finds the
arity of their methods.
"""

PROGRAMS: Mapping[str, str] = {
    "metadata": "metadata",
    "content": "content",
    "snapshots": "snapshots",
    "diff": "snapshots",
    "images": "images",
    "tasks": "tasks",
}
"""Upstream to its program under supervisord; "snapshots" says which snapshotters it has, and each of them is an
upstream too (:meth:`Routes.know`).
"""


class Routes:
    """The upstreams of a node, by name."""

    def __init__(self, state: Path, config: Config, proxies: Mapping[str, ProxyPlugin]) -> None:
        self._supervision = Supervision(state / "supervisor.sock")
        self._state = state
        self._hold = config.hold
        self.upstreams: dict[str, Upstream] = {}
        self.added: list[Callable[[Upstream], None]] = []
        """Told of each upstream that is added from now on."""
        self.changed: list[Callable[[], None]] = []
        """Told when other snapshotters are known."""
        for name, program in PROGRAMS.items():
            self._add(name, state / f"{name}.sock", program)
        self._foreign: list[str] = []
        for name, proxy in proxies.items():
            if proxy.type == "snapshot":
                self._add(f"snapshots.{name}", proxy.address, "")
                self._foreign.append(name)
            else:
                self._add(proxy.type, proxy.address, "")
        self.snapshotters: tuple[str, ...] = tuple(self._foreign)
        """Their names, those of the snapshots service first, as far as they are known."""
        self._known, self._heard = asyncio.Event(), asyncio.Event()

    def _add(self, name: str, address: Path | str, program: str) -> None:
        self.upstreams[name] = upstream = Upstream(name, address, program, self._supervision, hold=self._hold)
        for told in self.added:
            told(upstream)

    def know(self, names: Sequence[str], *, heard: bool = False) -> None:
        """These are the snapshotters of the snapshots service; ``heard``: it says so itself, now. Those that a
        proxy plugin takes the place of stay the plugin's.
        """
        for name in names:
            if name not in self._foreign and f"snapshots.{name}" not in self.upstreams:
                self._add(f"snapshots.{name}", self._state / f"snapshots-{name}.sock", "snapshots")
        before, self.snapshotters = self.snapshotters, (*names, *(name for name in self._foreign if name not in names))
        self._known.set()
        if heard:
            self._heard.set()
        if before != self.snapshotters:
            for told in self.changed:
                told()

    async def known(self) -> None:
        """Return once it is known which snapshotters there are, or when the snapshots service had some time to say so:
        a part of what callers are held for, since those of content wait for this too.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._hold / 4):
                await self._known.wait()

    def __getitem__(self, name: str) -> Upstream:
        return self.upstreams[name]

    def of_method(self, method: str) -> Upstream:
        """The upstream of ``/package.Service/Method``; Unimplemented if this node has no such service."""
        service = method.split("/")[1] if method.count("/") == 2 else method
        name = SERVICES.get(service)
        if name is None:
            raise errors.Unimplemented(f"service {service} is not served by this node")
        return self.upstreams[name]

    def backend(self, name: str) -> Upstream:
        """A raw backend; NotFound if there is none of that name."""
        upstream = self.upstreams.get(name)
        if upstream is None or (name != "content" and not name.startswith("snapshots.")):
            raise errors.NotFound(f"backend {name}")
        return upstream

    async def snapshotter(self, name: str, call: Call) -> Upstream:
        """The backend of a snapshotter, as clients name it; the error is containerd's. Unavailable where the
        snapshots service has yet to say which it has.
        """
        if not name:
            raise errors.InvalidArgument("snapshotter argument missing")
        if (
            name not in self.snapshotters
            and not self._heard.is_set()
            and (self["snapshots"].up or not self._known.is_set())
        ):
            await self["snapshots"].ready(call)
            try:
                async with asyncio.timeout(self._hold):
                    await self._heard.wait()
            except TimeoutError:
                raise errors.Unavailable("service snapshots has not said yet which snapshotters it has") from None
        if name not in self.snapshotters:
            raise errors.InvalidArgument(f"snapshotter not loaded: {name}")
        return self.upstreams[f"snapshots.{name}"]
