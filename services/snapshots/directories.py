"""Snapshots that are one directory each, or look like one, on one filesystem.

::

    ROOT/snapshots/NAME/snapshots/ID/         all data of the snapshot with this id, laid out by the snapshotter
    ROOT/snapshots/NAME/snapshots/new-ID/     a snapshot that is being made

A directory is made under its temporary name and renamed at the end. So one fsync of ``snapshots`` makes all of it
durable on filesystems with a journal.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.snapshots import disk
from services.snapshots.local import LocalSnapshotter
from services.snapshots.store import Usage
from services.snapshots.tree import Row, Rows

_DIGITS = 19
"""Digits that no id has: SQLite's numbers end before."""


class DirectorySnapshotter(LocalSnapshotter):
    """Directories below ``root/snapshots``: listed there, kept by a rename, measured by a walk, discarded by ``rm``."""

    def __init__(
        self, root: Path, settings: Any = None, *, sync_commit: bool = True, sync_remove: bool = False
    ) -> None:
        self.directory = str(root / "snapshots")
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        super().__init__(root, settings, sync_commit=sync_commit, sync_remove=sync_remove)

    def at(self, name: str) -> str:
        """The path of a thing."""
        return f"{self.directory}/{name}"

    def path(self, number: int) -> str:
        """The directory of a snapshot."""
        return self.at(str(number))

    @abstractmethod
    def changes(self, number: int) -> str:
        """The directory with the changes of a snapshot."""

    def number_of(self, changes: str) -> int | None:
        """The id of the snapshot whose changes are in a directory; None if that is no snapshot's."""
        name = os.path.basename(os.path.dirname(changes))
        number = int(name) if name.isdecimal() and len(name) < _DIGITS else 0
        return number if number and self.changes(number) == changes else None

    async def give(self, number: int, diff_id: str, *, image: bool) -> int | None:
        """Put a layer that the namespace of an active snapshot has into that, as if it were unpacked there. ``image``:
        it is an EROFS image. Returns its uncompressed size in bytes; None if that cannot be: nothing is there then.
        """
        return None

    def names(self) -> Sequence[str]:
        return os.listdir(self.directory)

    def keep(self, name: str, number: int, rows: Rows) -> None:
        try:
            os.rename(self.at(name), self.path(number))
        except OSError as error:
            raise disk.disk_error(error, "failed to rename") from None
        rows.sync_first(self.directory)

    async def measure(self, row: Row) -> Usage:
        return await disk.usage(self.changes(row.id))

    async def discard(self, names: Sequence[str]) -> Sequence[str]:
        return [os.path.basename(path) for path in await disk.remove(map(self.at, names))]
