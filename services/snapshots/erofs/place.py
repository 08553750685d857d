"""Where a layer is: the names of its files, and how they are written. The worker that unpacks layers imports this."""

from __future__ import annotations

import os

from services.kit import tar
from services.snapshots.diff.mounts import start_writeback
from services.snapshots.erofs.image import BLOCK, Node, image, inodes_of
from services.snapshots.erofs.layer import LayerTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LAYER, DATA, INDEX, WRITTEN = "erofs", "data", "index", "written"
"""The directory of a layer, its two files, and the one that says that they were made of an upper directory."""
_EACH = 8 << 20
"""Bytes after which the kernel is told to begin to write."""


def is_unpacked(layer: str) -> bool:
    """Whether a layer was unpacked into the directory ``layer``."""
    return os.path.exists(f"{layer}/{INDEX}") and not os.path.exists(f"{layer}/{WRITTEN}")


def beside(upper: str) -> str:
    """The directory for a layer that belongs to an upper directory; "" if that is none of this snapshotter's."""
    layer = f"{os.path.dirname(upper)}/{LAYER}"
    return layer if os.path.basename(upper) == "fs" and os.path.isdir(layer) else ""


def used(layer: str) -> tuple[int, int]:
    """The bytes that a layer takes on the disk, and the number of its inodes."""
    with open(f"{layer}/{INDEX}", "rb") as file:
        inodes = inodes_of(file.read(1152))
    return sum(os.stat(f"{layer}/{name}").st_blocks * 512 for name in (DATA, INDEX)), inodes


def write_index(root: Node, layer: str, size: int) -> None:
    """Write the index of the tree ``root``, whose data of ``size`` bytes are in the directory ``layer``. Their file is
    made as long as whole blocks, of which there is one at least. ImageError, OSError.
    """
    size = max(BLOCK, size + -size % BLOCK)
    fd = os.open(f"{layer}/{DATA}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        pieces = image(root, size, lambda offset, length: os.pread(fd, length, offset))
        with open(f"{layer}/{INDEX}", "wb") as file:
            file.writelines(pieces)
    finally:
        os.close(fd)


def unpack(chunks: Iterable[bytes], upper: str, lowers: Sequence[int], layer: str, *, lowest: bool) -> LayerTree:
    """Unpack a tar stream as a layer. The root has the attributes of the directory ``upper``. EntryError, ImageError,
    OSError; a layer without an index is none.
    """
    tree = LayerTree(lowest=lowest, lowers=lowers)
    info = os.stat(upper)
    tree.root.mode, tree.root.uid, tree.root.gid = info.st_mode, info.st_uid, info.st_gid
    fd = os.open(f"{layer}/{DATA}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        kept = _Kept(chunks, fd)
        tape = tar.Stream(kept)
        tree.read(tar.Reader(tape))
        tape.drain()
    finally:
        os.close(fd)
    write_index(tree.root, layer, kept.size)
    return tree


class _Kept:
    """The same chunks, once each is written to a file."""

    def __init__(self, chunks: Iterable[bytes], fd: int) -> None:
        self._chunks = chunks
        self._fd = fd
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        begun = 0
        for chunk in self._chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._fd, view) :]
            self.size += len(chunk)
            if self.size - begun >= _EACH:
                start_writeback(self._fd)
                begun = self.size
            yield chunk
