"""Mounts that are served by a program, fuse-overlayfs, as its snapshotter returns them, compared with containerd."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from api.containerd.types import mount_pb2
from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots.diff.mounts import to_arguments
from services.snapshots.diff.workers import Appliers, run
from tests.suites.diff_layers import BASE
from tests.suites.diff_sides import Side, bind, differences, tree
from tests.suites.diff_tars import directory, opaque, reg, tar, whiteout
from tests.support import eventually, eventually_async

pytestmark = [pytest.mark.root, pytest.mark.once]

LAYER = tar(
    whiteout(b"etc/passwd"),
    directory(b"etc", 0o711, uid=3),
    reg(b"etc/new", b"new" * 100_000, uid=70000),
    opaque(b"var/cache"),
    reg(b"var/cache/two", b"2"),
)


MANY = tar(*(reg(b"%d" % n, bytes(1 << 16)) for n in range(2000)))
LARGE = tar(reg(b"large", bytes(1 << 28)))


def overlay(place: Path) -> Mount:
    """A mount that fuse-overlayfs serves, as a worker gets it."""
    for name in ("lower", "upper", "work"):
        (place / name).mkdir()
    return Mount(
        "fuse3.fuse-overlayfs", "overlay", tuple(f"{name}dir={place / name}" for name in ("lower", "upper", "work"))
    )


def fuse(side: Side, kind: str = "fuse3.fuse-overlayfs") -> list[mount_pb2.Mount]:
    where = {name: side.place / name for name in ("lower", "upper", "work")}
    for path in where.values():
        path.mkdir(exist_ok=True)
    return [mount_pb2.Mount(type=kind, source="overlay", options=[f"{name}dir={path}" for name, path in where.items()])]


def entries(layer: bytes) -> list[tuple[object, ...]]:
    """Return the entries of a layer that was made; containerd 1.6 gives whiteouts the current time."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return [
            (
                m.name,
                m.type,
                oct(m.mode),
                m.uid,
                m.gid,
                m.mtime if ".wh." not in m.name else 0,
                m.size,
                m.linkname,
                m.pax_headers,
            )
            for m in archive
        ]


def served(place: Path) -> list[int]:
    """Return the pids of programs that serve a mount below ``place``, or are about to."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"fuse" in arguments and os.fsencode(place) in arguments:
                found.append(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def no_program_stays(place: Path) -> Iterator[None]:
    """After a test that failed, too: whatever looks at a mount whose program is stopped waits for ever."""
    yield
    for pid in served(place):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def busy_disk() -> AsyncIterator[None]:
    """Another disk than a worker waits for, which moves all the time."""

    def move(until: threading.Event) -> None:
        with tempfile.TemporaryFile(dir="/var/tmp", buffering=0) as file:
            while not until.wait(0.01):
                file.write(bytes(1 << 12))
                os.fsync(file.fileno())

    over = threading.Event()
    thread = asyncio.ensure_future(asyncio.to_thread(move, over))
    yield
    over.set()
    await thread


def hang(place: Path) -> None:
    """Stop the serving program; processes that use its mount then wait in the kernel."""
    programs = [pid for pid in served(place) if Path(f"/proc/{pid}/comm").read_text() == "fuse-overlayfs\n"]
    assert programs
    for pid in programs:
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("kind", ["fuse3.fuse-overlayfs", "fuse.fuse-overlayfs"])
async def test_a_layer_goes_through_the_program(kind: str, sides: tuple[Side, Side]) -> None:
    """Its upper directory gets the same files as by containerd, and then the differences give the same layer. No
    process is left.
    """
    made = []
    for side in sides:
        mounts = fuse(side, kind)
        await side.apply(BASE, bind(side.place / "lower"))
        applied = await side.apply(LAYER, mounts)
        assert side.name != "ours" or not served(side.place)
        files = tree(side.place / "upper")
        for each in [each for top in ("lower", "upper") for each in (side.place / top).rglob("*") if each.is_dir()]:
            os.utime(each, (1e9, 1e9))  # some are of the moment in which they were made
        layer = await side.make(
            bind(side.place / "lower", "ro"), mounts, media_type="application/vnd.oci.image.layer.v1.tar"
        )
        made.append((applied, files, entries(await side.read(layer.digest))))
    (ours, files, diff), (theirs, right, same) = made
    assert diff
    assert ours == theirs
    assert not differences(files, right)
    assert diff == same
    await eventually_async(async_(lambda: not served(sides[0].place)), "a program is left", 5)


def async_(check):
    async def checked() -> bool:
        return check()

    return checked


async def test_a_helper_that_fails_says_why(side: Side) -> None:
    with pytest.raises(
        errors.Unknown,
        match=r"^mount helper \[mount.fuse3 overlay /.* -o lowerdir=.* -t no-such-program\] failed: \".*no-such-program.*\": exit status \d+$",
    ):
        await side.apply(LAYER, fuse(side, "fuse3.no-such-program"))
    assert not served(side.place)


async def test_the_program_ends_with_the_worker(side: Side) -> None:
    """A killed worker takes the program with it, though the program has a session of its own; the mount is gone too."""
    mounts = fuse(side)
    await side.apply(tar(directory(b"d"), reg(b"d/x", b"x")), bind(side.place / "lower"))
    work = asyncio.ensure_future(side.apply(MANY, mounts))
    await eventually_async(
        async_(lambda: served(side.place) and any((side.place / "upper").rglob("*"))), "it does not begin", 20
    )
    work.cancel()
    await asyncio.wait((work,))
    eventually(lambda: not served(side.place), "the program is left", 10)


@pytest.mark.usefixtures("busy_disk")
@pytest.mark.parametrize("layer", [MANY, LARGE], ids=["files", "bytes"])
async def test_a_worker_that_stands_still_is_killed(layer: bytes, place: Path) -> None:
    """The program that serves its mount does not answer any more, whatever it was asked for: the call ends with an
    error, and nothing is left. The next call has a worker.
    """
    (place / "scratch").mkdir()
    served_here = overlay(place)
    (place / "blob").write_bytes(layer)
    appliers = Appliers(str(place / "scratch"), limit=2.0)
    try:
        with (place / "blob").open("rb") as blob:
            work = asyncio.ensure_future(appliers.apply([served_here], blob.fileno(), detect=True))
            await eventually_async(async_(lambda: any((place / "upper").rglob("*"))), "it does not begin", 20)
            hang(place)
            with pytest.raises(errors.Internal, match="the apply worker stood still for 2 s and was killed"):
                await asyncio.wait_for(work, 60)
            eventually(lambda: not served(place), "the program is left", 10)
            (place / "plain").mkdir()
            assert (
                await appliers.apply([Mount("bind", str(place / "plain"), ("rw", "rbind"))], blob.fileno(), detect=True)
            ).size
    finally:
        await appliers.aclose()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_comparison_that_stands_still_is_killed(cancelled: bool, place: Path) -> None:
    """The same where a layer is made; a cancelled call does not wait for that program either."""
    for name in ("left", "right", "nothing"):
        (place / name).mkdir()
    served_here = overlay(place)
    for number in range(2000):
        (place / "upper" / str(number)).write_bytes(bytes(1 << 16))
    left = to_arguments([Mount("bind", str(place / "nothing"), ("ro", "rbind"))])
    with (place / "layer").open("wb") as layer:
        work = asyncio.ensure_future(
            run(
                "compare",
                "plain",
                "-",
                str(place / "left"),
                str(place / "right"),
                str(len(left)),
                *left,
                *to_arguments([served_here]),
                file=layer.fileno(),
                started=lambda: None,
                limit=600.0 if cancelled else 2.0,
            )
        )
        await eventually_async(async_(lambda: (place / "layer").stat().st_size), "it does not begin", 20)
        hang(place)
        if cancelled:
            work.cancel()
        with pytest.raises(
            asyncio.CancelledError if cancelled else errors.Internal,
            match=None if cancelled else "the compare worker stood still for 2 s and was killed",
        ):
            await asyncio.wait_for(work, 60)
        eventually(lambda: not served(place), "the program is left", 10)
