"""Makes a layer of what was written into an overlay's upper directory: a file with all data, and a tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from services.snapshots.diff.extract import device
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs.image import Node, prefix_of
from services.snapshots.erofs.layer import BYTES, EACH, ENTRIES

_OVERLAYS = b"trusted.overlay."
_KEPT = (b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.overlay.metacopy")
"""What an overlay knows of its lower layers' files; the other attributes with this prefix concern upper ones only."""
_ALIGNED = 4096
"""Bytes to which files' data are aligned: what most disks and memory pages have."""
_COPY = 1 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LargeError(MountError):
    """There are more files, names or data than were to be collected."""


def collect(upper: str, data: int, *, entries: int = ENTRIES, size: int | None = None) -> tuple[Node, int]:
    """The tree below the directory ``upper``; its files' data are written to the open file ``data``, and the second
    result says how many bytes that has. OSError; MountError for an attribute that EROFS cannot have. LargeError for
    more than so many ``entries``, or bytes of data if these are bounded by ``size``. It blocks.
    """
    return _Collector(data, entries, size).tree(upper)


class _Collector:
    def __init__(self, data: int, entries: int, size: int | None) -> None:
        self._data = data
        self._most = size
        self._entries, self._entries_left, self._bytes_left = entries, entries, BYTES
        self._end = 0
        self._files: dict[tuple[int, int], Node] = {}
        """Files with several names."""

    def tree(self, upper: str) -> tuple[Node, int]:
        """All of it."""
        root = self._node(os.stat(upper), None)
        inside: list[tuple[Node, int, Iterator[str]]] = []
        """The directories that are being read: a file is open for each level, not for each directory."""
        try:
            self._enter(root, os.open(upper, _DIRECTORY), inside)
            while inside:
                node, fd, names = inside[-1]
                for name in map(os.fsencode, names):
                    if (inner := self._child(node, fd, name)) is not None:
                        self._enter(inner, os.open(name, _DIRECTORY, dir_fd=fd), inside)
                        break
                else:
                    os.close(fd)
                    inside.pop()
        finally:
            for _, fd, _ in inside:
                os.close(fd)
        return root, self._end

    def _enter(self, node: Node, fd: int, inside: list[tuple[Node, int, Iterator[str]]]) -> None:
        inside.append((node, fd, iter(())))
        node.children, node.links = {}, 2
        node.xattrs = self._xattrs(fd)
        inside[-1] = node, fd, iter(sorted(os.listdir(fd)))

    def _child(self, node: Node, fd: int, name: bytes) -> Node | None:
        """Take what a directory has under a name; returned if it is a directory itself."""
        assert node.children is not None
        self._count(1, len(name))
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        key = info.st_dev, info.st_ino
        is_directory = stat.S_ISDIR(info.st_mode)
        if not is_directory and (known := self._files.get(key)) is not None:
            known.links += 1
            node.children[name] = known
            return None
        node.children[name] = inner = self._node(info, name if stat.S_ISLNK(info.st_mode) else None, fd)
        if is_directory:
            node.links += 1
            return inner
        if info.st_nlink > 1:
            self._files[key] = inner
        if stat.S_ISREG(info.st_mode):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                inner.xattrs = self._xattrs(file)
                inner.size = info.st_size
                inner.pieces = self._copied(file, info.st_size)
            finally:
                os.close(file)
        else:
            inner.xattrs = self._xattrs(b"/proc/self/fd/%d/%s" % (fd, name))
        return None

    def _count(self, entries: int, size: int) -> None:
        """Count what is kept in memory."""
        self._entries_left -= entries
        self._bytes_left -= size
        if self._entries_left < 0 or self._bytes_left < 0:
            raise LargeError(
                f"it has more than {self._entries} files, or {BYTES >> 20} MiB of names and attributes, which an erofs "
                "layer cannot have: use another snapshotter"
            )

    def _node(self, info: os.stat_result, link: bytes | None, fd: int | None = None) -> Node:
        node = Node(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns)
        if link is not None:
            node.target = os.readlink(link, dir_fd=fd)
        if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            node.device = device(os.major(info.st_rdev), os.minor(info.st_rdev))
        return node

    def _copied(self, file: int, size: int) -> list[tuple[int, int, int]]:
        """Append a file's data, without its holes."""
        pieces = []
        at = 0
        while at < size:
            try:
                begin = os.lseek(file, at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            begin -= begin % _ALIGNED
            at = min(size, os.lseek(file, begin, os.SEEK_HOLE))
            at = min(size, at + -at % _ALIGNED)
            self._end += -self._end % _ALIGNED
            if self._most is not None and self._end + at - begin > self._most:
                raise LargeError(f"it has more than {self._most} bytes of data")
            pieces.append((begin, self._end, at - begin))
            self._count(0, EACH)
            while begin < at:
                done = os.copy_file_range(file, self._data, min(_COPY, at - begin), begin, self._end)
                if not done:  # it was truncated meanwhile
                    done = at - begin
                begin += done
                self._end += done
        return pieces

    def _xattrs(self, file: int | bytes) -> dict[bytes, bytes] | None:
        by_name = isinstance(file, bytes)
        found = {}
        for key in os.listxattr(file, follow_symlinks=False) if by_name else os.listxattr(file):
            name = os.fsencode(key)
            if name.startswith(_OVERLAYS) and name not in _KEPT:
                continue
            if prefix_of(name) is None:
                raise MountError(f"an erofs layer cannot have the extended attribute {key}")
            found[name] = os.getxattr(file, key, follow_symlinks=False) if by_name else os.getxattr(file, key)
            self._count(0, EACH + len(name) + len(found[name]))
        return found or None
