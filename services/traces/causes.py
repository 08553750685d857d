"""Causes: what a piece of a critical path was spent on, by what the spans recorded.

Nothing is guessed from sizes. The name of a span, its measured shares (``splitd.time.*_ms``) and the waits that the
path came through say the cause. Time of which they say nothing is ``unknown``. docs/tracing.md lists the names.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from services.traces.critical_path import Piece
from services.traces.store import Kind as SpanKind
from services.traces.tree import Node, text


class Kind(enum.StrEnum):
    """Where to look for the reason."""

    REGISTRY = "registry"
    NETWORK = "network"
    MIRROR = "mirror"
    PEER = "peer"
    """Another node of the fleet, which gave bytes."""
    CPU = "cpu"
    DISK = "disk"
    LOCK = "lock"
    QUEUE = "queue"
    CLIENT = "client"
    RUNTIME = "runtime"
    """Programs that start: workers, shims, runc."""
    CONTAINER = "container"
    """What the container itself did."""
    VERIFIER = "verifier"
    """A program that judges images before they are pulled."""
    NODE = "node"
    """Calls between the node's processes, of which nothing else is known."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Reason:
    """What one piece of time was spent on. Equal reasons are one cause."""

    kind: Kind
    part: str
    """Which part of the kind: ``first byte``, ``bandwidth``, ``fsync``. Of an unknown it is the span's name.
    """
    host: str = ""
    holder: str = ""
    """Who held what was waited for (``the pull of IMAGE``), fetched the bytes, was called, or judged the image."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What a part of an operation's time was spent on, all pieces of it together."""

    kind: Kind
    part: str
    seconds: float
    share: float
    """Of the operation's time; 0 to 1."""
    what: str
    """In words, to stand after "8.1 of 9.9 s: "."""
    host: str = ""
    layer: int | None = None
    """The number from 0 of the layer that most of it is about, if that is known."""
    digest: str = ""
    """That layer's digest."""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of a path with its one reason. A measured share of a span has a place in its time that only stands for
    it: when exactly the span did what is not recorded.
    """

    node: Node
    start: int
    end: int
    reason: Reason
    layer: int | None = None
    digest: str = ""
    waits: tuple[Node, ...] = field(default=())


UNEXPLAINED = (Kind.NODE, Kind.UNKNOWN)
"""Time of which nothing says what it was for."""

SHARES = {
    "runqueue": Reason(Kind.CPU, "no processor free"),
    "disk": Reason(Kind.DISK, "write"),
    "bytes": Reason(Kind.NETWORK, "bytes"),
    "client": Reason(Kind.CLIENT, "client"),
    "rest": Reason(Kind.RUNTIME, "worker"),
}
"""The reason of ``splitd.time.NAME_ms``. Time on a processor has parts of its own."""

PROCESSOR = ("inflate", "compress", "digest", "files")
"""Parts of ``splitd.time.cpu_ms``."""

SPANS = {
    "registry.auth": Reason(Kind.REGISTRY, "auth"),
    "registry.first_byte": Reason(Kind.REGISTRY, "first byte"),
    "registry.transfer": Reason(Kind.NETWORK, "bandwidth"),
    "registry.dns": Reason(Kind.NETWORK, "DNS"),
    "registry.connect": Reason(Kind.NETWORK, "connect"),
    "registry.tls": Reason(Kind.NETWORK, "TLS"),
    "registry.send": Reason(Kind.NETWORK, "upload"),
    "fleet.claim": Reason(Kind.PEER, "claim"),
    "wait.bytes": Reason(Kind.NETWORK, "bytes"),
    "wait.client": Reason(Kind.CLIENT, "client"),
    "wait.worker": Reason(Kind.RUNTIME, "worker start"),
    "diff.start": Reason(Kind.RUNTIME, "worker start"),
    "content.fsync": Reason(Kind.DISK, "fsync"),
    "content.publish": Reason(Kind.DISK, "fsync"),
    "snapshots.sync": Reason(Kind.DISK, "fsync"),
    "content.hash": Reason(Kind.CPU, "digest"),
    "images.rehash": Reason(Kind.CPU, "digest"),
    "snapshots.copy": Reason(Kind.DISK, "copy"),
    "tasks.bundle": Reason(Kind.RUNTIME, "bundle"),
    "tasks.bundle.remove": Reason(Kind.RUNTIME, "bundle"),
    "tasks.shim.start": Reason(Kind.RUNTIME, "shim start"),
    "tasks.shim.program": Reason(Kind.RUNTIME, "shim start"),
    "tasks.shim.connect": Reason(Kind.RUNTIME, "shim start"),
    "tasks.shim.create": Reason(Kind.RUNTIME, "runc create"),
    "tasks.shim.end": Reason(Kind.RUNTIME, "shim end"),
    "containerd.services.tasks.v1.Tasks/Wait": Reason(Kind.CONTAINER, "runs"),
    **{
        f"containerd.task.v{version}.Task/{method}": Reason(Kind.RUNTIME, f"runc {method.lower()}")
        for version in (2, 3)
        for method in ("Create", "Start", "Exec", "Kill", "Delete", "Checkpoint")
    },
}
"""The reason of a span's self time, where its name says it."""

HELD = {"wait.budget": Kind.QUEUE, "wait.lock": Kind.LOCK, "wait.parent": Kind.LOCK}
"""Waits for what another operation may hold."""


PROCESSES = {
    "containerd.services.content.": "content",
    "splitd.localfiles.": "content",
    "containerd.services.snapshots.": "snapshots",
    "containerd.services.diff.": "snapshots",
    "splitd.records.": "metadata",
    "containerd.services.leases.": "metadata",
    "containerd.services.namespaces.": "metadata",
    "containerd.services.containers.": "metadata",
    "containerd.services.images.": "images",
    "containerd.services.transfer.": "images",
    "containerd.services.tasks.": "tasks",
}
"""Whom the gateway calls, by the beginning of a service's name."""


def reason_of(piece: Piece) -> Reason:
    """The reason of a piece whose span has no measured shares."""
    node = piece.node
    above = {each.span.name: each for each in reversed(list(node.up()))}
    host = node.text("server.address")
    if "registry.auth" in above:
        return Reason(Kind.REGISTRY, "auth", host)
    foreign = next((wait for wait in piece.waits if _holder_is_another(wait, piece)), None)
    if foreign is not None:
        return Reason(HELD[foreign.span.name], foreign.span.name[5:], holder=operation_of(node))
    request = above.get("registry.request")
    if request is not None and request.text("splitd.peer"):
        return Reason(Kind.PEER, _of_peer(request, node), request.text("server.address"))
    if request is not None and request.span.attributes.get("splitd.registry.mirror") is True:
        part = _failed_mirror(request) or ("first byte" if node.span.name == "registry.first_byte" else "")
        if part:
            return Reason(Kind.MIRROR, part, host)
    if node.span.name == "wait.pause":
        asked = text(node.span.attributes.get("splitd.pause.reason"))
        part = {"429": "rate limit", "Retry-After": "asked to wait"}.get(asked, "retry")
        return Reason(Kind.REGISTRY, part, host)
    if node.span.name == "images.verify":
        return Reason(Kind.VERIFIER, "verifier", holder=text(node.span.attributes.get("verifier")))
    if node.span.name in HELD:
        held = text(node.span.attributes.get("splitd.wait.for"))
        return Reason(HELD[node.span.name], node.span.name[5:], holder=held)
    known = SPANS.get(node.span.name)
    if known is None:
        if "rpc.system" in node.span.attributes:
            return Reason(Kind.NODE, "calls", holder=_called(node))
        return Reason(Kind.UNKNOWN, text(node.span.name).strip() or "spans without a name")
    if known.kind is Kind.NETWORK:
        foreign = next((wait for wait in piece.waits if wait.span.trace != node.span.trace), None)
        return Reason(known.kind, known.part, host, "" if foreign is None else operation_of(node))
    return Reason(known.kind, known.part, host if known.kind is Kind.REGISTRY else "")


def operation_of(node: Node) -> str:
    """The operation that a span belongs to, in words: ``the pull of IMAGE``."""
    root = list(node.up(200))[-1]
    operation = text(root.span.attributes.get("splitd.operation")) or text(root.span.name)
    if operation == "collect":
        return "a collection"
    about = text(root.span.attributes.get("container.image.name")) or text(root.span.attributes.get("container.id"))
    return f"the {operation} of {about}" if about else f"the operation {operation}"


def _called(hop: Node) -> str:
    """The process whose work a hop is: that of a server's span, or the one that a client's span called."""
    if hop.span.kind != SpanKind.CLIENT:
        return _process(hop)
    answered = next((child for child in hop.children if child.span.service != hop.span.service), None)
    if answered is not None:
        return _process(answered)
    # The other side's span was too short to be kept.
    service = text(hop.span.attributes.get("rpc.service"))
    if _process(hop) != "gateway":
        return "gateway"
    return next((process for begin, process in PROCESSES.items() if service.startswith(begin)), "")


def _process(node: Node) -> str:
    return text(node.span.service).removeprefix("splitd-")


def _holder_is_another(wait: Node, piece: Piece) -> bool:
    return wait.span.name in HELD and wait.span.trace != piece.node.span.trace


def _of_peer(request: Node, node: Node) -> str:
    failed = _failed_mirror(request)
    if failed:
        return "given up" if failed == "slow" else failed
    known = SPANS.get(node.span.name)
    return known.part if known is not None else "first byte"


def _failed_mirror(request: Node) -> str:
    """How a mirror's request failed, so that another host was asked: ``dead``, ``slow``; empty if it did not."""
    status = request.number("http.response.status_code")
    if status is None or status >= 500:
        return "dead"
    return "slow" if status < 400 and text(request.span.attributes.get("error.type")) else ""
