"""What the layers below a layer have for the directories that it does not name: attributes, by path. They are taken
from the layers' mounts, or read from their indices, which need not be mounted for it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import namedtuple

from services.snapshots.diff.inherit import LinkError, in_layer, xattrs
from services.snapshots.diff.paths import Resolver, Steps
from services.snapshots.erofs.image import BLOCK, DIRENT, INLINE, INODE, MAGIC, META, PREFIXES, SLOT, TYPES, XATTR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias, TypeVar

    K = TypeVar("K")
    V = TypeVar("V")

_LINKS = 40
"""Symbolic links in one path that the kernel follows."""
_STEPS = 5_000_000
"""Components that are looked up in an index to follow links: a minute of reading it."""
_KEPT = 64
"""Directories, and blocks of their names, that an index keeps in memory: directories that are looked up one after the
other mostly lie in the same one. There may be a hundred indices.
"""
_DIRECTORY, _LINK = TYPES[stat.S_IFDIR], TYPES[stat.S_IFLNK]


class Attributes(namedtuple("Attributes", "mode uid gid modified xattrs")):  # noqa: PYI024 typing's would bring re into each worker
    """Those of a directory. ``modified`` is in nanoseconds since 1970; ``xattrs`` has none of overlayfs's."""

    __slots__ = ()
    mode: int
    uid: int
    gid: int
    modified: int
    xattrs: Mapping[bytes, bytes]


Below: TypeAlias = "Callable[[bytes], Attributes | None]"
"""The attributes of a directory in the topmost layer that has anything at an absolute path; None if there is nothing,
or something else. OSError if the path leads through something that is no directory.
"""


def of_layers(lowers: Sequence[Mounted | Index]) -> Below:
    """What layers have, topmost first."""

    def below(path: bytes) -> Attributes | None:
        for lower in lowers:
            try:
                return lower.given(path)
            except FileNotFoundError:
                continue
        return None

    return below


def opened(path: str, steps: Steps | None = None) -> Mounted | Index:
    """A layer, by its mount or its index. ``steps`` bounds the following of links. OSError."""
    if os.path.isdir(path):
        return Mounted(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), steps)
    return Index(path, steps)


class Mounted:
    """A layer whose root directory is open as ``fd``."""

    def __init__(self, fd: int, steps: Steps | None = None) -> None:
        self._fd = fd
        self._steps = steps or Steps()

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def given(self, path: bytes) -> Attributes | None:
        """The attributes of the directory at an absolute path; None if something else is there. FileNotFoundError,
        NotADirectoryError, TooManyLinksError.
        """
        source = in_layer(path, self._fd, links=True, steps=self._steps)
        if source is None:
            return None
        try:
            info = os.fstat(source)
            found = {os.fsencode(key): os.getxattr(source, key) for key in xattrs(source)}
        finally:
            os.close(source)
        return Attributes(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, found)


class Index:
    """An index that ``image.py`` wrote, open. Inodes go by their numbers (nid). OSError, EUCLEAN for what was not
    written so.
    """

    def __init__(self, path: str, steps: Steps | None = None) -> None:
        self._path = path
        self.steps = steps or Steps(_STEPS, more=1000)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size
        self._above: dict[bytes, int] = {}
        """Directories in which something was looked up, by path."""
        self._known: dict[int, tuple[int, int, int, int]] = {}
        self._blocks: dict[int, list[tuple[bytes, int, int]]] = {}
        """Names in blocks of directories, by the blocks' places in the file."""
        self._root: int
        try:
            magic, self._root = struct.unpack("<I10xH", self._read(1024, 16))
            if magic != MAGIC:
                raise self._damaged()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close its file."""
        os.close(self._fd)

    def given(self, path: bytes) -> Attributes | None:
        """As :meth:`Mounted.given`."""
        number = self.directory(path)
        return None if number is None else self.attributes(number)

    def directory(self, path: bytes) -> int | None:
        """The inode of a directory, by its absolute path, as ``inherit.in_layer`` finds it: links are followed as
        containerd follows them. None if something else is there; FileNotFoundError, NotADirectoryError.
        """
        try:
            return self._straight(path)
        except LinkError:
            number, kind = self.found(_Links(self).resolve(path))
            return number if kind == _DIRECTORY else None

    def attributes(self, number: int) -> Attributes:
        """Those of a directory."""
        mode, uid, gid, seconds, nanoseconds = self._inode(number)[2:]
        return Attributes(mode, uid, gid, seconds * 1_000_000_000 + nanoseconds, self._xattrs(number))

    @staticmethod
    def offset(number: int) -> int:
        """Where an inode begins in the file."""
        return META * BLOCK + number * SLOT

    def found(self, path: bytes) -> tuple[int, int]:
        """The inode at an absolute path, and its type. Links are followed as by the kernel, but for the last component.
        FileNotFoundError, NotADirectoryError.
        """
        trail, kind, followed = [self._root], _DIRECTORY, 0
        waiting = [part for part in reversed(path.split(b"/")) if part]
        while waiting:
            part = waiting.pop()
            if kind != _DIRECTORY:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if part == b".":
                continue
            if part == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            inner = self._lookup(trail[-1], part)
            if inner is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            number, kind = inner
            if waiting and kind == _LINK:
                followed += 1
                if followed > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = self.target(number)
                if target.startswith(b"/"):
                    del trail[1:]
                waiting += [part for part in reversed(target.split(b"/")) if part]
                kind = _DIRECTORY
                continue
            trail.append(number)
        return trail[-1], kind

    def target(self, number: int) -> bytes:
        """The target of a symbolic link."""
        layout, at, size, where = self._contents(number)
        whole = size - size % BLOCK if layout == INLINE else size
        return self._read(where, whole) + self._read(at, size - whole)

    # ------------------------------------------------------------------------ the file

    def _straight(self, path: bytes) -> int | None:
        cut = path.rfind(b"/")
        above = self._above.get(path[:cut])
        number, names = (self._root, path.split(b"/")[1:]) if above is None else (above, [path[cut + 1 :]])
        for left, name in zip(reversed(range(len(names))), names, strict=True):
            if not left:
                _keep(self._above, path[:cut], number)
            inner = self._lookup(number, name)
            if inner is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            number, kind = inner
            if kind == _LINK:
                raise LinkError(errno.ELOOP, "a link", path)
            if kind != _DIRECTORY:
                if left:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                return None
        return number

    def _lookup(self, number: int, name: bytes) -> tuple[int, int] | None:
        """What a directory has under a name: an inode and its type. Names are in order, also from block to block."""
        layout, at, size, where = self._contents(number)
        low, high = 0, -(-size // BLOCK)
        while low < high:
            middle = (low + high) // 2
            begin = middle * BLOCK
            inline = layout == INLINE and size - begin < BLOCK
            entries = self._entries(at if inline else where + begin, min(BLOCK, size - begin))
            if name < entries[0][0]:
                high = middle
            elif name > entries[-1][0]:
                low = middle + 1
            else:
                return next(((inner, kind) for found, inner, kind in entries if found == name), None)
        return None

    def _entries(self, at: int, size: int) -> list[tuple[bytes, int, int]]:
        """The names in a block of a directory, with their inodes and types."""
        if (known := self._blocks.get(at)) is not None:
            return known
        block = self._read(at, size)
        first = int.from_bytes(block[8:10], "little")
        if not first or first % DIRENT.size or first > len(block):
            raise self._damaged()
        heads = list(DIRENT.iter_unpack(block[:first]))
        ends = [offset for _, offset, _ in heads[1:]] + [len(block.rstrip(b"\0"))]
        found = [(block[offset:end], inner, kind) for (inner, offset, kind), end in zip(heads, ends, strict=True)]
        return _keep(self._blocks, at, found)

    def _contents(self, number: int) -> tuple[int, int, int, int]:
        """Of a directory or a link: the layout; where its last bytes are, if they are inline; its size; where its
        blocks are.
        """
        if (known := self._known.get(number)) is not None:
            return known
        head = self._read(self.offset(number), INODE.size)
        form, attributes, _, _, size, block, *_ = INODE.unpack(head)
        found = form & ~1, self.offset(number) + INODE.size + _length(attributes), size, block * BLOCK
        return _keep(self._known, number, found)

    def _inode(self, number: int) -> tuple[int, int, int, int, int, int, int]:
        form, attributes, mode, _, _, _, _, uid, gid, seconds, nanoseconds, _ = INODE.unpack(
            self._read(self.offset(number), INODE.size)
        )
        if seconds >= 1 << 63:
            seconds -= 1 << 64
        return form, attributes, mode, uid, gid, seconds, nanoseconds

    def _xattrs(self, number: int) -> dict[bytes, bytes]:
        data = self._read(self.offset(number) + INODE.size, _length(self._inode(number)[1]))
        try:
            return {name: value for name, value in _pairs(data) if not name.startswith(b"trusted.")}
        except (struct.error, KeyError):
            raise self._damaged() from None

    def _read(self, at: int, size: int) -> bytes:
        if size and not 0 <= at <= at + size <= self._size:
            raise self._damaged()
        return os.pread(self._fd, size, at)

    def _damaged(self) -> OSError:
        return OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), self._path)


class _Links(Resolver):
    """Resolves links of an index."""

    __slots__ = ("_index",)

    def __init__(self, index: Index) -> None:
        super().__init__(steps=index.steps)
        self._index = index

    def link(self, path: bytes) -> bytes | None:
        try:
            number, kind = self._index.found(path)
        except FileNotFoundError:
            return None
        return self._index.target(number) if kind == _LINK else None


def patched(head: bytes, mode: int, uid: int, gid: int, modified: int) -> bytes:
    """An inode with other attributes."""
    found = list(INODE.unpack(head))
    seconds, nanoseconds = divmod(modified, 1_000_000_000)
    found[2], found[7:11] = mode, (uid, gid, seconds & (1 << 64) - 1, nanoseconds)
    return INODE.pack(*found)


def _keep(known: dict[K, V], key: K, value: V) -> V:
    if len(known) >= _KEPT:
        known.clear()
    known[key] = value
    return value


def _length(attributes: int) -> int:
    """Bytes of extended attributes, from their number in an inode."""
    return 12 + 4 * (attributes - 1) if attributes else 0


def _pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at < len(data):
        length, prefix, size = XATTR.unpack_from(data, at)
        at += XATTR.size
        yield _PREFIX_OF[prefix] + data[at : at + length], data[at + length : at + length + size]
        at += length + size
        at += -at % 4


_PREFIX_OF = {number: prefix for prefix, number in PREFIXES}
