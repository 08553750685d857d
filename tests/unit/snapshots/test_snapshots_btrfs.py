"""The guarantees of the snapshotter btrfs beyond the suite of its interface."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from services.kit import errors
from services.snapshots.btrfs import BtrfsSnapshotter
from services.snapshots.store import Kind, Usage
from services.snapshots.tree import Row, Rows
from tests.suites.snapshots import delete, mkdir, mounted, rename, write
from tests.support import short_directory

pytestmark = pytest.mark.root


@pytest.fixture
def directory(disks: Callable[[str], Path | None]) -> Iterator[Path]:
    with short_directory(disks("btrfs")) as directory:
        yield directory


@pytest.fixture
async def snapshotter(directory: Path) -> AsyncIterator[BtrfsSnapshotter]:
    async with BtrfsSnapshotter(directory / "b") as snapshotter:
        yield snapshotter


async def base(snapshotter: BtrfsSnapshotter, place: Path) -> str:
    """A committed snapshot with 300 files and a large one."""
    with mounted(await snapshotter.prepare("making"), place / "m") as top:
        for number in range(300):
            write(f"f{number}", "x" * 10_000)(top)
        (top / "large").write_bytes(os.urandom(3_000_000))
        mkdir("d")(top)
        write("d/f", "x" * 5000)(top)
    await snapshotter.commit("base", "making")
    return "base"


async def test_usage_is_the_difference_from_the_parent(snapshotter: BtrfsSnapshotter, place: Path) -> None:
    """A file that was only read does not count, though the kernel notes the time; a changed file counts as a whole."""
    parent = await base(snapshotter, place)
    assert (await snapshotter.usage(parent)).inodes == 304
    mounts = await snapshotter.prepare("child", parent)
    assert await snapshotter.usage("child") == Usage()
    with mounted(mounts, place / "m") as top:
        subprocess.run(["mount", "-o", "remount,strictatime", str(top)], check=True)
        for path in top.glob("f*"):
            path.read_bytes()
        assert (top / "f7").stat().st_atime_ns != 0
    assert await snapshotter.usage("child") == Usage()
    with mounted(mounts, place / "m") as top, (top / "large").open("r+b") as file:
        file.write(b"y")
    large = await snapshotter.usage("child")
    assert large.inodes == 1
    assert 3_000_000 <= large.size < 3_010_000
    with mounted(mounts, place / "m") as top:
        rename("d", "e")(top)
        delete("f0")(top)
        write("new", "x" * 5000)(top)
    usage = await snapshotter.usage("child")
    assert usage.inodes == 4, (
        "the file, the directory that was renamed, the new one, and the root, which has other entries now"
    )
    assert usage.size == large.size + 8192
    await snapshotter.commit("top", "child")
    assert await snapshotter.usage("top") == usage


async def test_committed_snapshots_are_read_only_for_everybody(
    snapshotter: BtrfsSnapshotter, directory: Path, place: Path
) -> None:
    """They are read-only also through a mount that was made before, and through their directory."""
    with mounted(await snapshotter.prepare("making"), place / "m") as top:
        write("f", "x")(top)
        await snapshotter.commit("base", "making")
        with pytest.raises(OSError, match="Read-only file system"):
            write("g", "x")(top)
    with pytest.raises(OSError, match="Read-only file system"):
        write("g", "x")(directory / "b/snapshots/1")
    with mounted(await snapshotter.prepare("child", "base"), place / "m") as top:
        write("g", "x")(top)
    with mounted(await snapshotter.view("view", "base"), place / "m") as top:
        assert [path.name for path in top.iterdir()] == ["f"]
        assert subprocess.run(
            ["mount", "-o", "remount,rw", str(top)], check=False, capture_output=True
        ).returncode or not os.access(top, os.W_OK)


async def test_a_crash_between_record_and_freezing_is_made_up_for(directory: Path, place: Path) -> None:
    """At the next start committed snapshots are read-only and active ones are not."""
    async with BtrfsSnapshotter(directory / "b") as snapshotter:
        await snapshotter.prepare("making")
        await snapshotter.prepare("active")
        now = snapshotter._tree.view(lambda rows: rows.get("making"))
        assert now is not None

        def recorded(rows: Rows) -> None:
            rows.replace(Row(now.id, None, type(now.info)("base", Kind.COMMITTED, 1, 1), Usage()))

        await snapshotter._tree.write(recorded)
    write("f", "x")(directory / "b/snapshots/1")
    async with BtrfsSnapshotter(directory / "b") as snapshotter:
        with pytest.raises(OSError, match="Read-only file system"):
            write("g", "x")(directory / "b/snapshots/1")
        write("g", "x")(directory / "b/snapshots/2")


async def test_subvolumes_that_a_container_made_go_with_it(
    snapshotter: BtrfsSnapshotter, directory: Path, place: Path
) -> None:
    """Subvolumes in a committed snapshot are removed too, and so is a plain directory without a record."""
    for key in ("kept", "gone"):
        with mounted(await snapshotter.prepare(key), place / "m") as top:
            mkdir("d")(top)
            for inner in ("d/one", "d/one/two", "three"):
                subprocess.run(["btrfs", "--quiet", "subvolume", "create", str(top / inner)], check=True)
                write(f"{inner}/f", "x")(top)
    await snapshotter.commit("base", "kept")
    (directory / "b/snapshots/odd/deep").mkdir(parents=True)
    await snapshotter.remove("base")
    await snapshotter.remove("gone")
    await snapshotter.cleanup()
    assert not list((directory / "b/snapshots").iterdir())


async def test_elsewhere_than_on_btrfs_it_says_so(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error has one line, and every Prepare gets it."""
    caplog.set_level("INFO")
    async with BtrfsSnapshotter(place / "b") as snapshotter:
        words = rf"path {place}/b \(\w+\) must be a btrfs filesystem to be used with the btrfs snapshotter"
        for make in (snapshotter.prepare, snapshotter.view):
            with pytest.raises(
                errors.FailedPrecondition,
                match=(
                    f"^failed to create snapshot: snapshotter btrfs does not work on this machine: {words}: failed "
                    f"precondition$|{words}"
                ),
            ):
                await make("key")
        assert [info async for info in snapshotter.list()] == []
        assert len([line for line in caplog.messages if "must be a btrfs filesystem" in line]) == 1
        assert "must be a btrfs filesystem" in (await snapshotter.about()).trouble
