"""Diff.Diff beside containerd's: the same two trees, the same layer; and a layer made and applied gives the tree it
was made of.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import socket
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit import errors
from tests.suites.diff_layers import CAPABILITY
from tests.suites.diff_sides import Side, bind, differences, outcome, overlay, tree

pytestmark = [pytest.mark.root, pytest.mark.once]
LAYER = "application/vnd.oci.image.layer.v1.tar"
UNCOMPRESSED = "containerd.io/uncompressed"
OLD = 1_500_000_000


def put(path: Path, data: bytes = b"data", *, mode: int = 0o644, when: float = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(int(when * 10**9), int(when * 10**9)))


def settle(root: Path) -> None:
    """Directories get a time of their own, so that both sides see the same."""
    for directory, _, _ in os.walk(root, topdown=False):
        os.utime(directory, (OLD, OLD))


def base(root: Path) -> None:
    for name in (
        "etc/passwd",
        "etc/group",
        "usr/bin/tool",
        "usr/lib/one.so",
        "usr/lib/two.so",
        "var/cache/a/b/c",
        "var/log/x",
        "zero/empty",
    ):
        put(root / name, name.encode() * 10)
    put(root / "usr/bin/suid", mode=0o4755)
    (root / "lib").symlink_to("usr/lib")
    os.mkfifo(root / "fifo")
    os.link(root / "etc/passwd", root / "etc/passwd-")
    os.link(root / "usr/lib/two.so", root / "var/two.so")
    os.link(root / "usr/lib/two.so", root / "a-two.so")
    settle(root)


def nothing(root: Path) -> None:
    pass


def many_changes(root: Path) -> None:
    # the same inode: its link changes too
    put(root / "etc/passwd", b"changed, so its link is another file", when=OLD + 1)
    put(root / "etc/new", b"n" * 5000)
    (root / "usr/bin/tool").chmod(0o755)
    os.chown(root / "usr/lib/one.so", 3, 4)
    shutil.rmtree(root / "var/cache")
    (root / "lib").unlink()
    put(root / "lib/real", b"a directory now")
    shutil.rmtree(root / "zero")
    (root / "zero").symlink_to("nowhere")
    (root / "fifo").unlink()
    os.mknod(root / "null", 0o600 | 0o020000, os.makedev(1, 3))
    os.mknod(root / "disk", 0o660 | 0o060000, os.makedev(259, 70000))
    put(root / "ping", b"elf", mode=0o755)
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    os.setxattr(root / "ping", "user.not", b"carried")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
    settle(root)


def odd_names(root: Path) -> None:
    for name in (
        "x" * 99,
        "x" * 100,
        "x" * 101,
        "x" * 255,
        "d" * 60 + "/" + "e" * 60,
        "p" * 150 + "/" + "f" * 100,
        "p" * 156 + "/f",
        "ünï/cödé",
        "日本" * 30,
        "q" * 99 + "/",
        "w" * 100 + "/",
        "new\nline",
        "a=b",
        "r" * 100 + "/ü",
    ):
        if name.endswith("/"):
            (root / name).mkdir()
        else:
            put(root / name)
    (root / "to-long").symlink_to("t" * 150)
    (root / "to-unicode").symlink_to("ü")
    put(Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")))
    os.link(root / ("x" * 255), root / "link-to-long")
    settle(root)


def odd_numbers(root: Path) -> None:
    for i, (uid, when, mode) in enumerate(
        (
            (2097151, OLD, 0o644),
            (2097152, OLD, 0o644),
            (4_000_000_000, OLD, 0o7777),
            (0, -5, 0o644),
            (0, OLD + 0.75, 0),
            (0, -1.25, 0o644),
            (0, 8_589_934_591, 0o600),
            (0, 8_589_934_592, 0o600),
        )
    ):
        put(root / f"n{i}", mode=mode, when=when)
        os.chown(root / f"n{i}", uid, uid)
        os.chmod(root / f"n{i}", mode)
        os.utime(root / f"n{i}", ns=(0, int(when * 10**9)))
    with (root / "sparse").open("wb") as file:
        file.truncate(3_000_000)
    os.utime(root / "sparse", (OLD, OLD))
    settle(root)


def linked(root: Path) -> None:
    """One of three links changes its metadata, a new link of an unchanged file comes first and last."""
    os.chown(root / "usr/lib/two.so", 9, 9)
    os.link(root / "etc/group", root / "zz-group")
    os.link(root / "var/log/x", root / "aa-x")
    put(root / "m/1", b"new")
    os.link(root / "m/1", root / "m/2")
    os.link(root / "m/1", root / "a-first")
    settle(root)


def same_size_and_time(root: Path) -> None:
    """Changes that only bytes tell, where times are whole seconds; and one that a fraction hides."""
    data = (root / "etc/group").read_bytes()
    put(root / "etc/group", data[::-1])
    (root / "lib").unlink()
    (root / "lib").symlink_to("usr/bin")
    put(root / "var/log/x", b"same")
    settle(root)


def touched(root: Path) -> None:
    os.utime(root / "etc/group", ns=(OLD, OLD * 10**9 + 5))
    os.utime(root / "var/log/x", (OLD + 1, OLD + 1))
    os.utime(root / "etc", (OLD + 2, OLD + 2))
    (root / "usr/lib").chmod(0o700)


def emptied(root: Path) -> None:
    for name in os.listdir(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def swapped(root: Path) -> None:
    """Directories become files and files directories; names that sort around a slash."""
    shutil.rmtree(root / "usr")
    put(root / "usr")
    (root / "etc/passwd").unlink()
    put(root / "etc/passwd/x")
    put(root / "var-x/y")
    put(root / "var.x")
    settle(root)


CHANGES = [nothing, many_changes, odd_names, odd_numbers, linked, same_size_and_time, touched, emptied, swapped]


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def trees(side: Side, change: Callable[[Path], None], before: Callable[[Path], None] = base) -> tuple[Path, Path]:
    """A tree and what has become of it, as copies that share nothing."""
    left, right = side.directory("left"), side.directory("right")
    for root in (left, right):
        before(root)
        for path in (root / "lib", root / "fifo"):
            if os.path.lexists(path):
                os.utime(path, (OLD, OLD), follow_symlinks=False)
    change(right)
    for root in (left, right):
        for directory, directories, names in os.walk(os.fsencode(root)):
            for name in (*names, *directories):  # links to directories are among the latter
                each = directory + b"/" + name
                if os.lstat(each).st_mtime > OLD + 100 and not os.lstat(each).st_mtime > 4 * 10**9:
                    os.utime(each, (OLD, OLD), follow_symlinks=False)
    return left, right


def without_times(data: bytes) -> bytes:
    """containerd 1.6 gives whiteouts the time of now: a tar with those at 1970, as 2.x makes them."""
    out = bytearray(data)
    at = 0
    while out[at : at + 512].strip(b"\0"):
        block = out[at : at + 512]
        if b"/.wh." in b"/" + block[:100] + block[345:500]:
            block[136:148] = b"00000000000\0"
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            out[at : at + 512] = block
        at += 512 + -(-int(bytes(block[124:135]), 8) // 512) * 512
    return bytes(out)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_layer_is_the_one_that_containerd_makes(
    change: Callable[[Path], None], sides: tuple[Side, Side]
) -> None:
    """Two trees give the same tar stream, byte for byte (but for the time of whiteouts, which only containerd 2.x
    sets to 1970).
    """
    made = []
    for side in sides:
        left, right = trees(side, change)
        layer = await side.make(bind(left), bind(right), media_type=LAYER)
        made.append(without_times(await side.read(layer.digest)))
    if made[0] != made[1]:
        listed = [
            [(m.name, m.type, m.size, m.mtime, m.mode, m.uid, m.linkname) for m in members(data)] for data in made
        ]
        assert listed[0] == listed[1]
    assert made[0] == made[1]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_layer_applied_gives_the_tree_that_it_was_made_of(change: Callable[[Path], None], side: Side) -> None:
    """Made of two trees and applied to the older, a layer gives the newer: but for xattrs, sockets and fractions of
    seconds, which layers of containerd do not carry.
    """
    left, right = trees(side, change)
    layer = await side.make(bind(left), bind(right))
    await side.apply(await side.read(layer.digest), bind(left), layer.media_type)
    (right / "socket").unlink(missing_ok=True)
    if (right / "ping").exists():
        os.removexattr(right / "ping", "user.not")
    for path in (right, *right.rglob("*")):
        if os.lstat(path).st_mtime_ns % 10**9:
            os.utime(path, (OLD, OLD), follow_symlinks=False)
            os.utime(left / path.relative_to(right), (OLD, OLD), follow_symlinks=False)
    one, other = tree(left), tree(right)
    if change is odd_numbers:  # a time before 1970 is not applied, by containerd's rule
        assert one.pop(b"n3").modified == 0
        other.pop(b"n3")
    if change is touched:  # a directory is the same whatever its time
        one.pop(b"etc")
        other.pop(b"etc")
    assert not differences(one, other)


async def test_an_overlay_is_compared_with_its_lower_directory(side: Side) -> None:
    """The usual case: left the parent, right an overlay on it, whose whiteouts and opaque directories become the
    layer's.
    """
    lower, upper, work = side.directory("lower"), side.directory("upper"), side.directory("work")
    base(lower)
    os.mknod(upper / "lib", 0o020000, 0)
    (upper / "var").mkdir()
    (upper / "var/cache").mkdir()
    os.setxattr(upper / "var/cache", "trusted.overlay.opaque", b"y")
    put(upper / "var/cache/new")
    layer = await side.make(bind(lower, "ro"), overlay(upper, work, lower), media_type=LAYER)
    names = [m.name for m in members(await side.read(layer.digest))]
    assert names == [".wh.lib", "var", "var/cache", "var/cache/.wh.a", "var/cache/new"]


@pytest.mark.parametrize(
    ("media_type", "inflate"),
    [
        ("", lambda data: zlib.decompress(data, wbits=31)),
        (LAYER + "+gzip", lambda data: zlib.decompress(data, wbits=31)),
        (LAYER + "+zstd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
        (LAYER, bytes),
    ],
)
async def test_a_compressed_layer_carries_its_diff_id(
    media_type: str, inflate: Callable[[bytes], bytes], side: Side
) -> None:
    """The descriptor names the blob; its label is the digest of what is in it, and the caller's labels are there."""
    left, right = trees(side, many_changes)
    put(right / "unique", media_type.encode())  # a blob that is there already keeps its labels
    layer = await side.make(bind(left), bind(right), media_type=media_type, labels={"mine": "x"}, ref="my-ref")
    data = await side.read(layer.digest)
    assert layer.media_type == (media_type or LAYER + "+gzip")
    assert (layer.digest, layer.size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    expected = {"mine": "x"}
    if media_type != LAYER:
        expected[UNCOMPRESSED] = f"sha256:{hashlib.sha256(inflate(data)).hexdigest()}"
    assert await side.labels(layer.digest) == expected
    again = await side.make(bind(left), bind(right), media_type=media_type)
    assert again == layer


async def test_no_entry_is_later_than_the_source_date_epoch(sides: tuple[Side, Side]) -> None:
    """SOURCE_DATE_EPOCH bounds the times of all entries."""
    side = sides[0]
    left, right = trees(side, many_changes)
    layer = await side.make(
        bind(left), bind(right), media_type=LAYER, source_date_epoch=Timestamp(seconds=OLD - 1000, nanos=5)
    )
    times = {m.name: m.mtime for m in members(await side.read(layer.digest))}
    assert set(times.values()) == {OLD - 1000, 0}
    assert all(".wh." in name for name, when in times.items() if when == 0)


async def test_what_cannot_be_made_is_said_as_containerd_says_it(sides: tuple[Side, Side]) -> None:
    """Another media type is UNIMPLEMENTED; a source that is not there fails to mount; no ingest stays."""
    for side in sides:
        left, right = trees(side, nothing)
        verdict, error = await outcome(
            side.make(bind(left), bind(right), media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")
        )
        assert verdict == "refused"
        assert isinstance(error, errors.Unimplemented)
        assert (
            str(error)
            == "unsupported diff media type: application/vnd.docker.image.rootfs.diff.tar.gzip: not implemented"
        )
        verdict, error = await outcome(side.make(bind(left), bind(side.place / "missing")))
        assert verdict == "refused"
        assert isinstance(error, errors.Unknown)
        assert "no such file or directory" in str(error)


@pytest.mark.parametrize("seed", range(25))
async def test_random_trees_give_the_layer_that_containerd_makes(seed: int, sides: tuple[Side, Side]) -> None:
    """Two trees of few names, of all kinds, some linked with each other."""

    def grow(salt: int) -> Callable[[Path], None]:
        def inner(root: Path) -> None:
            rng = random.Random(seed * 1000 + salt)
            names = ["a", "b", "c", "a/b", "a/c", "b/a", "a/b/c", "c/a/b", "b.x", "a-b/c"]
            for _ in range(12):
                path = root / rng.choice(names)
                if any(
                    (p.exists() and not p.is_dir()) or p.is_symlink()
                    for p in path.parents
                    if p != root and root in p.parents
                ):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if os.path.lexists(path):
                    if path.is_dir() and not path.is_symlink():
                        if rng.random() < 0.5:
                            continue
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                match rng.randint(0, 6):
                    case 0 | 1:
                        put(path, bytes([rng.randint(0, 1)]) * rng.choice((0, 5)), when=OLD + rng.randint(0, 1))
                    case 2:
                        path.mkdir()
                    case 3:
                        path.symlink_to(rng.choice("xy"))
                    case 4:
                        os.mkfifo(path)
                    case 5:
                        files = [p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink()]
                        if files:
                            os.link(rng.choice(files), path)
                    case _:
                        continue
            for found in root.rglob("*"):
                if not found.is_file() or found.is_symlink():
                    os.utime(found, (OLD, OLD), follow_symlinks=False)

        return inner

    made = []
    for side in sides:
        left, right = trees(side, grow(1), grow(0))
        made.append(without_times(await side.read((await side.make(bind(left), bind(right), media_type=LAYER)).digest)))
    assert made[0] == made[1]
