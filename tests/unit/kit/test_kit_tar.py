"""Unit tests of the tar reader and writer."""

from __future__ import annotations

import io
import random
import tarfile
from typing import Any

import pytest

from services.kit import tar
from services.snapshots.diff import tarwrite
from tests.suites import diff_layers
from tests.suites.diff_tars import END, Case, device, link, pax, reg
from tests.suites.diff_tars import tar as archive


def read(data: bytes, chunk: int = 1 << 18) -> list[tuple]:
    """Read all entries of an archive with their bytes; the archive is given in chunks of a size."""
    reader = tar.Reader(tar.Stream(data[i : i + chunk] for i in range(0, len(data), chunk)))
    found = []
    while (entry := reader.next()) is not None:
        fields = tuple(getattr(entry, name) for name in tar.Entry.__slots__)
        found.append((*fields, b"".join(map(bytes, reader.data()))))
    return found


@pytest.mark.parametrize("case", diff_layers.ALL, ids=lambda case: case.name)
def test_chunks_do_not_matter(case: Case) -> None:
    """The result, or the error, is the same for chunks of any size."""

    def outcome(chunk: int) -> object:
        try:
            return read(case.layer, chunk)
        except tar.TarError as error:
            return str(error)

    whole = outcome(1 << 30)
    for chunk in (1, 511, 512, 513, 1000) if len(case.layer) < 100_000 else (4097,):
        assert outcome(chunk) == whole


def test_empty_chunks_are_no_end() -> None:
    """Only the end of the iterator is the end."""
    reader = tar.Reader(tar.Stream([b"", reg(b"a", b"x")[:700], b"", b"", reg(b"a", b"x")[700:], END]))
    assert (entry := reader.next()) is not None
    assert (entry.name, reader.whole(), reader.next()) == (b"a", b"x", None)


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("seed", range(20))
def test_tars_written_by_tarfile_are_read(fmt: int, seed: int) -> None:
    """Random members of an archive by another writer are read back equal."""
    rng = random.Random(seed)
    data = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=data, mode="w", format=fmt) as out:
        for _ in range(30):
            parts = [
                "".join(
                    rng.choice("abc é日" if fmt != tarfile.USTAR_FORMAT else "abc") for _ in range(rng.randint(1, 30))
                ).strip()
                or "x"
                for _ in range(rng.randint(1, 8))
            ]
            info = tarfile.TarInfo("/".join(parts)[: 240 if fmt != tarfile.USTAR_FORMAT else 99])
            info.type = rng.choice(
                (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
            )
            info.mode, info.mtime = (
                rng.randint(0, 0o7777),
                rng.randint(0, 1 << 33 if fmt != tarfile.USTAR_FORMAT else 1 << 32),
            )
            info.uid, info.gid = (rng.randint(0, 1 << (21 if fmt == tarfile.USTAR_FORMAT else 40)) for _ in range(2))
            if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "l" * rng.randint(1, 99 if fmt == tarfile.USTAR_FORMAT else 300)
            if info.type == tarfile.CHRTYPE:
                info.devmajor, info.devminor = rng.randint(0, 4095), rng.randint(0, 1 << 20)
            content = rng.randbytes(rng.randint(0, 3000)) if info.type == tarfile.REGTYPE else b""
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
            name = info.name.encode() + (b"/" if info.type == tarfile.DIRTYPE and not info.name.endswith("/") else b"")
            expected.append(
                (
                    name.rstrip(b"/"),
                    info.type,
                    info.mode,
                    info.uid,
                    info.gid,
                    info.mtime * 10**9,
                    info.linkname.encode(),
                    info.devmajor,
                    info.devminor,
                    content,
                )
            )
    reader = tar.Reader(tar.Stream([data.getvalue()]))
    for name, *rest in expected:
        entry = reader.next()
        assert entry is not None
        got = [
            entry.type,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.modified,
            entry.linkname,
            entry.major,
            entry.minor,
            b"".join(map(bytes, reader.data())),
        ]
        assert (entry.name.rstrip(b"/"), got) == (name, rest)
    assert reader.next() is None


def test_the_size_of_a_hard_link_means_nothing() -> None:
    """No data follows it, also in PAX archives (libarchive would take the next member for it)."""
    found = read(archive(pax({b"mtime": b"1.5"}), link(b"b", b"a", size=600), reg(b"c", b"content")))
    assert [entry[tar.Entry.__slots__.index("name")] for entry in found] == [b"b", b"c"]


def test_sparse_files_have_their_pieces_at_their_places() -> None:
    """All formats give a map and the stored bytes."""
    for case in diff_layers.ALL:
        if not case.name.startswith("sparse, ") or "too little" in case.name:
            continue
        reader = tar.Reader(tar.Stream([case.layer]))
        entry = reader.next()
        assert entry is not None
        assert entry.sparse is not None
        stored = b"".join(map(bytes, reader.data()))
        assert len(stored) == sum(length for _, length in entry.sparse)
        content = bytearray(entry.size)
        at = 0
        for offset, length in entry.sparse:
            content[offset : offset + length] = stored[at : at + length]
            at += length
        assert bytes(content[4096:4106] if "old" in case.name else content[100:103]) == (
            b"x" * 10 if "old" in case.name else b"abc"
        )
        assert (after := reader.next()) is not None
        assert after.name == b"after"


def test_device_numbers_are_read_as_they_are() -> None:
    """The unpacker checks whether they make sense."""
    entry = tar.Reader(tar.Stream([device(b"d", b"3", 0o7777777, 0o7777777)])).next()
    assert entry is not None
    assert (entry.major, entry.minor) == (0o7777777, 0o7777777)


@pytest.mark.parametrize("seed", range(30))
def test_headers_written_are_read_back(seed: int) -> None:
    """Our reader and tarfile read them, whatever does not fit into ustar's fields."""
    rng = random.Random(seed)
    name = b"/".join(
        b"".join(rng.choice((b"a", b"bb", "ü".encode())) for _ in range(rng.randint(1, 40)))
        for _ in range(rng.randint(1, 9))
    )
    fields: dict[str, Any] = {
        "mode": rng.randint(0, 0o7777),
        "uid": rng.choice((0, 2097151, 2097152, 1 << 31)),
        "gid": rng.choice((7, 1 << 21)),
        "modified": rng.choice((0, 1 << 30, 1 << 33, -5)),
        "linkname": rng.choice((b"", b"x" * 100, b"y" * 101, "é".encode())),
    }
    records = rng.choice(({}, {tar.XATTR + b"security.capability": bytes(range(20))}))
    data = tarwrite.header(name, tar.SYMLINK, records=records, **fields)
    assert len(data) % 512 == 0
    entry = tar.Reader(tar.Stream([data, tarwrite.TRAILER])).next()
    assert entry is not None
    assert (entry.name, entry.type, entry.mode, entry.uid, entry.gid, entry.modified, entry.linkname) == (
        name,
        tar.SYMLINK,
        fields["mode"],
        fields["uid"],
        fields["gid"],
        fields["modified"] * 10**9,
        fields["linkname"],
    )
    assert dict(entry.xattrs()) == {key[len(tar.XATTR) :]: value for key, value in records.items()}
    with tarfile.open(fileobj=io.BytesIO(data + END)) as other:
        info = other.next()
    assert info is not None
    assert (info.name.encode(), info.uid, info.mtime, info.linkname.encode()) == (
        name,
        fields["uid"],
        fields["modified"],
        fields["linkname"],
    )


def outcome(data: bytes, chunk: int) -> tuple[list[tuple], str]:
    """The entries until the end or the first error, and that error."""
    reader = tar.Reader(tar.Stream(data[i : i + chunk] for i in range(0, len(data), chunk)))
    found = []
    try:
        while (entry := reader.next()) is not None:
            found.append(tuple(getattr(entry, name) for name in tar.Entry.__slots__))
    except tar.TarError as error:
        return found, str(error)
    return found, ""


ODD = [*b"\0\0\0  0017789/.xLKgS\n=", 0x7F, 0x80, 0xFF]


def damaged(rng: random.Random, archive: bytes) -> bytes:
    """The archive with odd bytes in one or two places; the checksums of what looks like a header are right, mostly."""
    data = bytearray(archive)
    for _ in range(rng.randint(1, 2)):
        block = 512 * rng.randrange(len(data) // 512 - 2)
        start = block + rng.choice(
            (rng.randrange(512), rng.randrange(100, 160), rng.randrange(257, 350), rng.randrange(40))
        )
        for at in range(start, min(start + rng.randint(1, 6), len(data))):
            data[at] = rng.choice(ODD)
        if data[block + 257 : block + 262] == b"ustar" and rng.randrange(8):
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = rng.choice(
                (b"%06o\0 ", b"%06o\0 ", b"%07o\0", b"%06o \0", b"%6o\0 ")
            ) % sum(data[block : block + 512])
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_usual_headers_are_read_as_all_are(seed: int) -> None:
    """Whatever is odd about a header: if the bytes come block by block, so that no header is read in the short way, the
    entries and the error are the same.
    """
    rng = random.Random(seed)
    times = {b"mtime": b"1700000000.123456789", b"atime": b"1700000001.5", b"ctime": b"3"}
    whole = archive(
        reg(b"usr/bin/one", b"1" * 600, prefix=b"a/long/way"),
        pax(times),
        reg(b"two", b"22"),
        pax({b"path": b"usr/share/three", b"SCHILY.xattr.user.x": b"y", b"uid": b"70000000", b"size": b"3"}),
        reg(b"3", b"333"),
        link(b"four", b"usr/bin/one", uid=1000),
        device(b"five", b"3", 1, 5),
        pax({b"linkpath": b"six", b"GNU.sparse.name": b""}, kind=b"x", name=b"p"),
        reg(b"seven/", magic=b"ustar  \0"),
        reg(b"eight", magic=bytes(8)),
    )
    assert outcome(whole, len(whole)) == outcome(whole, 512)
    for _ in range(150):
        data = damaged(rng, whole)
        assert outcome(data, len(data)) == outcome(data, 512), data
