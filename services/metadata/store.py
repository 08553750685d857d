"""The records of a node: what each record is. The operations are in ``containers.py``, ``images.py`` and the other
files of that kind; ``transactions.py`` has what they run in.

A *record* is a row of this store. There are records of namespaces, containers, sandboxes, images, leases, blobs,
ingests and snapshots. Every record except a namespace belongs to exactly one namespace.

A *raw* thing is a blob, an ingest or a snapshot as the content service or a snapshotter holds it. Raw services know no
namespaces. An ingest's *raw ref* and a snapshot's *raw key* are ``NAMESPACE/NUMBER/NAME``; a blob's raw name is its
digest. A *backend* is one raw service: ``content``, ``snapshots.overlayfs``. A raw thing belongs to each namespace that
has a record of it.

An *intent* records an operation that needs a raw call between two transactions of this store: a commit of content, a
Prepare, a View or a commit of a snapshot. The intent is written before the raw call. It ends as records (finish) or
without a trace (cancel). An *incarnation* is one run of the gateway; each intent names the incarnation that opened it.

A *mark* (a row of ``sweeping`` for one thing, of ``removing`` for all blobs of one call) says that the collector is
removing a raw thing at this moment. The collector sets the mark in the same transaction in which it saw that no record
and no intent names the thing, and clears it when the raw call is over. An operation that would create a record of such
a thing, or an intent that names it, waits until the mark is cleared. Marks take the place of a lock over the whole
store.

The other words are containerd's. A *lease* protects its *resources* (content, ingests, images, snapshots/SNAPSHOTTER)
from the collector. A snapshot has a *key* or a *name*, an ingest a *ref*, a blob a *digest*; all may have *labels*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from services.kit import errors
from services.kit.slices import Steps, at_once
from services.oci.opaque import Opaque

Labels = Mapping[str, str]
Nanoseconds = int
"""Nanoseconds since the epoch."""
LABELS_PER_STEP = 500
"""Labels that one step of a sliced operation handles: the manifest of an image with thousands of layers has as many."""

# ---------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace. It exists once something was written in it, or once it was created by its own Create."""

    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name for a target, which is the descriptor of a blob."""

    name: str
    digest: str
    media_type: str
    size: int
    annotations: Labels = field(default_factory=dict, hash=False)
    labels: Labels = field(default_factory=dict, hash=False)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container: what a task is created from."""

    id: str
    image: str = ""
    runtime: str = ""
    runtime_options: Opaque | None = None
    spec: Opaque | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox: str = ""
    extensions: Mapping[str, Opaque] = field(default_factory=dict, hash=False)
    labels: Labels = field(default_factory=dict, hash=False)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A sandbox: what its controller, ``sandboxer``, makes it from. Whether it runs, only the controller knows."""

    id: str
    runtime: str = ""
    runtime_options: Opaque | None = None
    spec: Opaque | None = None
    sandboxer: str = ""
    extensions: Mapping[str, Opaque] = field(default_factory=dict, hash=False)
    labels: Labels = field(default_factory=dict, hash=False)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease protects its resources for as long as it exists, or until the time in its label
    containerd.io/gc.expire.
    """

    id: str
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0


class Resource(NamedTuple):
    """Something that a lease can hold or a record can refer to. ``type`` is ``content``, ``ingests``, ``images`` or
    ``snapshots/SNAPSHOTTER``.
    """

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """The record that a namespace has a committed blob; ``backend`` holds the bytes."""

    digest: str
    size: int
    backend: str
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Content that is being written. If ``shared``, another namespace already has the blob ``expected``: there are no
    raw bytes, and commit only creates a record.
    """

    ref: str
    raw_ref: str
    backend: str
    expected: str = ""
    shared: bool = False
    size: int = 0
    """Size of the shared blob; otherwise the total that the writer announced, 0 if it announced none."""
    started: Nanoseconds = 0
    expires: Nanoseconds = 0
    """When the collector may remove the ingest; 0 if a lease holds it instead."""

    def raws(self) -> Iterator[Raw]:
        """The raw things that the collector must keep for this ingest: its own raw ingest, and the blob ``expected``.

        Another namespace may have owned that blob and may have deleted it meanwhile; it stays, since the writer was
        told that the bytes are there.
        """
        if not self.shared:
            yield Raw(self.backend, "ingest", self.raw_ref)
        if self.expected:
            yield Raw(self.backend, "blob", self.expected)


Kind = Literal["active", "view", "committed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot of one snapshotter, under the name that its namespace uses. ``name`` is the key while the snapshot is
    active or a view. ``parent`` is a name in the same namespace.
    """

    name: str
    raw_key: str
    backend: str
    kind: Kind
    parent: str = ""
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


RawKind = Literal["blob", "ingest", "snapshot"]


class Raw(NamedTuple):
    """A thing in a backend: ``name`` is a blob's digest, an ingest's raw ref or a snapshot's raw key."""

    backend: str
    kind: RawKind
    name: str


Operation = Literal["commit-ingest", "prepare", "view", "commit-snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An operation that has begun. The collector removes neither its :meth:`resources` nor its :meth:`raws`."""

    id: str
    incarnation: str
    operation: Operation
    namespace: str
    lease: str = ""
    backend: str
    begun: Nanoseconds = 0
    labels: Labels = field(default_factory=dict)
    # commit-ingest
    ref: str = ""
    raw_ref: str = ""
    expected: str = ""
    """Empty if the client did not say: the commit may then result in any digest, so no blob of the backend is swept
    while the intent is open.
    """
    size: int = 0
    # the others
    snapshotter: str = ""
    key: str = ""
    name: str = ""
    parent: str = ""
    raw_key: str = ""
    raw_name: str = ""
    raw_parent: str = ""
    target: str = ""
    """The label containerd.io/snapshot.ref: the backend may already have a snapshot with this label, which then is the
    one that was asked for.
    """

    def resources(self) -> Iterator[Resource]:
        """The resources that the intent names in its namespace, whether they have records or not."""
        if self.operation == "commit-ingest":
            yield Resource("ingests", self.ref)
            if self.expected:
                yield Resource("content", self.expected)
            return
        for name in (self.key, self.name, self.parent, self.target):
            if name:
                yield Resource(f"snapshots/{self.snapshotter}", name)

    def claims(self) -> Iterator[str]:
        """The names that this operation creates or consumes, and that no other operation may use meanwhile: ref and
        digest of content, key and name of snapshots.
        """
        for name in (self.ref, self.expected, self.key, self.name):
            if name:
                yield name

    def raws(self) -> Iterator[Raw]:
        """The raw things that the intent names in its backend."""
        if self.operation == "commit-ingest":
            yield Raw(self.backend, "ingest", self.raw_ref)
            if self.expected:
                yield Raw(self.backend, "blob", self.expected)
            return
        for name in (self.raw_key, self.raw_name, self.raw_parent):
            if name:
                yield Raw(self.backend, "snapshot", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The collector is removing a raw thing. ``reference`` is the value of the raw snapshot's label
    containerd.io/snapshot.ref, if it has one.
    """

    since: Nanoseconds
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The collector is held: since when, and why.

    A held collector removes only what the records of this database know. If ``damaged``, it removes nothing at all:
    records may be missing, and with them the references that would protect something.
    """

    since: Nanoseconds
    reason: str
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """All records are being moved between this store and another (``moving.py``)."""

    state: Literal["arriving", "arrived", "left"]
    """arriving: they are on their way to this store, which may have half of them; arrived: it has all of them, and the
    other store counts until it says that they have left; left: the other store counts, and nothing here.
    """
    other: str
    """The other store or the file, in words."""
    since: Nanoseconds
    records: int = 0
    digest: str = ""
    """Of the records, when all were there (``archive.Sum``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The gateway that connected last, and the backends it named."""

    incarnation: str
    content: str = ""
    snapshotters: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    """The backends of other services, each of which takes objects of one of these; see :func:`route_of`."""

    def backends(self) -> tuple[str, ...]:
        """The backend of content first, then one for each snapshotter, then the candidates."""
        return (self.content, *(snapshots_backend(name) for name in self.snapshotters), *self.candidates)

    def chosen(self, home: str, backend: str) -> str:
        """The backend of a new object: ``backend``, or ``home`` if that is empty. FailedPrecondition for one that is
        neither ``home`` nor one of its candidates: nobody could reach the object.
        """
        if backend in ("", home):
            return home
        if backend not in self.candidates or route_of(backend) != home:
            raise errors.FailedPrecondition(f"{backend} is no backend of {home} on this node")
        return backend


def snapshots_backend(snapshotter: str) -> str:
    """The backend of a snapshotter, as the header ``splitd-raw`` names it."""
    return f"snapshots.{snapshotter}"


def snapshotter_of(backend: str) -> str:
    """The snapshotter whose snapshots the backend has; a candidate is asked by the name of the one it stands for."""
    return route_of(backend).partition(".")[2]


def route_of(backend: str) -> str:
    """The backend whose place a candidate takes: ``content`` of ``content@mine``. Any other backend is its own."""
    return backend.partition("@")[0]


def is_candidate(backend: str) -> bool:
    """Whether the backend is that of a candidate, a service that an operator tries in the place of another."""
    return "@" in backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One of the things that a backend holds for a namespace."""

    namespace: str
    kind: Literal["blob", "ingest", "snapshot"]
    name: str
    """A digest, a ref, or a snapshot's key or name."""
    snapshotter: str = ""
    containers: tuple[str, ...] = ()
    """The containers whose root filesystem the snapshot is."""


@dataclass(slots=True, kw_only=True)
class Objects:
    """All that a backend holds, counted; ``some`` of them are named."""

    blobs: int = 0
    ingests: int = 0
    snapshots: int = 0
    intents: int = 0
    uncollected: int = 0
    """Raw things that no record names any more, and that the collector has not removed yet."""
    some: list[Object] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- the collector


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The result of one collection. Entries read ``content sha256:...``, ``snapshot overlayfs NAMESPACE/3/key`` or
    ``ingest NAMESPACE/4/ref``.
    """

    removed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    """As ``removed``, each entry with the reason."""
    seconds: float = 0.0


Change = Literal["mutation", "deletion"]


class Collector(Protocol):
    """The garbage collector: :mod:`services.metadata.gc`."""

    async def collect(self, *, everything: bool = True, namespace: str = "") -> Collected:
        """Run a collection after the one that is running, if any, and return when the raw things are gone or their
        removal has failed. Without ``everything``, raw things that no record of this database ever named are left
        alone. With ``namespace``, that of a deletion, it is not waited for third parties' services that have nothing
        of it to remove: what others deleted there is no matter of the caller's.
        """
        ...

    def schedule(self, change: Change) -> None:
        """Note that something was written or removed, so that a collection runs when it is due. Called after the
        transaction; returns at once.
        """
        ...

    def connected(self) -> None:
        """Note that a gateway has connected, perhaps with other backends than the last one."""
        ...


# ---------------------------------------------------------------------------------------------- what goes out


class Event(NamedTuple):
    """An event for subscribers: containerd's topic, and the fields of its event message."""

    namespace: str
    topic: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The result of an operation on content or snapshots. The gateway publishes the events."""

    events: tuple[Event, ...] = ()
    digest: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSnapshot:
    """A committed snapshot that a backend had before it was asked for it; ``name`` and ``parent`` are raw names."""

    name: str
    parent: str = ""
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of the raw call of an intent: the digest and size of a blob, or, in ``adopted``, the snapshots that
    the backend already had under the label containerd.io/snapshot.ref.
    """

    digest: str = ""
    size: int = 0
    adopted: tuple[RawSnapshot, ...] = ()


class Backends(Protocol):
    """The questions that intents ask raw services. NotFound is a definite answer; any other error means that the answer
    is not known yet.
    """

    async def blob_size(self, backend: str, digest: str) -> int:
        """The size of a committed blob; NotFound if there is none."""
        ...

    async def ingest_offset(self, backend: str, raw_ref: str) -> int:
        """The number of bytes in an ingest; NotFound if there is none."""
        ...

    async def snapshot_kind(self, backend: str, raw_key: str) -> Kind:
        """The kind of a snapshot; NotFound if there is none."""
        ...


# ---------------------------------------------------------------------------------------------- what is valid

_LABEL_SIZE = 4096


def validate_labels(labels: Labels, of: str) -> None:
    """Raise InvalidArgument if key and value of a label are longer than 4096 bytes together. The message begins with
    ``of``, for example ``info.Labels``.
    """
    for key, value in labels.items():
        total = len(key.encode()) + len(value.encode())
        if total > _LABEL_SIZE:
            shown = key.encode()[:64].decode(errors="replace")
            raise errors.InvalidArgument(
                f"{of}: label key and value length ({total} bytes) greater than maximum size ({_LABEL_SIZE} bytes), "
                f"key: {shown}"
            )


def present(labels: Labels) -> dict[str, str]:
    """The labels without those whose value is empty: an empty value means no label."""
    return {key: value for key, value in labels.items() if value}


def masked_in_steps(
    old: Labels, new: Labels, paths: Iterable[str], prefix: str = "labels"
) -> Steps[tuple[dict[str, str], list[str]]]:
    """As :func:`masked`, in slices."""
    result, rest = dict(old), []
    for number, path in enumerate(paths, 1):
        if path == prefix:
            result = dict(new)
        elif path.startswith(prefix + "."):
            key = path[len(prefix) + 1 :]
            result[key] = new.get(key, "")
        else:
            rest.append(path)
        if not number % LABELS_PER_STEP:
            yield
    return result, rest


def masked(old: Labels, new: Labels, paths: Iterable[str], prefix: str = "labels") -> tuple[dict[str, str], list[str]]:
    """The labels after an update with a field mask, and the paths of the mask that do not concern labels.

    ``labels`` replaces all labels. ``labels.KEY`` sets one; an absent or empty value removes it.
    """
    return at_once(masked_in_steps(old, new, paths, prefix))
