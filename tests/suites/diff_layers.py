"""Layers, ordinary, odd and malicious, of which a Diff service must make the same as containerd."""

from __future__ import annotations

import io
import random
import tarfile

from tests.suites.diff_tars import (
    END,
    MTIME,
    Case,
    base256,
    block,
    device,
    directory,
    link,
    long_name,
    opaque,
    padded,
    pax,
    reg,
    symlink,
    tar,
    whiteout,
)

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep, version 2
BASE = tar(
    directory(b"bin/"),
    reg(b"bin/sh", b"shell", mode=0o755),
    directory(b"etc/", 0o750, uid=5, gid=6),
    reg(b"etc/passwd", b"root"),
    reg(b"etc/group", b"group"),
    directory(b"usr/"),
    directory(b"usr/lib/", 0o2755, gid=7),
    reg(b"usr/lib/a.so", b"a"),
    symlink(b"lib", b"usr/lib"),
    directory(b"var/"),
    directory(b"var/cache/"),
    reg(b"var/cache/one", b"1"),
    reg(b"var/cache/two", b"2"),
    directory(b"var/cache/sub/"),
    reg(b"var/cache/sub/three", b"3"),
)

_GNU = b"ustar  \0"


def _tarfile(fmt: int, *, encoding: str = "utf-8") -> bytes:
    """Ordinary and long things as Python's tarfile writes them, in one of its formats."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=fmt, encoding=encoding, errors="surrogateescape") as archive:
        for name in (
            "short",
            "a/" + "d" * 90 + "/" + "f" * 60,
            "long/" + "x" * 200 + "/" + "y" * 200,
            "naïve/日本語/" + "ß" * 70,
        ):
            if fmt == tarfile.USTAR_FORMAT and len(name.encode()) > 150:
                continue
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode, info.uid = (
                5,
                MTIME + (0.123456 if fmt == tarfile.PAX_FORMAT else 0),
                0o640,
                70000,
            )
            archive.addfile(info, io.BytesIO(b"hello"))
            other = tarfile.TarInfo(name + ".link")
            other.type, other.linkname, other.mtime = (
                tarfile.SYMTYPE,
                name[:99] if fmt == tarfile.USTAR_FORMAT else name,
                MTIME,
            )
            archive.addfile(other)
        big = tarfile.TarInfo("big-owner")
        big.uid, big.gid, big.mtime = (
            (2_000_000, 2_000_000, MTIME) if fmt == tarfile.USTAR_FORMAT else (3_000_000_000, 4_000_000_000, MTIME)
        )
        archive.addfile(big)
    return data.getvalue()


def _sparse_old(*, extended: bool) -> bytes:
    """As GNU tar --sparse --format=gnu writes it."""
    pieces = [(0, b"head"), (4096, b"x" * 10), (8192, b"y" * 512), (20000, b"tail")] + (
        [(30000 + 1000 * i, b"z" * 7) for i in range(24)] if extended else []
    )
    real = 70000
    entries = [b"%011o\0%011o\0" % (offset, len(data)) for offset, data in pieces] + [b"%011o\0%011o\0" % (real, 0)]
    table, rest = entries[:4], entries[4:]
    tail = bytes(41) + b"".join(table).ljust(96, b"\0") + (b"\1" if rest else b"\0") + b"%011o\0" % real
    data = b"".join(d for _, d in pieces)
    out = block(b"sparse", b"S", size=len(data), magic=_GNU, tail=tail)
    while rest:
        out += b"".join(rest[:21]).ljust(504, b"\0") + (b"\1" if len(rest) > 21 else b"\0") + bytes(7)
        rest = rest[21:]
    return tar(out + padded(data), reg(b"after", b"after"))


def _sparse_pax(version: str, *, lie: int = 0) -> bytes:
    pieces = [(100, b"abc"), (5000, b"d" * 600), (9000, b"")]
    data = b"".join(d for _, d in pieces)
    if version == "1.0":
        head = b"%d\n" % len(pieces) + b"".join(b"%d\n%d\n" % (offset, len(d)) for offset, d in pieces)
        records = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": b"sparse/file",
            b"GNU.sparse.realsize": b"9000",
        }
        body = padded(head) + data[: len(data) + lie]
    elif version == "0.1":
        records = {
            b"GNU.sparse.numblocks": b"3",
            b"GNU.sparse.size": b"9000",
            b"GNU.sparse.name": b"sparse/file",
            b"GNU.sparse.map": b",".join(b"%d,%d" % (offset, len(d)) for offset, d in pieces),
        }
        body = data[: len(data) + lie]
    else:
        raw = b""
        from tests.suites.diff_tars import record

        raw += record(b"GNU.sparse.size", b"9000") + record(b"GNU.sparse.numblocks", b"3")
        for offset, d in pieces:
            raw += record(b"GNU.sparse.offset", b"%d" % offset) + record(b"GNU.sparse.numbytes", b"%d" % len(d))
        return tar(pax(raw), reg(b"sparse/file", data), reg(b"after", b"after"))
    return tar(pax(records), reg(b"GNUSparseFile.0/file", body), reg(b"after", b"after"))


def _xattr(name: bytes, value: bytes) -> dict[bytes, bytes]:
    return {b"SCHILY.xattr." + name: value}


ORDINARY = [
    Case("base", BASE),
    Case("empty stream", b""),
    Case("end markers only", tar()),
    Case("one zero block", bytes(512)),
    Case("no end marker", tar(reg(b"a", b"x"), end=b"")),
    Case("padding cut off", tar(reg(b"a", b"x"), end=b"")[:-100]),
    Case("bytes after the end", tar(reg(b"a", b"x")) + b"what is this"),
    Case("blocks of zeros at the end", tar(reg(b"a"), end=bytes(10240))),
    Case(
        "files of many sizes",
        tar(
            *(
                reg(b"f%d" % n, bytes([n % 251]) * n)
                for n in (0, 1, 511, 512, 513, 4096, 262143, 262144, 262145, 1_500_000)
            )
        ),
    ),
    Case(
        "modes",
        tar(
            *(
                reg(b"m%o" % m, mode=m)
                for m in (0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o100644, 0o40755, 0o37777777)
            )
        ),
    ),
    Case("directory modes", tar(*(directory(b"d%o/" % m, m) for m in (0, 0o700, 0o1777, 0o2775, 0o7777)))),
    Case(
        "owners",
        tar(
            reg(b"a", uid=1, gid=2),
            directory(b"d", uid=3, gid=4),
            symlink(b"s", b"a", uid=5, gid=6),
            reg(b"b", uid=2097151, gid=2097151),
        ),
    ),
    Case(
        "setgid directory gives no group",
        tar(directory(b"d/", 0o2755, gid=9), reg(b"d/f", gid=0), directory(b"d/e/", gid=1)),
    ),
    Case(
        "symbolic links",
        tar(
            symlink(b"abs", b"/etc/passwd"),
            symlink(b"rel", b"../x"),
            symlink(b"dangling", b"no/where"),
            symlink(b"loop", b"loop"),
        ),
    ),
    Case(
        "hard links",
        tar(
            reg(b"a", b"data", mode=0o600, uid=3),
            link(b"b", b"a", mode=0o600, uid=3),
            link(b"d/c", b"a"),
            link(b"d/e", b"/d/c"),
            link(b"d/f", b"./d/../a"),
        ),
    ),
    Case(
        "hard link has the last word on metadata",
        tar(reg(b"a", b"x", mode=0o600), link(b"b", b"a", mode=0o755, uid=7, gid=8, mtime=MTIME + 9)),
    ),
    Case(
        "hard link to a symbolic link",
        tar(
            reg(b"a", b"x"),
            symlink(b"s", b"a"),
            link(b"l", b"s"),
            symlink(b"out", b"/etc/passwd"),
            link(b"l2", b"out", mode=0o600),
        ),
    ),
    Case("hard link to the layer below", tar(link(b"new", b"bin/sh")), BASE),
    Case("hard link to nothing", tar(link(b"a", b"nothing"))),
    Case("hard link to a directory", tar(directory(b"d"), link(b"a", b"d"))),
    Case("hard link to itself", tar(reg(b"a", b"x"), link(b"a", b"a"))),
    Case(
        "hard link through symbolic links",
        tar(
            directory(b"usr/lib"),
            symlink(b"lib", b"usr/lib"),
            reg(b"lib/x", b"x"),
            link(b"y", b"lib/x"),
            link(b"z", b"/lib/../lib/x"),
        ),
    ),
    Case("hard link with a size", tar(reg(b"a", b"x" * 600), link(b"b", b"a", size=600), reg(b"c", b"c"))),
    Case(
        "hard link with a size in PAX",
        tar(
            pax({b"mtime": b"1600000000.5"}),
            reg(b"a", b"x" * 600),
            pax({b"mtime": b"1600000000.5"}),
            link(b"b", b"a", size=600),
            reg(b"c", b"c"),
        ),
    ),
    Case(
        "devices",
        tar(
            device(b"null", b"3", 1, 3, mode=0o666),
            device(b"sda", b"4", 8, 0, uid=2),
            device(b"big", b"3", 300, 70000),
            device(b"fifo", b"6", mode=0o622),
            device(b"zero", b"3", 0, 0),
        ),
    ),
    Case("setuid device", tar(device(b"x", b"4", 1, 1, mode=0o4711))),
    Case("parents not named", tar(reg(b"a/b/c/d", b"x"), directory(b"e/f/g"))),
    Case(
        "parents not named have the lower layer's attributes",
        tar(reg(b"etc/new", b"x"), reg(b"usr/lib/sub/deep", b"y")),
        BASE,
    ),
    Case("parents of several kinds below", tar(reg(b"etc/passwd/x", b"x")), BASE),
    Case("deep parents below are no directory", tar(reg(b"etc/passwd/x/y", b"x")), BASE),
    Case(
        "time of a directory after its content",
        tar(directory(b"d", mtime=1000), reg(b"d/f", mtime=2000), directory(b"d/e", mtime=3000), reg(b"d/e/g")),
    ),
    Case(
        "fractions of seconds",
        tar(
            pax({b"mtime": b"1600000000.123456789", b"atime": b"1700000000.5"}),
            reg(b"a"),
            pax({b"mtime": b"1600000000.1234567891234"}),
            reg(b"b"),
            pax({b"mtime": b"1600000001.000000001"}),
            directory(b"d"),
            pax({b"mtime": b"1600000001.000000001"}),
            symlink(b"s", b"a"),
        ),
    ),
    Case(
        "times out of bounds",
        tar(
            pax({b"mtime": b"-5.5"}),
            reg(b"a"),
            pax({b"mtime": b"9223372036.854775807"}),
            reg(b"b"),
            pax({b"mtime": b"9223372037"}),
            reg(b"c"),
            reg(b"d", mtime=0),
            reg(b"e", mtime=base256(1 << 40, 12)),
            reg(b"f", mtime=b"\xff" * 12),
            pax({b"mtime": b"99999999999999999"}),
            reg(b"g"),
        ),
    ),
    Case("ustar by tarfile", _tarfile(tarfile.USTAR_FORMAT)),
    Case("gnu by tarfile", _tarfile(tarfile.GNU_FORMAT)),
    Case("pax by tarfile", _tarfile(tarfile.PAX_FORMAT)),
    Case(
        "latin-1 names",
        tar(
            reg(b"caf\xe9", b"x"),
            pax({b"path": b"na\xefve/\xff\xfe"}),
            reg(b"n", b"y"),
            long_name(b"\xe9" * 120),
            reg(b"z", magic=_GNU),
        ),
    ),
    Case(
        "names with control characters",
        tar(reg(b"a\nb", b"x"), reg(b"tab\there"), pax({b"path": b"new\nline=x"}), reg(b"n"), reg(b"\x7f\x01")),
    ),
    Case("ustar prefix", tar(reg(b"name", b"x", prefix=b"a/pre/fix"), reg(b"f" * 100, prefix=b"p" * 155))),
    Case("component too long", tar(pax({b"path": b"x" * 256}), reg(b"a"))),
    Case("path longer than PATH_MAX", tar(pax({b"path": b"/".join([b"d" * 200] * 30)}), reg(b"a"))),
    Case("path of many components", tar(pax({b"path": b"a/" * 200 + b"f"}), reg(b"a", b"deep"))),
    Case(
        "v7 headers",
        tar(
            block(b"old", b"\0", magic=bytes(8), size=3) + padded(b"old"),
            block(b"dir/", b"\0", magic=bytes(8), mode=0o755),
            block(b"dir/l", b"1", linkname=b"old", magic=bytes(8)),
        ),
    ),
    Case("type NUL with a slash is a directory", tar(block(b"d/", b"\0", mode=0o700), block(b"d/f", b"\0"))),
    Case("type 0 with a slash is a file", tar(reg(b"f/", b"data"))),
    Case("gnu times", tar(block(b"a", b"0", magic=_GNU, tail=b"%011o\0%011o\0" % (MTIME + 5, MTIME + 6)))),
    Case(
        "gnu long link",
        tar(reg(b"x" * 99, b"1"), long_name(b"t" * 300, b"K"), long_name(b"l" * 150), symlink(b"l", b"t", magic=_GNU)),
    ),
    Case(
        "star header",
        tar(
            block(
                b"a",
                b"0",
                tail=(b"pre".ljust(131, b"\0") + b"%011o\0%011o\0" % (MTIME + 7, MTIME)).ljust(163, b"\0") + b"tar\0",
            )
        ),
    ),
    Case(
        "base-256 numbers",
        tar(
            reg(b"a", uid=base256(5, 8), gid=base256(3_000_000_000, 8), mtime=base256(MTIME, 12)),
            block(b"b", b"0", size=base256(3, 12)) + padded(b"abc"),
        ),
    ),
    Case(
        "numbers with spaces", tar(reg(b"a", b"abc", mode=b"  644 \0", size=b"         3 \0\0", mtime=b"           1"))
    ),
    Case(
        "pax overrides",
        tar(
            pax({b"path": b"real", b"uid": b"12", b"gid": b"13", b"size": b"3", b"linkpath": b"z"}),
            block(b"x", b"0", size=0) + padded(b"abc"),
            reg(b"after"),
        ),
    ),
    Case("pax empty values change nothing", tar(pax({b"path": b"", b"uid": b"", b"mtime": b""}), reg(b"x", uid=3))),
    Case("pax last record counts", tar(pax(b"12 path=one\n12 path=two\n"), reg(b"x"))),
    Case("pax for nobody", tar(reg(b"a"), pax({b"path": b"lost"}))),
    Case("pax and gnu names", tar(pax({b"path": b"pax"}), long_name(b"gnu"), reg(b"x"))),
    Case("pax global header", tar(pax({b"comment": b"x", b"uid": b"77"}, b"g", b"pax_global_header"), reg(b"a"))),
    Case("pax global header with a directory", tar(pax({b"comment": b"x"}, b"g", b"tmp/GlobalHead.1.1"), reg(b"a"))),
    Case(
        "pax global header named like a file",
        tar(reg(b"pax_global_header", b"gone"), pax({b"comment": b"x"}, b"g", b"pax_global_header"), reg(b"a")),
    ),
    Case(
        "sparse, old gnu",
        _sparse_old(extended=False),
        differs="containerd reads the old GNU sparse format and then refuses to unpack it; GNU tar --sparse writes it",
    ),
    Case("sparse, old gnu, extended", _sparse_old(extended=True), differs="as before"),
    *(Case(f"sparse, pax {version}", _sparse_pax(version)) for version in ("0.0", "0.1", "1.0")),
    *(Case(f"sparse, pax {version}, too little data", _sparse_pax(version, lie=-5)) for version in ("0.1", "1.0")),
    Case(
        "made by a directory twice",
        tar(directory(b"d", 0o700, mtime=5), reg(b"d/f"), directory(b"d", 0o711, mtime=6, uid=4)),
    ),
    Case("file twice", tar(reg(b"f", b"one", uid=1), reg(b"f", b"two", mode=0o600))),
    Case("hard link then its file again", tar(reg(b"f", b"one"), link(b"g", b"f"), reg(b"f", b"two"))),
]

REPLACED = [
    Case("file over a directory with content", tar(reg(b"etc", b"now a file")), BASE),
    Case("link over a directory with content", tar(symlink(b"etc", b"usr")), BASE),
    Case("directory over a file", tar(directory(b"bin/sh"), reg(b"bin/sh/x", b"x")), BASE),
    Case("directory over a link to a directory", tar(directory(b"lib"), reg(b"lib/b.so", b"b")), BASE),
    Case("directory over a directory keeps its content", tar(directory(b"etc", 0o711, uid=1)), BASE),
    Case("file over a link", tar(reg(b"lib", b"file")), BASE),
    Case(
        "file over a link to a file outside its directory", tar(symlink(b"a", b"etc/passwd"), reg(b"a", b"mine")), BASE
    ),
    Case("link over a link", tar(symlink(b"lib", b"etc")), BASE),
    Case("device over a file", tar(device(b"bin/sh", b"3", 1, 3)), BASE),
    Case("directory replaced within the layer", tar(directory(b"d"), reg(b"d/f"), reg(b"d", b"file"))),
    Case(
        "directory replaced by a link within the layer",
        tar(directory(b"d"), reg(b"d/f"), directory(b"e", mtime=9), symlink(b"d", b"e"), reg(b"d/g", b"g")),
    ),
    Case(
        "link replaced by a directory within the layer",
        tar(directory(b"e"), symlink(b"d", b"e"), reg(b"d/f", b"1"), directory(b"d"), reg(b"d/g", b"2")),
    ),
    Case(
        "parent removed within the layer",
        tar(directory(b"d"), reg(b"d/f"), whiteout(b"d"), reg(b"d/g")),
        targets=("plain",),
    ),
]

LINKED = [
    Case("into a linked directory below", tar(reg(b"lib/new.so", b"n")), BASE),
    Case(
        "into a linked directory of the layer",
        tar(
            directory(b"usr/lib"),
            symlink(b"lib", b"usr/lib"),
            reg(b"lib/x", b"x"),
            directory(b"lib/d"),
            symlink(b"lib/s", b"x"),
            link(b"lib/h", b"lib/x"),
        ),
    ),
    Case("absolute link as parent", tar(directory(b"usr/lib"), symlink(b"lib", b"/usr/lib"), reg(b"lib/x", b"x"))),
    Case(
        "link with dots as parent",
        tar(
            directory(b"a/b"),
            symlink(b"a/b/up", b"../../.."),
            reg(b"a/b/up/x", b"x"),
            symlink(b"a/c", b"../../../../a/b"),
            reg(b"a/c/y", b"y"),
        ),
    ),
    Case("dangling link as parent", tar(symlink(b"d", b"to/be"), reg(b"d/x", b"x"))),
    Case("dangling link through what is missing", tar(symlink(b"d", b"missing/../e"), reg(b"d/x", b"x"))),
    Case(
        "link through a link and back",
        tar(directory(b"x/y"), symlink(b"l", b"x/y"), symlink(b"m", b"l/../z"), reg(b"m/f", b"f")),
    ),
    Case(
        "link through a link and back, named absolutely",
        tar(directory(b"x/y"), symlink(b"l", b"x/y"), symlink(b"m", b"l/../z"), reg(b"/m/f", b"f")),
    ),
    Case(
        "link through a link and back, further in",
        tar(
            directory(b"a/x/y"),
            symlink(b"a/l", b"x/y"),
            symlink(b"a/m", b"l/../z"),
            reg(b"a/m/f", b"f"),
            reg(b"../a/m/g", b"f"),
            directory(b"m", mtime=4),
            symlink(b"k", b"a/l/../z"),
            directory(b"k/d", mtime=5),
            directory(b"../k/e", mtime=6),
        ),
    ),
    Case(
        "hard link through a link and back",
        tar(
            directory(b"x/y"),
            reg(b"x/f", b"1"),
            reg(b"f", b"2"),
            symlink(b"l", b"x/y"),
            link(b"h1", b"l/../f"),
            link(b"h2", b"/l/../f"),
            link(b"h3", b"./l/../f"),
        ),
    ),
    Case(
        "chain of links",
        tar(
            directory(b"end"),
            *(symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(100)),
            symlink(b"l100", b"end"),
            reg(b"l0/x", b"x"),
        ),
    ),
    Case("links in circles as parent", tar(symlink(b"a", b"b"), symlink(b"b", b"a"), reg(b"a/x"))),
    Case("link to itself as parent", tar(symlink(b"a", b"a"), reg(b"a/x"))),
    Case("link to a file as parent", tar(reg(b"f"), symlink(b"a", b"f"), reg(b"a/x"))),
    Case("file as parent", tar(reg(b"f"), reg(b"f/x"))),
    Case("file as grandparent", tar(reg(b"f"), reg(b"f/x/y"))),
    Case(
        "directory time through a link",
        tar(
            directory(b"e"),
            directory(b"d", mtime=7),
            symlink(b"l", b"d"),
            directory(b"l/sub", mtime=8),
            reg(b"l/sub/x"),
        ),
    ),
]

MALICIOUS = [
    Case(
        "dots in names",
        tar(
            reg(b"../up", b"x"),
            reg(b"../../../../etc/up", b"y"),
            reg(b"a/../../b", b"z"),
            reg(b"./c/./d/../e", b"e"),
            reg(b"..", b"no"),
            directory(b"../f/"),
        ),
    ),
    Case(
        "absolute names",
        tar(reg(b"/abs", b"x"), reg(b"//double//slash", b"y"), directory(b"/d/"), reg(b"/../up", b"z")),
    ),
    Case(
        "names of the root",
        tar(
            directory(b"./", 0o700, uid=9),
            directory(b"/"),
            directory(b"."),
            reg(b"", b""),
            directory(b"a/.."),
            symlink(b"..", b"etc"),
            reg(b"./", b"x"),
        ),
    ),
    Case(
        "link out, then a file through it",
        tar(symlink(b"out", b"/"), reg(b"out/evil", b"x"), symlink(b"up", b"../../../.."), reg(b"up/evil2", b"y")),
    ),
    Case("link out to where the tests are", tar(symlink(b"out", b"/tmp"), reg(b"out/evil", b"x"))),
    Case("file over a link out", tar(symlink(b"f", b"/etc/hostname"), reg(b"f", b"evil"))),
    Case("hard link out", tar(link(b"a", b"/etc/hostname"))),
    Case("hard link out by dots", tar(link(b"a", b"../../../../../../etc/hostname"))),
    Case("hard link out through a link", tar(symlink(b"e", b"/etc"), link(b"a", b"e/hostname"))),
    Case(
        "hard link to a link out, then written",
        tar(symlink(b"e", b"/etc/hostname"), link(b"a", b"e"), reg(b"a", b"evil")),
    ),
    Case("hard link to the root", tar(link(b"a", b"/"))),
    Case("hard link to dots", tar(link(b"a", b".."))),
    Case("whiteouts that go up", tar(reg(b".wh..")), BASE),
    Case("whiteout of the parent", tar(reg(b"etc/.wh...")), BASE),
    Case("whiteout of nothing", tar(reg(b"etc/.wh.")), BASE),
    Case("whiteout through a link out", tar(symlink(b"e", b"/etc"), reg(b"e/.wh.hostname"))),
    Case("opaque through a link out", tar(symlink(b"e", b"/etc"), reg(b"e/.wh..wh..opq"))),
    Case(
        "trusted xattrs are not taken",
        tar(
            pax(_xattr(b"trusted.overlay.opaque", b"y")), directory(b"d"), pax(_xattr(b"trusted.foo", b"x")), reg(b"f")
        ),
    ),
    Case("garbage", random.Random(5).randbytes(4096)),
    Case("text", b"#mtree\n./a type=file\n" * 60),
    Case("cpio", b"070701" + b"0" * 1000),
    Case("short garbage", b"hello"),
    Case("bad checksum", tar(reg(b"a"), block(b"b", checksum=b"000000\0 "), reg(b"c"))),
    Case(
        "signed checksum",
        tar(block(b"caf\xe9", checksum=b"%06o\0 " % (sum(block(b"caf\xe9", checksum=b" " * 8)) - 256))),
    ),
    Case("zero block then more", tar(reg(b"a"), bytes(512), reg(b"b"))),
    Case("header cut off", tar(reg(b"a"), reg(b"b"), end=b"")[:-200]),
    Case("data cut off", reg(b"a", b"x" * 5000)[:3000]),
    Case("skipped data cut off", block(b"a", b"5", size=0) + block(b".wh.x", b"0", size=5000) + bytes(100)),
    Case("negative size", tar(reg(b"a", size=b"\xff" * 12))),
    Case("negative size of a directory", tar(block(b"a", b"5", size=b"\xff" * 12), reg(b"b"))),
    Case("huge size", block(b"a", b"0", size=base256(1 << 62, 12)) + bytes(2048)),
    Case("overflowing number", tar(reg(b"a", uid=b"\x80\xff" + b"\xff" * 6), block(b"b", size=b"\x81" + bytes(11)))),
    Case("octal digits that are none", tar(reg(b"a", mode=b"0000888\0"))),
    Case("number with junk", tar(reg(b"a", uid=b"12x\0\0\0\0\0"))),
    Case("number with a sign", tar(reg(b"a", uid=b"-1\0\0\0\0\0\0"))),
    Case("number with an underscore", tar(reg(b"a", uid=b"1_0\0\0\0\0\0"))),
    Case(
        "owner minus one",
        tar(
            reg(b"a", uid=base256(0xFFFFFFFF, 8)),
            pax({b"uid": b"-1"}),
            reg(b"b"),
            pax({b"uid": b"4294967301"}),
            reg(b"c"),
        ),
    ),
    Case("pax number is none", tar(pax({b"uid": b"1x"}), reg(b"a"))),
    Case("pax number has underscores", tar(pax({b"uid": b"1_0"}), reg(b"a"))),
    Case("pax number has a plus", tar(pax({b"uid": b"+10"}), reg(b"a"))),
    Case("pax number has a blank", tar(pax({b"uid": b" 10"}), reg(b"a"))),
    Case("pax time is none", tar(pax({b"mtime": b"1.2.3"}), reg(b"a"))),
    Case("pax time ends in a dot", tar(pax({b"mtime": b"5."}), reg(b"a"))),
    Case("pax record too short", tar(pax(b"3 a=b\n"), reg(b"a"))),
    Case("pax record too long", tar(pax(b"99 path=x\n"), reg(b"a"))),
    Case("pax record without newline", tar(pax(b"10 path=xx"), reg(b"a"))),
    Case("pax record without equals", tar(pax(b"9 pathxx\n"), reg(b"a"))),
    Case("pax record without key", tar(pax(b"6 =xx\n"), reg(b"a"))),
    Case("pax name with NUL", tar(pax({b"path": b"a\0b"}), reg(b"a"))),
    Case("pax header too large", tar(pax(b"x" * (1 << 20) + b"y"), reg(b"a"))),
    Case("pax header of the largest size", tar(pax(b"1048576 comment=" + b"x" * (1048576 - 17) + b"\n"), reg(b"a"))),
    Case("pax size lies", pax({b"size": b"5000"}) + reg(b"a", b"x") + END),
    Case("unknown types", tar(block(b"a", b"7", size=3) + padded(b"abc"))),
    Case("unknown type Z", tar(block(b"a", b"Z"))),
    Case("volume label", tar(block(b"label", b"V", magic=_GNU), reg(b"a"))),
    Case("dumpdir", tar(block(b"d/", b"D", magic=_GNU))),
    Case("socket mode", tar(reg(b"a", mode=0o140644))),
    Case("symbolic link to nothing at all", tar(symlink(b"a", b""))),
    Case("symbolic link too long", tar(pax({b"linkpath": b"x" * 4096}), symlink(b"a", b"x"))),
    Case(
        "sparse map overlaps",
        tar(
            pax(
                {
                    b"GNU.sparse.major": b"0",
                    b"GNU.sparse.minor": b"1",
                    b"GNU.sparse.numblocks": b"2",
                    b"GNU.sparse.size": b"100",
                    b"GNU.sparse.map": b"0,10,5,10",
                }
            ),
            reg(b"a", b"x" * 20),
        ),
    ),
    Case(
        "sparse map beyond the end",
        tar(
            pax(
                {
                    b"GNU.sparse.major": b"0",
                    b"GNU.sparse.minor": b"1",
                    b"GNU.sparse.numblocks": b"1",
                    b"GNU.sparse.size": b"5",
                    b"GNU.sparse.map": b"0,10",
                }
            ),
            reg(b"a", b"x" * 10),
        ),
    ),
    Case(
        "sparse map with another count",
        tar(
            pax({b"GNU.sparse.map": b"0,10", b"GNU.sparse.numblocks": b"2", b"GNU.sparse.size": b"50"}),
            reg(b"a", b"x" * 10),
        ),
    ),
    Case(
        "sparse with more data than its map",
        tar(
            pax({b"GNU.sparse.map": b"0,10", b"GNU.sparse.numblocks": b"1", b"GNU.sparse.size": b"50"}),
            reg(b"a", b"x" * 20),
        ),
    ),
    Case(
        "sparse of unknown version",
        tar(
            pax({b"GNU.sparse.major": b"2", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"n"}), reg(b"a", b"x" * 20)
        ),
    ),
    Case(
        "sparse directory",
        tar(
            pax({b"GNU.sparse.map": b"0,10", b"GNU.sparse.numblocks": b"1", b"GNU.sparse.size": b"50"}), directory(b"a")
        ),
    ),
    Case(
        "sparse stored map is no map",
        tar(pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}), reg(b"a", padded(b"x\n1\n"))),
    ),
    Case(
        "sparse with an enormous hole",
        tar(
            pax({b"GNU.sparse.map": b"1000000,1", b"GNU.sparse.numblocks": b"1", b"GNU.sparse.size": b"1000001"}),
            reg(b"a", b"x"),
        ),
    ),
]

WHITEOUTS = [
    Case("whiteout of a file", tar(whiteout(b"etc/passwd")), BASE),
    Case("whiteout of a directory", tar(whiteout(b"var")), BASE),
    Case("whiteout of a link", tar(whiteout(b"lib")), BASE),
    Case("whiteout of nothing there", tar(whiteout(b"etc/nothing"), whiteout(b"no/such")), BASE),
    Case("whiteout with an owner", tar(reg(b"etc/.wh.passwd", b"", uid=4, gid=5)), BASE),
    Case("whiteout with data", tar(reg(b"etc/.wh.passwd", b"data" * 300), reg(b"x", b"x")), BASE),
    Case(
        "whiteout of another type",
        tar(symlink(b"etc/.wh.passwd", b"x"), directory(b"etc/.wh.group"), link(b"bin/.wh.sh", b"no")),
        BASE,
    ),
    Case("whiteout twice", tar(whiteout(b"etc/passwd"), whiteout(b"etc/passwd")), BASE),
    Case("whiteout then a file", tar(whiteout(b"etc/passwd"), reg(b"etc/passwd", b"new")), BASE),
    Case("whiteout then a directory", tar(whiteout(b"etc"), directory(b"etc/"), reg(b"etc/new", b"x")), BASE),
    Case("whiteout then below it", tar(whiteout(b"etc"), reg(b"etc/new", b"x")), BASE),
    Case("file then its whiteout", tar(reg(b"etc/passwd", b"new"), whiteout(b"etc/passwd")), BASE),
    Case("directory then its whiteout", tar(directory(b"new"), whiteout(b"new"))),
    Case("whiteout of a file of the layer", tar(reg(b"x", b"x"), reg(b"y"), whiteout(b"x"))),
    Case("whiteout of a parent that is not named", tar(whiteout(b"deep/er/est"), reg(b"deep/er/f"))),
    Case("whiteouts in a link", tar(whiteout(b"lib/a.so")), BASE),
    Case("whiteout below a file", tar(whiteout(b"etc/passwd/x")), BASE),
    Case("opaque", tar(directory(b"var/cache/"), opaque(b"var/cache"), reg(b"var/cache/new", b"n")), BASE),
    Case(
        "opaque at the end",
        tar(
            directory(b"var/cache/"),
            reg(b"var/cache/new", b"n"),
            directory(b"var/cache/sub/"),
            reg(b"var/cache/sub/four", b"4"),
            opaque(b"var/cache"),
        ),
        BASE,
    ),
    Case(
        "opaque in the middle",
        tar(
            directory(b"var/"),
            directory(b"var/cache/"),
            reg(b"var/cache/a"),
            opaque(b"var/cache"),
            reg(b"var/cache/b"),
            reg(b"var/cache/two", b"mine"),
        ),
        BASE,
    ),
    Case("opaque above", tar(directory(b"var/"), directory(b"var/cache/"), reg(b"var/cache/a"), opaque(b"var")), BASE),
    Case("opaque of a directory not named", tar(opaque(b"var/cache")), BASE),
    Case("opaque of a directory not there", tar(opaque(b"no/such/directory")), BASE),
    Case("opaque at the root", tar(reg(b"new", b"x"), opaque(b"")), BASE),
    Case("opaque twice", tar(opaque(b"var"), reg(b"var/x"), opaque(b"var")), BASE),
    Case("opaque in a link", tar(opaque(b"lib")), BASE),
    Case(
        "opaque and links",
        tar(directory(b"var/cache"), symlink(b"var/cache/s", b"../../etc"), opaque(b"var/cache")),
        BASE,
    ),
    Case(
        "opaque with unnamed directories",
        tar(reg(b"var/cache/sub/four", b"4"), reg(b"var/cache/other/x", b"x"), opaque(b"var/cache")),
        BASE,
        differs="containerd's marker removes what the layer itself has unpacked in directories it does not name",
        targets=("plain",),
    ),
    Case(
        "opaque with unnamed directories, overlay",
        tar(reg(b"var/cache/sub/four", b"4"), opaque(b"var/cache")),
        BASE,
        targets=("overlay",),
    ),
    Case(
        "aufs files",
        tar(
            directory(b".wh..wh.plnk"),
            reg(b".wh..wh.plnk/123.456", b"x"),
            reg(b".wh..wh.aufs", b""),
            directory(b".wh..wh.orph"),
            reg(b"a", b"a"),
        ),
    ),
    Case("aufs link files", tar(reg(b".wh..wh.plnk/1.2", b"x"), link(b"a", b".wh..wh.plnk/1.2"))),
    Case(
        "names that only look like it",
        tar(reg(b".whx"), reg(b"wh.x"), reg(b"a.wh.b"), reg(b".WH.x"), directory(b".wh"), reg(b".wh/x")),
    ),
]

XATTRS = [
    Case(
        "capability",
        tar(pax(_xattr(b"security.capability", CAPABILITY)), reg(b"ping", b"elf", mode=0o755, uid=3), reg(b"plain")),
    ),
    Case(
        "user xattrs",
        tar(
            pax({**_xattr(b"user.one", b"1"), **_xattr(b"user.empty", b""), **_xattr(b"user.bin", bytes(range(256)))}),
            reg(b"a"),
            pax(_xattr(b"user.dir", b"d")),
            directory(b"d"),
        ),
    ),
    Case(
        "user xattr of a link",
        tar(pax(_xattr(b"user.x", b"1")), symlink(b"s", b"a"), pax(_xattr(b"user.x", b"1")), device(b"f", b"6")),
    ),
    Case("security xattr of a link", tar(pax(_xattr(b"security.test", b"1")), symlink(b"s", b"a"))),
    Case("xattr on a hard link", tar(reg(b"a"), pax(_xattr(b"user.x", b"1")), link(b"b", b"a"))),
    Case("xattr of no namespace", tar(pax(_xattr(b"nothing", b"1")), reg(b"a"))),
    Case("xattr without a name", tar(pax(_xattr(b"", b"1")), reg(b"a"))),
    Case("xattr name too long", tar(pax(_xattr(b"user." + b"x" * 300, b"1")), reg(b"a"))),
    Case("xattr too large", tar(pax(_xattr(b"user.x", b"1" * 70000)), reg(b"a"))),
    Case("xattr with equals in its value", tar(pax(_xattr(b"user.x", b"a=b=c\nd")), reg(b"a"))),
    Case(
        "posix acl",
        tar(
            pax(
                _xattr(
                    b"system.posix_acl_access",
                    bytes.fromhex(
                        "0200000001000600ffffffff020007000500000004000400ffffffff10000700ffffffff20000400ffffffff"
                    ),
                )
            ),
            reg(b"a", mode=0o674),
        ),
    ),
    Case(
        "acl records are not taken",
        tar(pax({b"SCHILY.acl.access": b"user::rw-,group::r--,other::---"}), reg(b"a", mode=0o640)),
    ),
    Case("libarchive's xattr records are not taken", tar(pax({b"LIBARCHIVE.xattr.user.x": b"MQ=="}), reg(b"a"))),
    Case(
        "selinux records are not taken", tar(pax({b"RHT.security.selinux": b"system_u:object_r:etc_t:s0"}), reg(b"a"))
    ),
    Case(
        "xattrs inherited by parents not named",
        tar(reg(b"d/new", b"x")),
        tar(pax(_xattr(b"user.mine", b"m")), directory(b"d", 0o711, uid=3)),
    ),
    Case("overlay's user xattrs", tar(pax(_xattr(b"user.overlay.opaque", b"y")), directory(b"d"))),
]

ALL = [*ORDINARY, *REPLACED, *LINKED, *MALICIOUS, *WHITEOUTS, *XATTRS]


def shuffled(seed: int) -> Case:
    """A layer of random entries over a random layer. They have few names, so that entries meet in every way."""
    rng = random.Random(seed)
    names = [b"a", b"b", b"c", b"a/b", b"a/c", b"b/a", b"a/b/c", b"c/a/b", b"b/a/c"]
    opaques = rng.random() < 0.5

    def members(count: int, *, whiteouts: bool) -> bytes:
        made = []
        files: list[bytes] = []
        for _ in range(count):
            name = rng.choice(names)
            fields = {"uid": rng.randint(0, 3), "mtime": MTIME + rng.randint(0, 99)}
            if opaques or rng.random() < 0.5:
                # Named directories come first: containerd's opaque marker removes unnamed ones, with the layer's files
                # in them.
                parts = name.split(b"/")
                made += [directory(b"/".join(parts[:i]), **fields) for i in range(1, len(parts))]
            match rng.randint(0, 11 if whiteouts and opaques else 10 if whiteouts else 8):
                case 0 | 1 | 2 | 3:
                    made.append(
                        reg(name, rng.randbytes(rng.randint(0, 700)), mode=rng.choice((0o600, 0o4755)), **fields)
                    )
                    files.append(name)
                case 4 | 5:
                    made.append(directory(name, rng.choice((0o700, 0o1777)), **fields))
                case 6:
                    made.append(
                        symlink(
                            name, rng.choice((b"a", b"b", b"../c", b"/a/b", b"../../..", b"c/../a", b".")), **fields
                        )
                    )
                case 7 if files:
                    made.append(link(name, rng.choice(files), **fields))
                case 7 | 8:
                    made.append(device(name, b"6", **fields))
                case 9 | 10:
                    made.append(whiteout(name))
                case _:
                    made += [directory(name, **fields), opaque(name)]
        return b"".join(made) + END

    return Case(
        f"random {seed}", members(rng.randint(1, 8), whiteouts=True), members(rng.randint(0, 8), whiteouts=False)
    )
