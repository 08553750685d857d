"""What a snapshotter is: containerd's snapshots proxy plugin as a class, its types, and the records of its snapshots.

A snapshot is a set of changes on top of its parent. One that is being made or used is *active*, or a *view* if it is
read-only, and is known by its key. A finished one is *committed*: it never changes again, is known by its name, and can
be a parent. Keys and names share one space, and belong to one snapshot each.

To unpack a layer of an image, a client prepares a key on the layer below, mounts what ``prepare`` answers, unpacks into
it, and commits the key under the layer's name. To make a container's root, it prepares a key on the image's topmost
layer, and removes that key at the end. The snapshotter itself mounts nothing.

What must hold whenever the process is killed: an answer is still true, a record has its files, and the files of a
committed snapshot are on the disk.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from services.oci.mounts import Mount
from services.snapshots import disk
from services.snapshots.records import Record, Records
from services.snapshots.store import Info, Kind, Usage, updated_labels

__all__ = [
    "Info",
    "Kind",
    "Mount",
    "Record",
    "RecordedSnapshotter",
    "Records",
    "Snapshotter",
    "Usage",
    "disk_usage",
    "updated_labels",
]


class Snapshotter(ABC):
    """A snapshotter of one's own. A method is plain, and then runs in a thread, several at once; or it is ``async
    def``. One that has begun is finished, whatever becomes of the client that asked for it.

    Every method raises :class:`~splitd.errors.NotFound` for a key or name that does not exist. :class:`Records` keeps
    these rules, and those below.
    """

    @abstractmethod
    def stat(self, key: str) -> Info:
        """Describe a snapshot of any kind."""

    @abstractmethod
    def list(self) -> Iterable[Info]:
        """All snapshots. Which of them a client's filters select is found out elsewhere, and they are sorted there."""

    @abstractmethod
    def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Change labels as :func:`updated_labels` says."""

    @abstractmethod
    def usage(self, key: str) -> Usage:
        """The space that a snapshot takes without its parents: an active one what it takes now, a committed one what it
        took when it was committed, a view nothing.
        """

    @abstractmethod
    def mounts(self, key: str) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view, as when it was made. FailedPrecondition for a committed one."""

    @abstractmethod
    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """Make an active snapshot on the committed snapshot ``parent``, or on nothing if that is empty. AlreadyExists
        for a key that is taken, InvalidArgument for a parent that is not committed.
        """

    @abstractmethod
    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """As :meth:`prepare`, but read-only: the mounts cannot be written to, and the snapshot cannot be committed."""

    @abstractmethod
    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Make the active snapshot ``key`` a committed one called ``name``, with these labels and no others.
        AlreadyExists for a name that is taken, FailedPrecondition for a view or a committed key.
        """

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a snapshot of any kind, and its files. FailedPrecondition while it has children."""

    def cleanup(self) -> None:  # noqa: B027 - not every snapshotter leaves anything
        """Remove what removals and crashes have left. Clients may ask for it at any time."""

    def close(self) -> None:  # noqa: B027 - not every snapshotter holds anything
        """End: no method will be called any more."""


class RecordedSnapshotter(Snapshotter):
    """A snapshotter whose snapshots are in ``records``, the file ROOT/records.db: what concerns these alone is here. A
    subclass has the methods that concern files.
    """

    def __init__(self, root: Path) -> None:
        self.records = Records(root / "records.db")

    def stat(self, key: str) -> Info:
        return self.records.get(key).info

    def list(self) -> Iterable[Info]:
        return self.records.list()

    def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        return self.records.update(key, labels, paths)

    def close(self) -> None:
        self.records.close()


def disk_usage(directory: Path) -> Usage:
    """The blocks and inodes that ``directory`` takes, itself included. A hard-linked file counts once."""
    found = disk.walk_usage(str(directory), sys.maxsize)
    assert found is not None
    return found
