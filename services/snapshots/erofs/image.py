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
from operator import itemgetter

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
DIRENT = struct.Struct("<QHBx")
"""struct erofs_dirent: nid, the offset of its name in the block, type."""
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_DEVICE = struct.Struct("<64sII56x")
_CHUNK = struct.Struct("<xxHI")
"""struct erofs_inode_chunk_index: the device (0: the image itself), the block."""
XATTR = struct.Struct("<BBH")
"""struct erofs_xattr_entry: the length of the name, the number of its prefix, the length of the value."""
_AT_ONCE = 2000
"""Parts that are written at once."""
_64_BITS = (1 << 64) - 1
MAGIC = 0xE0F5E1E2
_COMPAT_MTIME, _INCOMPAT_CHUNKED, _INCOMPAT_DEVICES = 0x2, 0x4, 0x8
_EXTENDED = 1
_PLAIN, INLINE, _CHUNKED = 0 << 1, 2 << 1, 4 << 1
_INDEXES = 0x20
_CHUNK_BITS = 31
"""Powers of two that a chunk has blocks, at most."""
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
"""Chunks of all files, at most: most files have one."""
ATTRIBUTES = 1 << 27
"""Bytes of all extended attributes, at most."""
COPIED = 1 << 28
"""Bytes that are copied into an image, at most."""
_name = itemgetter(0)


class ImageError(Exception):
    """A tree that does not fit into an image; the text says why."""


class Node:
    """An inode. ``mode`` has its type; ``modified`` is in nanoseconds since 1970."""

    __slots__ = ("children", "device", "gid", "links", "mode", "modified", "pieces", "size", "target", "uid", "xattrs")

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, modified: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.modified = modified
        self.size = 0
        """Bytes of a regular file."""
        self.pieces: Sequence[tuple[int, int, int]] = ()
        """Where a regular file's data are: the offset in the file, the offset in the blob device, the length; in order.
        What is in none of them is a hole.
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


def prefix_of(name: bytes) -> tuple[int, bytes] | None:
    """The number of an attribute's prefix, and what follows it; None if EROFS has no attributes of such a name."""
    for prefix, number in PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return (number, rest) if bool(rest) is prefix.endswith(b".") else None
    return None


def image(root: Node, blob_size: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
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


class _Inode:
    """A node in its place. Its record has ``head`` bytes of inode and attributes, and then, beginning at a multiple of
    8, its table, or the last bytes of its contents.
    """

    __slots__ = ("at", "attributes", "bits", "entries", "node", "number", "parent", "table", "tail", "whole")

    def __init__(self, node: Node, number: int, parent: _Inode | None) -> None:
        self.node = node
        self.number = number
        self.parent = parent or self
        self.at = 0
        self.attributes = b""
        self.entries: list[tuple[bytes, Node]] = []
        """Of a directory, in the order of their names."""
        self.whole = 0
        """Bytes of its contents that lie in blocks of their own."""
        self.tail = 0
        self.bits = 0
        self.table: list[tuple[int, int]] = []
        """Of a file: the device and the block of each chunk."""

    @property
    def nid(self) -> int:
        return (self.at - META * BLOCK) // SLOT


class _Writer:
    def __init__(self, root: Node) -> None:
        self._inodes: list[_Inode] = []
        self._of: dict[int, _Inode] = {}
        """By the id of a node."""
        self._copies: list[tuple[Node, int, int]] = []
        """Chunks that are copied: their file, where they begin in it, their length."""
        self._copied = 0
        self._chunks = self._attributes = 0
        self._collect(root)
        self._end = META * BLOCK
        for inode in self._inodes:
            self._place(inode)
        self._end += -self._end % BLOCK

    # ------------------------------------------------------------------------ layout

    def _collect(self, root: Node) -> None:
        """All inodes, each once, the root first; the files of a directory are near each other."""
        waiting: list[tuple[Node, _Inode | None]] = [(root, None)]
        inodes, of = self._inodes, self._of
        while waiting:
            node, parent = waiting.pop()
            if id(node) in of:
                continue
            of[id(node)] = inode = _Inode(node, len(inodes) + 1, parent)
            inodes.append(inode)
            if node.children:
                inode.entries = sorted(node.children.items(), key=_name)
                waiting += [(child, inode) for _, child in reversed(inode.entries)]

    def _place(self, inode: _Inode) -> None:
        node, head = inode.node, INODE.size
        if node.xattrs:
            inode.attributes = _attributes(node.xattrs)
            self._attributes += len(inode.attributes)
            if self._attributes > ATTRIBUTES:
                raise ImageError(f"more than {ATTRIBUTES >> 20} MiB of extended attributes")
            head += len(inode.attributes)
        length = _length(inode) if node.children is not None else len(node.target)
        end = self._end
        if length:
            tail = length % BLOCK
            # it must not reach into the next block; the record can be moved by whole slots
            inode.tail = tail if tail <= BLOCK - head % SLOT else 0
            inode.whole = length - inode.tail
            while inode.tail and (end + head) % BLOCK + inode.tail > BLOCK:
                end += SLOT
            size = head + inode.tail
        elif node.size:
            self._divide(inode)
            size = head + -head % 8 + 8 * len(inode.table)
        else:
            size = head
        inode.at = end
        self._end = end + size + -size % SLOT

    def _divide(self, inode: _Inode) -> None:
        """Find the chunks of a file: the largest that lie in the blob device as they are, if they do not take too long
        a table. Else chunks are copied.
        """
        node, one = inode.node, max(0, (inode.node.size - 1).bit_length() - BITS)
        pieces = [piece for piece in node.pieces if piece[2]]
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
        inode.bits = bits
        self._chunks += -(-node.size // size)
        if self._chunks > CHUNKS:
            raise ImageError("sparse files of too many pieces")
        inode.table = table = [(0, NOWHERE)] * (-(-node.size // size))
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

    def written(self, blob_blocks: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
        """All of it."""
        contents = self._end >> BITS
        copies = contents + sum(-(-inode.whole // BLOCK) for inode in self._inodes)
        blocks = copies + (self._copied >> BITS)
        if blocks >= ADDRESSES:
            raise ImageError(f"an index of {blocks} blocks")
        return self._pieces(blob_blocks, contents, copies, blocks, read)

    def _pieces(
        self, blob_blocks: int, contents: int, copies: int, blocks: int, read: Callable[[int, int], bytes]
    ) -> Iterator[bytes]:
        head = _SUPER.pack(
            MAGIC, 0, _COMPAT_MTIME, BITS, 0, self._inodes[0].nid, len(self._inodes), 0, 0, blocks, META, 0,
            b"", b"", _INCOMPAT_CHUNKED | _INCOMPAT_DEVICES, 0, 1, 1152 // _DEVICE.size, 0, 0, 0, 0, 0,
        )  # fmt: skip
        yield bytes(1024) + (head + _DEVICE.pack(b"", blob_blocks, 0)).ljust(META * BLOCK - 1024, b"\0")
        later: list[bytes] = []
        at, parts = META * BLOCK, []
        for inode in self._inodes:
            record, whole = self._record(inode, contents, copies)
            if whole:
                later.append(whole)
                contents += len(whole) >> BITS
            if inode.at != at:
                parts.append(bytes(inode.at - at))
            parts.append(record)
            at = inode.at + len(record)
            if len(parts) >= _AT_ONCE:
                yield b"".join(parts)
                parts = []
        parts.append(bytes(self._end - at))
        yield b"".join(parts)
        yield from later
        for node, start, length in self._copies:
            yield _copied(node, start, length, read)

    def _record(self, inode: _Inode, contents: int, copies: int) -> tuple[bytes, bytes]:
        """A node's record, and the blocks of its contents, of which the first is ``contents``."""
        node, attributes = inode.node, inode.attributes
        layout, where, size, rest, whole = _PLAIN, NOWHERE, 0, b"", b""
        if inode.table:
            layout, where, size = _CHUNKED, inode.bits | _INDEXES, node.size
            rest = bytes(-len(attributes) % 8) + b"".join(
                _CHUNK.pack(device, block if device or block == NOWHERE else block + copies)
                for device, block in inode.table
            )
        elif inode.whole or inode.tail:
            data = self._directory(inode) if node.children is not None else node.target
            size = len(data)
            if inode.whole:
                where = contents
                whole = data[: inode.whole]
                whole += bytes(-len(whole) % BLOCK)
            if inode.tail:
                layout, rest = INLINE, data[inode.whole :]
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            where = node.device
        seconds, nanoseconds = divmod(node.modified, 1_000_000_000)
        head = INODE.pack(
            layout | _EXTENDED,
            (len(attributes) - 12 >> 2) + 1 if attributes else 0,
            node.mode,
            0,
            size,
            where,
            inode.number,
            node.uid,
            node.gid,
            seconds & _64_BITS,
            nanoseconds,
            node.links,
        )
        return head + attributes + rest, whole

    def _directory(self, inode: _Inode) -> bytes:
        """The contents of a directory."""
        of = self._of
        blocks: list[bytes] = []
        for names in _blocks(inode):
            at = len(names) * DIRENT.size
            heads = []
            for name, node in names:
                heads.append(DIRENT.pack(of[id(node)].nid, at, TYPES[node.mode & 0o170000]))
                at += len(name)
            blocks.append(b"".join([*heads, *(name for name, _ in names)]))
        return b"".join([*(block.ljust(BLOCK, b"\0") for block in blocks[:-1]), blocks[-1]])


def _length(inode: _Inode) -> int:
    """Bytes of a directory's contents."""
    *full, last = [sum(len(name) for name, _ in names) + len(names) * DIRENT.size for names in _blocks(inode)]
    return len(full) * BLOCK + last


def _blocks(inode: _Inode) -> Iterator[list[tuple[bytes, Node]]]:
    """A directory's names, with its own and its parent's, block by block."""
    names = sorted([(b".", inode.node), (b"..", inode.parent.node), *inode.entries], key=_name)
    here: list[tuple[bytes, Node]] = []
    room = BLOCK
    for name in names:
        size = DIRENT.size + len(name[0])
        if size > room:
            yield here
            here, room = [], BLOCK
        here.append(name)
        room -= size
    yield here


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
    for start, place, size in node.pieces:
        first, last = max(start, begin), min(start + size, begin + length)
        if first < last:
            data[first - begin : last - begin] = read(place + first - start, last - first)
    return bytes(data)
