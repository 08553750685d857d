"""containerd.services.introspection.v1: the parts of this node, and the state of each.

containerd lists its plugins. Clients look for some of them by type and id, for their *exports* (``opt``: its path) and
for their *capabilities* (``restart``: its policies). This node has processes in the place of plugins: a row here stands
for a part of a process's work, under containerd's name for it. Its state is that of now: ``error`` with UNAVAILABLE
while its process stays away, ``skip`` or ``error`` with the reason if this machine lacks something that it needs. Parts
that the node lacks (other snapshotters, CRI, sandbox controllers of its own) have no row.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from api.containerd.services.introspection.v1 import introspection_pb2 as pb
from api.containerd.services.introspection.v1 import introspection_stubs
from api.containerd.types.introspection_pb2 import RuntimeInfo, RuntimeRequest
from api.containerd.types.platform_pb2 import Platform
from gateway.candidates import Candidate
from gateway.candidates import capabilities as usable
from gateway.config import ProxyPlugin
from gateway.machine import Programs
from services.kit import any as kit_any
from services.kit import errors, files, filters, opt
from services.kit.rpc import Call
from services.kit.settings import Node
from services.kit.slices import Lane
from services.oci import platforms
from services.snapshots.store import DIFFER as DIFFER_OF
from services.snapshots.store import REMAP_IDS, About

SKIP = "skip plugin"
"""By these words at the end of its error, clients tell a plugin that was not started on purpose from a broken one."""


class Probe(Protocol):
    """Knows the health of the services behind the gateway."""

    async def state(self, name: str, call: Call) -> tuple[bool, str]:
        """Whether the service behind a hop can be used, and why not. It can if it comes back within the time for which
        any call would be held.
        """
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One plugin: its names for containerd's clients, and the hop whose service must be there for it to work."""

    type: str
    id: str
    upstream: str = ""
    requires: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    """``os/architecture[/variant]`` of a plugin that is tied to some; containerd shows "-" for the others."""
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    check: str = ""
    """The check of the machine on which it depends: "shim", "runtime" or none."""
    trouble: str = ""
    """Why it cannot work on this machine, in its own words."""
    broken: bool = False
    """Its data on the disk are damaged, and ``trouble`` says so."""


(
    CONTENT,
    SNAPSHOTTER,
    METADATA,
    DIFFER,
    EVENT,
    GC,
    LEASE,
    RUNTIME,
    SHIM,
    SERVICE,
    GRPC,
    INTERNAL,
    MONITOR,
    SANDBOX_STORE,
    SANDBOX_CONTROLLER,
    STREAMING,
    TRANSFER,
    VERIFIER,
) = (
    f"io.containerd.{name}"
    for name in (
        "content.v1",
        "snapshotter.v1",
        "metadata.v1",
        "differ.v1",
        "event.v1",
        "gc.v1",
        "lease.v1",
        "runtime.v2",
        "shim.v1",
        "service.v1",
        "grpc.v1",
        "internal.v1",
        "monitor.container.v1",
        "sandbox.store.v1",
        "sandbox.controller.v1",
        "streaming.v1",
        "transfer.v1",
        "image-verifier.v1",
    )
)


_WALKING = "walking"
"""containerd's name for what our Diff is."""

Standing = Callable[[str], Sequence[Candidate]]
"""The candidates of a route, by its name."""


def rows(
    node: Node, snapshotters: Sequence[About], proxies: Mapping[str, ProxyPlugin], candidates: Standing
) -> list[Row]:
    """The plugins of a node, those that others require first. ``snapshotters`` are those of the snapshots service; a
    proxy plugin takes the place of the one that has its name. What clients may use of a snapshotter its candidates
    must have, too. While Diff has candidates it is called by the name of one: images unpacks by the calls of any but
    our own. A differ that a snapshotter names is our Diff, too; a foreign one knows nothing of it.

    ``metadata.v1 bolt`` is SQLite here; clients know the metadata store by that id.
    """
    root = node.root
    here = str(platforms.default())
    content = next((name for name, proxy in proxies.items() if proxy.type == "content"), "")
    differ = next((name for name, proxy in proxies.items() if proxy.type == "diff"), "")
    sandboxers = [name for name, proxy in proxies.items() if proxy.type == "sandbox"]
    diffs = next((each.terms.name for each in candidates("diff") if not each.draining), "")

    def own(about: About) -> Row:
        return Row(
            SNAPSHOTTER,
            about.name,
            f"snapshots.{about.name}",
            platforms=tuple(about.platforms) or (here,),
            exports=about.exports,
            capabilities=usable(about.capabilities, candidates(f"snapshots.{about.name}")),
            check="shim",
            trouble=about.trouble,
            broken=about.broken,
        )

    def proxied(kind: str, name: str, upstream: str, requires: tuple[str, ...] = ()) -> Row:
        proxy = proxies[name]
        return Row(
            kind,
            name,
            upstream,
            requires,
            (proxy.platform or here,),
            {**proxy.exports, "address": proxy.address},
            usable(proxy.capabilities, candidates(upstream)),
        )

    return [
        proxied(CONTENT, content, "content")
        if content
        else Row(CONTENT, "content", "content", exports={"root": str(root / "content")}),
        Row(INTERNAL, "opt", exports={"path": str(opt.directory(root))}),
        Row(EVENT, "exchange"),
        *(
            proxied(SNAPSHOTTER, each.name, f"snapshots.{each.name}") if each.name in proxies else own(each)
            for each in snapshotters
        ),
        *(
            proxied(SNAPSHOTTER, name, f"snapshots.{name}")
            for name, proxy in proxies.items()
            if proxy.type == "snapshot" and name not in {each.name for each in snapshotters}
        ),
        Row(
            METADATA,
            "bolt",
            "metadata",
            (CONTENT, EVENT, SNAPSHOTTER),
            exports={"policy": "shared", "path": str(root / "metadata" / "metadata.db")},
        ),
        Row(GC, "scheduler", "metadata", (METADATA,)),
        proxied(DIFFER, differ, "diff", (METADATA,))
        if differ
        else Row(DIFFER, diffs or _WALKING, "diff", (METADATA,), (here,)),
        *(() if differ or diffs else _named(snapshotters, proxies, here)),
        Row(LEASE, "manager", "metadata", (METADATA, GC)),
        Row(SERVICE, "containers-service", "metadata", (EVENT, METADATA)),
        Row(SERVICE, "content-service", "content", (METADATA,)),
        Row(SERVICE, "diff-service", "diff", (DIFFER,)),
        Row(SERVICE, "images-service", "images", (METADATA, GC)),
        Row(SERVICE, "introspection-service"),
        Row(SERVICE, "leases-service", "metadata", (METADATA,)),
        Row(SERVICE, "namespaces-service", "metadata", (EVENT, METADATA)),
        Row(SERVICE, "snapshots-service", "metadata", (METADATA,)),
        Row(SHIM, "manager", "tasks", (EVENT, METADATA), check="runtime"),
        Row(RUNTIME, "task", "tasks", (SHIM,), (here,), check="runtime"),
        Row(SERVICE, "tasks-service", "tasks", (EVENT, RUNTIME, METADATA)),
        Row(
            MONITOR, "restart", "tasks", (EVENT, SERVICE), capabilities=("no", "always", "on-failure", "unless-stopped")
        ),
        Row(SANDBOX_STORE, "local", "metadata", (METADATA,)),
        *(proxied(SANDBOX_CONTROLLER, name, proxies[name].route(name)) for name in sandboxers),
        *([Row(GRPC, "sandbox-controllers", requires=(SANDBOX_CONTROLLER, EVENT))] if sandboxers else []),
        Row(STREAMING, "manager", "images", (METADATA,)),
        Row(VERIFIER, "bindir", "images"),
        Row(TRANSFER, "local", "images", (LEASE, METADATA, DIFFER, VERIFIER, SNAPSHOTTER)),
        Row(GRPC, "streaming", "images", (STREAMING,)),
        Row(GRPC, "transfer", "images", (TRANSFER, STREAMING)),
        *(
            Row(GRPC, name, upstream, (needs,))
            for name, upstream, needs in (
                ("containers", "metadata", SERVICE),
                ("content", "metadata", SERVICE),
                ("diff", "diff", SERVICE),
                ("events", "", EVENT),
                ("images", "images", SERVICE),
                ("introspection", "", SERVICE),
                ("leases", "metadata", LEASE),
                ("namespaces", "metadata", SERVICE),
                ("sandboxes", "metadata", SANDBOX_STORE),
                ("snapshots", "metadata", SERVICE),
                ("tasks", "tasks", SERVICE),
            )
        ),
        Row(GRPC, "version"),
        Row(GRPC, "healthcheck"),
    ]


def _named(snapshotters: Sequence[About], proxies: Mapping[str, ProxyPlugin], here: str) -> list[Row]:
    """The differs that snapshotters name: Diff does the work of all."""
    of_others = [(each.exports.get(DIFFER_OF), "") for each in proxies.values() if each.type == "snapshot"]
    of_ours = [(each.exports.get(DIFFER_OF), each.trouble) for each in snapshotters if each.name not in proxies]
    found = {name: trouble for name, trouble in (*of_others, *of_ours) if name}
    return [
        Row(DIFFER, name, "diff", (METADATA,), (here,), trouble=trouble)
        for name, trouble in found.items()
        if name != _WALKING
    ]


class IntrospectionServicer:
    """Describes the node at ``node``. ``probe`` knows its services' health; ``snapshotters`` answers the announcement
    of the snapshots service; ``proxies`` are other people's services in it, by their names; ``candidates`` those that
    stand on a route.
    """

    SERVICE = introspection_stubs.INTROSPECTION

    def __init__(
        self,
        node: Node,
        probe: Probe,
        snapshotters: Callable[[Call], Awaitable[Sequence[About]]],
        proxies: Mapping[str, ProxyPlugin] = {},
        candidates: Standing = lambda _: (),
    ) -> None:
        self._node = node
        self._candidates = candidates
        self._snapshotters = snapshotters
        self._proxies = proxies
        self._probe = probe
        self._programs = Programs(node.root)
        opt.make(node.root)
        self._uuid_file = node.root / "gateway" / "uuid"
        self._lane = Lane()
        self._uuid = ""
        self._uuid_lock = asyncio.Lock()

    async def Plugins(self, request: pb.PluginsRequest, call: Call) -> pb.PluginsResponse:
        """The rows that match any filter; fields are type and id."""
        wanted = await filters.parsed(request.filters, self._lane)
        return pb.PluginsResponse(
            plugins=[
                await self._plugin(row, call) for row in await self._rows(call) if wanted.match(partial(_field, row))
            ]
        )

    async def PluginInfo(self, request: pb.PluginInfoRequest, call: Call) -> pb.PluginInfoResponse:
        """One row. With options, of the runtime plugin, it has the RuntimeInfo of the runtime that these name, too."""
        row = next((r for r in await self._rows(call) if (r.type, r.id) == (request.type, request.id)), None)
        if row is None:
            raise errors.NotFound.verbatim(f"plugin {request.type}.{request.id} not found: not found")
        response = pb.PluginInfoResponse(plugin=await self._plugin(row, call))
        if request.HasField("options"):
            if response.plugin.HasField("init_err"):
                raise errors.FailedPrecondition("cannot get extra info, plugin not successfully loaded")
            if (row.type, row.id) != (RUNTIME, "task"):
                raise errors.Unimplemented("plugin does not provided extra information")
            wanted = kit_any.unpack(request.options, RuntimeRequest)
            if wanted is None:
                raise errors.Unimplemented(f"unknown request type {kit_any.type_name(request.options)}")
            options = wanted.options.SerializeToString() if wanted.HasField("options") else b""
            answer = await self._programs.shim_info(wanted.runtime_path, options)
            try:
                response.extra.CopyFrom(kit_any.pack(RuntimeInfo.FromString(answer)))
            except DecodeError:
                raise errors.Unknown(
                    f"failed to unmarshal stdout from [{wanted.runtime_path} -info] into *types.RuntimeInfo"
                ) from None
        return response

    async def Server(self, request: Empty, call: Call) -> pb.ServerResponse:
        """The identity of the node: an id that lasts as long as ROOT, and the gateway's pid in its pid namespace."""
        async with self._uuid_lock:
            if not self._uuid:
                self._uuid = await asyncio.to_thread(kept_uuid, self._uuid_file)
        return pb.ServerResponse(uuid=self._uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)

    async def _rows(self, call: Call) -> list[Row]:
        return rows(self._node, await self._snapshotters(call), self._proxies, self._candidates)

    async def _plugin(self, row: Row, call: Call) -> pb.Plugin:
        error = await self._trouble(row, call)
        capabilities = row.capabilities
        if REMAP_IDS in capabilities and row.check == "shim" and not await self._programs.maps_ids():
            capabilities = tuple(each for each in capabilities if each != REMAP_IDS)
        return pb.Plugin(
            type=row.type,
            id=row.id,
            requires=row.requires,
            platforms=map(_platform, row.platforms),
            exports=row.exports,
            capabilities=capabilities,
            init_err=None if error is None else Status(code=error.code, message=str(error)),
        )

    async def _trouble(self, row: Row, call: Call) -> errors.NodeError | None:
        """The reason why a plugin does not work: the machine first, since it explains why the service may be away."""
        if row.check == "runtime" and (trouble := self._programs.runtime_trouble()):
            return errors.Unknown(trouble)
        if row.upstream:
            healthy, trouble = await self._probe.state(row.upstream, call)
            if not healthy:
                return errors.Unavailable(trouble)
        if not row.trouble:
            return None
        return errors.DataLoss(row.trouble) if row.broken else errors.Unknown(f"{row.trouble}: {SKIP}")


def _platform(text: str) -> Platform:
    return Platform(**dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False)))


def _field(row: Row, path: Sequence[str]) -> tuple[str, bool]:
    match path:
        case ["type", *_]:
            return row.type, True
        case ["id", *_]:
            return row.id, True
    return "", False


def kept_uuid(path: Path) -> str:
    """The UUID in ``path``. If there is none, a new one is made, durably. Internal if the file holds something else."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        text = ""
    if text:
        try:
            return str(uuid.UUID(text))
        except ValueError:
            raise errors.Internal(f"{path} does not hold a UUID: {text[:64]!r}") from None
    text = str(uuid.uuid4())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.replace(path, text)
    return text
