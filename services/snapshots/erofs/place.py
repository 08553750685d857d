"""Where a layer is: the names of its files, and how they are written. The worker that unpacks layers imports this."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import namedtuple

from services.kit import tar
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.diff.mounts import MountError
from services.snapshots.diff.writeback import Trail
from services.snapshots.erofs.below import Mounted, of_layers
from services.snapshots.erofs.image import BLOCK, Node, image, inodes_of, trouble
from services.snapshots.erofs.layer import LayerTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO

    from services.snapshots.erofs.below import Below

LAYER, DATA, INDEX = "erofs", "data", "index"
"""The directory of a layer, and its two files. If the layer came as an image, that is the index, and no data are beside
it.
"""
ABOUT = "about"
"""The file that says what was unpacked (:class:`About`)."""
WRITTEN, LOWEST, CHAINED, STAGED = "written", "lowest", "chained", "staged"
"""Files that say how the index was made: of an upper directory; without whiteouts, which the layer had; with all that
the layers below have for directories that the layer does not name; or it is one of another snapshot. Without any of
them, whiteouts are in it, and the layers below were not looked at.
"""
_NEW = ".new"
"""The end of the name of a file that is being written."""
_HEAD = 256
"""Bytes of the file about a layer in which all is but the directories."""
_CHUNK = 1 << 20


class Made(namedtuple("Made", "unnamed group")):  # noqa: PYI024 typing's would bring re into each worker
    """A directory that a layer does not name, and the group that it has if the layers below say nothing about it."""

    __slots__ = ()
    unnamed: Unnamed
    group: int


class About(namedtuple("About", "diff_id size whiteouts patchable made")):  # noqa: PYI024
    """A layer that was unpacked: its diff id; the bytes of its tar; whether it has whiteouts; whether of its index only
    the inodes of the directories ``made`` depend on the layers below, as long as these have no extended attributes for
    them; and these directories, in the order in which they were made.
    """

    __slots__ = ()
    diff_id: str
    size: int
    whiteouts: bool
    patchable: bool
    made: tuple[Made, ...]

    def encoded(self) -> bytes:
        """The bytes that :meth:`parse` reads."""
        head = b"%s %d %d" % (self.diff_id.encode(), self.size, self.whiteouts + 2 * self.patchable)
        return b"\0".join([head, *(b"%d %s" % (each.group, each.unnamed.encoded()) for each in self.made)])

    @classmethod
    def parse(cls, encoded: bytes) -> About:
        """Parse the output of :meth:`encoded`."""
        head, *rest = encoded.split(b"\0")
        diff_id, size, flags = head.split(b" ")
        made = []
        for each in rest:
            group, _, unnamed = each.partition(b" ")
            made.append(Made(Unnamed.parse(unnamed), int(group)))
        return cls(diff_id.decode(), int(size), bool(int(flags) & 1), bool(int(flags) & 2), tuple(made))


def about(layer: str, *, made: bool = True) -> About | None:
    """What was unpacked into the directory ``layer``; None if nothing was, or before this was noted. Without ``made``,
    its directories are left out: there may be many. OSError, EUCLEAN if that is not what was noted.
    """
    path = f"{layer}/{ABOUT}"
    try:
        with open(path, "rb") as file:
            return About.parse(file.read() if made else file.read(_HEAD).partition(b"\0")[0])
    except FileNotFoundError:
        return None
    except ValueError:
        raise OSError(errno.EUCLEAN, "it is not what was written there", path) from None


def has_its_size(layer: str) -> bool:
    """Whether the data of a layer that was unpacked are as long as they were; for an image, the image. OSError."""
    try:
        known = about(layer, made=False)
    except OSError as error:
        if error.errno != errno.EUCLEAN:
            raise
        return False
    if known is None:
        return False
    size = os.stat(f"{layer}/{DATA}").st_size
    return os.stat(f"{layer}/{INDEX}").st_size == known.size if not size else size == padded(known.size)


def is_unpacked(layer: str) -> bool:
    """Whether a layer was unpacked into the directory ``layer``."""
    return os.path.exists(f"{layer}/{INDEX}") and not is_marked(layer, WRITTEN)


def is_taken(layer: str) -> bool:
    """Whether a layer that was there is in the directory ``layer``. Its index may have to be made."""
    return is_marked(layer, STAGED) and os.path.exists(f"{layer}/{ABOUT}")


def is_marked(layer: str, mark: str) -> bool:
    """Whether one of the files that say how the index was made is there."""
    return os.path.exists(f"{layer}/{mark}")


def mark(layer: str, *marks: str) -> None:
    """Say how the index was made: by these, and no other."""
    for each in (WRITTEN, LOWEST, CHAINED, STAGED):
        if each in marks:
            os.close(os.open(f"{layer}/{each}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{layer}/{each}")


def emptied(layer: str) -> None:
    """Remove a layer's files. They may have other names, where other snapshots use them."""
    for name in (INDEX, ABOUT, DATA):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{layer}/{name}")
    mark(layer)


def beside(upper: str) -> str:
    """The directory for a layer that belongs to an upper directory; "" if that is none of this snapshotter's."""
    layer = f"{os.path.dirname(upper)}/{LAYER}"
    return layer if os.path.basename(upper) == "fs" and os.path.isdir(layer) else ""


def used(layer: str) -> tuple[int, int]:
    """The bytes that a layer takes on the disk, and the number of its inodes. OSError."""
    with open(f"{layer}/{INDEX}", "rb") as file:
        if len(begin := file.read(1152)) < 1152:
            raise OSError(errno.EUCLEAN, "it is cut off", file.name)
        inodes = inodes_of(begin)
    return sum(os.stat(f"{layer}/{name}").st_blocks * 512 for name in (DATA, INDEX)), inodes


def padded(size: int) -> int:
    """The bytes of a file of data, of which the layer has ``size``: whole blocks, and one at least."""
    return max(BLOCK, size + -size % BLOCK)


def write_index(root: Node, layer: str, size: int) -> None:
    """Write the index of the tree ``root``, whose data of ``size`` bytes are in the directory ``layer``. Their file is
    made as long as whole blocks, of which there is one at least. ImageError, OSError.
    """
    size = padded(size)
    fd = os.open(f"{layer}/{DATA}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
        pieces = image(root, size, lambda offset, length: os.pread(fd, length, offset))
        with replacing(f"{layer}/{INDEX}") as file:
            file.writelines(pieces)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of the one at ``path`` at the end of the block."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + _NEW)
    with open(path + _NEW, "xb") as file:
        yield file
    os.rename(path + _NEW, path)


def unpack(
    chunks: Iterable[bytes],
    upper: str,
    lowers: Sequence[int],
    layer: str,
    *,
    lowest: bool,
    digest: Callable[[], str] | None = None,
) -> LayerTree:
    """Unpack a tar stream as a layer. The root has the attributes of the directory ``upper``; ``lowers`` are file
    descriptors of the layers below, topmost first, if these are known. ``digest`` gives that of the chunks, once all
    were taken; without it, nothing is noted about the layer. EntryError, ImageError, OSError; a layer without an index
    is none.
    """
    emptied(layer)
    tree = _tree(upper, of_layers(list(map(Mounted, lowers))) if lowers else None, lowest=lowest)
    fd = os.open(f"{layer}/{DATA}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        kept = _Kept(chunks, fd)
        _read(tree, kept)
    finally:
        os.close(fd)
    if digest is not None:
        made = tuple(Made(each, tree.group(each)) for each in tree.unnamed)
        known = About(digest(), kept.size, tree.whiteouts, tree.patchable, made)
        with replacing(f"{layer}/{ABOUT}") as file:
            file.write(known.encoded())
        _marked(layer, known, lowest=lowest, chained=bool(lowers))
    write_index(tree.root, layer, kept.size)
    return tree


def remake(layer: str, upper: str, below: Below | None) -> None:
    """Make the index of a layer again, from its data, over the layers ``below``; None: there are none. Errors are those
    of :func:`unpack`. If it is cut off, it can be repeated.
    """
    known = about(layer)
    if known is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{layer}/{ABOUT}")
    tree = _tree(upper, below, lowest=below is None)
    with open(f"{layer}/{DATA}", "rb") as file:
        _read(tree, beginning(file, known.size))
    with contextlib.suppress(FileNotFoundError):  # what is said of it now does not hold for the new one
        os.unlink(f"{layer}/{INDEX}")
    _marked(layer, known, lowest=below is None, chained=below is not None)
    write_index(tree.root, layer, known.size)


def index_again(layer: str, upper: str, below: Below | None, known: About) -> Iterator[bytes | bytearray]:
    """The bytes that :func:`remake` would write. EntryError, ImageError, OSError."""
    tree = _tree(upper, below, lowest=below is None)
    with open(f"{layer}/{DATA}", "rb") as file:
        _read(tree, beginning(file, known.size))
        fd = file.fileno()
        yield from image(tree.root, padded(known.size), lambda offset, length: os.pread(fd, length, offset))


def take_image(chunks: Iterable[bytes], layer: str, *, digest: Callable[[], str]) -> None:
    """Take a layer that is an EROFS image as it is. MountError if it is none, or needs other devices. OSError."""
    emptied(layer)
    fd = os.open(f"{layer}/{INDEX}{_NEW}", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        kept = _Kept(chunks, fd)
        for _ in kept:
            continue
        if why := trouble(os.pread(fd, 1152, 0), kept.size):
            raise MountError(f"the layer is no EROFS image that can be mounted: {why}")
    finally:
        os.close(fd)
    os.close(os.open(f"{layer}/{DATA}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with replacing(f"{layer}/{ABOUT}") as file:
        file.write(About(digest(), kept.size, whiteouts=False, patchable=True, made=()).encoded())
    os.rename(f"{layer}/{INDEX}{_NEW}", f"{layer}/{INDEX}")


def is_image(layer: str) -> bool:
    """Whether the layer came as an image."""
    try:
        return not os.stat(f"{layer}/{DATA}").st_size
    except FileNotFoundError:
        return False


def _tree(upper: str, below: Below | None, *, lowest: bool) -> LayerTree:
    tree = LayerTree(lowest=lowest, below=below)
    info = os.stat(upper)
    tree.root.mode, tree.root.uid, tree.root.gid = info.st_mode, info.st_uid, info.st_gid
    return tree


def _read(tree: LayerTree, chunks: Iterable[bytes]) -> None:
    tape = tar.Stream(chunks)
    tree.read(tar.Reader(tape))
    tape.drain()


def _marked(layer: str, known: About, *, lowest: bool, chained: bool) -> None:
    """Say how an index is made, as far as it matters."""
    marks = [LOWEST] if lowest and known.whiteouts else []
    mark(layer, *marks, *([CHAINED] if chained and known.made else []))


def beginning(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a file, or as many as it has, in pieces."""
    while size and (data := file.read(min(size, _CHUNK))):
        size -= len(data)
        yield data


class _Kept:
    """The same chunks, once each is written to a file."""

    def __init__(self, chunks: Iterable[bytes], fd: int) -> None:
        self._chunks = chunks
        self._fd = fd
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        trail = Trail(self._fd)
        for chunk in self._chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._fd, view) :]
            self.size += len(chunk)
            trail.grown(self.size)
            yield chunk
        trail.ended(self.size)
