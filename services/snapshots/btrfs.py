"""The snapshotter btrfs: each snapshot is a subvolume, made as the file system's own snapshot of its parent, which
costs next to nothing.

::

    snapshots/ID/      a subvolume with all files of the snapshot; a committed one is read-only (a view with a parent
                       has none: its parent's is mounted)

ROOT/snapshots/btrfs must be on Btrfs. Like containerd's, this snapshotter answers mounts of the file system's device,
selected by subvolume id. Subvolumes are made, measured and removed by ioctls (linux/btrfs.h, linux/btrfs_tree.h), some
of which the kernel allows to root only. Usage is the difference from the parent, file by file, as containerd counts it.
Quota groups are not needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots import disk
from services.snapshots.directories import DirectorySnapshotter
from services.snapshots.store import Kind, Usage
from services.snapshots.tree import Row

log = logging.getLogger(__name__)

_SUBVOL_CREATE_V2, _SNAP_CREATE_V2, _SNAP_DESTROY = 0x50009418, 0x50009417, 0x5000940F
_SUBVOL_GETFLAGS, _SUBVOL_SETFLAGS, _GET_SUBVOL_INFO, _TREE_SEARCH_V2 = 0x80089419, 0x4008941A, 0x81F8943C, 0xC0709411
_READ_ONLY = 2
_MODE = 0o755
"""Mode of a snapshot's root directory, if it has no parent to take it from."""

_ARGS = struct.Struct("=q 4088s")
"""struct btrfs_ioctl_vol_args: a file, a name."""
_ARGS_V2 = struct.Struct("=q 16x 32x 4040s")
"""struct btrfs_ioctl_vol_args_v2: the same."""
_INFO = struct.Struct("=Q 256x 32x 16x 16s 16x 8x Q 144x")
"""struct btrfs_ioctl_get_subvol_info_args: the id, the UUID of the subvolume that this is a snapshot of, and the
transaction that made it.
"""
_SEARCH = struct.Struct("=7Q 4I 32x Q")
"""struct btrfs_ioctl_search_args_v2: the tree; the ranges of objects, offsets, transactions and types; the number of
items; and the size of the buffer that follows.
"""
_FOUND = struct.Struct("=QQQ II")
"""struct btrfs_ioctl_search_header: the transaction, object and offset, the type, and the number of bytes that
follow.
"""
_INODE = struct.Struct("< 8x Q 8x Q 8x 16s 56x 12x 12s 12s 12x")
"""struct btrfs_inode_item: the last transaction that touched it, its bytes on the disk, its links, owners and mode, and
the times of its last change (ctime) and of that of its contents (mtime).
"""
_INODE_ITEM, _FIRST_INODE, _ALL = 1, 256, 2**64 - 1
_BUFFER, _SMALL = 1 << 16, 1 << 9
"""Bytes of the buffer for search results: larger than any item; larger than an inode's item."""


class BtrfsSnapshotter(DirectorySnapshotter):
    """A ``Snapshotter`` of subvolumes below ``root``."""

    NAME = "btrfs"
    LASTING = True
    FILESYSTEM = "btrfs"

    def copies(self, kind: Kind, parent: str) -> bool:
        return kind is Kind.ACTIVE and bool(parent)

    async def stage(self, name: str, base: int) -> None:
        try:
            await asyncio.to_thread(_snapshot, self.path(base), self.at(name))
        except OSError as error:
            raise disk.disk_error(error, "failed to create snapshot of parent") from None

    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        if ancestors:
            return False
        path = self.at(name)
        with _opened(self.directory) as above:
            fcntl.ioctl(above, _SUBVOL_CREATE_V2, bytearray(_ARGS_V2.pack(0, os.fsencode(name))))
        os.chmod(path, _MODE)  # whatever the umask is
        if kind is Kind.VIEW:
            with _opened(path) as fd:
                _freeze(fd)
        return True

    def changes(self, number: int) -> str:
        return self.path(number)

    async def measure(self, row: Row) -> Usage:
        try:
            await self.synced()  # data on its way to the disk is not in the trees yet
            return await asyncio.to_thread(
                _usage, self.path(row.id), None if row.parent is None else self.path(row.parent)
            )
        except OSError as error:
            raise disk.disk_error(error, "failed to compute usage") from None

    async def freeze(self, numbers: Sequence[int]) -> None:
        def each() -> None:
            for number in numbers:
                with _opened(self.path(number)) as fd:
                    _freeze(fd)

        if numbers:
            await asyncio.to_thread(each)

    async def discard(self, names: Sequence[str]) -> Sequence[str]:
        others = await asyncio.to_thread(lambda: [name for name in names if not _destroyed(self.directory, name)])
        return await super().discard(others) if others else ()

    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        active = row.info.kind is Kind.ACTIVE
        try:
            subvolume = _info(self.path(row.id if active or not ancestors else ancestors[0])).id
        except OSError as error:
            raise disk.disk_error(error, "failed to get subvolume id") from None
        return [Mount("btrfs", self.disk.source, (f"subvolid={subvolume}", *(() if active else ("ro",))))]

    def error_words(self, doing: str, key: str) -> str:
        return {
            "mount": "failed to get active snapshot",
            "commit": "failed to commit",
            "remove": "failed to remove snapshot",
        }[doing]


# ------------------------------------------------------------------------------------------ subvolumes; all of it
# blocks


class _Subvolume(NamedTuple):
    id: int
    made: int
    """The transaction that made it a snapshot of another subvolume, 0 if it is none. Inodes touched in later
    transactions may differ from the parent's.
    """


@contextlib.contextmanager
def _opened(directory: str, above: int | None = None) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)


def _snapshot(source: str, target: str) -> None:
    """Make a writable snapshot. It is on the disk when this returns: the kernel commits it."""
    with _opened(source) as fd, _opened(os.path.dirname(target)) as above:
        fcntl.ioctl(above, _SNAP_CREATE_V2, bytearray(_ARGS_V2.pack(fd, os.fsencode(os.path.basename(target)))))


def _freeze(fd: int, *, read_only: bool = True) -> None:
    """Make an open subvolume read-only for everybody, also through existing mounts; or writable again."""
    (flags,) = struct.unpack("=Q", fcntl.ioctl(fd, _SUBVOL_GETFLAGS, bytes(8)))
    wanted = flags | _READ_ONLY if read_only else flags & ~_READ_ONLY
    if flags != wanted:
        fcntl.ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted))


def _info(path: str) -> _Subvolume:
    with _opened(path) as fd:
        buffer = bytearray(_INFO.size)
        fcntl.ioctl(fd, _GET_SUBVOL_INFO, buffer)
    number, parent, made = _INFO.unpack(buffer)
    return _Subvolume(number, made if any(parent) else 0)


def _destroyed(directory: str, name: str) -> bool:
    """Remove the subvolume ``name``, with subvolumes that were made inside it; the kernel frees its blocks in the
    background. Returns False if it is no subvolume, or if the kernel refuses, which is logged.
    """
    try:
        with _opened(directory) as above:
            _destroy(above, name)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a subvolume, but a directory
            log.warning("failed to remove subvolume %s/%s: %s", directory, name, errors.words(error))
        return False
    return True


def _destroy(above: int, name: str) -> None:
    """Remove the subvolume ``name`` of an open directory. It works on open directories, so that a process that still
    writes there cannot lead it elsewhere by a link.
    """
    arguments = bytearray(_ARGS.pack(0, os.fsencode(name)))
    try:
        fcntl.ioctl(above, _SNAP_DESTROY, arguments)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
    else:
        return
    with _opened(name, above) as fd:
        _freeze(fd, read_only=False)
    for _, directories, _, fd in os.fwalk(name, dir_fd=above):
        for inner in [
            each for each in directories if os.stat(each, dir_fd=fd, follow_symlinks=False).st_ino == _FIRST_INODE
        ]:
            directories.remove(inner)
            _destroy(fd, inner)
    fcntl.ioctl(above, _SNAP_DESTROY, arguments)


def _usage(path: str, parent: str | None) -> Usage:
    """The bytes and number of inodes that differ from the parent. Only those parts of the trees are read that were
    written after the snapshot was made.
    """
    own = _info(path)
    below = _info(parent).id if parent is not None and own.made else 0
    size = inodes = 0
    with _opened(path) as fd:
        for number, item in _inodes(fd, own.id, own.made):
            touched, nbytes, *_ = _INODE.unpack_from(item)
            if touched > own.made and (
                not below
                or _state(number, item) not in [_state(number, old) for _, old in _inodes(fd, below, 0, only=number)]
            ):
                size += nbytes
                inodes += 1
    return Usage(size, inodes)


def _state(number: int, item: memoryview) -> tuple[bytes, ...]:
    """The values that change when an inode changes, but not when it is only read. For a subvolume's root, whose ctime a
    rename changes, these are the owners and the mtime.
    """
    _, _, owners, changed, written = _INODE.unpack_from(item)
    return (owners, written) if number == _FIRST_INODE else (changed,)


def _inodes(fd: int, tree: int, since: int, *, only: int | None = None) -> Iterator[tuple[int, memoryview]]:
    """The numbers and items of a tree's inodes, or of inode ``only``, in blocks written after the transaction
    ``since``. The caller looks at each item before it asks for the next.

    A search covers a range of whole keys (object, type, offset), so other items of an inode are among the results.
    """
    first, last = ((_FIRST_INODE, 0, 0), _ALL - _FIRST_INODE) if only is None else ((only, _INODE_ITEM, 0), only)
    buffer = bytearray(_SEARCH.size + (_BUFFER if only is None else _SMALL))
    while True:
        number, kind, offset = first
        _SEARCH.pack_into(
            buffer,
            0,
            tree,
            number,
            last,
            offset,
            _ALL,
            since + 1 if since else 0,
            _ALL,
            kind,
            255 if only is None else _INODE_ITEM,
            2**32 - 1,
            0,
            len(buffer) - _SEARCH.size,
        )
        fcntl.ioctl(fd, _TREE_SEARCH_V2, buffer)
        count = _SEARCH.unpack_from(buffer)[9]
        if not count:
            return
        at = _SEARCH.size
        for _ in range(count):
            _, number, offset, kind, length = _FOUND.unpack_from(buffer, at)
            at += _FOUND.size
            if kind == _INODE_ITEM:
                yield number, memoryview(buffer)[at : at + length]
            at += length
        first = (number, kind, offset + 1) if offset < _ALL else (number, kind + 1, 0)
        if number > last or only is not None:
            return
