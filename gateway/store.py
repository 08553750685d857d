"""The gateway joins records with raw things, by intents.

The words. metadata has *records*: they say which namespace has which blob, ingest and snapshot. The content service and
the snapshotters have the *raw* things themselves, and know no namespaces; each of these services is a *backend*.
metadata gives out raw names: ``NAMESPACE/NUMBER/REF`` for an ingest, ``NAMESPACE/NUMBER/KEY`` for a snapshot; a blob's
is its digest. An *ingest* is content that is being written. A *shared* ingest is for a blob that another namespace has
already: nothing is written, and its commit makes a record.

A method that only reads, or only removes a record, is one call to metadata. A method that makes a raw thing, or gives
it its last name, is the work of two processes: a commit of content, the making of a snapshot, its commit. Each of these
is one *operation* with one *raw call*. An *intent* is metadata's record that the operation has begun. It names all that
the raw call touches, so that the collector leaves that alone. It names the gateway that began it, too, by the gateway's
*incarnation*, a UUID that is new at each start.

The life of an intent::

                               the raw call answered
    (nothing) --begin--> begun ------------------------> done --finish--> records, and their events
                           |                               ^
                           |   no answer came              | it is there
                           +--------------> unknown -------+
                           |                   |
                           | an error          | it is not there; the raw call, made once more, failed
                           v                   v
                        not done <-------------+
                           |
                           +--cancel--> (nothing)

These things may happen in between:

- **The client leaves, or its deadline passes.** From its beginning on, an operation runs shielded from its client.
- **The raw service was away from the start.** The client is answered UNAVAILABLE. No call was sent, so the intent is
  cancelled.
- **The raw service refuses.** Its error is the client's answer; nothing happened (:data:`Fate.NOT_DONE`).
- **The raw service goes away after the call was sent, or does not answer in time.** It alone can tell what it did
  (:data:`Fate.UNKNOWN`). It is waited for and asked; if nothing happened, the raw call is made once more. If the
  service stays away, the client is answered UNAVAILABLE. The gateway goes on asking for ten minutes; after that the
  intent stays open until another gateway announces itself. A timeout is never taken for an answer, and a raw call is
  never reversed.
- **metadata goes away.** It is told the end again until it answers, for ten minutes; then as above. Finish and Cancel
  may be repeated.
- **metadata's disk is full.** The client gets that error; metadata is told the end again until there is
  room.
- **The gateway dies.** The next one announces itself with another incarnation. Then metadata brings the intents of the
  one before to their end: it asks the raw services itself, through the new gateway.
- **A backend or metadata is replaced** (:mod:`gateway.hop`). The operation ends with those with whom it began.

metadata's records name the backend of each object. A route may have several (:mod:`gateway.candidates`): the gateway
chooses that of a new object, and metadata answers the one of each object that is there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from services.kit import errors
from services.kit.rpc import Call
from services.snapshots.store import Info

Labels = Mapping[str, str]

# ---------------------------------------------------------------------------------------------- what metadata answers


class Blob(NamedTuple):
    """Content that a namespace has."""

    digest: str
    size: int
    """In bytes."""
    backend: str = ""
    """Which has the bytes; empty: home (:meth:`gateway.hop.Hop.having`)."""


class Snapshot(NamedTuple):
    """A snapshot that a namespace has."""

    raw_key: str
    backend: str = ""
    """Which has it, as of :class:`Blob`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Content that is being written."""

    ref: str
    raw_ref: str
    expected: str = ""
    """The digest of a shared blob."""
    shared: bool = False
    size: int = 0
    """Bytes of a shared blob; else what its writer said that it will have, 0 if nothing."""
    started: int = 0
    """Nanoseconds since 1970; 0 where metadata does not say."""
    backend: str = ""
    """Which has its bytes, as of :class:`Blob`."""


class Updated(NamedTuple):
    """A snapshot whose labels were changed."""

    info: Info
    raw_key: str
    raw_labels: Labels
    """Labels to change in the backend, too."""
    raw_paths: Sequence[str]
    """The fields that ``raw_labels`` stand for. If both are empty, the backend is not called."""
    backend: str = ""
    """Which has the snapshot, as of :class:`Blob`."""


class Committed(NamedTuple):
    """A commit that needed no raw call: the record is made."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An operation that has begun, and how its raw call names things."""

    id: str
    backend: str = ""
    """To which the raw call goes, as of :class:`Blob`."""
    raw_ref: str = ""
    """The ingest to commit."""
    raw_key: str = ""
    """The active snapshot to make or to commit."""
    raw_parent: str = ""
    raw_name: str = ""
    """The committed snapshot to make."""
    raw_labels: Labels = field(default_factory=dict)
    """Labels for the backend."""
    target: str = ""
    """The snapshot that the label containerd.io/snapshot.ref names: a backend that has it already says
    ALREADY_EXISTS, and it is adopted.
    """


class Object(NamedTuple):
    """A thing that a backend holds."""

    namespace: str
    kind: str
    """blob, ingest, snapshot or task."""
    name: str
    """A digest, a ref, a snapshot's key or name, or a container."""
    containers: Sequence[str] = ()
    """Those whose root filesystem the snapshot is."""


class Objects(NamedTuple):
    """The things that a backend holds, counted; ``some`` of them are named."""

    blobs: int = 0
    ingests: int = 0
    snapshots: int = 0
    intents: int = 0
    """Operations that have begun there."""
    uncollected: int = 0
    """Things that no record names any more, and that are not removed yet."""
    some: Sequence[Object] = ()
    noted: int = 0
    """Tasks or sandboxes (:mod:`gateway.notes`)."""

    @property
    def total(self) -> int:
        """Of those that clients can name."""
        return self.blobs + self.ingests + self.snapshots + self.noted

    @property
    def none(self) -> bool:
        """Whether nobody will ask the backend for anything."""
        return not (self.total or self.intents or self.uncollected)


# ---------------------------------------------------------------------------------------------- the raw call


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The effect of a raw call: its records are made of it, and its client is answered by it."""

    digest: str = ""
    """Of content."""
    size: int = 0
    """Of content, in bytes."""
    later: bool = False
    """The record of content need not be on the disk when the client is answered: a later one is, that refers to it."""
    adopted: Sequence[Info] = ()
    """The snapshot that the backend had already, by its raw name; Finish answers ALREADY_EXISTS for the client."""
    mounts: Sequence[Any] = ()
    """Of a snapshot that was made: messages of the backend's, which go to the client as they are."""


class Fate(enum.Enum):
    """The meaning of an error of a raw call, or of the way to it, for the operation."""

    NOT_DONE = "it did not happen, and never will"
    UNKNOWN = "it may have happened"

    @classmethod
    def after(cls, error: errors.NodeError, *, there: bool) -> Fate:
        """``there``: whether the backend was connected when the error came.

        UNAVAILABLE of one that is there is its own word, such as for a ref that another writer has locked. That of the
        connection is :class:`~services.kit.errors.Disconnected`. An error that was injected after the call is not the
        backend's word.
        """
        if error.injected:
            return cls.UNKNOWN if error.injected == "after" else cls.NOT_DONE
        if isinstance(error, errors.Disconnected | errors.DeadlineExceeded | errors.Cancelled):
            return cls.UNKNOWN
        return cls.UNKNOWN if isinstance(error, errors.Unavailable) and not there else cls.NOT_DONE


class RawCall(Protocol):
    """The raw call of one intent, to one backend."""

    async def make(self) -> Outcome:
        """Make it; its error is the client's answer, unless the fate is unknown."""
        ...

    async def happened(self) -> Outcome | None:
        """Ask the backend whether it took effect: the outcome, or None if it did not."""
        ...


# ---------------------------------------------------------------------------------------------- metadata


class Records(Protocol):
    """metadata's records, as the gateway reads and changes them on behalf of a call's client: in its namespace, under
    its lease, with its headers.

    All raise Unavailable, naming metadata, where that does not come in time. Calls that change nothing and those that
    begin an intent are made again if metadata goes away in the middle. Events of what changed are published before a
    method returns.
    """

    async def open_ingest(self, call: Call, *, ref: str, total: int, expected: str, backend: str) -> Ingest:
        """A Write opens ``ref``; AlreadyExists if the namespace has the blob ``expected``. An ingest that is there is
        answered again; a new one is in ``backend``. ``total`` is 0, and ``expected`` empty, where the writer does not
        say.
        """
        ...

    async def ingest(self, call: Call, ref: str) -> Ingest:
        """NotFound if the namespace has none of that ref."""
        ...

    async def ingests(self, call: Call) -> Iterator[Ingest]:
        """All of the namespace; converted as they are taken, since there may be thousands."""
        ...

    async def forget_ingest(self, call: Call, ref: str) -> Ingest:
        """Remove the record; NotFound if there is none. The raw ingest is the caller's to abort, or the collector's."""
        ...

    async def blob(self, call: Call, digest: str) -> Blob:
        """NotFound if the namespace has no such blob."""
        ...

    async def delete_blob(self, call: Call, digest: str) -> None:
        """Remove the record; the collector removes the bytes."""
        ...

    async def snapshot(self, call: Call, snapshotter: str, key: str) -> Snapshot:
        """NotFound if the namespace has none of that key or name."""
        ...

    async def update_snapshot(
        self, call: Call, snapshotter: str, key: str, labels: Labels, paths: Sequence[str]
    ) -> Updated:
        """Change labels as :func:`services.snapshots.store.updated_labels` says."""
        ...

    async def remove_snapshot(self, call: Call, snapshotter: str, key: str) -> None:
        """Remove the record, FailedPrecondition while it has children; the collector removes the raw snapshot."""
        ...

    async def begin_commit(
        self, call: Call, *, ref: str, size: int, expected: str, labels: Labels
    ) -> Intent | Committed:
        """A Write commits. ``size`` is 0, and ``expected`` empty, where they are not to be checked."""
        ...

    async def begin_snapshot(
        self, call: Call, *, snapshotter: str, key: str, parent: str, view: bool, labels: Labels, backend: str
    ) -> Intent:
        """A Prepare or View; AlreadyExists for a target that is recorded already. It is in the backend of its parent,
        or without one in ``backend``.
        """
        ...

    async def begin_commit_snapshot(
        self, call: Call, *, snapshotter: str, name: str, key: str, parent: str, labels: Labels
    ) -> Intent:
        """A Commit; ``parent`` is empty where the snapshot keeps the one that it was prepared with. FailedPrecondition
        where the parent is in another backend.
        """
        ...

    async def finish(self, call: Call, intent: Intent, outcome: Outcome) -> None:
        """It happened: make the records. Returns when metadata has heard it."""
        ...

    async def cancel(self, call: Call, intent: Intent) -> None:
        """It did not happen. Returns when metadata has heard it."""
        ...
