"""Headers of a tar stream, read by the rules of Go's archive/tar: for ``tar.py``, which says why."""

from __future__ import annotations

import struct
from zlib import adler32

BLOCK = 512

REG, LINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
GNU_SPARSE, PAX_HEADER, PAX_GLOBAL, LONG_NAME, LONG_LINK = b"S", b"x", b"g", b"L", b"K"
HEADER_ONLY = frozenset((LINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO))
"""Types without data, whatever their size field says."""

XATTR = b"SCHILY.xattr."

_V7 = struct.Struct("100s8s8s8s12s12s8s1s100s")
NANO = 1_000_000_000


class TarError(Exception):
    """The stream is not a tar that containerd would read. The message is Go's."""


def invalid() -> TarError:
    return TarError("archive/tar: invalid tar header")


def truncated() -> TarError:
    return TarError("unexpected EOF")


class Entry:
    """One member. Times are nanoseconds since 1970; ``accessed`` is None if the header has none."""

    __slots__ = (
        "accessed",
        "gid",
        "linkname",
        "major",
        "minor",
        "mode",
        "modified",
        "name",
        "records",
        "size",
        "sparse",
        "type",
        "uid",
    )

    name: bytes
    linkname: bytes
    type: bytes
    size: int
    mode: int
    uid: int
    gid: int
    modified: int
    accessed: int | None
    major: int
    minor: int
    records: dict[bytes, bytes]
    sparse: list[tuple[int, int]] | None
    """(offset, length) of each piece of data in a sparse file, in order."""

    def xattrs(self) -> list[tuple[bytes, bytes]]:
        return [(key[len(XATTR) :], value) for key, value in self.records.items() if key.startswith(XATTR)]


def form_of(block: bytes) -> str:
    """The header format of a block; TarError if its checksum is wrong."""
    # zlib's checksum of at most 256 bytes has their sum in its lower half, plus one, and takes a tenth of the time of
    # sum()
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 - sum(block[148:156]) + 8 * 32
    expected = octal(block[148:156])
    if expected != total:
        high = sum(1 for byte in block[:148] + block[156:] if byte & 0x80)
        if expected != total - 256 * high:  # summed as signed bytes, as Sun's tar did
            raise invalid()
    magic = block[257:265]
    if magic[:6] == b"ustar\0":
        return "star" if block[508:] == b"tar\0" else "ustar"
    return "gnu" if magic == b"ustar  \0" else "v7"


def parse(block: bytes) -> Entry:
    form = form_of(block)
    name, mode, uid, gid, size, modified, _, kind, linkname = _V7.unpack_from(block)
    entry = Entry()
    entry.name = string(name)
    entry.linkname = string(linkname)
    entry.type = kind
    entry.size = numeric(size)
    entry.mode = numeric(mode)
    entry.uid = numeric(uid)
    entry.gid = numeric(gid)
    entry.modified = numeric(modified) * NANO
    entry.accessed = None
    entry.major = entry.minor = 0
    entry.records = NONE
    entry.sparse = None
    if form == "v7":
        return entry
    devices = block[329:345]
    if devices != _NO_DEVICE and devices != bytes(16):
        entry.major = numeric(devices[:8])
        entry.minor = numeric(devices[8:])
    prefix = b""
    if form == "ustar":
        prefix = string(block[345:500])
    elif form == "star":
        prefix = string(block[345:476])
        entry.accessed = numeric(block[476:488]) * NANO
        numeric(block[488:500])
    else:
        try:
            if block[345]:
                entry.accessed = numeric(block[345:357]) * NANO
            if block[357]:
                numeric(block[357:369])
        except TarError:
            # Old Go writers put a prefix where GNU has these times (golang.org/issues/12594).
            entry.accessed = None
            prefix = string(block[345:500])
            if not prefix.isascii():
                prefix = b""
    if prefix:
        entry.name = prefix + b"/" + entry.name
    return entry


NONE: dict[bytes, bytes] = {}
_NO_DEVICE = b"0000000\x000000000\0"


def string(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def numeric(field: bytes) -> int:
    """A number in octal, or in base 256 if the first bit is set (two's complement)."""
    value = _known.get(field)
    if value is None:
        value = _parse_numeric(field)
        if len(_known) < 4096:
            _known[field] = value
    return value


_known: dict[bytes, int] = {}
"""Numbers parsed before: owners, modes and times repeat throughout a layer."""


def forget_numbers() -> None:
    """Forget the numbers that were read, in a process that lives on."""
    _known.clear()


def _parse_numeric(field: bytes) -> int:
    if not field[0] & 0x80:
        return octal(field)
    value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
    if field[0] & 0x40:
        value -= 1 << (8 * len(field) - 1)
    if not -(1 << 63) <= value < 1 << 63:
        raise invalid()
    return value


def octal(field: bytes) -> int:
    digits = string(field.strip(b" \0"))
    if not digits:
        return 0
    if not digits.isdigit() or len(digits) > 400:
        raise invalid()
    try:
        value = int(digits, 8)
    except ValueError:
        raise invalid() from None
    if value >= 1 << 64:
        raise invalid()
    return value - (1 << 64) if value >> 63 else value


def decimal(text: bytes) -> int:
    """Parse as Go's strconv.ParseInt(text, 10, 64), and accept nothing else."""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    if not digits.isdigit() or len(digits) > 4000:
        raise invalid()
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise invalid()
    return value


def _time(text: bytes) -> int:
    """A PAX time, ``seconds[.fraction]``, in nanoseconds. Digits beyond the ninth are dropped."""
    # as nearly all are
    if text[-10:-9] == b"." and 10 < len(text) < 22 and (digits := text[:-10] + text[-9:]).isdigit():
        return int(digits)
    seconds, _, fraction = text.partition(b".")
    value = decimal(seconds) * NANO
    if fraction:
        if not fraction.isdigit():
            raise invalid()
        nanos = int(fraction[:9].ljust(9, b"0"))
        value += -nanos if seconds[:1] == b"-" else nanos
    return value


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records, each ``LENGTH KEY=VALUE`` and a newline. Of several with the same key the last counts. Sparse format 0.0
    is returned as 0.1.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position)
        if space < 0:
            raise invalid()
        length = decimal(data[position:space])
        end = position + length
        if length < 5 or end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise invalid()
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in (value if key in _NAMES else key):
            raise invalid()
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") == bool(len(sparse) % 2) or b"," in value:
                raise invalid()
            sparse.append(value)
        else:
            records[key] = value
        position = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


_NAMES = frozenset((b"path", b"linkpath", b"uname", b"gname"))


def merge(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Records override the header; an empty one does not."""
    entry.records = records
    for key, value in records.items():
        if not value:
            continue
        if key == b"mtime":
            entry.modified = _time(value)
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.linkname = value
        elif key == b"uid":
            entry.uid = decimal(value)
        elif key == b"gid":
            entry.gid = decimal(value)
        elif key == b"atime":
            entry.accessed = _time(value)
        elif key == b"ctime":
            _time(value)
        elif key == b"size":
            entry.size = decimal(value)
