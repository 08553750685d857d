"""Makes a layer of what was written into an overlay's upper directory: a file with all data, and a tree."""

from __future__ import annotations

import os
import stat

from services.snapshots.diff.extract import device
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs.image import Node, prefix_of

_OVERLAYS = b"trusted.overlay."
_KEPT = (b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.overlay.metacopy")
"""What an overlay knows of its lower layers' files; the other attributes with this prefix concern upper ones only."""
_ALIGNED = 4096
"""Bytes to which files' data are aligned: what most disks and memory pages have."""
_COPY = 1 << 30


def collect(upper: str, data: int) -> tuple[Node, int]:
    """The tree below the directory ``upper``; its files' data are written to the open file ``data``, and the second
    result says how many bytes that has. OSError; MountError for an attribute that EROFS cannot have. It blocks.
    """
    return _Collector(data).tree(upper)


class _Collector:
    def __init__(self, data: int) -> None:
        self._data = data
        self._end = 0
        self._files: dict[tuple[int, int], Node] = {}
        """Files with several names."""

    def tree(self, upper: str) -> tuple[Node, int]:
        """All of it."""
        root = self._node(os.stat(upper), None)
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        waiting = [(root, fd)]
        try:
            while waiting:
                node, fd = waiting.pop()
                try:
                    node.xattrs = _xattrs(fd)
                    self._children(node, fd, waiting)
                finally:
                    os.close(fd)
        finally:
            for _, fd in waiting:
                os.close(fd)
        return root, self._end

    def _children(self, node: Node, fd: int, waiting: list[tuple[Node, int]]) -> None:
        found: dict[bytes, Node] = {}
        node.children, node.links = found, 2
        for name in map(os.fsencode, sorted(os.listdir(fd))):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            key = info.st_dev, info.st_ino
            if not stat.S_ISDIR(info.st_mode) and (known := self._files.get(key)) is not None:
                known.links += 1
                found[name] = known
                continue
            found[name] = inner = self._node(info, name if stat.S_ISLNK(info.st_mode) else None, fd)
            if stat.S_ISDIR(info.st_mode):
                node.links += 1
                waiting.append(
                    (inner, os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd))
                )
                continue
            if info.st_nlink > 1:
                self._files[key] = inner
            if stat.S_ISREG(info.st_mode):
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    inner.xattrs = _xattrs(file)
                    inner.size = info.st_size
                    inner.pieces = self._copied(file, info.st_size)
                finally:
                    os.close(file)
            else:
                inner.xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (fd, name))

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
            pieces.append((begin, self._end, at - begin))
            while begin < at:
                done = os.copy_file_range(file, self._data, min(_COPY, at - begin), begin, self._end)
                if not done:  # it was truncated meanwhile
                    done = at - begin
                begin += done
                self._end += done
        return pieces


def _xattrs(file: int | bytes) -> dict[bytes, bytes] | None:
    by_name = isinstance(file, bytes)
    found = {}
    for key in os.listxattr(file, follow_symlinks=False) if by_name else os.listxattr(file):
        name = os.fsencode(key)
        if name.startswith(_OVERLAYS) and name not in _KEPT:
            continue
        if prefix_of(name) is None:
            raise MountError(f"an erofs layer cannot have the extended attribute {key}")
        found[name] = os.getxattr(file, key, follow_symlinks=False) if by_name else os.getxattr(file, key)
    return found or None
