"""Unit tests of paths, mounts, media types and compressed streams."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from services.kit import errors
from services.kit.inflate import CHUNK, CompressionError, inflated
from services.kit.mounting import OPTIONS_LIMIT
from services.oci.mounts import Mount
from services.snapshots.diff import media, stream
from services.snapshots.diff.mounted import _compact, _target, read_only_option
from services.snapshots.diff.mounts import MountError, from_arguments, mount, read_only, to_arguments
from services.snapshots.diff.paths import Resolver, clean, go_clean
from services.snapshots.diff.spent import Account
from tests.support import TOP, eventually


@pytest.mark.parametrize(
    ("path", "relative", "absolute"),
    [
        (b"", b".", b"/"),
        (b"/", b"/", b"/"),
        (b"a", b"a", b"/a"),
        (b"./a//b/", b"a/b", b"/a/b"),
        (b"a/../../b", b"../b", b"/b"),
        (b"/../a", b"/a", b"/a"),
        (b"../..", b"../..", b"/"),
        (b"a/b/..", b"a", b"/a"),
        (b"...", b"...", b"/..."),
        (b"a/./b/../c", b"a/c", b"/a/c"),
    ],
)
def test_paths_are_cleaned_as_by_go(path: bytes, relative: bytes, absolute: bytes) -> None:
    assert go_clean(path) == relative
    assert clean(path) == absolute


def test_links_are_resolved_below_a_directory(tmp_path: Path) -> None:
    """Absolute targets, dots and missing names stay inside; a cycle of links is an error."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    for name, target in (
        ("lib", "usr/lib"),
        ("abs", "/usr"),
        ("up", "../../../../usr"),
        ("missing", "no/../where"),
        ("round", "round"),
        ("chain", "abs/lib"),
    ):
        (tmp_path / name).symlink_to(target)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    resolver = Resolver(fd)
    try:
        for path, found in (
            (b"/lib/x", b"/usr/lib/x"),
            (b"lib", b"/usr/lib"),
            (b"/abs/lib", b"/usr/lib"),
            (b"/up/lib/y", b"/usr/lib/y"),
            (b"/missing/x", b"/where/x"),
            (b"/chain", b"/usr/lib"),
            (b"", b"/"),
            (b"/", b"/"),
            (b"/lib/../x", b"/usr/x"),
            (b"/../..", b"/"),
            (b"/lib/", b"/usr/lib"),
            (b"/new/deep", b"/new/deep"),
        ):
            assert resolver.resolve(path) == found
        with pytest.raises(OSError, match="(?i)too many"):
            resolver.resolve(b"/round/x")
    finally:
        os.close(fd)


def test_mounts_are_arguments_and_back() -> None:
    """This holds for any contents of their fields."""
    given = [
        Mount("bind", "/a b", ("rw", "rbind")),
        Mount("overlay", "overlay", ("lowerdir=/x:/y", "mount", ""), "/sub"),
        Mount("", ""),
    ]
    got = from_arguments(to_arguments(given))
    assert [(m.type, m.source, m.target, m.options) for m in got] == [
        (m.type, m.source, m.target, m.options) for m in given
    ]


@pytest.mark.parametrize("options", ["x" * (OPTIONS_LIMIT + 1), "é" * (OPTIONS_LIMIT // 2 + 1)])
def test_more_options_than_the_kernel_takes_are_not_mounted(tmp_path: Path, options: str) -> None:
    """The kernel would cut the rest off silently. Options are counted in bytes."""
    with pytest.raises(
        MountError, match=f"^mount options is too long: 4096 bytes for {tmp_path} .the kernel takes 4095.$"
    ):
        mount("none", str(tmp_path), "tmpfs", 0, options)


def test_a_target_below_the_mount_point_leaves_nothing_open(tmp_path: Path) -> None:
    """A worker makes many mounts and goes on running."""
    (tmp_path / "link").symlink_to("/there")
    before = os.listdir("/proc/self/fd")
    assert _target(Mount("bind", "/x", (), "link/below"), str(tmp_path)) == f"{tmp_path}/there/below"
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("options", "wanted"), [([], False), (["ro"], True), (["ro", "rw"], False), (["rw", "noatime", "ro"], True)]
)
def test_the_last_of_ro_and_rw_counts(options: list[str], wanted: bool) -> None:
    """This is as in mount(8)."""
    assert read_only_option(options) is wanted


def test_read_only_mounts() -> None:
    """An overlay's upper directory becomes its topmost lower one; other mounts get ro once."""
    (overlay,) = read_only(
        [Mount("overlay", "overlay", ("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b", "uidmap=0:1:2"))]
    )
    assert overlay.options == ("index=off", "lowerdir=/u:/a:/b")
    (bind,) = read_only([Mount("bind", "/x", ("rw", "ro", "rbind"))])
    assert bind.options == ("rbind", "ro")


def test_long_options_are_made_relative() -> None:
    """They are relative to the common prefix of the lower directories."""
    cwd, options = _compact(["index=off", "lowerdir=/s/10/fs:/s/2/fs"])
    assert (cwd, options) == ("/s", ["index=off", "lowerdir=10/fs:2/fs"])
    for same in (["lowerdir=/s/1/fs"], ["lowerdir=/a:/b"], ["upperdir=/x"], ["lowerdir=/s/1/fs://s/2/fs"]):
        assert _compact(same) == ("", same)


def test_media_types() -> None:
    """The types that are made, inflated and refused; errors have containerd's words."""
    assert media.may_be_compressed("application/vnd.oci.image.layer.v1.tar+gzip")
    assert not media.may_be_compressed("application/vnd.oci.image.layer.v1.tar")
    assert media.may_be_compressed("application/vnd.docker.image.rootfs.diff.tar")
    with pytest.raises(errors.Unknown, match=r"failed to get stream processor for x/y: no processor for media-type$"):
        media.may_be_compressed("x/y")
    with pytest.raises(errors.Unimplemented, match=r"unsupported diff media type: x/y: not implemented$"):
        media.compression_of("x/y")


def taken(data: bytes, *, detect: bool = True) -> tuple[bytes, str, int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        chunks = stream.Digested(file.fileno(), Account(), detect=detect)
        return b"".join(chunks), chunks.digest, chunks.size


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_a_stream_is_inflated_and_digested(size: int) -> None:
    """This holds in a thread or not, and for one or several members and frames."""
    data = os.urandom(size // 2) + bytes(size - size // 2)
    skippable = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    for packed in (
        data,
        gzip.compress(data),
        gzip.compress(data[:7]) + gzip.compress(data[7:]),
        zstandard.compress(data),
        skippable + zstandard.compress(data),
    ):
        if packed[:1] or not size:
            assert taken(packed) == (data, f"sha256:{hashlib.sha256(data).hexdigest()}", size)
    packed = gzip.compress(data)
    assert taken(packed, detect=False)[0] == packed


def arriving(data: bytes) -> tuple[stream.Digested, Callable[[int], None], Callable[[], None]]:
    """A blob in memory of which nothing has arrived; what says how much of it has; and what closes its files."""
    blob, (news, tell) = os.memfd_create("blob"), os.pipe()
    os.write(blob, data)
    account = Account()

    def arrive(there: int) -> None:
        os.write(tell, there.to_bytes(8, "little"))

    def close() -> None:
        account.close()
        for fd in (blob, news, tell):
            os.close(fd)

    chunks = stream.Digested(stream.Growing(blob, news, len(data), account), account, detect=False)
    return chunks, arrive, close


def test_the_thread_that_would_wait_hashes() -> None:
    """While the unpacking is busy, the thread that makes the chunks hashes them; while that one waits for bytes, the
    unpacking does.
    """
    data = os.urandom(3 * stream.QUEUE * CHUNK)
    chunks, arrive, close = arriving(data)
    taken: list[bytes] = []

    def take() -> None:
        taken.extend(chunks)

    first = iter(chunks)
    arrive(2 * stream.QUEUE * CHUNK)
    taken.append(next(first))
    eventually(lambda: chunks.size > stream.QUEUE * CHUNK and not chunks._unhashed, "made and hashed")
    taking = threading.Thread(target=take)
    taking.start()
    eventually(lambda: len(taken) == 2 * stream.QUEUE and not chunks._unhashed, "taken and hashed")
    arrive(len(data))
    taking.join()
    assert b"".join(taken) == data
    assert chunks.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    close()


def test_few_chunks_wait_to_be_hashed() -> None:
    """However small the compressed blob is, and whatever becomes of it."""
    packed = gzip.compress(bytes(40 << 20))
    with tempfile.TemporaryFile() as file:
        file.write(packed)
        chunks = stream.Digested(file.fileno(), Account(), detect=True)
        assert max(len(chunks._unhashed) for _ in chunks) <= 1


@pytest.mark.parametrize("cut", [1, 4, 9, 100])
def test_a_stream_cut_off_is_an_error(cut: int) -> None:
    """A truncated stream never passes for a shorter one."""
    data = os.urandom(1_500_000)
    for packed in (gzip.compress(data), zstandard.ZstdCompressor(write_checksum=True).compress(data)):
        with pytest.raises(CompressionError):
            taken(packed[:-cut])


@pytest.mark.parametrize("made", ["sized", "stream", "checksum", "frames", "skippable", "zeros", "stored", "empty"])
def test_a_zstd_stream_ends_with_a_frame(made: str) -> None:
    """Wherever it is cut off within a frame, that is an error, in chunks of any size; between frames it is none."""
    data = os.urandom(300) + b"text " * 60_000
    whole, checked = zstandard.ZstdCompressor(), zstandard.ZstdCompressor(write_checksum=True)
    skippable = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    stream = whole.compressobj()
    frames = {
        "sized": [whole.compress(data)],
        "stream": [stream.compress(data) + stream.flush()],
        "checksum": [checked.compress(data)],
        "frames": [whole.compress(data[:5]), checked.compress(data), whole.compress(b"")],
        "skippable": [skippable, whole.compress(data), skippable],
        "zeros": [whole.compress(bytes(1 << 20))],
        "stored": [whole.compress(os.urandom(500))],
        "empty": [checked.compress(b"")],
    }[made]
    ends = {sum(map(len, frames[:number])): number for number in range(1, len(frames) + 1)}
    packed = b"".join(frames)
    for end in range(10, len(packed) + 1):
        for size in (1 << 20, 7) if end % 5 == 0 or end in ends else (1 << 20,):
            source = iter([packed[at : min(at + size, end)] for at in range(0, end, size)])
            if end in ends:
                b"".join(inflated(source))
            else:
                with pytest.raises(CompressionError, match="unexpected EOF"):
                    b"".join(inflated(source))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_does_not_fill_the_memory(kind: str, tmp_path: Path) -> None:
    """A gigabyte of zeros from a small blob passes through in bounded pieces."""
    packed = (gzip if kind == "gzip" else zstandard).compress(bytes(1 << 28)) * 4
    (blob := tmp_path / "blob").write_bytes(packed)
    # VmHWM is this program's; ru_maxrss would begin with that of the tests' process, from which it was started.
    code = (
        "from services.snapshots.diff import spent, stream\n"
        "chunks = stream.Digested(0, spent.Account(), detect=True)\nn = sum(len(c) for c in chunks)\n"
        "print(n, next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    with blob.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=file, capture_output=True, text=True, check=True, cwd=TOP
        )
    size, peak = map(int, done.stdout.split())
    assert size == 1 << 30
    assert peak < 300 << 10, f"{peak >> 10} MiB"


def test_a_worker_imports_little() -> None:
    """Slow imports stay out of the program that small layers wait for, and large ones out of its workers."""
    code = "import sys; import services.snapshots.diff.apply; print(' '.join(sys.modules))"
    environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    loaded = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code], capture_output=True, text=True, check=True, cwd=TOP, env=environment
    ).stdout.split()
    assert not {
        "asyncio",
        "grpc",
        "google",
        "opentelemetry",
        "re",
        "dataclasses",
        "json",
        "threading",
        "logging",
    } & set(loaded)
