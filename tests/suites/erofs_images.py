"""Reads an index of the snapshotter erofs strictly: every field of the super block, of each inode, of each attribute and
of each directory, and every byte between them. Independent of the code that writes them; the layout is that of
Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux.

The kernel and fsck.erofs read only what they need, and accept much that is wrong: a table that ends outside, names that
are out of order and so are not found, a number that two inodes have.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.suites.diff_sides import Node

BLOCK = 512
PAGE = 4096
NOWHERE = 0xFFFFFFFF
_INODES = 1536
"""Where they begin."""
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6,
          stat.S_IFLNK: 7}  # fmt: skip
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_SUPER = {
    "magic": 0xE0F5E1E2, "checksum": 0, "compatible features": 0x2, "block bits": 9, "extra slots": 0, "root": None,
    "inodes": None, "epoch": 0, "nanoseconds": 0, "blocks": None, "first block of inodes": 3, "shared attributes": 0,
    "uuid": bytes(16), "volume": bytes(16), "incompatible features": 0x4 | 0x8, "compression": 0, "devices": 1,
    "first device": 9, "directory block bits": 0, "prefixes": 0, "prefixes' place": 0, "packed inode": 0, "filter": 0,
    "rest": bytes(23),
}  # fmt: skip
"""The fields of struct erofs_super_block, in their order, with the only value that ours may have."""


class WrongError(AssertionError):
    """What is wrong with an image."""


@dataclass
class Inode:
    """An inode. ``data`` is what a directory or a link holds, ``table`` where a file's chunks are: the device, the
    block.
    """

    nid: int
    number: int
    mode: int
    owner: tuple[int, int]
    size: int
    device: int
    modified: int
    links: int
    xattrs: dict[bytes, bytes]
    data: bytes = b""
    chunk: int = 0
    table: list[tuple[int, int]] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    parent: int = -1
    directories: int = 0
    """How many are in it."""


def _require(condition: object, what: str) -> None:
    if not condition:
        raise WrongError(what)


class Image:
    """A checked image, an index over a blob device of ``blob`` bytes. WrongError says what is wrong."""

    def __init__(self, image: bytes, blob: int) -> None:
        self._image = image
        self._blob_blocks, rest = divmod(blob, BLOCK)
        _require(not rest, f"a blob device of {blob} bytes")
        self._used: list[tuple[int, int]] = []
        """The bytes that mean something: begin and end."""
        self.inodes: dict[int, Inode] = {}
        root, count = self._head()
        self._walk(root)
        _require(len(self.inodes) == count, f"{len(self.inodes)} inodes; the super block says {count}")
        numbers = sorted(inode.number for inode in self.inodes.values())
        _require(numbers == list(range(1, count + 1)), f"inodes are numbered {numbers}")
        for inode in self.inodes.values():
            expected = 2 + inode.directories if stat.S_ISDIR(inode.mode) else len(inode.names)
            _require(inode.links == expected, f"inode {inode.nid} has {inode.links} links, and {expected} names")
        self._nothing_else()

    # ------------------------------------------------------------------------ parts

    def _head(self) -> tuple[int, int]:
        image = self._image
        _require(len(image) % BLOCK == 0 and len(image) >= _INODES, f"an image of {len(image)} bytes")
        values = struct.unpack_from("<IIIBBHQQIIII16s16sIHHHBBIQB23s", image, 1024)
        found = dict(zip(_SUPER, values, strict=True))
        for name, value in _SUPER.items():
            _require(value is None or found[name] == value, f"{name}: {found[name]!r}, not {value!r}")
        _require(found["blocks"] == len(image) // BLOCK, f"{found['blocks']} blocks; there are {len(image) // BLOCK}")
        tag, blocks, mapped, rest = struct.unpack_from("<64sII56s", image, 1152)
        _require((tag, mapped, rest) == (bytes(64), 0, bytes(56)), f"the blob device: {tag!r}, {mapped}, {rest!r}")
        _require(blocks == self._blob_blocks, f"{blocks} blocks of the blob device; there are {self._blob_blocks}")
        self._used += [(1024, 1152), (1152, 1280)]
        root, count = found["root"], found["inodes"]
        assert isinstance(root, int)
        assert isinstance(count, int)
        return root, count

    def _walk(self, root: int) -> None:
        waiting = [(root, root, b"")]
        while waiting:
            nid, parent, path = waiting.pop()
            known = nid in self.inodes
            inode = self.inodes[nid] if known else self._inode(nid)
            self.inodes[nid] = inode
            inode.names.append(path)
            if not stat.S_ISDIR(inode.mode):
                continue
            _require(not known, f"directory {path!r} is {inode.names[0]!r}")
            inode.parent = parent
            for name, inner, kind in self._entries(inode):
                here = path + b"/" + name if path else name
                if name in (b".", b".."):
                    _require(inner == (nid if name == b"." else parent), f"{here!r} is inode {inner}")
                    _require(kind == 2, f"{here!r} is of type {kind}")
                    continue
                mode = self.inodes[inner].mode if inner in self.inodes else self._mode(inner)
                _require(_TYPES.get(stat.S_IFMT(mode)) == kind, f"{here!r} is of type {kind}, its mode is {mode:o}")
                inode.directories += kind == 2
                waiting.append((inner, nid, here))

    def _at(self, nid: int, size: int) -> int:
        at = _INODES + 32 * nid
        _require(at + size <= len(self._image), f"inode {nid} is outside")
        return at

    def _mode(self, nid: int) -> int:
        return int(struct.unpack_from("<H", self._image, self._at(nid, 64) + 4)[0])

    def _inode(self, nid: int) -> Inode:
        image, at = self._image, self._at(nid, 64)
        form, attributes, mode, reserved, size, where, number, *owner, seconds, nanoseconds, links, rest = (
            struct.unpack_from("<HHHHQIIIIqII16s", image, at)
        )
        what = f"inode {nid}"
        _require((reserved, rest) == (0, bytes(16)), f"{what}: reserved bytes are {reserved} and {rest!r}")
        _require(form & ~0xE == 1, f"{what}: its format is {form:#x}")
        _require(stat.S_IFMT(mode) in _TYPES, f"{what}: its mode is {mode:o}")
        _require(nanoseconds < 1_000_000_000, f"{what}: {nanoseconds} ns")
        _require(size < 1 << 63, f"{what}: {size} bytes")
        layout = form >> 1
        end = at + 64
        xattrs = {}
        if attributes:
            length = 12 + 4 * (attributes - 1)
            _require(end + length <= len(image), f"{what}: its attributes end outside")
            xattrs = _attributes(image[end : end + length], what)
            end += length
        inode = Inode(nid, number, mode, (owner[0], owner[1]), size, 0, seconds * 10**9 + nanoseconds, links, xattrs)
        if layout == 4:
            _require(stat.S_ISREG(mode) and size, f"{what}: chunks, mode {mode:o}, {size} bytes")
            end = self._chunks(inode, where, end, what)
        elif stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            _require(size, f"{what}: nothing in it")
            end = self._contents(inode, layout, where, end, what)
        else:
            _require((layout, size) == (0, 0), f"{what}: layout {layout}, {size} bytes")
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                inode.device = os.makedev(where >> 8 & 0xFFF, where & 0xFF | where >> 12 & 0xFFF00)
            else:
                _require(where == NOWHERE, f"{what}: block {where} of nothing")
        self._used.append((at, end))
        return inode

    def _chunks(self, inode: Inode, form: int, end: int, what: str) -> int:
        _require(form & ~0x1F == 0x20, f"{what}: its chunks' format is {form:#x}")
        inode.chunk = chunk = BLOCK << (form & 0x1F)
        count = -(-inode.size // chunk)
        begin = end + -end % 8
        end = begin + 8 * count
        _require(end <= len(self._image), f"{what}: the table of {count} chunks ends outside")
        _require(not any(self._image[begin - begin % 8 : begin]), f"{what}: bytes before its table")
        for number in range(count):
            advise, device, block = struct.unpack_from("<HHI", self._image, begin + 8 * number)
            _require(not advise, f"{what}: chunk {number} has {advise:#x}")
            length = min(chunk, inode.size - number * chunk)
            last = block + -(-length // BLOCK)
            if block == NOWHERE:
                _require(not device, f"{what}: a hole on device {device}")
            elif device:
                _require(device == 1, f"{what}: device {device}")
                _require(last <= self._blob_blocks, f"{what}: chunk {number} ends at block {last} of the blob device")
            else:
                _require(last * BLOCK <= len(self._image), f"{what}: chunk {number} ends at block {last} of the image")
                self._used.append((block * BLOCK, last * BLOCK))
            inode.table.append((device, block))
        return end

    def _contents(self, inode: Inode, layout: int, where: int, end: int, what: str) -> int:
        _require(layout in (0, 2), f"{what}: layout {layout}")
        tail = inode.size % BLOCK if layout == 2 else 0
        whole = inode.size - tail
        _require(layout == 0 or tail, f"{what}: inline, and nothing is")
        _require(end % BLOCK + tail <= BLOCK, f"{what}: its end goes on in the next block")
        begin = where * BLOCK
        if whole:
            _require(where != NOWHERE and begin + whole <= len(self._image), f"{what}: block {where}, {whole} bytes")
            self._used.append((begin, begin + whole))
        else:
            _require(where == NOWHERE, f"{what}: block {where} of nothing")
        blocks = self._image[begin : begin + whole] if whole else b""
        inode.data = blocks + self._image[end : end + tail]
        return end + tail

    def _entries(self, inode: Inode) -> list[tuple[bytes, int, int]]:
        what = f"directory {inode.nid}"
        found: list[tuple[bytes, int, int]] = []
        for begin in range(0, inode.size, BLOCK):
            block = inode.data[begin : begin + BLOCK]
            first = struct.unpack_from("<QHBB", block)[1] if len(block) >= 12 else 0
            _require(first and first % 12 == 0 and first < len(block), f"{what}: names begin at {first}")
            heads = [struct.unpack_from("<QHBB", block, at) for at in range(0, first, 12)]
            ends = [head[1] for head in heads[1:]] + [len(block)]
            for (nid, at, kind, reserved), end in zip(heads, ends, strict=True):
                _require(at < end <= len(block), f"{what}: a name from {at} to {end}")
                name = block[at:end]
                if end == len(block) and len(block) == BLOCK:
                    name = name.rstrip(b"\0")
                _require(not reserved, f"{what}: {name!r} has {reserved:#x}")
                _require(0 < len(name) <= 255 and b"/" not in name and b"\0" not in name, f"{what}: {name!r}")
                _require(not found or found[-1][0] < name, f"{what}: {name!r} after {found[-1:]}")
                found.append((name, nid, kind))
        names = [name for name, _, _ in found]
        _require(b"." in names and b".." in names, f"{what}: no . or ..")
        return found

    def _nothing_else(self) -> None:
        """Nothing is used twice, and what is used by nothing is zero."""
        at = 0
        for begin, end in [*sorted(self._used), (len(self._image), len(self._image))]:
            _require(begin >= at, f"bytes {begin} to {min(at, end)} are used twice")
            _require(not any(self._image[at:begin]), f"bytes {at} to {begin} belong to nothing, and are not zero")
            at = end

    # ------------------------------------------------------------------------ trees

    def tree(self, read: Callable[[int, int], bytes]) -> dict[bytes, Node]:
        """The tree, as ``diff_sides.tree`` reads one; but a file's content is :func:`content`. ``read`` gives bytes of
        the blob device: from an offset, a number of them.
        """
        return {
            name: Node(
                inode.mode,
                inode.owner,
                inode.device,
                0 if stat.S_ISDIR(inode.mode) else inode.size,
                self._content(inode, read),
                inode.modified,
                () if stat.S_ISDIR(inode.mode) else tuple(sorted(inode.names)),
                tuple(sorted((os.fsdecode(key), value) for key, value in inode.xattrs.items())),
            )
            for inode in self.inodes.values()
            for name in inode.names
            if name
        }

    def _content(self, inode: Inode, read: Callable[[int, int], bytes]) -> str:
        if stat.S_ISLNK(inode.mode):
            return os.fsdecode(inode.data)
        if not stat.S_ISREG(inode.mode):
            return ""
        pieces = []
        for number, (device, block) in enumerate(inode.table):
            if block != NOWHERE:
                begin = number * inode.chunk
                length = min(inode.chunk, inode.size - begin)
                source = read if device else lambda at, count: self._image[at : at + count]
                pieces.append((begin, source(block * BLOCK, length)))
        return content(pieces)


def content(pieces: list[tuple[int, bytes]]) -> str:
    """The digest of a file's pages that are not zero; so a hole may be a hole or zeros, and may be large."""
    pages: dict[int, bytearray] = {}
    for begin, data in pieces:
        at = 0
        while at < len(data):
            page, within = divmod(begin + at, PAGE)
            part = data[at : at + PAGE - within]
            pages.setdefault(page, bytearray(PAGE))[within : within + len(part)] = part
            at += len(part)
    whole = hashlib.sha256()
    for page, found in sorted(pages.items()):
        if any(found):
            whole.update(page.to_bytes(8, "little") + found)
    return whole.hexdigest()


def _attributes(data: bytes, what: str) -> dict[bytes, bytes]:
    name_filter, shared, rest = struct.unpack_from("<IB7s", data)
    _require((name_filter, shared, rest) == (0, 0, bytes(7)), f"{what}: its attributes' head is {data[:12]!r}")
    found: dict[bytes, bytes] = {}
    at = 12
    while at < len(data):
        _require(at + 4 <= len(data), f"{what}: an attribute ends outside")
        length, prefix, size = struct.unpack_from("<BBH", data, at)
        _require(prefix in _PREFIXES, f"{what}: an attribute with prefix {prefix}")
        begin, end = at + 4 + length, at + 4 + length + size
        _require(end <= len(data), f"{what}: an attribute ends outside")
        name = _PREFIXES[prefix] + data[at + 4 : begin]
        _require(name not in found, f"{what}: attribute {name!r} twice")
        _require(bool(length) is _PREFIXES[prefix].endswith(b"."), f"{what}: attribute {name!r}")
        found[name] = data[begin:end]
        at = end + -end % 4
        _require(at <= len(data) and not any(data[end:at]), f"{what}: bytes after attribute {name!r}")
    return found
