"""Tar streams written by hand, so that a test can give every field of every header an odd value. Independent of the
tested code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MTIME = 1_600_000_000


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    return bytes([0x80 | (value >> 8 * (width - 1)) & 0x7F]) + (value & ((1 << 8 * (width - 1)) - 1)).to_bytes(
        width - 1, "big"
    )


def block(
    name: bytes = b"",
    kind: bytes = b"0",
    *,
    mode=0o644,
    uid=0,
    gid=0,
    size=0,
    mtime=MTIME,
    linkname: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major=0,
    minor=0,
    prefix: bytes = b"",
    tail: bytes | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header. Numbers may be given as bytes; ``tail`` replaces everything from byte 345 on."""

    def number(value, width):
        return value.ljust(width, b"\0") if isinstance(value, bytes) else octal(value, width)

    head = (
        name[:100].ljust(100, b"\0")
        + number(mode, 8)
        + number(uid, 8)
        + number(gid, 8)
        + number(size, 12)
        + number(mtime, 12)
        + b" " * 8
        + kind
        + linkname[:100].ljust(100, b"\0")
        + magic
        + bytes(64)
        + number(major, 8)
        + number(minor, 8)
    )
    whole = (head + (prefix if tail is None else tail).ljust(167, b"\0"))[:512]
    assert len(whole) == 512
    total = checksum if checksum is not None else b"%06o\0 " % sum(whole)
    return whole[:148] + total + whole[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: dict[bytes, bytes] | bytes, kind: bytes = b"x", name: bytes = b"PaxHeaders.0/x") -> bytes:
    data = records if isinstance(records, bytes) else b"".join(record(k, v) for k, v in records.items())
    return block(name, kind, size=len(data)) + padded(data)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return block(b"././@LongLink", kind, size=len(name) + 1, magic=b"ustar  \0") + padded(name + b"\0")


def reg(name: bytes, data: bytes = b"", **fields) -> bytes:
    return block(name, b"0", size=fields.pop("size", len(data)), **fields) + padded(data)


def directory(name: bytes, mode: int = 0o755, **fields) -> bytes:
    return block(name, b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes, **fields) -> bytes:
    return block(name, b"2", mode=fields.pop("mode", 0o777), linkname=target, **fields)


def link(name: bytes, target: bytes, **fields) -> bytes:
    return block(name, b"1", linkname=target, **fields)


def device(name: bytes, kind: bytes, major: int = 0, minor: int = 0, **fields) -> bytes:
    return block(name, kind, major=major, minor=minor, **fields)


def whiteout(name: bytes) -> bytes:
    before, _, base = name.rpartition(b"/")
    return reg((before + b"/" if before else b"") + b".wh." + base)


def opaque(directory_name: bytes) -> bytes:
    return reg((directory_name + b"/" if directory_name else b"") + b".wh..wh..opq")


END = bytes(1024)


def tar(*members: bytes, end: bytes = END) -> bytes:
    return b"".join(members) + end


@dataclass(frozen=True)
class Case:
    """A layer, and the layer below it if that matters."""

    name: str
    layer: bytes
    lower: bytes = b""
    differs: str = ""
    """Why ours must differ from containerd's here; empty: it does not."""
    targets: tuple[str, ...] = field(default=("plain", "overlay"))
