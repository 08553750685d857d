"""What the records are, and what may be done with them.

A *record* is a row here: of a namespace, a container, an image, a lease, a blob, an ingest, a snapshot. All but
namespaces belong to one namespace. *Raw* things are what the content service and the snapshotters hold; they know no
namespaces, and their names here are *raw refs* and *raw keys*, ``NAMESPACE/NUMBER/NAME`` (blobs are raw under their
digest). A *backend* is one raw service: ``content``, ``snapshots.overlayfs``. A raw thing belongs to those namespaces
that have a record of it.

An *intent* is the record of something begun that takes a raw call between two transactions here: a commit of content,
the making and the commit of a snapshot. It is written before the raw call, and ends as records (finish) or as nothing
(cancel). An *incarnation* is one life of the gateway; intents name theirs.

A *mark* says that the collector is removing a raw thing just now (``sweeping``, ``removing``). It is set in the
transaction that saw that no record and no intent names the thing, and taken off when the raw call is over. Who would
make a record of such a thing, or an intent that names it, waits until the mark is gone: this takes the place of a lock
over all of it.

Words of containerd's: a *lease* holds *resources* (content, ingests, images, snapshots/NAME) against the collector;
*key* and *name* of snapshots, *ref* of ingests, *digest* and *labels* as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from services.kit import errors
from services.kit.slices import Steps, at_once

Labels = Mapping[str, str]
Nanoseconds = int
"""A time, since the epoch."""
SOME = 500
"""Labels in a step of what is done bit by bit: a manifest of thousands of layers has as many."""

# ---------------------------------------------------------------------------------------------- values


class Opaque(NamedTuple):
    """A google.protobuf.Any that nobody here looks into."""

    type_url: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace exists once something was written in it, or by its own Create."""

    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name for a target, which is a descriptor of content."""

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
    """What a task is made from."""

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
class Lease:
    """Holds its resources for as long as it exists; with the label containerd.io/gc.expire until then."""

    id: str
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0


class Resource(NamedTuple):
    """Something that leases hold and records refer to. ``type`` is ``content``, ``ingests``, ``images`` or
    ``snapshots/SNAPSHOTTER``.
    """

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A namespace has committed content; ``backend`` holds the bytes."""

    digest: str
    size: int
    backend: str
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Content being written. ``shared``: another namespace has ``expected`` already, there are no raw bytes, and
    commit makes only a record.
    """

    ref: str
    raw_ref: str
    backend: str
    expected: str = ""
    shared: bool = False
    size: int = 0
    """Of the shared blob; else the total that the writer told, 0 if none."""
    started: Nanoseconds = 0
    expires: Nanoseconds = 0
    """When the collector may take it; 0 where a lease holds it instead."""

    def raws(self) -> Iterator[Raw]:
        """What it names in its backend: its own file, and what it expects, which may be another namespace's, and
        given up by that meanwhile: the writer was told that the bytes are there.
        """
        if not self.shared:
            yield Raw(self.backend, "ingest", self.raw_ref)
        if self.expected:
            yield Raw(self.backend, "blob", self.expected)


Kind = Literal["active", "view", "committed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot of one snapshotter, under the name that its namespace knows: ``name`` is a key while it is active
    or a view. ``parent`` is such a name too.
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
    """A thing in a backend: a blob by its digest, an ingest by its raw ref, a snapshot by its raw key."""

    backend: str
    kind: RawKind
    name: str


Operation = Literal["commit-ingest", "prepare", "view", "commit-snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Something begun. What it names stays: the collector takes neither its :meth:`resources` nor its :meth:`raws`."""

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
    """Empty where the committer did not say: then any digest may come out, and no blob of the backend is swept
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
    """Of the label containerd.io/snapshot.ref: a raw snapshot with that label may turn out to be what was asked for."""

    def resources(self) -> Iterator[Resource]:
        """What it names in its namespace, whether there are records or not."""
        if self.operation == "commit-ingest":
            yield Resource("ingests", self.ref)
            if self.expected:
                yield Resource("content", self.expected)
            return
        for name in (self.key, self.name, self.parent, self.target):
            if name:
                yield Resource(f"snapshots/{self.snapshotter}", name)

    def claims(self) -> Iterator[str]:
        """What it makes or takes, so that nobody else may meanwhile: the ref and the digest of content, the key and
        the name of snapshots.
        """
        for name in (self.ref, self.expected, self.key, self.name):
            if name:
                yield name

    def raws(self) -> Iterator[Raw]:
        """What it names in its backend."""
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
    """The collector is removing a raw thing. ``reference`` is the label containerd.io/snapshot.ref of a raw
    snapshot that has it.
    """

    since: Nanoseconds
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Since when, and why, the collector removes only what this database knows; with ``damaged`` not even that,
    since its records may be gone, and what names them.
    """

    since: Nanoseconds
    reason: str
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The gateway that connected last, and the backends it named."""

    incarnation: str
    content: str = ""
    snapshotters: tuple[str, ...] = ()

    def backends(self) -> tuple[str, ...]:
        """Of content first, then of each snapshotter."""
        return (self.content, *(snapshots_backend(name) for name in self.snapshotters))


def snapshots_backend(snapshotter: str) -> str:
    """The backend of a snapshotter: its name for the header ``splitd-raw``."""
    return f"snapshots.{snapshotter}"


# ---------------------------------------------------------------------------------------------- the collector


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one collection did; each entry as ``content sha256:...``, ``snapshot overlayfs NAMESPACE/3/key``,
    ``ingest NAMESPACE/4/ref``.
    """

    removed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    """The same, with why."""
    seconds: float = 0.0


Change = Literal["mutation", "deletion"]


class Collector(Protocol):
    """Takes what nobody needs: :mod:`services.metadata.gc`."""

    async def collect(self, *, everything: bool = True) -> Collected:
        """Collect now, after whatever collection is running, and return when the raw things are gone too (or failed
        to). Not ``everything``: but for what nobody here ever named.
        """
        ...

    def schedule(self, change: Change) -> None:
        """Something was written, or removed: collect when it is time. Called after the transaction; returns at once."""
        ...

    def connected(self) -> None:
        """A gateway is there, maybe with other backends than the last one."""
        ...


# ---------------------------------------------------------------------------------------------- what goes out


class Event(NamedTuple):
    """Something that happened, for those who subscribed: containerd's topic, and the fields of its event message."""

    namespace: str
    topic: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How an operation on content or snapshots ended. The gateway publishes the events."""

    events: tuple[Event, ...] = ()
    digest: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSnapshot:
    """A committed snapshot that a backend had before it was asked for, by raw names."""

    name: str
    parent: str = ""
    labels: Labels = field(default_factory=dict)
    created: Nanoseconds = 0
    updated: Nanoseconds = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the raw call of an intent: a blob's digest and size; ``adopted`` if the backend had the target
    already.
    """

    digest: str = ""
    size: int = 0
    adopted: tuple[RawSnapshot, ...] = ()


class Backends(Protocol):
    """The raw services, as far as intents need to ask them. NotFound is an answer; any other error means that there
    is none yet.
    """

    async def blob_size(self, backend: str, digest: str) -> int:
        """The size of a committed blob; NotFound if there is none."""
        ...

    async def ingest_offset(self, backend: str, raw_ref: str) -> int:
        """How many bytes of an ingest there are; NotFound if there is none."""
        ...

    async def snapshot_kind(self, backend: str, raw_key: str) -> Kind:
        """What kind of snapshot it is; NotFound if there is none."""
        ...


# ---------------------------------------------------------------------------------------------- what is valid

_LABEL_SIZE = 4096


def validate_labels(labels: Labels, of: str) -> None:
    """Key and value of a label have 4096 bytes together at most; ``of`` is what the message begins with, like
    ``info.Labels``.
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
    """The labels that are kept: one with an empty value is none."""
    return {key: value for key, value in labels.items() if value}


def masking(
    old: Labels, new: Labels, paths: Iterable[str], prefix: str = "labels"
) -> Steps[tuple[dict[str, str], list[str]]]:
    """:func:`masked`, in steps."""
    result, rest = dict(old), []
    for number, path in enumerate(paths, 1):
        if path == prefix:
            result = dict(new)
        elif path.startswith(prefix + "."):
            key = path[len(prefix) + 1 :]
            result[key] = new.get(key, "")
        else:
            rest.append(path)
        if not number % SOME:
            yield
    return result, rest


def masked(old: Labels, new: Labels, paths: Iterable[str], prefix: str = "labels") -> tuple[dict[str, str], list[str]]:
    """Labels after an update with a field mask, and the paths that are not about them.

    ``labels`` replaces all of them, ``labels.KEY`` sets one (an absent or empty value removes it).
    """
    return at_once(masking(old, new, paths, prefix))
