"""What the snapshotter erofs guarantees beyond the suite of its interface."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.kit import errors, tar
from services.oci.mounts import Mount
from services.snapshots.erofs import mounting, place
from services.snapshots.erofs.mounting import Way
from services.snapshots.erofs.snapshotter import Erofs, ErofsSnapshotter, _layered
from services.snapshots.store import GID_MAPPING, UID_MAPPING
from tests.suites import diff_sides
from tests.suites.diff_tars import directory, reg
from tests.suites.diff_tars import tar as tar_of
from tests.support import eventually_async, processes_naming, short_directory

pytestmark = pytest.mark.root  # it mounts
LAYER = tar_of(directory(b"d/"), reg(b"d/a", b"one"), reg(b"b", b"two"))


@pytest.fixture
async def snapshotter(place: Path) -> AsyncIterator[ErofsSnapshotter]:
    async with ErofsSnapshotter(place / "e", idle=0.0) as made:
        yield made


def upper_of(mounts: list[Mount]) -> str:
    (mount,) = mounts
    return mount.option("upperdir") or mount.source


def unpacked(mounts: list[Mount], layer: bytes = LAYER) -> None:
    """Do what Diff.Apply does with a layer."""
    upper = upper_of(mounts)
    place.unpack([layer], upper, (), place.beside(upper), lowest=mounts[0].type == "bind")


async def committed(snapshotter: ErofsSnapshotter, name: str, parent: str = "") -> None:
    unpacked(await snapshotter.prepare(f"{name} key", parent))
    await snapshotter.commit(name, f"{name} key")


def layers_mounted(snapshotter: ErofsSnapshotter) -> list[str]:
    return sorted(name for name in os.listdir(snapshotter.root / "mounts"))


async def none_mounted(snapshotter: ErofsSnapshotter) -> None:
    async def none() -> bool:
        return not layers_mounted(snapshotter)

    await eventually_async(none, "a layer is still mounted")


async def test_a_layer_is_mounted_while_something_stands_on_it(snapshotter: ErofsSnapshotter) -> None:
    """And no longer; a view, an active snapshot and one that is asked for again all find it."""
    await committed(snapshotter, "one")
    assert not layers_mounted(snapshotter)
    (view,) = await snapshotter.view("view", "one")
    assert Path(view.source, "d/a").read_bytes() == b"one"
    await snapshotter.prepare("active", "one")
    await snapshotter.remove("view")
    assert layers_mounted(snapshotter) == ["1"]
    await snapshotter.remove("active")
    await none_mounted(snapshotter)


async def test_mounts_are_made_again_after_a_reboot(place: Path) -> None:
    """After one nothing is mounted, and snapshots that containers run on are asked for again."""
    async with ErofsSnapshotter(place / "e") as before:
        await committed(before, "one")
        await before.prepare("container", "one")
    assert layers_mounted(before) == ["1"], "a container runs on"
    subprocess.run(["umount", place / "e/mounts/1"], check=True)
    async with ErofsSnapshotter(place / "e", idle=0.0) as after:
        (mount,) = await after.mounts("container")
        (lower,) = mount.option("lowerdir").split(":")
        assert Path(lower, "b").read_bytes() == b"two"
        await after.remove("container")
        await none_mounted(after)


async def test_a_mounted_layer_in_use_stays(snapshotter: ErofsSnapshotter) -> None:
    """Somebody who has a file of it open keeps it, and it goes later."""
    await committed(snapshotter, "one")
    (view,) = await snapshotter.view("view", "one")
    with open(Path(view.source, "b"), "rb") as file:
        await snapshotter.remove("view")
        await snapshotter.remove("one")
        await snapshotter.cleanup()
        assert file.read() == b"two"
        assert layers_mounted(snapshotter) == ["1"]
    await snapshotter.cleanup()
    assert not layers_mounted(snapshotter)
    assert not os.listdir(snapshotter.root / "snapshots")


async def test_what_was_written_by_hand_becomes_a_layer(snapshotter: ErofsSnapshotter, place: Path) -> None:
    """With all its attributes; its files are there once."""
    upper = Path((await snapshotter.prepare("key"))[0].source)
    (upper / "d").mkdir(mode=0o2751)
    (upper / "d/file").write_bytes(b"x" * 70_000)
    os.link(upper / "d/file", upper / "link")
    os.chown(upper / "d/file", 70_000, 3_000_000_000)
    os.setxattr(upper / "d/file", "user.x", b"y")
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"y")
    os.symlink("t" * 1500, upper / "symlink")
    os.mknod(upper / "gone", 0o020000, 0)
    os.mkfifo(upper / "fifo")
    with (upper / "sparse").open("wb") as file:
        file.seek(10_000_000)
        file.write(b"end")
    for number in range(300):
        (upper / f"{number:0255}").touch()
    os.utime(upper / "d", ns=(1, -5_000_000_001))
    before = diff_sides.tree(upper)
    await snapshotter.commit("one", "key")
    assert not os.listdir(upper)
    (view,) = await snapshotter.view("view", "one")
    assert diff_sides.tree(Path(view.source)) == before
    assert (await snapshotter.usage("one")).size < 1_000_000


@pytest.mark.parametrize(("files", "size"), [(1001, 0), (1, 9 << 20)])
async def test_a_program_makes_a_layer_of_much_that_was_written_by_hand(
    snapshotter: ErofsSnapshotter, files: int, size: int
) -> None:
    """The process goes on with its calls. The layer is the same."""
    upper = Path((await snapshotter.prepare("key"))[0].source)
    (upper / "d").mkdir()
    for number in range(files):
        (upper / f"d/{number}").write_bytes(os.urandom(7 + size))
    before = diff_sides.tree(upper)
    assert not _layered(upper.parent / place.LAYER), "it is made in a thread"
    await snapshotter.commit("one", "key")
    (view,) = await snapshotter.view("view", "one")
    assert diff_sides.tree(Path(view.source)) == before


async def test_a_layer_and_files_beside_it_are_refused(snapshotter: ErofsSnapshotter) -> None:
    """A client would not see the layer's files while it writes. Two layers in one snapshot would not be two."""
    mounts = await snapshotter.prepare("key")
    unpacked(mounts)
    Path(upper_of(mounts), "more").touch()
    with pytest.raises(errors.FailedPrecondition, match="files were written to .*/fs as well"):
        await snapshotter.commit("one", "key")
    Path(upper_of(mounts), "more").unlink()
    await snapshotter.commit("one", "key")


async def test_a_commit_that_fails_can_be_repeated(snapshotter: ErofsSnapshotter) -> None:
    """With what was written in between."""
    await committed(snapshotter, "one")
    upper = Path((await snapshotter.prepare("key"))[0].source)
    (upper / "a").write_bytes(b"1")
    with pytest.raises(errors.AlreadyExists):
        await snapshotter.commit("one", "key")
    (upper / "b").write_bytes(b"2")
    await snapshotter.commit("two", "key")
    (view,) = await snapshotter.view("view", "two")
    assert {name: Path(view.source, name).read_bytes() for name in ("a", "b")} == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("force_loop", [False, True])
def test_the_way_to_mount_is_tried(force_loop: bool, tmp_path: Path) -> None:
    """Nothing is left of it."""
    way = mounting.tried(tmp_path, force_loop=force_loop)
    assert isinstance(way, Way)
    assert way.loop or not force_loop
    assert not list(tmp_path.iterdir())


def test_in_memory_only_loop_devices_do() -> None:
    """tmpfs has no operation that the kernel needs to read an image from a file."""
    with short_directory() as memory:
        way = mounting.tried(memory)
        assert isinstance(way, Way)
        assert way.loop


async def test_where_nothing_can_be_mounted_it_says_why(place: Path) -> None:
    """The node lists it, with the reason, and others work."""
    directory = place / "with,comma"
    directory.mkdir()
    async with ErofsSnapshotter(directory, Erofs()) as made:
        assert "path with a comma" in (await made.about()).trouble
        with pytest.raises(errors.FailedPrecondition, match="erofs does not work on this machine: .*comma"):
            await made.prepare("key")


def test_the_index_is_the_same_each_time(tmp_path: Path) -> None:
    """It depends on the layer alone."""
    indices = []
    for name in ("one", "other"):
        upper, layer = tmp_path / name / "fs", tmp_path / name / place.LAYER
        upper.mkdir(parents=True)
        layer.mkdir()
        place.unpack([LAYER[:700], LAYER[700:]], str(upper), (), place.beside(str(upper)), lowest=True)
        indices.append((layer / place.INDEX).read_bytes())
    assert indices[0] == indices[1]
    assert (tmp_path / "one" / place.LAYER / place.DATA).read_bytes() == LAYER
    assert len(LAYER) % tar.BLOCK == 0
    assert not processes_naming(tmp_path)


async def test_what_a_killed_process_left_mounted_is_let_go(place: Path) -> None:
    """Unless something stands on it."""
    async with ErofsSnapshotter(place / "e") as before:
        for name in ("one", "two"):
            await committed(before, name)
        await before.prepare("container", "one")
    way = mounting.tried(place)
    assert isinstance(way, Way)
    (left := place / "e/mounts/2").mkdir()
    mounting.mount(way, place / "e/snapshots/2/erofs", left)
    async with ErofsSnapshotter(place / "e", idle=0.0) as after:

        async def needed() -> bool:
            return layers_mounted(after) == ["1"]

        await eventually_async(needed, "a layer is still mounted")
        await after.remove("container")
        await none_mounted(after)


async def test_mapped_ids_need_a_copy_of_the_files(snapshotter: ErofsSnapshotter) -> None:
    """ctr 1.6 asks for them without looking whether the snapshotter maps ids, and a container would see all files as
    nobody's. Others have made a copy of the image for the ids, and pass the same labels with that as the parent.
    """
    labels = {UID_MAPPING: "0:2000:65536", GID_MAPPING: "0:3000:65536"}
    await committed(snapshotter, "one")
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(errors.FailedPrecondition, match="maps no ids: .* belong to root 0:0, not to 2000:3000;"):
            await make("key", "one", labels)
    assert [info.name async for info in snapshotter.list()] == ["one"]
    upper = upper_of(await snapshotter.prepare("copy key", "one"))
    os.chown(upper, 2000, 3000)
    await snapshotter.commit("copy", "copy key")
    made = upper_of(await snapshotter.prepare("key", "copy", labels))
    assert (os.stat(made).st_uid, os.stat(made).st_gid) == (2000, 3000)
    (mount,) = await snapshotter.prepare("lowest", "", labels)
    assert os.stat(mount.source).st_uid == 2000
