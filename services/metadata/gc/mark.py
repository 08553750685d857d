"""Which records live: all that can be reached from a root.

Marking is a pure function of all records, which :func:`everything` reads in one state of the store. Both run in
*steps*, since there may be very many records. Roots are

- leases that have not expired (label ``containerd.io/gc.expire``), and their resources. A lease with the label
  ``containerd.io/gc.flat`` protects only these and the parents of snapshots, but nothing that their labels refer to;
- images that have not expired (the same label), containers, sandboxes, and content and snapshots with a label
  ``containerd.io/gc.root``;
- ingests that have not expired;
- everything that open intents name.

References are: an image's target, a container's snapshot, a snapshot's parent, the blob that an ingest expects, and the
labels ``gc.ref.content``, ``gc.ref.image`` and ``gc.ref.snapshot.NAME``. By a label ``gc.bref.*`` a record itself says
which records refer to it. A label ``gc.cond.snapshot.NAME`` of content or an image is a reference to a snapshot for as
long as a condition on the snapshot's label ``gc.cond.value-usedat`` holds. An active snapshot is not a root by itself.

All rules are containerd's: core/metadata/gc.go, docs/garbage-collection.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Literal, NamedTuple, TypeVar

from services.kit.settings import parse_duration
from services.kit.slices import Steps, at_once
from services.metadata import schema
from services.metadata.schema import BlobFacts
from services.metadata.store import (
    Container,
    Image,
    Ingest,
    Intent,
    Labels,
    Lease,
    Nanoseconds,
    Raw,
    Resource,
    Sandbox,
    Snapshot,
)
from services.metadata.transactions import Reader

R = TypeVar("R")
Type = Literal["lease", "snapshot", "ingest", "content", "image", "container", "sandbox"]


class Node(NamedTuple):
    """A record, or the target of a reference, which may not exist. ``flat``: reached only from a flat lease, so that
    its labels are not followed.
    """

    type: Type
    namespace: str
    key: str
    snapshotter: str = ""
    flat: bool = False


# ---------------------------------------------------------------------------------------------- the records


@dataclass(frozen=True, slots=True)
class Records:
    """All records that the collector looks at, in one state of the store."""

    leases: dict[Node, Lease] = field(default_factory=dict)
    resources: dict[Node, list[Resource]] = field(default_factory=dict)
    """The resources of each lease, by the lease's node."""
    orphaned: list[Node] = field(default_factory=list)
    """Leases that no longer exist, but of whose resources some are left."""
    snapshots: dict[Node, Snapshot] = field(default_factory=dict)
    ingests: dict[Node, Ingest] = field(default_factory=dict)
    blobs: dict[Node, BlobFacts] = field(default_factory=dict)
    images: dict[Node, Image] = field(default_factory=dict)
    containers: dict[Node, Container] = field(default_factory=dict)
    sandboxes: dict[Node, Sandbox] = field(default_factory=dict)
    intents: list[Intent] = field(default_factory=list)

    def raws(self, some: set[Node]) -> Iterator[Raw]:
        """The raw things that the records of the nodes ``some`` name."""
        yield from (Raw(blob.backend, "blob", node.key) for node, blob in self.blobs.items() if node in some)
        yield from (
            Raw(snapshot.backend, "snapshot", snapshot.raw_key)
            for node, snapshot in self.snapshots.items()
            if node in some
        )
        for node, ingest in self.ingests.items():
            if node in some:
                yield from ingest.raws()

    def __len__(self) -> int:
        return (
            len(self.leases)
            + len(self.snapshots)
            + len(self.ingests)
            + len(self.blobs)
            + len(self.images)
            + len(self.containers)
            + len(self.sandboxes)
        )


STEP = 200
"""Small records that are looked at in one step: some tenths of a millisecond."""


def reading(tx: Reader, step: int = STEP) -> Steps[Records]:
    """Read all records."""
    found = Records()
    for number, (namespace, lease, resource) in enumerate(schema.lease_resources(tx)):
        if resource is None:
            found.orphaned.append(Node("lease", namespace, lease))
        else:
            found.resources.setdefault(Node("lease", namespace, lease), []).append(resource)
        if not number % step:
            yield
    yield from _read(found.leases, ((Node("lease", key[0], key[1]), lease) for key, lease in schema.LEASES.scan(tx)))
    yield from _read(
        found.snapshots,
        ((Node("snapshot", key[0], key[2], key[1]), snapshot) for key, snapshot in schema.SNAPSHOTS.scan(tx)),
    )
    yield from _read(
        found.ingests, ((Node("ingest", key[0], key[1]), ingest) for key, ingest in schema.INGESTS.scan(tx))
    )
    for some in schema.blob_facts(tx):
        for namespace, digest, facts in some:
            # Node(...) takes twice as long
            found.blobs[tuple.__new__(Node, ("content", namespace, digest, "", False))] = facts
        yield
    yield from _read(found.images, ((Node("image", key[0], key[1]), image) for key, image in schema.IMAGES.scan(tx)))
    yield from _read(
        found.containers,
        ((Node("container", key[0], key[1]), container) for key, container in schema.CONTAINERS.scan(tx)),
    )
    yield from _read(
        found.sandboxes, ((Node("sandbox", key[0], key[1]), sandbox) for key, sandbox in schema.SANDBOXES.scan(tx))
    )
    found.intents.extend(intent for _, intent in schema.INTENTS.scan(tx))
    return found


def _read(into: dict[Node, R], records: Iterable[tuple[Node, R]]) -> Steps[None]:
    """Each is a step: a client chooses how large a record is, and a megabyte of labels takes a millisecond."""
    for node, record in records:
        into[node] = record
        yield


def read_records(tx: Reader) -> Records:
    """As :func:`reading`, in one step."""
    return at_once(reading(tx))


# ---------------------------------------------------------------------------------------------- labels

_PREFIX = "containerd.io/gc."
_ROOT = "containerd.io/gc.root"
_EXPIRE = "containerd.io/gc.expire"
_FLAT = "containerd.io/gc.flat"
_REF, _BREF = "containerd.io/gc.ref.", "containerd.io/gc.bref."
_TYPES: dict[str, Type] = {"content": "content", "image": "image", "container": "container"}
_CONDITION = "containerd.io/gc.cond.snapshot"
_USED_AT = "containerd.io/gc.cond.value-usedat"

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)")


def rfc3339(text: str) -> Nanoseconds | None:
    """The time in a label, or None if the label has no valid time."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    day, clock, fraction, zone = found.groups()
    try:
        seconds = int(datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone == 'Z' else zone}").timestamp())
    except ValueError:
        return None
    return seconds * 1_000_000_000 + int((fraction or "0")[:9].ljust(9, "0"))


def expires(labels: Labels) -> Nanoseconds | None:
    """When a lease or an image with these labels expires; None: never, also if the value is no valid time."""
    value = labels.get(_EXPIRE)
    return None if value is None else rfc3339(value)


def _node(namespace: str, rest: str, value: str, *, container: bool) -> Node | None:
    """The record that a label ``gc.ref.REST`` or ``gc.bref.REST`` names. Several labels of one type are told apart by a
    suffix ``.NAME`` or ``/NAME``.
    """
    if rest.startswith("snapshot."):
        return Node("snapshot", namespace, value, rest[len("snapshot.") :].split("/", 1)[0])
    kind = _TYPES.get(rest.partition("/")[0].partition(".")[0])
    return None if kind is None or (kind == "container" and not container) else Node(kind, namespace, value)


def _references(namespace: str, labels: Labels) -> Iterator[Node]:
    for key, value in labels.items():
        if key.startswith(_REF) and (node := _node(namespace, key[len(_REF) :], value, container=False)) is not None:
            yield node


def _back_references(namespace: str, labels: Labels) -> Iterator[Node]:
    for key, value in labels.items():
        if key.startswith(_BREF) and (node := _node(namespace, key[len(_BREF) :], value, container=True)) is not None:
            yield node


def _is_root(labels: Labels) -> bool:
    return any(key.startswith(_ROOT) for key in labels)


def _of_gc(labels: Labels) -> bool:
    """Whether any of the labels concern the collector."""
    return any(key.startswith(_PREFIX) for key in labels)


class _Condition(NamedTuple):
    """A condition of a label ``gc.cond.snapshot.NAME``: ``usedat<DURATION`` or ``usedat>DURATION`` of ``snapshot``."""

    snapshot: Node
    younger: bool
    age: Nanoseconds


def _conditions(namespace: str, labels: Labels) -> Iterator[_Condition]:
    for key, value in labels.items():
        if not key.startswith(_CONDITION) or "|" not in value:
            continue
        snapshotter = key[len(_CONDITION) :].lstrip("./").split("/", 1)[0]
        conditions, name = value.split("|", 1)
        for condition in conditions.split(","):
            found = re.fullmatch(r"usedat([<>])([^=].*)", condition)
            if found is None:
                continue  # an unknown condition, or an operator that times do not have: ignored
            try:
                age = parse_duration(found[2])
            except ValueError:
                continue
            yield _Condition(Node("snapshot", namespace, name, snapshotter), found[1] == "<", round(age * 1e9))


# ---------------------------------------------------------------------------------------------- marking


@dataclass(frozen=True, slots=True)
class Marking:
    """Which records live and which are dead, and when the next living record expires (``wake``; None: never)."""

    living: set[Node]
    dead: list[Node]
    wake: Nanoseconds | None
    back_references: dict[Node, list[Node]]
    """For each node, the dead and the flat nodes that would live, and not be flat, if that node did: by their own
    labels ``gc.bref.*``, or by a condition.
    """
    flat: set[Node]
    """Living nodes whose labels are not followed, since only flat leases protect them."""


def mark(records: Records, now: Nanoseconds) -> Marking:
    """As :func:`marking`, in one step."""
    return at_once(marking(records, now))


def marking(records: Records, now: Nanoseconds, step: int = STEP) -> Steps[Marking]:
    """Decide which records live."""
    roots: list[Node] = []
    back: dict[Node, list[Node]] = {}
    wakes: list[Nanoseconds] = []
    conditions: list[tuple[Node, _Condition]] = []

    def alive(expiry: Nanoseconds | None) -> bool:
        if expiry is None:
            return True
        if expiry < now:
            return False
        wakes.append(expiry)
        return True

    def attach(node: Node, labels: Labels) -> None:
        for owner in _back_references(node.namespace, labels):
            back.setdefault(owner, []).append(node)

    for node, lease in records.leases.items():
        if alive(expires(lease.labels)):
            roots.append(node)
            flat = _FLAT in lease.labels
            for number, resource in enumerate(records.resources.get(node, ())):
                roots.append(resource_node(node.namespace, resource, flat=flat))
                if not number % step:
                    yield
    for node, image in records.images.items():
        if alive(expires(image.labels)):
            roots.append(node)
        else:
            attach(node, image.labels)
        conditions.extend((node, condition) for condition in _conditions(node.namespace, image.labels))
    for node, ingest in records.ingests.items():
        if ingest.expires and alive(ingest.expires):
            roots.append(node)
    for number, (node, blob) in enumerate(records.blobs.items()):
        if not number % step:
            yield
        if blob.labels and _of_gc(blob.labels):
            yield
            attach(node, blob.labels)
            conditions.extend((node, condition) for condition in _conditions(node.namespace, blob.labels))
            if _is_root(blob.labels):
                roots.append(node)
            yield
    roots.extend(chain(records.containers, records.sandboxes))
    for number, (node, snapshot) in enumerate(records.snapshots.items()):
        if not number % step:
            yield
        if _of_gc(snapshot.labels):
            attach(node, snapshot.labels)
            if _is_root(snapshot.labels):
                roots.append(node)
    for intent in records.intents:
        roots.extend(resource_node(intent.namespace, resource, flat=False) for resource in intent.resources())
    for owner, condition in conditions:
        wake = _holds(records, condition, now)
        if wake is not None:
            back.setdefault(owner, []).append(condition.snapshot)
            wakes.append(wake)

    reached = yield from _reach(roots, lambda node: chain(back.get(node, ()), refers_to(records, node)), step)
    living = {node._replace(flat=False) if node.flat else node for node in reached}
    yield
    dead: list[Node] = []
    for table in (records.leases, records.snapshots, records.ingests, records.blobs, records.images):
        for number, node in enumerate(table):
            if node not in living:
                dead.append(node)
            if not number % step:
                yield
    return Marking(
        living,
        dead,
        min((wake for wake in wakes if wake < _NEVER), default=None),
        {owner: found for owner, nodes in back.items() if (found := [node for node in nodes if node not in reached])},
        {node for node in living if node not in reached},
    )


_NEVER: Nanoseconds = 1 << 62


def _holds(records: Records, condition: _Condition, now: Nanoseconds) -> Nanoseconds | None:
    """The time until which the condition holds, :data:`_NEVER` for ever; None if it does not hold now."""
    snapshot = records.snapshots.get(condition.snapshot)
    if snapshot is None:
        return None
    untils = []
    for key, value in snapshot.labels.items():
        used = rfc3339(value) if key.startswith(_USED_AT) else None
        if used is None:
            continue
        if condition.younger and now - used < condition.age:
            untils.append(used + condition.age)
        elif not condition.younger and now - used > condition.age:
            untils.append(_NEVER)
    return max(untils, default=None)


def resource_node(namespace: str, resource: Resource, *, flat: bool) -> Node:
    kind, _, snapshotter = resource.type.partition("/")
    if kind == "snapshots":
        return Node("snapshot", namespace, resource.id, snapshotter, flat)
    if kind == "ingests":
        return Node("ingest", namespace, resource.id)
    return Node("image" if kind == "images" else "content", namespace, resource.id, flat=flat)


def named_by(records: Records, lease: Node) -> Iterator[Node]:
    """The resources of a lease."""
    return (resource_node(lease.namespace, resource, flat=False) for resource in records.resources.get(lease, ()))


def conditional(records: Records, node: Node) -> Iterator[Node]:
    """The snapshots that a record refers to on a condition, whether the condition holds or not."""
    record = (
        records.images.get(node)
        if node.type == "image"
        else records.blobs.get(node)
        if node.type == "content"
        else None
    )
    return (
        (condition.snapshot for condition in _conditions(node.namespace, record.labels))
        if record is not None
        else iter(())
    )


def refers_to(records: Records, node: Node) -> Iterator[Node]:
    """The nodes that a record refers to; none if the record does not exist."""
    real = node._replace(flat=False)
    labels: Labels = {}
    if node.type == "content":
        blob = records.blobs.get(real)
        if blob is not None:
            labels = blob.labels
    elif node.type == "snapshot":
        snapshot = records.snapshots.get(real)
        if snapshot is not None:
            if snapshot.parent:
                yield node._replace(key=snapshot.parent)
            labels = snapshot.labels
    elif node.type == "image":
        image = records.images.get(real)
        if image is not None:
            yield Node("content", node.namespace, image.digest, flat=node.flat)
            labels = image.labels
    elif node.type == "ingest":
        ingest = records.ingests.get(real)
        if ingest is not None and ingest.expected:
            yield Node("content", node.namespace, ingest.expected)
    elif node.type == "container":
        container = records.containers.get(real)
        if container is not None:
            if container.snapshotter:
                yield Node("snapshot", node.namespace, container.snapshot_key, container.snapshotter)
            labels = container.labels
    elif node.type == "sandbox" and (sandbox := records.sandboxes.get(real)) is not None:
        labels = sandbox.labels
    if labels and not node.flat:
        yield from _references(node.namespace, labels)


def _reach(roots: Iterable[Node], references: Callable[[Node], Iterable[Node]], step: int) -> Steps[set[Node]]:
    """All nodes that can be reached from ``roots``."""
    seen = set(roots)
    stack = list(seen)
    looked = 0
    while stack:
        for node in references(stack.pop()):  # an index may have ten thousand references
            if node not in seen:
                seen.add(node)
                stack.append(node)
            looked += 1
            if not looked % step:
                yield
        looked += 1
        if not looked % step:
            yield
    return seen
