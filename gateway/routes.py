"""Which process serves which gRPC service: a table of services and one of backends, each of which has a hop
(:mod:`gateway.hop`).

A *backend* is a raw service: one that knows no namespaces ("content", "snapshots.overlayfs"). A *route* leads a gRPC
service to the process that answers it. Methods that the gateway coordinates are not in the table, but in its servicers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.diff.v1 import diff_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.namespaces.v1 import namespaces_pb2
from api.containerd.services.sandbox.v1 import sandbox_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.services.streaming.v1 import streaming_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from api.containerd.services.transfer.v1 import transfer_pb2
from gateway import strangers
from gateway.candidates import KINDS, Terms, kind_of
from gateway.config import Config, ProxyPlugin, own_socket
from gateway.hop import Hop
from gateway.supervision import Supervision
from gateway.upstream import Upstream
from services.kit import errors, tracing
from services.kit.addresses import Address
from services.kit.rpc import Call, Channel

SERVICES: Mapping[str, str] = {
    module.DESCRIPTOR.services_by_name[service].full_name: upstream
    for module, service, upstream in (
        (containers_pb2, "Containers", "metadata"),
        (content_pb2, "Content", "metadata"),  # Info, List, Update; the rest is coordinated
        (diff_pb2, "Diff", "diff"),
        (images_pb2, "Images", "images"),
        (leases_pb2, "Leases", "metadata"),
        (namespaces_pb2, "Namespaces", "metadata"),
        (sandbox_pb2, "Store", "metadata"),  # the calls of Controller go to sandbox.NAME
        (snapshots_pb2, "Snapshots", "metadata"),  # Stat, List; the rest is coordinated
        (streaming_pb2, "Streaming", "images"),
        (tasks_pb2, "Tasks", "tasks"),
        (transfer_pb2, "Transfer", "images"),
    )
}
"""gRPC service to the hop by which its calls leave. The modules are named, so that the relay finds the
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
"""Hop to the program under supervisord. "snapshots" announces its snapshotters, and each of them has a hop too
(:meth:`Routes.know`).
"""


_OF_CONTAINERD = ("podsandbox", "shim")
"""The sandbox controllers that containerd has of its own."""


class Routes:
    """The hops of a node, by name."""

    def __init__(self, state: Path, config: Config, proxies: Mapping[str, ProxyPlugin]) -> None:
        self._supervision = Supervision(state / "supervisor.sock")
        self._state = state
        self._hold = config.hold
        self._candidate_hold = config.candidate_hold
        self.hops: dict[str, Hop] = {}
        self.upstreams: list[Upstream] = []
        """All those that hops lead to, or led to before."""
        self.candidates: dict[str, Hop] = {}
        """The hops of candidates, by backend. One stays when its candidate is gone, since plans may have it."""
        self.added: list[Callable[[Upstream], None]] = []
        """Called with each upstream that is added from now on: to watch it."""
        self.changed: list[Callable[[], None]] = []
        """Called when other snapshotters are known."""
        for name, program in PROGRAMS.items():
            self._add(name, state / f"{name}.sock", program)
        self._foreign: list[str] = []
        for name, proxy in proxies.items():
            self._add(proxy.route(name), proxy.address, "")
            if proxy.type == "snapshot":
                self._foreign.append(name)
        self.snapshotters: tuple[str, ...] = tuple(self._foreign)
        """The names of those that are known; those of the snapshots service first."""
        self._known, self._heard = asyncio.Event(), asyncio.Event()

    def _add(self, name: str, address: Path | str, program: str) -> None:
        self.hops[name] = Hop(name, self.upstream(name, address, program))

    def upstream(
        self, name: str, address: Path | str | Address, program: str = "", *, hold: float | None = None
    ) -> Upstream:
        """Make an upstream for a hop, and have it watched; ``program`` is as in :class:`Upstream`."""
        upstream = Upstream(
            name,
            address,
            program,
            self._supervision,
            hold=self._hold if hold is None else hold,
            refused=None if program else partial(self._refused, name, address),
        )
        self.upstreams.append(upstream)
        for told in self.added:
            told(upstream)
        return upstream

    async def _refused(self, name: str, address: Path | str | Address, seconds: float) -> str | None:
        """Why what answers at the address of a service that is not ours cannot be that: it would lead back here. None
        if it does not answer. It is asked by a connection of its own, since what stands around the service's calls is
        not for this question.
        """
        if own := own_socket(str(address), self._state):
            return own
        async with Channel(address, name, pings="never") as channel:
            if not await channel.wait_connected(seconds):
                return None
            return await strangers.daemon(channel, name, str(address), seconds)

    def candidate_upstream(self, terms: Terms) -> Upstream:
        """Make an upstream for a candidate, and have it watched."""
        return self.upstream(terms.backend, terms.where, hold=self._candidate_hold)

    def reaching(self, terms: Terms) -> Channel:
        """A channel of its own to what is to be a candidate, for a question to it."""
        return Channel(terms.where, terms.backend, pings="never")

    def retire(self, upstream: Upstream, reason: str) -> None:
        """An upstream is to be called no more."""
        if not upstream.retired:
            upstream.retire(reason)
            self.upstreams.remove(upstream)

    def know(self, names: Sequence[str], *, heard: bool = False) -> None:
        """Take ``names`` for the snapshotters of the snapshots service; ``heard`` says that it told them itself, now. A
        name that a proxy plugin has stays the plugin's.
        """
        for name in names:
            if name not in self._foreign and f"snapshots.{name}" not in self.hops:
                self._add(f"snapshots.{name}", self._state / f"snapshots-{name}.sock", "snapshots")
        before, self.snapshotters = self.snapshotters, (*names, *(name for name in self._foreign if name not in names))
        self._known.set()
        if heard:
            self._heard.set()
        if before != self.snapshotters:
            for told in self.changed:
                told()

    async def known(self) -> None:
        """Return once it is known which snapshotters there are, or when the snapshots service has had some time to
        announce them: a part of ``hold``, since calls of content wait for this too.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._hold / 4):
                await self._known.wait()

    def __getitem__(self, name: str) -> Hop:
        return self.hops[name]

    def of_method(self, method: str) -> Hop:
        """The hop of ``/package.Service/Method``; Unimplemented if this node has no such service."""
        service = method.split("/")[1] if method.count("/") == 2 else method
        name = SERVICES.get(service)
        if name is None:
            raise errors.Unimplemented(f"service {service} is not served by this node")
        return self.hops[name]

    def backend(self, name: str) -> Hop:
        """The hop of a raw backend; NotFound if there is none of that name."""
        hop = self.hops.get(name) or self.candidates.get(name)
        if hop is None or name == "snapshots" or KINDS.get(kind_of(name)) != "objects":
            raise errors.NotFound(f"backend {name}")
        return hop

    async def snapshotter(self, name: str, call: Call) -> Hop:
        """The hop of a snapshotter, as clients name it; the error is containerd's. Unavailable while the snapshots
        service has not announced its snapshotters.
        """
        if not name:
            raise errors.InvalidArgument("snapshotter argument missing")
        if name not in self.snapshotters and not self._heard.is_set():
            await self._announced(call)
        if name not in self.snapshotters:
            raise errors.InvalidArgument(f"snapshotter not loaded: {name}")
        return self.hops[f"snapshots.{name}"]

    def sandboxer(self, name: str) -> Hop:
        """The hop of a sandbox controller, as clients name it; the errors are containerd's. Unimplemented for
        containerd's own controllers, which this node does not have, unless a proxy plugin has that name.
        """
        if not name:
            raise errors.InvalidArgument.verbatim("invalid argument: sandbox controller name can not be empty")
        hop = self.hops.get(f"sandbox.{name}")
        if hop is None and name in _OF_CONTAINERD:
            raise errors.Unimplemented(
                f"sandbox controller {name}: this node has no sandbox controllers of its own, only those of "
                "[proxy_plugins] with type sandbox"
            )
        if hop is None:
            raise errors.NotFound.verbatim(f"not found: failed to get sandbox controller by {name}")
        return hop

    async def _announced(self, call: Call) -> None:
        """Wait for the snapshots service's announcement, unless it is away and an earlier one is known."""
        snapshots = self["snapshots"].home
        if not snapshots.up and self._known.is_set():
            return
        await snapshots.ready(call)
        try:
            with tracing.wait("lock", **{"splitd.wait.for": "service snapshots, which announces its snapshotters"}):
                async with asyncio.timeout(self._hold):
                    await self._heard.wait()
        except TimeoutError:
            raise errors.Unavailable("service snapshots has not said yet which snapshotters it has") from None
