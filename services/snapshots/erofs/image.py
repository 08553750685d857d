"""Writes an EROFS image that is an index over another file: inodes and directories are in the image, the files' data
stay where they are in that file, such as a layer's tar (the *blob device*, in EROFS's words).

::

    0       zeros
    1024    super block, 128 bytes
    1152    the slot of the blob device, 128 bytes
    1536    inodes, each with its extended attributes, and the table of its data or the end of its contents
    ...     blocks of directories and of long links
    ...     blocks of data that the blob device cannot serve: pieces of sparse files that do not begin at a block

All numbers are little endian. Blocks have 512 bytes, so any member of a tar begins at one. The kernel mounts such
images since 6.4; the layout is described in Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of the kernel.

The same tree makes the same bytes: nothing depends on the time or on the order in which a dictionary was filled.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_left, bisect_right
from itertools import accumulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BITS = 9
BLOCK = 1 << BITS
"""Bytes of a block."""
META = 3
"""The block at which inodes begin."""
SLOT = 32
"""Bytes in which inodes are counted: an inode's number (nid) is its distance from the first, in these."""
INODE = struct.Struct("<HHHHQIIIIQII16x")
"""struct erofs_inode_extended: format, attributes' size, mode, reserved; size; data; number, owner, group; modified
(seconds, nanoseconds); links.
"""
_FILE = struct.Struct("<HHHHQIIIIQII16x xxHI 24x")
"""The same, with one entry of a table of chunks, up to the next inode."""
DIRENT = struct.Struct("<QHBx")
"""struct erofs_dirent: nid, the offset of its name in the block, type."""
_DIRENTS = tuple("<" + "QHBx" * count for count in range(40))
"""Those of a block, by their number."""
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_DEVICE = struct.Struct("<64sII56x")
_CHUNK = struct.Struct("<xxHI")
"""struct erofs_inode_chunk_index: the device (0: the image itself), the block."""
XATTR = struct.Struct("<BBH")
"""struct erofs_xattr_entry: the length of the name, the number of its prefix, the length of the value."""
_64_BITS = (1 << 64) - 1
_NANO = 1_000_000_000
MAGIC = 0xE0F5E1E2
_COMPAT_MTIME, _INCOMPAT_CHUNKED, _INCOMPAT_DEVICES = 0x2, 0x4, 0x8
_EXTENDED = 1
_PLAIN, INLINE, _CHUNKED = 0 << 1, 2 << 1, 4 << 1
_CHUNKED_FILE = _CHUNKED | _EXTENDED
_INDEXES = 0x20
_CHUNK_BITS = 31
"""Powers of two that a chunk has blocks, at most."""
_ONE_CHUNK = BLOCK << _CHUNK_BITS
"""Bytes of a file that is one chunk, at most."""
NOWHERE = 0xFFFFFFFF
"""The address of a hole."""
ADDRESSES = NOWHERE
"""Blocks of the blob device or of the image, at most (2 TiB)."""
NAME = 255
"""Bytes of a name, at most."""
XATTRS = 4 * 65534
"""Bytes of the extended attributes of one inode, at most."""
TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_TYPE_OF = tuple(TYPES.get(number << 12, 0) for number in range(16))
"""The same, by the highest four bits of the mode."""
PREFIXES = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
"""The beginnings of attributes' names that have a number; others cannot be stored."""
TABLE = 1 << 16
"""Chunks of one file in which no data are copied, at most; and about as many if some are."""
CHUNKS = 1 << 21
"""Chunks of all files that have several, at most."""
ATTRIBUTES = 1 << 27
"""Bytes of all extended attributes, at most."""
COPIED = 1 << 28
"""Bytes that are copied into an image, at most."""


class ImageError(Exception):
    """A tree that does not fit into an image; the text says why."""


class Node:
    """An inode. ``mode`` has its type; ``modified`` is in nanoseconds since 1970."""

    __slots__ = (
        "children", "device", "gid", "links", "mode", "modified", "nid", "pieces", "place", "size", "target", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, modified: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.modified = modified
        self.size = 0
        """Bytes of a regular file."""
        self.place = -1
        """Where a regular file's data are in the blob device, if they are in one piece that begins at a block of it."""
        self.pieces: Sequence[tuple[int, int, int]] = ()
        """Otherwise: the offset in the file, the offset in the blob device, the length of each piece, in order. What is
        in none of them is a hole.
        """
        self.target = b""
        """Of a symbolic link."""
        self.device = 0
        """The number of a device, as Linux encodes it in 32 bits."""
        self.links = 1
        """Names of a file; for a directory, its own, "." and each directory in it."""
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, Node] | None = None
        """Of a directory."""
        self.nid = 0
        """Its place in an image, once that is written."""


def prefix_of(name: bytes) -> tuple[int, bytes] | None:
    """The number of an attribute's prefix, and what follows it; None if EROFS has no attributes of such a name."""
    for prefix, number in PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return (number, rest) if bool(rest) is prefix.endswith(b".") else None
    return None


def image(root: Node, blob_size: int, read: Callable[[int, int], bytes]) -> Iterator[bytes | bytearray]:
    """The bytes of an image of the tree ``root``, in pieces. The blob device has ``blob_size`` bytes, a multiple of
    :data:`BLOCK`; ``read(offset, length)`` gives some of them, for what must be copied. ImageError if the tree does not
    fit; nothing has been yielded then.
    """
    if blob_size % BLOCK or blob_size >> BITS >= ADDRESSES:
        raise ImageError(f"a blob device of {blob_size} bytes")
    writer = _Writer(root)
    return writer.written(blob_size >> BITS, read)


def inodes_of(begin: bytes) -> int:
    """The number of inodes of an image that begins with these bytes: 1,152 or more."""
    return int(_SUPER.unpack_from(begin, 1024)[6])


def trouble(begin: bytes, size: int) -> str:
    """Why a file of ``size`` bytes that begins with these, 1,152 or more if it has them, cannot be mounted alone; "" if
    nothing in its super block says so.
    """
    if len(begin) < 1152:
        return f"it has {size} bytes"
    magic, _, _, bits, *_ = found = _SUPER.unpack_from(begin, 1024)
    if magic != MAGIC:
        return "it does not begin as one"
    blocks, incompatible, devices = found[9], found[14], found[16]
    if not BITS <= bits <= 16:
        return f"blocks of two to the power of {bits} bytes"
    if devices or incompatible & _INCOMPAT_DEVICES:
        return "it needs other devices"
    if blocks << bits > size:
        return f"it should have {blocks} blocks of {1 << bits} bytes, and has {size} bytes"
    return ""


class _Contents:
    """A directory or a long link, in its place ``at``: its data are made once all inodes have theirs. ``whole`` bytes
    of them lie in blocks of their own, the others after its inode. The names of a directory, with its own and its
    parent's, are in the order of their bytes; each of ``starts`` is the first of a block.
    """

    __slots__ = ("at", "attributes", "names", "node", "nodes", "number", "starts", "whole")

    def __init__(self, node: Node, number: int, attributes: bytes) -> None:
        self.node = node
        self.number = number
        self.attributes = attributes
        self.at = self.whole = 0
        self.names: list[bytes] = []
        self.nodes: list[Node] = []
        self.starts = [0]


class _Chunked:
    """A file with a table of chunks: the device and the block of each."""

    __slots__ = ("at", "attributes", "bits", "node", "number", "table")

    def __init__(self, node: Node, number: int, attributes: bytes) -> None:
        self.node = node
        self.number = number
        self.attributes = attributes
        self.at = self.bits = 0
        self.table: list[tuple[int, int]] = []


class _Writer:
    def __init__(self, root: Node) -> None:
        self._out = bytearray()
        """From the block :data:`META` on: the inodes, each in its place."""
        self._root = root
        self._number = 0
        self._contents: list[_Contents] = []
        self._chunked: list[_Chunked] = []
        self._copies: list[tuple[Node, int, int]] = []
        """Chunks that are copied: their file, where they begin in it, their length."""
        self._copied = 0
        self._chunks = self._attributes = 0
        self._place(root)
        self._out += bytes(-len(self._out) % BLOCK)

    # ------------------------------------------------------------------------ layout

    def _place(self, root: Node) -> None:
        """Give all inodes their places, the root first, and after each directory what is in it. A usual file is packed
        at once.
        """
        out, number, pack = self._out, 0, _FILE.pack
        seen: set[int] = set()
        above, waiting = [root], [iter([root])]
        while waiting:
            for node in waiting[-1]:
                links, size, place = node.links, node.size, node.place
                if links > 1 and node.children is None:
                    if id(node) in seen:
                        continue
                    seen.add(id(node))
                number += 1
                if place >= 0 and 0 < size <= _ONE_CHUNK and not node.xattrs:
                    node.nid = len(out) // SLOT
                    seconds, nanoseconds = divmod(node.modified, _NANO)
                    bits = (size - 1).bit_length() - BITS
                    out += pack(
                        _CHUNKED_FILE,
                        0,
                        node.mode,
                        0,
                        size,
                        bits | _INDEXES if bits > 0 else _INDEXES,
                        number,
                        node.uid,
                        node.gid,
                        seconds & _64_BITS,
                        nanoseconds,
                        links,
                        1,
                        place >> BITS,
                    )
                elif node.children is None:
                    self._place_other(node, number)
                else:
                    waiting.append(iter(self._place_directory(node, number, above[-1])))
                    above.append(node)
                    break
            else:
                waiting.pop()
                above.pop()
        self._number = number

    def _place_other(self, node: Node, number: int) -> None:
        attributes = self._attributes_of(node)
        if node.target:
            contents = _Contents(node, number, attributes)
            self._reserve(contents, len(node.target))
            if contents.whole:
                self._contents.append(contents)
            else:
                self._put(contents.at, node, number, INLINE, attributes, len(node.target), NOWHERE, node.target)
        elif node.size:
            chunked = _Chunked(node, number, attributes)
            self._divide(chunked)
            head = INODE.size + len(attributes)
            chunked.at = self._room(node, head + -head % 8 + 8 * len(chunked.table))
            self._chunked.append(chunked)
        else:
            where = node.device if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else NOWHERE
            at = self._room(node, INODE.size + len(attributes))
            self._put(at, node, number, _PLAIN, attributes, 0, where, b"")

    def _attributes_of(self, node: Node) -> bytes:
        if not node.xattrs:
            return b""
        attributes = _attributes(node.xattrs)
        self._attributes += len(attributes)
        if self._attributes > ATTRIBUTES:
            raise ImageError(f"more than {ATTRIBUTES >> 20} MiB of extended attributes")
        return attributes

    def _place_directory(self, node: Node, number: int, parent: Node) -> list[Node]:
        """Returns what is in it, in order."""
        children = node.children or {}
        contents = _Contents(node, number, self._attributes_of(node))
        contents.names = names = sorted(children)
        inner = [children[name] for name in names]
        contents.nodes = [*inner]
        for name, each in ((b".", node), (b"..", parent)):
            at = bisect_right(names, name)
            names.insert(at, name)
            contents.nodes.insert(at, each)
        ends = [*accumulate(map(DIRENT.size.__add__, map(len, names)))]
        begun = 0
        while ends[-1] - begun > BLOCK:
            start = bisect_right(ends, begun + BLOCK)
            contents.starts.append(start)
            begun = ends[start - 1]
        self._reserve(contents, (len(contents.starts) - 1) * BLOCK + ends[-1] - begun)
        self._contents.append(contents)
        return inner

    def _reserve(self, contents: _Contents, length: int) -> None:
        """Give a directory or a link with ``length`` bytes of contents its place."""
        head = INODE.size + len(contents.attributes)
        tail = length % BLOCK
        # it must not reach into the next block; the record can be moved by whole slots
        if tail > BLOCK - head % SLOT:
            tail = 0
        begin = (len(self._out) + head) % BLOCK
        if tail and begin + tail > BLOCK:
            self._out += bytes(BLOCK - begin + begin % SLOT)
        contents.whole = length - tail
        contents.at = self._room(contents.node, head + tail)

    def _room(self, node: Node, size: int) -> int:
        """Where ``size`` bytes for an inode, and what belongs to it, begin."""
        at = len(self._out)
        node.nid = at // SLOT
        self._out += bytes(size + -size % SLOT)
        return at

    def _divide(self, chunked: _Chunked) -> None:
        """Find the chunks of a file: the largest that lie in the blob device as they are, if they do not take too long
        a table. Else chunks are copied.
        """
        node = chunked.node
        one = max(0, (node.size - 1).bit_length() - BITS)
        pieces = [(0, node.place, node.size)] if node.place >= 0 else [piece for piece in node.pieces if piece[2]]
        fits = BITS + _CHUNK_BITS
        for start, place, length in pieces:
            # a chunk begins where a piece does, at a block of the device; only the file's last one may end within
            ends = 0 if start + length == node.size else start + length
            fits = min(fits, _zeros(start), _zeros(ends), fits if not place % BLOCK else 0)
        bits = min(one, fits - BITS)
        copied = fits < BITS or (node.size - 1) >> BITS + bits >= TABLE
        if copied:
            bits = max(0, one - TABLE.bit_length() + 1)
        if bits > _CHUNK_BITS:
            raise ImageError(f"a file of {node.size} bytes")
        size = BLOCK << bits
        chunked.bits = bits
        self._chunks += -(-node.size // size)
        if self._chunks > CHUNKS:
            raise ImageError("sparse files of too many pieces")
        chunked.table = table = [(0, NOWHERE)] * (-(-node.size // size))
        for start, place, length in pieces:
            for number in range(start // size, -(-(start + length) // size)):
                if not copied:
                    table[number] = 1, place + number * size - start >> BITS
                elif table[number][1] == NOWHERE:
                    table[number] = 0, self._copy(node, number * size, size)

    def _copy(self, node: Node, start: int, size: int) -> int:
        """Copy a chunk; returns its block, counted from the first copy's."""
        length = min(size, node.size - start)
        length += -length % BLOCK
        block = self._copied >> BITS
        self._copies.append((node, start, length))
        self._copied += length
        if self._copied > COPIED:
            raise ImageError("the pieces of a sparse file are too far apart")
        return block

    # ------------------------------------------------------------------------ bytes

    def written(self, blob_blocks: int, read: Callable[[int, int], bytes]) -> Iterator[bytes | bytearray]:
        """All of it."""
        contents = META + (len(self._out) >> BITS)
        copies = contents + sum(-(-each.whole // BLOCK) for each in self._contents)
        blocks = copies + (self._copied >> BITS)
        if blocks >= ADDRESSES:
            raise ImageError(f"an index of {blocks} blocks")
        return self._pieces(blob_blocks, contents, copies, blocks, read)

    def _pieces(
        self, blob_blocks: int, contents: int, copies: int, blocks: int, read: Callable[[int, int], bytes]
    ) -> Iterator[bytes | bytearray]:
        head = _SUPER.pack(
            MAGIC, 0, _COMPAT_MTIME, BITS, 0, self._root.nid, self._number, 0, 0, blocks, META, 0,
            b"", b"", _INCOMPAT_CHUNKED | _INCOMPAT_DEVICES, 0, 1, 1152 // _DEVICE.size, 0, 0, 0, 0, 0,
        )  # fmt: skip
        yield bytes(1024) + (head + _DEVICE.pack(b"", blob_blocks, 0)).ljust(META * BLOCK - 1024, b"\0")
        for file in self._chunked:
            table = b"".join(
                _CHUNK.pack(device, block if device or block == NOWHERE else block + copies)
                for device, block in file.table
            )
            self._put(
                file.at, file.node, file.number, _CHUNKED, file.attributes, file.node.size, file.bits | _INDEXES,
                bytes(-len(file.attributes) % 8) + table,
            )  # fmt: skip
        later = []
        for each in self._contents:
            data = _entries(each) if each.names else each.node.target
            where = NOWHERE
            if each.whole:
                where = contents
                whole = data[: each.whole]
                later.append(whole + bytes(-len(whole) % BLOCK))
                contents += len(later[-1]) >> BITS
            layout = INLINE if each.whole < len(data) else _PLAIN
            self._put(each.at, each.node, each.number, layout, each.attributes, len(data), where, data[each.whole :])
        yield self._out
        yield from later
        for node, start, length in self._copies:
            yield _copied(node, start, length, read)

    def _put(
        self, at: int, node: Node, number: int, layout: int, attributes: bytes, size: int, where: int, rest: bytes
    ) -> None:
        """Write an inode into its place, with what follows it there."""
        seconds, nanoseconds = divmod(node.modified, _NANO)
        INODE.pack_into(
            self._out,
            at,
            layout | _EXTENDED,
            (len(attributes) - 12 >> 2) + 1 if attributes else 0,
            node.mode,
            0,
            size,
            where,
            number,
            node.uid,
            node.gid,
            seconds & _64_BITS,
            nanoseconds,
            node.links,
        )
        at += INODE.size
        follows = attributes + rest
        self._out[at : at + len(follows)] = follows


def _entries(contents: _Contents) -> bytes:
    """The contents of a directory."""
    names, nodes, starts = contents.names, contents.nodes, contents.starts
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        count = end - start
        fields = [0] * (3 * count)
        fields[::3] = [node.nid for node in nodes[start:end]]
        fields[1::3] = [*accumulate(map(len, names[start : end - 1]), initial=count * DIRENT.size)]
        fields[2::3] = [_TYPE_OF[node.mode >> 12] for node in nodes[start:end]]
        blocks.append(struct.pack(_DIRENTS[count], *fields) + b"".join(names[start:end]))
    return b"".join([*(block.ljust(BLOCK, b"\0") for block in blocks[:-1]), blocks[-1]])


def _attributes(xattrs: dict[bytes, bytes]) -> bytes:
    """Extended attributes, as they stand after an inode."""
    parts = [bytes(12)]  # no filter, none shared
    for name, value in sorted(xattrs.items()):
        found = prefix_of(name)
        if found is None:
            raise ImageError(f"an extended attribute {name!r}")
        prefix, rest = found
        if len(rest) > 255 or len(value) >= 1 << 16:
            raise ImageError(f"an extended attribute with {len(rest)} bytes of a name and {len(value)} of a value")
        size = 4 + len(rest) + len(value)
        parts.append(XATTR.pack(len(rest), prefix, len(value)) + rest + value + bytes(-size % 4))
    data = b"".join(parts)
    if len(data) > XATTRS:
        raise ImageError(f"{len(data)} bytes of extended attributes")
    return data


def _zeros(number: int) -> int:
    """How often a number can be halved; many times for 0."""
    return (number & -number).bit_length() - 1 if number else BITS + _CHUNK_BITS


def _copied(node: Node, begin: int, length: int, read: Callable[[int, int], bytes]) -> bytes:
    """A part of a file, with zeros for its holes."""
    data = bytearray(length)
    pieces = node.pieces
    for number in range(max(0, bisect_left(pieces, (begin,)) - 1), len(pieces)):  # one before may reach into it
        start, place, size = pieces[number]
        if start >= begin + length:
            break
        first, last = max(start, begin), min(start + size, begin + length)
        if first < last:
            data[first - begin : last - begin] = read(place + first - start, last - first)
    return bytes(data)
