"""The snapshotter native: each snapshot is a whole tree, made as a copy of its parent's. It works on every filesystem,
at the cost of the copies.

::

    snapshots/ID/      all files of the snapshot (a view with a parent has none: its parent's are mounted)

If the filesystem shares blocks between copies (XFS, Btrfs), a copy costs only its inodes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from services.oci.mounts import Mount
from services.snapshots import disk
from services.snapshots.directories import DirectorySnapshotter
from services.snapshots.store import Kind
from services.snapshots.tree import Row


class NativeSnapshotter(DirectorySnapshotter):
    """A ``Snapshotter`` of plain directories below ``root``."""

    NAME = "native"
    LASTING = True

    def copies(self, kind: Kind, parent: str) -> bool:
        return kind is Kind.ACTIVE and bool(parent)

    async def stage(self, name: str, base: int) -> None:
        directory = self.at(name)
        try:
            os.mkdir(directory, 0o700)
            await disk.copy(self.path(base), directory)
            await self.synced()
        except OSError as error:
            raise disk.disk_error(error, "copying of parent failed") from None

    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        if ancestors:
            return False
        disk.make_directory(self.at(name), 0o755)
        return True

    def changes(self, number: int) -> str:
        return self.path(number)

    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        active = row.info.kind is Kind.ACTIVE
        source = self.path(row.id if active or not ancestors else ancestors[0])
        return [Mount("bind", source, ("rbind", "rw" if active else "ro"))]

    def error_words(self, doing: str, key: str) -> str:
        return {
            "mount": "failed to get snapshot mount",
            "commit": "failed to commit snapshot",
            "remove": "failed to remove",
        }[doing]
