"""Who serves what: one table of services, one of backends.

A *backend* is a raw service: one that knows no namespaces ("content", "snapshots.overlayfs"). A *route* leads a gRPC service to the process that answers it;
what the gateway coordinates itself is not in the table but in its servicers.
"""

from __future__ import annotations

from collections.abc import Mapping
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
"""gRPC service to the upstream that its calls are relayed to. The modules are named, so that the relay finds the arity of their methods."""

PROGRAMS: Mapping[str, str] = {"metadata": "metadata", "content": "content", "diff": "snapshots", "images": "images", "tasks": "tasks"}
"""Upstream to its program under supervisord; snapshotters of ours are in "snapshots"."""


class Routes:
    """The upstreams of a node, by name."""

    def __init__(self, state: Path, config: Config, proxies: Mapping[str, ProxyPlugin]) -> None:
        supervision = Supervision(state / "supervisor.sock")
        self.upstreams: dict[str, Upstream] = {}

        def add(name: str, address: Path | str, program: str) -> None:
            self.upstreams[name] = Upstream(name, address, program, supervision, hold=config.hold)

        for name, program in PROGRAMS.items():
            add(name, state / f"{name}.sock", program)
        self.snapshotters: list[str] = list(config.snapshotters)
        for name in config.snapshotters:
            add(f"snapshots.{name}", state / f"snapshots-{name}.sock", "snapshots")
        for name, proxy in proxies.items():
            if proxy.type == "snapshot":
                add(f"snapshots.{name}", proxy.address, "")
                if name not in self.snapshotters:
                    self.snapshotters.append(name)
            else:
                add(proxy.type, proxy.address, "")

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

    def snapshotter(self, name: str) -> Upstream:
        """The backend of a snapshotter, as clients name it; the error is containerd's."""
        upstream = self.upstreams.get(f"snapshots.{name}")
        if not name:
            raise errors.InvalidArgument("snapshotter argument missing")
        if upstream is None:
            raise errors.InvalidArgument(f"snapshotter not loaded: {name}")
        return upstream
