"""Layers that are nearly right: those of the suite, with members moved, repeated and left out, and with other names,
links, numbers, sparse maps, PAX records and bytes in them. Most checksums are right.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.suites import diff_layers
from tests.suites.diff_chains import DEFAULT_ACL
from tests.suites.diff_layers import CAPABILITY
from tests.suites.diff_tars import END, base256, block, octal, padded, record

BLOCK = 512
LARGEST = 64 << 10
"""Bytes of a layer that is mutated: most of the suite's have less."""
_HEADER_ONLY = b"123456"
_NAMES = (
    b"a", b"b", b"a/b", b"a/b/c", b"a/../b", b"./a", b"../a", b"/a", b"a//b", b"a/", b"", b".", b"..", b"a/.", b"a/..",
    b".wh.a", b"a/.wh.b", b".wh..wh..opq", b"a/.wh..wh..opq", b".wh.", b".wh..", b".wh...", b".wh..wh.aufs", b"lib/x",
    b"lib/a.so", b"usr/lib/a.so", b"etc/passwd", b"x" * 100, b"a/" + b"y" * 97, b"\xff\xfe", b"a\nb", b"bin/sh", b"bin",
)  # fmt: skip
_LONG = (
    b"n" * 255,
    b"n" * 256,
    b"d/" * 300 + b"f",
    b"d/" * 2046 + b"f",
    b"d/" * 2047 + b"f",
    b"l" * 4096,
    b"../" * 99 + b"a",
)
_TYPES = b"0123456012345601234560123456\0" + b"7SxgLK9"
_SIZES = (0, 1, 511, 512, 513, 1024, 4096, 70_000, 1 << 20, (1 << 33) - 1, 1 << 33, 1 << 62, -1, -512)
_NUMBERS = (0, 1, 0o755, 0o4755, 0o7777, 0o177777, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, -1, -2, 1 << 40)
_OFFSETS = (
    0,
    1,
    511,
    512,
    1000,
    1024,
    4096,
    65536,
    1 << 20,
    1 << 31,
    1 << 33,
    1 << 40,
    1 << 56,
    1 << 58,
    (1 << 63) - 1,
    -1,
)
_KEYS = (
    b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"ctime", b"GNU.sparse.major", b"GNU.sparse.minor",
    b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.size", b"GNU.sparse.numblocks", b"GNU.sparse.map",
    b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"SCHILY.xattr.user.a", b"SCHILY.xattr.user.", b"SCHILY.xattr.",
    b"SCHILY.xattr.trusted.a", b"SCHILY.xattr.security.a", b"SCHILY.xattr.security.capability",
    b"SCHILY.xattr.system.posix_acl_access", b"SCHILY.xattr.system.posix_acl_default", b"SCHILY.xattr.user." + b"k" * 250,
    b"SCHILY.xattr.other", b"hdrcharset", b"comment",
)  # fmt: skip
_TEXTS = (
    b"", b"0", b"1", b"-1", b"512", b"70000", b"4294967295", b"9223372036854775807", b"9223372036854775808", b"1.5",
    b"-1.5", b"1e3", b"0,512", b"0,1,5,2", b"a", b"a/b", b"x\0y", b"../b", b"d/" * 2047 + b"f", b"v" * 5000, CAPABILITY,
    DEFAULT_ACL, DEFAULT_ACL[:12], DEFAULT_ACL[:-1], b"\2\0\0\0", b"\1\0\0\0", b"\n", b"=",
)  # fmt: skip
Member = list[bytearray]
"""The blocks of a header and of the data after it, of one length each."""


def members(layer: bytes) -> list[Member]:
    """A layer cut where its headers are; blocks that are none belong to the member before them."""
    found: list[Member] = []
    at = left = 0
    while at < len(layer):
        each = bytearray(layer[at : at + BLOCK])
        at += BLOCK
        if left > 0 or not found or not _is_header(each):
            found = found or [[]]
            found[-1].append(each)
            left -= 1
            continue
        found.append([each])
        try:
            size = int(each[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            size = 0
        left = 0 if each[156] in _HEADER_ONLY else -(-size // BLOCK)
    return [member for member in found if member]


def _is_header(data: bytearray) -> bool:
    return len(data) == BLOCK and data[257:262] == b"ustar"


class Author:
    """Writes layers, the same ones from the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._layers = [members(case.layer) for case in diff_layers.ALL if len(case.layer) <= LARGEST]
        self._ways: tuple[tuple[int, Callable[[list[Member]], None]], ...] = (
            (4, self._other_name),
            (2, self._other_link),
            (3, self._other_type),
            (3, self._other_number),
            (2, self._other_size),
            (3, self._more_records),
            (2, self._other_records),
            (2, self._sparse),
            (1, self._long_name),
            (2, self._moved),
            (2, self._from_another),
            (1, self._dropped),
            (1, self._other_byte),
            (1, self._map_digits),
        )

    def layer(self) -> bytes:
        """One layer."""
        one = self._random
        found = [[bytearray(each) for each in member] for member in one.choice(self._layers)]
        weights = [weight for weight, _ in self._ways]
        for _ in range(one.choice((1, 1, 2, 3, 5))):
            if found:
                one.choices(self._ways, weights)[0][1](found)
        data = b"".join(b"".join(member) for member in found)
        chance = one.random()
        if chance < 0.04:
            return data[: one.randrange(len(data) + 1)]
        if chance < 0.08:
            return data.rstrip(b"\0") + bytes(one.choice((0, 1, 511, 512, 513)))
        if chance < 0.12:
            return data + one.choice((END, b"x" * 700, padded(b"junk"), bytes(5000)))
        return data

    # ------------------------------------------------------------------------ ways

    def _header(self, found: list[Member]) -> bytearray:
        headers = [each[0] for each in found if _is_header(each[0])]
        return self._random.choice(headers) if headers else bytearray(BLOCK)

    def _set(self, header: bytearray, at: int, data: bytes, width: int) -> None:
        header[at : at + width] = data[:width].ljust(width, b"\0")
        if self._random.random() < 0.98:
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)

    def _other_name(self, found: list[Member]) -> None:
        self._set(self._header(found), 0, self._name(found), 100)

    def _other_link(self, found: list[Member]) -> None:
        self._set(self._header(found), 157, self._name(found), 100)

    def _name(self, found: list[Member]) -> bytes:
        if self._random.random() < 0.5:
            return self._random.choice(_NAMES)
        name = bytes(self._header(found)[:100]).rstrip(b"\0")
        return self._random.choice(
            (name, name + b"/x", name.rpartition(b"/")[0], b".wh." + name, name + b"/.wh..wh..opq")
        )

    def _other_type(self, found: list[Member]) -> None:
        self._set(self._header(found), 156, bytes([self._random.choice(_TYPES)]), 1)

    def _other_number(self, found: list[Member]) -> None:
        at, width = self._random.choice(((100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)))
        self._set(self._header(found), at, self._number(self._random.choice(_NUMBERS), width), width)

    def _other_size(self, found: list[Member]) -> None:
        self._set(self._header(found), 124, self._number(self._random.choice(_SIZES), 12), 12)

    def _number(self, value: int, width: int) -> bytes:
        if value < 0 or value >= 8 ** (width - 1) or self._random.random() < 0.1:
            return (
                base256(value & (1 << 8 * width - 1) - 1, width)
                if value >= 0
                else bytes([0xFF]) + (value & (1 << 8 * (width - 1)) - 1).to_bytes(width - 1, "big")
            )
        return self._random.choice((octal(value, width), b"%o" % value, b" %o" % value, b"8", b"x"))

    def _more_records(self, found: list[Member]) -> None:
        data = b"".join(
            record(self._random.choice(_KEYS), self._random.choice(_TEXTS)) for _ in range(self._random.randint(1, 4))
        )
        self._insert(found, self._random.choice((b"x", b"x", b"x", b"g")), data)

    def _other_records(self, found: list[Member]) -> None:
        """Break the text of records."""
        there = [each for each in found if _is_header(each[0]) and each[0][156] in b"xg" and len(each) > 1]
        if there:
            data = self._random.choice(there)[1]
            at = self._random.randrange(len(data))
            data[at : at + 1] = self._random.choice((b"0", b"9", b"=", b"\n", b" ", b"\0", b"-"))

    def _sparse(self, found: list[Member]) -> None:
        """A sparse file, in one of its formats."""
        one = self._random
        ends = sorted(one.choice(_OFFSETS) + one.choice((0, 0, 1, 512)) for _ in range(2 * one.randint(0, 5)))
        pairs = [(start, one.choice((end - start, 1, 512, 513)) if end - start < 5000 else one.choice((0, 1, 512, 700)))
                 for start, end in zip(ends[::2], ends[1::2], strict=True)]  # fmt: skip
        data = b"".join(b"%c" % (65 + i) * max(0, min(length, 5000)) for i, (_, length) in enumerate(pairs))
        real = max(ends, default=0) + one.choice((0, 1, 5000, 1 << 20))
        name = one.choice(_NAMES[:12])
        kind = one.randrange(3)
        if kind == 0:
            table = b"".join(self._number(offset, 12) + self._number(length, 12) for offset, length in pairs[:4])
            tail = bytes(41) + table.ljust(96, b"\0") + b"\0" + self._number(real, 12)
            made = block(name, b"S", size=len(data), magic=b"ustar  \0", tail=tail) + padded(data)
        else:
            lines = b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)
            body = (padded(lines) if kind == 1 else b"") + data
            records = {
                b"GNU.sparse.name": name,
                b"GNU.sparse.realsize" if kind == 1 else b"GNU.sparse.size": b"%d" % real,
                **(
                    {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}
                    if kind == 1
                    else {
                        b"GNU.sparse.numblocks": b"%d" % len(pairs),
                        b"GNU.sparse.map": b",".join(b"%d,%d" % pair for pair in pairs),
                    }
                ),
            }
            self._insert(found, b"x", b"".join(record(key, value) for key, value in records.items()))
            made = block(b"GNUSparseFile.0/x", b"0", size=len(body)) + padded(body)
        found.insert(one.randrange(len(found) + 1) if kind == 0 else self._after, [bytearray(made)])

    def _insert(self, found: list[Member], kind: bytes, data: bytes) -> None:
        at = self._random.randrange(len(found) + 1)
        found.insert(at, [bytearray(block(b"PaxHeaders.0/x", kind, size=len(data))), bytearray(padded(data))])
        self._after = at + 1

    def _long_name(self, found: list[Member]) -> None:
        data = self._random.choice(_LONG) + b"\0"
        self._insert(found, self._random.choice((b"L", b"L", b"K")), data)

    def _moved(self, found: list[Member]) -> None:
        member = self._random.choice(found)
        if self._random.random() < 0.5:
            found.remove(member)
        found.insert(self._random.randrange(len(found) + 1), [bytearray(each) for each in member])

    def _from_another(self, found: list[Member]) -> None:
        there = self._random.choice(self._layers)
        if there:
            begin = self._random.randrange(len(there))
            more = there[begin : begin + self._random.randint(1, 4)]
            at = self._random.randrange(len(found) + 1)
            found[at:at] = [[bytearray(each) for each in member] for member in more]

    def _dropped(self, found: list[Member]) -> None:
        found.remove(self._random.choice(found))

    def _other_byte(self, found: list[Member]) -> None:
        data = self._random.choice(self._random.choice(found))
        if data:
            data[self._random.randrange(len(data))] = self._random.randrange(256)

    def _map_digits(self, found: list[Member]) -> None:
        """Change digits of text in data, such as a sparse map's."""
        there = [each for member in found for each in member[1:] if each[:1].isdigit()]
        if there:
            data = self._random.choice(there)
            data[self._random.randrange(min(len(data), 40))] = self._random.choice(b"0123456789\n-")
