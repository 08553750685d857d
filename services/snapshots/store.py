"""Snapshots: filesystems made of layers, each a set of changes on top of its parent. Raw: without namespaces.

This is the contract of a containerd snapshots proxy plugin, so this service can serve a real containerd, and a third
party's can serve this node in its place. Clients name a *snapshotter*; each has a socket of its own, and the name in a
request is not looked at.

The words. A snapshot that is being made or used is *active* (or a *view*, if it is read-only) and is known by its
``key``. One that is finished is *committed*, never changes again, and is known by its ``name``. Keys and names share
one space. The ``parent`` of a snapshot is a committed one, by name; "" is the empty directory. An *id* is a number,
never used twice, that only this service sees: the snapshot's directory.

A snapshot's life::

                prepare(key, parent)                       commit(name, key)
    parent ------------------------> active snapshot ----------------------> committed snapshot ---> parent of others
      |                                key | remove                              name | remove, once it has no children
      |      view(key, parent)             v                                          v
      +----------------------> view --remove--> (gone)                              (gone)

An image's layer: prepare a key on the layer below, mount what is answered, unpack into it, unmount, commit under the
layer's chain id; then the key is gone and the name is there. A container's root: prepare a key on the image's topmost
name, mount it, run; remove the key. Nothing is mounted here: the answer to ``prepare`` and ``mounts`` is a list of
:class:`Mount`, which whoever wants the files performs.

What is promised:

- What an answer said is so after a crash. A snapshot's directory is on disk before its record is, and goes after its
  record: what a crash leaves is a directory without a record, removed at the next start, and never a record without its
  directory.
- What is in a committed snapshot is on disk before its record is (``sync_commit``), whoever wrote it, and however: a
  commit waits for all that was written to the snapshots' filesystem. What is in an active one is on disk when the
  kernel gets to it, as a program's files are everywhere.
- A name is taken by one snapshot only; of two that want it at once, one gets AlreadyExists.
- A parent stays as long as it has children, views and half-made ones included.
- Labels are kept as given, empty values aside. A commit sets new ones and inherits none.
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
"""Labels of a snapshot whose files are to belong to a user namespace: ``CONTAINER:HOST:SIZE``, several joined by
commas.
"""

UPPERDIR = "containerd.io/snapshot/overlay.upperdir"
"""Label of a snapshot, where overlay's configuration wants it: its ``fs`` directory."""


class Kind(enum.IntEnum):
    """What a snapshot is; the numbers are the contract's."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot. ``name`` is the key of one that is not committed; times are nanoseconds since the epoch."""

    name: str
    kind: Kind
    created_at: int
    updated_at: int
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def field(self, path: Sequence[str]) -> tuple[str, bool]:
        """What List can filter by: kind, name, parent and labels (an adaptor of ``kit.filters``)."""
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
"""Capabilities, which containerd's clients know: a commit may bring the parent; the ids of what is mounted may be
mapped; and in no other way.
"""


@dataclass(frozen=True, slots=True)
class About:
    """What a snapshotter says of itself, for the rows of the node's plugins."""

    name: str
    platforms: Sequence[str] = ()
    """As ``os/architecture[/variant]``; none: that of the machine."""
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    trouble: str = ""
    """Why it cannot work on this machine as it is now; empty where it can."""
    broken: bool = False
    """That is no matter of the machine: what it has on the disk is damaged."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes without its parents: bytes of allocated blocks, and inodes; hard links count once."""

    size: int = 0
    inodes: int = 0


def kept_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """``labels`` without those that are empty: an empty label is no label."""
    return {key: value for key, value in labels.items() if value}


def updated_labels(
    name: str, current: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str]
) -> dict[str, str]:
    """A snapshot's labels after an Update with these field paths; without any, ``new`` replaces all of them.

    ``labels.KEY`` sets one label, or removes it where ``new`` has it empty or not at all. Any other path is
    InvalidArgument: the rest never changes.
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
    """A tree of snapshots. Every method raises NotFound for a key or name that is not there."""

    async def stat(self, key: str) -> Info:
        """Describe a snapshot of any kind."""
        ...

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change labels as :func:`updated_labels` says."""
        ...

    async def usage(self, key: str) -> Usage:
        """What a snapshot takes: of an active one as it is now, of a committed one as it was committed; a view
        takes nothing.
        """
        ...

    async def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view, as when it was made; FailedPrecondition for a committed one."""
        ...

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make an active snapshot on ``parent``. AlreadyExists for a key that is taken, InvalidArgument for a
        parent that is not committed.
        """
        ...

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """As :meth:`prepare`, read-only: what is answered cannot be written to, and the snapshot cannot be
        committed.
        """
        ...

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Make the active snapshot ``key`` a committed one called ``name``, with these labels.

        ``parent`` rebases it: a snapshot that was prepared without a parent gets this one, so that the layers of an
        image can be unpacked side by side (of containerd's snapshotters, overlayfs says that it can: capability
        :data:`REBASE`; of one that cannot it is Unimplemented). AlreadyExists for a name that is taken,
        FailedPrecondition for a view or a committed key, InvalidArgument to change a parent.
        """
        ...

    async def remove(self, key: str) -> None:
        """Remove a snapshot of any kind; FailedPrecondition while it is a parent. Its files go at once or soon
        after, at the latest with :meth:`cleanup`.
        """
        ...

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        """All snapshots that any of the filters selects (``kit.filters``), as they were at one instant, in the
        order of their names.
        """
        ...

    async def cleanup(self) -> None:
        """Return when the files of removed snapshots, and those that a crash left behind, are gone."""
        ...
