"""A snapshotter of overlays: each snapshot is a directory with its changes, and the kernel stacks these directories.

    ROOT/records.db           which snapshots there are, and on which each stands
    ROOT/snapshots/ID/fs      the changes of the snapshot with this id
    ROOT/snapshots/ID/work    the kernel's, beside the changes of an active snapshot
    ROOT/snapshots/new-ID     a snapshot that is being made

A directory is there before its record, and goes after it. So a kill at any instant leaves at worst a directory without
a record, which the next start removes.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from splitd import service
from splitd.files import Filesystem, remove_tree, sync_directory
from splitd.snapshots import Kind, Mount, Record, RecordedSnapshotter, Usage, disk_usage


class Overlay(RecordedSnapshotter):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.directory = root / "snapshots"
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.filesystem = Filesystem(self.directory)
        self.cleanup()

    def changes(self, number: int) -> Path:
        return self.directory / str(number) / "fs"

    def usage(self, key: str) -> Usage:
        record = self.records.get(key)
        return disk_usage(self.changes(record.id)) if record.info.kind is Kind.ACTIVE else record.usage

    def mounts(self, key: str) -> Sequence[Mount]:
        return self.mounts_of(self.records.mountable(key))

    def mounts_of(self, record: Record) -> Sequence[Mount]:
        active = record.info.kind is Kind.ACTIVE
        own, layers = self.changes(record.id), [str(self.changes(number)) for number in record.parents]
        if not layers or (len(layers) == 1 and not active):  # the kernel stacks two directories at least
            return [Mount("bind", layers[0] if layers else str(own), ("rw" if active else "ro", "rbind"))]
        upper = [f"workdir={own.with_name('work')}", f"upperdir={own}"] if active else []
        return [Mount("overlay", "overlay", (*upper, f"lowerdir={':'.join(layers)}", "index=off"))]

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        return self.make(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        return self.make(Kind.VIEW, key, parent, labels)

    def make(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        with self.records.adding(kind, key, parent, labels) as record:  # recorded when this block has ended
            new = self.directory / f"new-{record.id}"
            for part in ("", "fs", "work"):
                (new / part).mkdir()
            (new / "fs").chmod(0o755)  # whatever the umask is
            if record.parents:  # the root directory has the owner that the parent's has
                owner = self.changes(record.parents[0]).stat()
                os.chown(new / "fs", owner.st_uid, owner.st_gid)
            new.rename(self.directory / str(record.id))
            sync_directory(self.directory)
        return self.mounts_of(record)

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        record = self.records.get(key)
        self.filesystem.sync(since=record.info.created_at)  # the files of a committed snapshot are on the disk
        self.records.commit(record, name, labels, disk_usage(self.changes(record.id)))

    def remove(self, key: str) -> None:
        remove_tree(self.directory / str(self.records.remove(key)))

    def cleanup(self) -> None:
        for name in self.records.leftovers(os.listdir(self.directory)):
            remove_tree(self.directory / name)


if __name__ == "__main__":
    service.main(Overlay)
