"""Writes a layer's tar stream, byte for byte as containerd does, so that a tree has the same diff id with either.

Headers are ustar. A PAX header precedes an entry whose name, link, numbers or xattrs do not fit into a ustar header.
Names of users and groups are never written: those of this machine mean nothing elsewhere.
"""

from __future__ import annotations

from services.kit.tar import BLOCK

TRAILER = bytes(2 * BLOCK)


def header(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    modified: int = 0,
    linkname: bytes = b"",
    major: int = 0,
    minor: int = 0,
    records: dict[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks of an entry. ``modified`` is in seconds. A directory's name ends with a slash. ``records`` are
    PAX records that are written in any case.
    """
    pax = dict(records or {})
    only_pax = bool(pax)
    prefix = b""
    if not name.isascii() or len(name) > 100:
        pax[b"path"] = name
        split = _split(name)
        if split is None:
            only_pax = True
        else:
            prefix = split
    if not linkname.isascii() or len(linkname) > 100:
        pax[b"linkpath"] = linkname
        only_pax = True
    for key, value, digits in ((b"uid", uid, 7), (b"gid", gid, 7), (b"size", size, 11), (b"mtime", modified, 11)):
        if not 0 <= value < 8**digits:
            pax[key] = b"%d" % value
            only_pax = True
    if not only_pax:
        short = name[len(prefix) + 1 :] if prefix else name
        return _block(short, kind, mode, uid, gid, size, modified, linkname, major, minor, prefix)
    data = b"".join(_record(key, pax[key]) for key in sorted(pax))
    directory, slash, base = name.rpartition(b"/")
    before = _join(directory + slash, base)
    return (
        _block(_ascii(before)[:100].rstrip(b"/"), b"x", 0, 0, 0, len(data), 0, b"", None, None, b"")
        + data
        + padding(len(data))
        + _block(_ascii(name), kind, mode, uid, gid, size, modified, _ascii(linkname), major, minor, b"")
    )


def padding(size: int) -> bytes:
    """The bytes that fill a file's last block."""
    return bytes(-size % BLOCK)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    modified: int,
    linkname: bytes,
    major: int | None,
    minor: int | None,
    prefix: bytes,
) -> bytes:
    fields = b"".join(
        (
            _text(name, 100),
            _octal(mode, 8),
            _octal(uid, 8),
            _octal(gid, 8),
            _octal(size, 12),
            _octal(modified, 12),
            b" " * 8,
            kind,
            _text(linkname, 100),
            b"ustar\x0000",
            bytes(64),
            bytes(8) if major is None else _octal(major, 8),
            bytes(8) if minor is None else _octal(minor, 8),
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _text(value: bytes, width: int) -> bytes:
    if len(value) > width and value[width - 1 : width] == b"/":
        # A reader that sees only this part must not take a file for a directory.
        value = value[: width - 1].rstrip(b"/")
    return value[:width].ljust(width, b"\0")


def _octal(value: int, width: int) -> bytes:
    if not 0 <= value < 8 ** (width - 1):
        value = 0
    return b"%0*o\0" % (width - 1, value)


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    length = size + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _split(name: bytes) -> bytes | None:
    """The prefix with which ustar can hold a long name, or None."""
    if not name.isascii():
        return None
    length = len(name)
    if length > 156:
        length = 156
    elif name.endswith(b"/"):
        length -= 1
    cut = name.rfind(b"/", 0, length)
    rest = len(name) - cut - 1
    if cut <= 0 or rest > 100 or rest == 0 or cut > 155:
        return None
    return name[:cut]


def _join(directory: bytes, base: bytes) -> bytes:
    """The name of an entry's PAX header."""
    return b"/".join(part for part in (directory.rstrip(b"/"), b"PaxHeaders.0", base) if part)


def _ascii(value: bytes) -> bytes:
    """``value`` without the bytes that are not ASCII."""
    return value if value.isascii() else bytes(byte for byte in value if byte < 0x80)
