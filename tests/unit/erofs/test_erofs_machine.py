"""The snapshotter erofs on machines of all kinds: with files, with loop devices, and where neither works."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from conform.trees import mounted
from services.oci.mounts import Mount
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs import place as layout
from services.snapshots.erofs import written
from services.snapshots.erofs.snapshotter import Erofs, ErofsSnapshotter
from tests.suites.diff_tars import directory, link, reg
from tests.suites.diff_tars import tar as tar_of
from tests.support import TOP, eventually

pytestmark = pytest.mark.root  # it mounts
LAYERS = (tar_of(directory(b"d/"), reg(b"d/a", b"one"), reg(b"b", b"two")), tar_of(reg(b"d/c"), link(b"l", b"d/c")))
TRIAL = """\
import pathlib, sys
from services.snapshots.erofs import mounting
print(mounting.tried(pathlib.Path(sys.argv[1])))
"""


async def chain(snapshotter: ErofsSnapshotter) -> str:
    """Two layers, one on the other; returns the upper one's name."""
    parent = ""
    for number, layer in enumerate(LAYERS):
        (mount,) = await snapshotter.prepare(f"key {number}", parent)
        upper = mount.option("upperdir") or mount.source
        layout.unpack([layer], upper, (), layout.beside(upper), lowest=not parent)
        await snapshotter.commit(f"{number}", f"key {number}")
        parent = f"{number}"
    return parent


def loops(below: Path) -> list[str]:
    """The files of loop devices."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(path.read_text().strip())
        except OSError:  # another test's, which is just detached
            continue
    return sorted(each for each in found if each.startswith(f"{below}/"))


@pytest.mark.parametrize("loop", [False, True], ids=["as the machine can", "by loop devices"])
async def test_a_tree_has_one_device_number(loop: bool, tmp_path: Path) -> None:
    """So ``find -xdev`` and ``du -x`` see all of it; and each file has an inode number of its own, also once it is
    copied up.
    """
    async with ErofsSnapshotter(tmp_path / "e", Erofs(loop=loop), idle=0.0, sync_remove=True) as snapshotter:
        mounts = await snapshotter.prepare("key", await chain(snapshotter))
        with mounted(mounts, tmp_path / "m") as root:
            (root / "new").touch()
            before = {path: path.lstat() for path in (root, *root.rglob("*"))}
            assert len({each.st_dev for each in before.values()}) == 1
            assert len({each.st_ino for each in before.values()}) == len(before) - 1, "d/c is l"
            (root / "b").chmod(0o600)
            (root / "d/a").write_bytes(b"changed")
            after = {path: path.lstat() for path in before}
            assert [each.st_ino for each in after.values()] == [each.st_ino for each in before.values()]
            assert len({each.st_dev for each in after.values()}) == 1
        for name in ("key", "1", "0"):
            await snapshotter.remove(name)


async def test_loop_devices_are_used_where_the_settings_say_so(tmp_path: Path) -> None:
    """Two for each mounted layer; none is left."""
    async with ErofsSnapshotter(tmp_path / "e", Erofs(loop=True), idle=0.0, sync_remove=True) as snapshotter:
        (mount,) = await snapshotter.view("view", await chain(snapshotter))
        assert Path(mount.option("lowerdir").split(":")[1], "b").read_bytes() == b"two"
        things = tmp_path / "e/snapshots"
        assert loops(tmp_path) == sorted(
            f"{things}/{number}/{layout.LAYER}/{name}" for number in (1, 2) for name in (layout.DATA, layout.INDEX)
        )
        for name in ("view", "1", "0"):
            await snapshotter.remove(name)
        eventually(lambda: not loops(tmp_path), "a loop device is left")


def trial(prepared: str, at: Path, *arguments: str) -> str:
    """What is said of a directory, by a process for which a script has prepared the machine."""
    command = ["unshare", "--mount", "sh", "-ec", f'{prepared}; exec "$2" -c "$3" "$1"', "sh", str(at)]
    command += [sys.executable, TRIAL, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=TOP).stdout.strip()


def test_where_nothing_works_each_way_says_why(tmp_path: Path) -> None:
    """tmpfs cannot serve files to the kernel; a container has no loop devices."""
    said = trial('mount -t tmpfs none "$1"; mount -t tmpfs none /dev', tmp_path)
    files, _, devices = said.partition("; by loop devices: ")
    assert files.startswith("from files: mount source: ")
    assert files.endswith("err: block device required")
    assert devices == "/dev/loop-control: no such file or directory"


def test_below_an_overlay_loop_devices_do(tmp_path: Path) -> None:
    """A container's root is one. The kernel cannot read images there from files."""
    for name in ("lower", "upper", "work", "at"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    said = trial(f'mount -t overlay overlay -o {options} "$1"', tmp_path / "at")
    assert said.startswith("Way(loop=True, "), said


async def test_where_overlays_cannot_be_mounted_it_says_why(tmp_path: Path) -> None:
    """Its active snapshots are overlays, and the directory of one cannot be the upper one of another."""
    for name in ("lower", "upper", "work", "at"):
        (tmp_path / name).mkdir()
    options = tuple(f"{option}={tmp_path}/{option[:-3]}" for option in ("workdir", "upperdir", "lowerdir"))
    with mounted([Mount("overlay", "overlay", options)], tmp_path / "at") as root:
        async with ErofsSnapshotter(root / "e") as snapshotter:
            assert "failed to mount overlay: " in (await snapshotter.about()).trouble


def test_a_directory_of_many_is_read_with_few_open_files(tmp_path: Path) -> None:
    """One for each level."""
    upper = tmp_path / "upper"
    for number in range(200):
        (upper / f"{number}/inner").mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (tmp_path / "data").open("wb") as data:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
            root, _ = written.collect(str(upper), data.fileno())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert root.children is not None
    assert len(root.children) == 200
    assert {inner.links for inner in root.children.values()} == {3}


def test_what_was_written_is_bounded(tmp_path: Path) -> None:
    """Its tree is in memory."""
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    for number in range(3):
        (upper / "d" / str(number)).touch()
    with (tmp_path / "data").open("wb") as data:
        written.collect(str(upper), data.fileno(), entries=4)
        with pytest.raises(MountError, match="it has more than 3 files, or 256 MiB of names and attributes"):
            written.collect(str(upper), data.fileno(), entries=3)
