"""Snapshots: filesystems made of layers. Each snapshot is a set of changes on top of its parent.

This service is raw, without namespaces. Its contract is that of a containerd snapshots proxy plugin: it can serve a
real containerd, and a third party's snapshotter can take its place on this node. Clients name a *snapshotter*. Each
snapshotter has a socket of its own, so the service ignores the name in a request.

Words. A snapshot that is being made or used is *active*, or a *view* if it is read-only; it is known by its ``key``. A
finished snapshot is *committed*: it never changes again, and is known by its ``name``. Keys and names share one space.
The ``parent`` of a snapshot is the name of a committed one; "" means the empty directory. An *id* is a number that is
never used twice and that only this service sees: it names the snapshot's directory.

The life of a snapshot::

                prepare(key, parent)                       commit(name, key)
    parent ------------------------> active snapshot ----------------------> committed snapshot ---> parent of others
      |                                key | remove                              name | remove, once it has no children
      |      view(key, parent)             v                                          v
      +----------------------> view --remove--> (gone)                              (gone)

To unpack a layer of an image, a client prepares a key on the layer below, mounts the answer, unpacks into it, unmounts
it, and commits it under the layer's chain id; the key is then gone, and the name is there. To make a container's root,
a client prepares a key on the image's topmost name, mounts the answer and runs; it removes the key at the end. The
service itself mounts nothing: ``prepare`` and ``mounts`` answer a list of :class:`Mount`, and the client mounts them.

Promises:

- An answer still holds after a crash. A snapshot's directory is on disk before its record is, and is removed after its
  record. So a crash may leave a directory without a record, which the next start removes, but never a record without
  its directory.
- The files of a committed snapshot are on disk before its record is (setting ``sync_commit``), whoever wrote them, and
  however: a commit waits for everything that was written to the snapshots' filesystem. The files of an active snapshot
  reach the disk when the kernel writes them back, as any program's files do.
- A name belongs to one snapshot only. If two clients want it at once, one gets AlreadyExists.
- A parent stays as long as it has children, including views and snapshots that are not finished.
- A layer that is there on one parent need not be unpacked on another (``sharing.py``): then AlreadyExists answers its
  prepare, and it is there.
- Labels are kept as given, except empty ones. A commit sets new labels and inherits none.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.kit import errors, filters
from services.oci.mounts import Mount

UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"
"""Labels of a snapshot whose files belong to a user namespace: ``CONTAINER:HOST:SIZE``, several joined by commas."""

TARGET, DIFF_ID = "containerd.io/snapshot.ref", "containerd.io/snapshot/diff-id"
"""Labels of a snapshot into which a layer is to be unpacked: the name under which it will be committed, and the layer's
diff id.
"""

UPPERDIR = "containerd.io/snapshot/overlay.upperdir"
"""Label with the path of a snapshot's ``fs`` directory, set if overlay's configuration asks for it."""


class Kind(enum.IntEnum):
    """The kind of a snapshot; the numbers are containerd's."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot. ``name`` is the key if it is not committed; times are nanoseconds since the epoch."""

    name: str
    kind: Kind
    created_at: int
    updated_at: int
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def field(self, path: Sequence[str]) -> tuple[str, bool]:
        """The fields that a List filter can select by: kind, name, parent and labels (an adaptor of
        ``kit.filters``).
        """
        match path:
            case ["kind", *_]:
                return self.kind.name.lower(), True
            case ["name", *_]:
                return self.name, True
            case ["parent", *_]:
                return self.parent, True
            case ["labels", *rest]:
                return filters.of_map(rest, self.labels)
        return "", False


REBASE, REMAP_IDS, ONLY_REMAP_IDS = "rebase", "remap-ids", "only-remap-ids"
"""Capabilities that containerd's clients know: a commit may set the parent; the ids of a mount may be mapped; ids can
be mapped in no other way.
"""

SHARES = "shares_layers"
"""Exported as ``true`` by a snapshotter that makes a snapshot of a layer itself, if that is there on another parent and
the label :data:`TARGET` names it.
"""
LASTING = "lasting_mounts"
"""Exported as ``true`` by a snapshotter whose mounts of a snapshot stay the same, and need nothing to be done when they
are asked for. The gateway answers them from its memory then.
"""
DIFFER = "differ"
"""Exported with the name of a differ that clients look for beside "walking" to use the snapshotter. The node's Diff
does its work.
"""


@dataclass(frozen=True, slots=True)
class About:
    """A snapshotter's announcement of itself, from which the node's plugins are listed."""

    name: str
    platforms: Sequence[str] = ()
    """Each as ``os/architecture[/variant]``; none means the platform of this machine."""
    exports: Mapping[str, str] = field(default_factory=dict)
    """Values for clients, and what others of the node may rely on: :data:`SHARES`, :data:`LASTING`, :data:`DIFFER`."""
    capabilities: Sequence[str] = ()
    trouble: str = ""
    """Why the snapshotter cannot work on this machine at present; empty if it can."""
    broken: bool = False
    """The reason is not the machine: the snapshotter's data on disk is damaged."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The space that a snapshot takes without its parents: bytes of allocated blocks, and inodes. Hard links count
    once, and so do files that several snapshots share: for one of these.
    """

    size: int = 0
    inodes: int = 0


def kept_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """``labels`` without the empty ones: an empty label is no label."""
    return {key: value for key, value in labels.items() if value}


def updated_labels(
    name: str, current: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str]
) -> dict[str, str]:
    """A snapshot's labels after an Update with these field paths. Without paths, ``new`` replaces all labels.

    ``labels.KEY`` sets one label, or removes it if it is empty or missing in ``new``. Any other path is
    InvalidArgument: nothing else ever changes.
    """
    labels = dict(current) if paths else dict(new)
    for path in paths:
        if path == "labels":
            labels = dict(new)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            labels[key] = new.get(key, "")
        else:
            raise errors.InvalidArgument(f'cannot update "{path}" field on snapshot "{name}"')
    return kept_labels(labels)


class Snapshotter(Protocol):
    """A tree of snapshots. Every method raises NotFound for a key or name that does not exist."""

    async def stat(self, key: str) -> Info:
        """Describe a snapshot of any kind."""
        ...

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change labels as :func:`updated_labels` says."""
        ...

    async def usage(self, key: str) -> Usage:
        """The space that a snapshot takes: an active one takes what it takes now, a committed one what it took when it
        was committed, a view nothing.
        """
        ...

    async def mounts(self, key: str) -> list[Mount]:
        """The mounts of an active snapshot or a view, as when it was made. FailedPrecondition for a committed one."""
        ...

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make an active snapshot on ``parent``. AlreadyExists for a key that is taken, and if the snapshot that the
        label :data:`TARGET` names is there on this parent, or could be made at once; InvalidArgument for a parent that
        is not committed.
        """
        ...

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """As :meth:`prepare`, but read-only: the mounts cannot be written to, and the snapshot cannot be committed."""
        ...

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Make the active snapshot ``key`` a committed one called ``name``, with these labels.

        ``parent`` rebases the snapshot: one that was prepared without a parent gets this one. So the layers of an image
        can be unpacked side by side. Of containerd's snapshotters, overlayfs announces that it can do this (capability
        :data:`REBASE`); a snapshotter that cannot raises Unimplemented. AlreadyExists for a name that is taken,
        FailedPrecondition for a view or a committed key, InvalidArgument to change a parent.
        """
        ...

    async def remove(self, key: str) -> None:
        """Remove a snapshot of any kind. FailedPrecondition while it has children. Its files are removed at once or
        soon after, at the latest by :meth:`cleanup`.
        """
        ...

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        """All snapshots that any of the filters selects (``kit.filters``), as they were at one instant, ordered by
        name.
        """
        ...

    async def cleanup(self) -> None:
        """Return when the files of removed snapshots, and those that a crash left behind, are gone."""
        ...
