"""The worker program that makes a layer: it walks two trees and writes their difference as a tar stream, compressed and
digested.

    python -S -c 'from services.snapshots.diff.compare import main; main()'
        PARENT plain|gzip|zstd BOUND LEFT RIGHT COUNT MOUNT... <> INGEST

PARENT is the pid of the process that it must not outlive. BOUND is the latest time of an entry in nanoseconds, or
``-``. LEFT and RIGHT are empty directories beside each other on which it mounts; the first COUNT arguments of the
mounts are the left's. The layer goes to standard input, which is open for writing. The last line of its output is ``ok
DIGEST SIZE DIFF_ID SPENT``, or ``error TEXT``. SPENT says what its time went for (``spent.py``).

The definition of a change, the order of changes and their encoding are those of containerd's walking differ, byte for
byte before compression: the same two trees give the same diff id. The trees are below this process's root directory, so
that a container that moves its files meanwhile cannot lead it elsewhere.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import signal
import stat
import sys
import time

from services.kit import tar
from services.kit.inflate import CHUNK
from services.snapshots.diff import mounts, tarwrite
from services.snapshots.diff.mounted import Mounted
from services.snapshots.diff.spent import Account
from services.snapshots.diff.stream import ahead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CAPABILITY = "security.capability"
_SECOND = 1_000_000_000


class CompareError(Exception):
    """A layer that cannot be made; the text is for the client."""


def main() -> None:
    """Run as a program."""
    parent, compression, bound, left, right, count = sys.argv[1:7]
    os.setpgid(0, 0)  # a kill of this group also kills the keeper of its mounts
    mounts.die_with_parent(int(parent))
    faulthandler.register(signal.SIGUSR1)  # the stack goes into the service's log, and the worker goes on
    sys.setrecursionlimit(20_000)
    try:
        answer = make(sys.argv[7:], int(count), left, right, compression, bound)
    except (CompareError, mounts.MountError) as error:
        answer = f"error {error}".replace("\n", "\\n")
    except OSError as error:
        name = f": {os.fsdecode(error.filename)}" if error.filename else ""
        answer = f"error failed to write diff{name}: {mounts.words(error.errno) if error.errno else error}".replace(
            "\n", "\\n"
        )
    sys.stdout.buffer.write(answer.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()
    os._exit(0)


def make(arguments: list[str], count: int, left: str, right: str, compression: str, bound: str) -> str:
    """Make the layer. Returns the answer."""
    account = Account()
    compressor = _compressor(compression)
    layer = Layer(
        b"/" + os.fsencode(os.path.basename(left)),
        b"/" + os.fsencode(os.path.basename(right)),
        None if bound == "-" else int(bound),
    )
    chunks = ahead(_rechunked(layer.stream()), account)
    mounts.unshare_mounts()
    mounted = (
        Mounted(mounts.from_arguments(arguments[:count]), left),
        Mounted(mounts.from_arguments(arguments[count:]), right),
    )
    os.chroot(os.path.dirname(right))
    os.chdir("/")
    plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
    main, clock = account.here(), time.thread_time_ns
    for chunk in chunks:
        begun = clock()
        plain.update(chunk)
        hashed = clock()
        made = compressor.compress(chunk)
        packed.update(made)
        main.digest += hashed - begun
        main.coding += clock() - hashed
        size += _put(made)
    made = compressor.flush()
    packed.update(made)
    size += _put(made)
    del mounted  # lets the programs that serve them end
    return f"ok sha256:{packed.hexdigest()} {size} sha256:{plain.hexdigest()} {account.close()}"


def _put(data: bytes) -> int:
    left = memoryview(data)
    while left:
        left = left[os.write(0, left) :]
    return len(data)


class _Plain:
    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """An object with compress and flush. The libraries are imported here, before the root directory changes."""
    if name == "gzip":
        from isal import isal_zlib

        return isal_zlib.compressobj(level=2, wbits=31)
    if name == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).compressobj()
    return _Plain()


def _rechunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in larger chunks."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(held)
            held.clear()
            size = 0
    yield b"".join(held)


class Layer:
    """The tar stream of the changes from the tree ``left`` to the tree ``right``. ``bound`` is the latest time of an
    entry, in nanoseconds.
    """

    def __init__(self, left: bytes, right: bytes, bound: int | None = None) -> None:
        self._left = left
        self._right = right
        self._bound = None if bound is None else bound // _SECOND
        self._written: set[bytes] = set()
        """Directories that have an entry."""
        self._first: dict[int, bytes] = {}
        """From the inode of a file with several links to the name under which the layer has its data."""
        self._unchanged: dict[int, list[bytes]] = {}
        """From an inode to its unchanged links so far. If another link of it has changed, they must become links to
        that.
        """

    def stream(self) -> Iterator[bytes]:
        """The whole stream."""
        yield from self._compare(b"")
        yield tarwrite.TRAILER

    # ------------------------------------------------------------------------ finding changes

    def _compare(self, directory: bytes) -> Iterator[bytes]:
        """The changes below a directory that both trees have."""
        old, new = _names(self._left + directory), _names(self._right + directory)
        for name in sorted(old | new):
            path = directory + b"/" + name
            if name not in new:
                yield from self._deleted(path)
                continue
            after = os.lstat(self._right + path)
            if name not in old:
                yield from self._added(path, after)
                continue
            before = os.lstat(self._left + path)
            if not self._same(path, before, after):
                yield from self._changed(path, after)
            elif _linked(after):
                yield from self._unchanged_link(path, after)
            if stat.S_ISDIR(after.st_mode):
                yield from self._compare(path) if stat.S_ISDIR(before.st_mode) else self._below(path)

    def _added(self, path: bytes, info: os.stat_result) -> Iterator[bytes]:
        yield from self._changed(path, info)
        if stat.S_ISDIR(info.st_mode):
            yield from self._below(path)

    def _below(self, directory: bytes) -> Iterator[bytes]:
        for name in sorted(_names(self._right + directory)):
            path = directory + b"/" + name
            yield from self._added(path, os.lstat(self._right + path))

    def _same(self, path: bytes, before: os.stat_result, after: os.stat_result) -> bool:
        """Whether a path is the same in both trees. Contents are compared only if the times are whole seconds, and so
        may be truncated.
        """
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return True
        if (before.st_mode, before.st_uid, before.st_gid, before.st_rdev) != (
            after.st_mode,
            after.st_uid,
            after.st_gid,
            after.st_rdev,
        ):
            return False
        left, right = self._left + path, self._right + path
        if _capability(left) != _capability(right):
            return False
        if stat.S_ISDIR(after.st_mode):
            return True
        if before.st_size != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
            return False
        if after.st_mtime_ns % _SECOND:
            return True
        if stat.S_ISLNK(after.st_mode):
            return os.readlink(left) == os.readlink(right)
        return after.st_size == 0 or _same_bytes(left, right)

    # ------------------------------------------------------------------------ writing them

    def _deleted(self, path: bytes) -> Iterator[bytes]:
        directory, _, name = path[1:].rpartition(b"/")
        whiteout = directory + b"/.wh." + name if directory else b".wh." + name
        yield from self._parents(whiteout)
        yield tarwrite.header(whiteout, tar.REG)

    def _unchanged_link(self, path: bytes, info: os.stat_result) -> Iterator[bytes]:
        """Write an unchanged link only if another name of its file is written, before or later."""
        if info.st_ino in self._first:
            yield from self._changed(path, info)
        else:
            self._unchanged.setdefault(info.st_ino, []).append(path[1:])

    def _changed(self, path: bytes, info: os.stat_result) -> Iterator[bytes]:
        mode = info.st_mode
        kind = _KINDS.get(stat.S_IFMT(mode))
        if kind is None:
            return  # a socket
        source = self._right + path
        name = path[1:]
        linkname = os.readlink(source) if kind == tar.SYMLINK else b""
        size = info.st_size if kind == tar.REG else 0
        others: list[bytes] = []
        if kind == tar.DIR:
            name += b"/"
        elif _linked(info):
            if (first := self._first.get(info.st_ino)) is not None:
                kind, linkname, size = tar.LINK, first, 0
            else:
                self._first[info.st_ino] = name
                others = self._unchanged.pop(info.st_ino, [])
        capability = _capability(source)
        records = {tar.XATTR + _CAPABILITY.encode(): capability} if capability else {}
        modified = info.st_mtime_ns // _SECOND
        if self._bound is not None and modified > self._bound:
            modified = self._bound

        def entry(name: bytes, kind: bytes, size: int, linkname: bytes) -> bytes:
            return tarwrite.header(
                name,
                kind,
                mode=mode & 0o7777,
                uid=info.st_uid,
                gid=info.st_gid,
                size=size,
                modified=modified,
                linkname=linkname,
                major=os.major(info.st_rdev),
                minor=os.minor(info.st_rdev),
                records=records,
            )

        yield from self._parents(name)
        if kind == tar.DIR:
            self._written.add(path[1:])
        yield entry(name, kind, size, linkname)
        if size:
            yield from _contents(source, size)
        for other in others:
            yield from self._parents(other)
            yield entry(other, tar.LINK, 0, name)

    def _parents(self, name: bytes) -> Iterator[bytes]:
        """Write an entry for each parent directory that has none yet, so that unpacking leaves the directory as it is
        here.
        """
        parent = name.rstrip(b"/").rpartition(b"/")[0]
        if parent and parent not in self._written:
            self._written.add(parent)
            yield from self._changed(b"/" + parent, os.lstat(self._right + b"/" + parent))


_KINDS = {
    stat.S_IFREG: tar.REG,
    stat.S_IFDIR: tar.DIR,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCKDEV,
    stat.S_IFIFO: tar.FIFO,
}


def _names(directory: bytes) -> set[bytes]:
    return set(os.listdir(directory))


def _linked(info: os.stat_result) -> bool:
    return info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode)


def _capability(path: bytes) -> bytes:
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError:
        return b""  # no capability, or a filesystem without xattrs


def _open(path: bytes) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CompareError(f"{os.fsdecode(path)}: changed while it was read")
    return fd


def _contents(path: bytes, size: int) -> Iterator[bytes]:
    fd = _open(path)
    try:
        left = size
        while left:
            data = os.read(fd, min(left, CHUNK))
            if not data:
                raise CompareError(f"failed to copy: {os.fsdecode(path)}: short write copying file")
            left -= len(data)
            yield data
    finally:
        os.close(fd)
    if pad := tarwrite.padding(size):
        yield pad


def _same_bytes(left: bytes, right: bytes) -> bool:
    one = _open(left)
    try:
        two = _open(right)
        try:
            while True:
                first, second = os.read(one, CHUNK), os.read(two, CHUNK)
                if first != second:
                    return False
                if not first:
                    return True
        finally:
            os.close(two)
    finally:
        os.close(one)
