"""Layers that several snapshots have are on the disk once, and go with the last of these."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.kit import errors
from services.oci.digests import digest_of
from services.oci.mounts import Mount
from services.snapshots.erofs import place as layout
from services.snapshots.erofs.shelf import Shelf
from services.snapshots.erofs.snapshotter import ErofsSnapshotter
from services.snapshots.store import DIFF_ID
from tests.suites.diff_tars import directory, reg, whiteout
from tests.suites.diff_tars import tar as tar_of

pytestmark = pytest.mark.root  # it mounts

WHOLE = tar_of(directory(b"d/"), reg(b"d/a", b"one"))
UNNAMED = tar_of(reg(b"d/b", b"two"))
"""What is below decides about ``d``."""
GONE = tar_of(whiteout(b"d"), reg(b"c"))
PARENTS = {mode: tar_of(directory(b"d/", mode=mode)) for mode in (0o700, 0o711)}


@pytest.fixture
async def snapshotter(place: Path) -> AsyncIterator[ErofsSnapshotter]:
    async with ErofsSnapshotter(place / "e", idle=0.0, sync_remove=True) as made:
        yield made


def unpacked(mounts: list[Mount], layer: bytes) -> None:
    """Do what Diff.Apply does with a layer that is unpacked alone."""
    upper = mounts[0].source
    layout.unpack([layer], upper, (), layout.beside(upper), lowest=False, digest=lambda: digest_of(layer))


async def committed(snapshotter: ErofsSnapshotter, name: str, layer: bytes, parent: str = "") -> None:
    unpacked(await snapshotter.prepare(f"{name} key"), layer)
    await snapshotter.commit(name, f"{name} key", {}, parent)


async def taken(snapshotter: ErofsSnapshotter, name: str, layer: bytes, parent: str = "") -> None:
    """Make a snapshot of a layer that is there."""
    (mount,) = await snapshotter.prepare(f"{name} key", "", {DIFF_ID: digest_of(layer)})
    assert "ro" in mount.options
    assert await snapshotter.mounts(f"{name} key") == [mount]
    await snapshotter.commit(name, f"{name} key", {}, parent)


def files(snapshotter: ErofsSnapshotter, name: str) -> list[int]:
    """The inodes of a file of all layers, in the order of the snapshots' ids."""
    things = sorted(snapshotter.names(), key=int)
    return [os.stat(f"{snapshotter.directory}/{thing}/{layout.LAYER}/{name}").st_ino for thing in things]


def shelved(snapshotter: ErofsSnapshotter) -> list[int]:
    """How many files are kept for each layer."""
    return sorted(len(os.listdir(each)) for each in (snapshotter.root / "layers").iterdir())


async def mode_of(snapshotter: ErofsSnapshotter, name: str) -> int:
    """The permissions of ``d``, as a container sees them."""
    (mount,) = await snapshotter.view(f"{name} view", name)
    top = mount.source if mount.type == "bind" else mount.option("lowerdir").split(":")[0]
    found = os.stat(f"{top}/d").st_mode & 0o7777
    await snapshotter.remove(f"{name} view")
    return found


async def test_a_layer_is_kept_once(snapshotter: ErofsSnapshotter) -> None:
    """At any height and in any chain; it stays as long as one snapshot has it."""
    await committed(snapshotter, "one", WHOLE)
    await committed(snapshotter, "two", GONE, "one")
    await committed(snapshotter, "three", WHOLE, "two")
    for name in (layout.DATA, layout.INDEX, layout.ABOUT):
        first, other, last = files(snapshotter, name)
        assert first == last != other
    assert shelved(snapshotter) == [3, 3]
    for name in ("three", "two"):
        await snapshotter.remove(name)
    assert shelved(snapshotter) == [3]
    assert await mode_of(snapshotter, "one") == 0o755
    await snapshotter.remove("one")
    assert shelved(snapshotter) == []


async def test_a_layer_that_is_there_is_taken(snapshotter: ErofsSnapshotter) -> None:
    """Without its tar; and the snapshot has its mounts, its usage and its files."""
    await committed(snapshotter, "one", WHOLE)
    await taken(snapshotter, "other", WHOLE)
    assert len(set(files(snapshotter, layout.DATA))) == 1
    assert (await snapshotter.usage("other")) == (await snapshotter.usage("one"))
    await snapshotter.remove("one")
    (view,) = await snapshotter.view("view", "other")
    assert Path(view.source, "d/a").read_bytes() == b"one"


async def test_a_namespace_takes_its_own_layers_only(snapshotter: ErofsSnapshotter) -> None:
    """Whoever names another's diff id unpacks a layer; then both have one copy of it."""
    await committed(snapshotter, "one/1/layer", WHOLE)
    (mount,) = await snapshotter.prepare("other/2/key", "", {DIFF_ID: digest_of(WHOLE)})
    assert "rw" in mount.options
    unpacked([mount], WHOLE)
    await snapshotter.commit("other/3/layer", "other/2/key")
    assert len(set(files(snapshotter, layout.DATA))) == 1
    await taken(snapshotter, "other/4/again", WHOLE)
    await snapshotter.remove("one/1/layer")
    await taken(snapshotter, "other/5/again", WHOLE)


async def test_one_that_is_not_there_is_not(snapshotter: ErofsSnapshotter) -> None:
    """Nor one with a name that is none."""
    for name in (digest_of(WHOLE), "sha256:../../x", "../x", "sha256:", ""):
        (mount,) = await snapshotter.prepare(f"key {name}", "", {DIFF_ID: name})
        assert "rw" in mount.options


async def test_an_index_for_each_answer_of_the_layers_below(snapshotter: ErofsSnapshotter) -> None:
    """An index goes with the last snapshot that has it; the tar stays for the others."""
    for mode, parent in PARENTS.items():
        await committed(snapshotter, f"{mode:o}", parent)
    await committed(snapshotter, "first", UNNAMED, "700")
    await taken(snapshotter, "second", UNNAMED, "711")
    await taken(snapshotter, "third", UNNAMED, "700")
    await taken(snapshotter, "none", UNNAMED)
    assert len(set(files(snapshotter, layout.DATA)[2:])) == 1
    first, second, third, none = files(snapshotter, layout.INDEX)[2:]
    assert first == third
    assert len({first, second, none}) == 3
    assert [await mode_of(snapshotter, name) for name in ("first", "second", "third", "none")] == [
        0o700, 0o711, 0o700, 0o755,
    ]  # fmt: skip
    assert shelved(snapshotter) == [3, 3, 5]
    for name in ("second", "first"):
        await snapshotter.remove(name)
    assert shelved(snapshotter) == [3, 3, 4]
    assert await mode_of(snapshotter, "third") == 0o700


async def test_a_lowest_layer_with_whiteouts_has_its_own_index(snapshotter: ErofsSnapshotter) -> None:
    """Others do not begin with it."""
    await committed(snapshotter, "lowest", GONE)
    (mount,) = await snapshotter.prepare("key", "", {DIFF_ID: digest_of(GONE)})
    assert "rw" in mount.options
    await snapshotter.remove("key")
    await committed(snapshotter, "one", WHOLE)
    await committed(snapshotter, "upper", GONE, "one")
    await taken(snapshotter, "again", GONE)
    lowest, _, upper, again = files(snapshotter, layout.INDEX)
    assert lowest == again != upper


async def test_what_a_crash_left_goes(place: Path) -> None:
    """At the next start; and links that were not made are made."""
    async with ErofsSnapshotter(place / "e") as before:
        await committed(before, "one", WHOLE)
        await committed(before, "two", UNNAMED)
    left = place / "e/layers" / ("0" * 64)
    left.mkdir()
    (left / "data").touch()
    for index in (place / "e/layers").glob("*/*"):
        if index.name not in ("data", "about"):
            index.unlink()
    async with ErofsSnapshotter(place / "e") as after:
        assert shelved(after) == [3, 3]
        assert not left.exists()


async def test_a_layer_that_was_cut_off_is_unpacked_again(snapshotter: ErofsSnapshotter) -> None:
    """And takes the place of the other one, for those that come later."""
    await committed(snapshotter, "one", WHOLE)
    (data,) = (snapshotter.root / "layers").glob("*/data")
    os.truncate(data, 512)
    (mount,) = await snapshotter.prepare("key", "", {DIFF_ID: digest_of(WHOLE)})
    assert "rw" in mount.options
    unpacked([mount], WHOLE)
    await snapshotter.commit("two", "key")
    await taken(snapshotter, "three", WHOLE)
    (view,) = await snapshotter.view("view", "three")
    assert Path(view.source, "d/a").read_bytes() == b"one"


async def test_layers_that_may_not_be_durable_are_not_shared(place: Path) -> None:
    """After a power cut they might be damaged, and a pull would not make them again."""
    async with ErofsSnapshotter(place / "e", sync_commit=False) as made:
        await committed(made, "one", WHOLE)
        (mount,) = await made.prepare("key", "", {DIFF_ID: digest_of(WHOLE)})
        assert "rw" in mount.options


async def test_a_shared_file_is_never_written_to(snapshotter: ErofsSnapshotter) -> None:
    """A layer that is unpacked into a snapshot which has one already is another file."""
    await committed(snapshotter, "one", WHOLE)
    before = files(snapshotter, layout.DATA)
    unpacked(await snapshotter.prepare("key", "", {DIFF_ID: digest_of(WHOLE)}), UNNAMED)
    (view,) = await snapshotter.view("view", "one")
    assert Path(view.source, "d/a").read_bytes() == b"one"
    await snapshotter.remove("view")
    assert before == files(snapshotter, layout.DATA)[:1]


def test_a_full_count_of_links_keeps_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system counts 65,000, or more."""
    upper = tmp_path / "one/fs"
    upper.mkdir(parents=True)
    (tmp_path / "one/erofs").mkdir()
    layout.unpack([WHOLE], str(upper), (), str(tmp_path / "one/erofs"), lowest=True, digest=lambda: digest_of(WHOLE))
    shelf = Shelf(tmp_path / "layers")
    shelf.put(str(tmp_path / "one/erofs"))
    (tmp_path / "two").mkdir()

    def full(*_: object) -> None:
        raise OSError(31, os.strerror(31))

    monkeypatch.setattr(os, "link", full)
    assert not shelf.take(digest_of(WHOLE), str(tmp_path / "two"))
    assert not os.listdir(tmp_path / "two")


async def given(snapshotter: ErofsSnapshotter, mounts: list[Mount], layer: bytes, *, image: bool = False) -> int | None:
    """Do what Diff.Apply does with a layer that may be there."""
    (mount,) = mounts
    number = snapshotter.number_of(mount.option("upperdir") or mount.source)
    assert number is not None
    return await snapshotter.give(number, digest_of(layer), image=image)


async def whole(snapshotter: ErofsSnapshotter, name: str, layer: bytes, parent: str) -> None:
    """Make a snapshot as ctr 1.6 does: its layer is unpacked on those below."""
    (mount,) = await snapshotter.prepare(f"{name} key", parent)
    upper = mount.option("upperdir") or mount.source
    lowers = [os.open(each, os.O_PATH) for each in mount.option("lowerdir").split(":") if each]
    layout.unpack([layer], upper, lowers, layout.beside(upper), lowest=not parent, digest=lambda: digest_of(layer))
    for fd in lowers:
        os.close(fd)
    await snapshotter.commit(name, f"{name} key")


@pytest.mark.parametrize("first", [committed, whole])
async def test_a_layer_that_is_there_is_given_to_who_unpacks_it(
    snapshotter: ErofsSnapshotter, first: Callable[[ErofsSnapshotter, str, bytes, str], Awaitable[None]]
) -> None:
    """On layers below that differ, each snapshot has its index, and all have one tar."""
    for mode, parent in PARENTS.items():
        await committed(snapshotter, f"{mode:o}", parent)
    await first(snapshotter, "first", UNNAMED, "700")
    await first(snapshotter, "gone", GONE, "" if first is whole else "700")
    for name, on, layer in (
        ("second", "711", UNNAMED), ("third", "700", UNNAMED), ("none", "", UNNAMED), ("above", "711", GONE),
        ("lowest", "", GONE),
    ):  # fmt: skip
        assert await given(snapshotter, await snapshotter.prepare(f"{name} key", on), layer) == len(layer)
        await snapshotter.commit(name, f"{name} key")
    assert len(set(files(snapshotter, layout.DATA))) == 4
    assert [await mode_of(snapshotter, name) for name in ("first", "second", "third", "none")] == [
        0o700, 0o711, 0o700, 0o755,
    ]  # fmt: skip
    (view,) = await snapshotter.view("view", "lowest")
    assert os.listdir(view.source) == ["c"]


@pytest.mark.parametrize(
    "why", ["another namespace", "written to", "unpacked", "not there", "cut off", "no image", "a view", "committed"]
)
async def test_a_layer_that_is_not_given(snapshotter: ErofsSnapshotter, why: str) -> None:
    """It is unpacked then, as ever, and nothing of it is there before."""
    await committed(snapshotter, "one/1/layer", WHOLE)
    key = f"{'other' if why == 'another namespace' else 'one'}/2/key"
    mounts = await (snapshotter.view(key) if why == "a view" else snapshotter.prepare(key))
    layer, image = WHOLE, False
    match why:
        case "written to":
            Path(mounts[0].source, "mine").touch()
        case "unpacked":
            unpacked(mounts, UNNAMED)
        case "not there":
            layer = UNNAMED
        case "cut off":
            (data,) = (snapshotter.root / "layers").glob("*/data")
            os.truncate(data, 512)
        case "no image":
            image = True
        case "committed":
            await snapshotter.commit("one/3/other", key)
    assert await given(snapshotter, mounts, layer, image=image) is None
    thing = Path(mounts[0].source).parent / layout.LAYER
    if why == "unpacked":
        assert (thing / layout.DATA).stat().st_nlink == 1
    elif why not in ("a view", "committed"):
        assert os.listdir(thing) == []


def test_which_directory_is_a_snapshots(snapshotter: ErofsSnapshotter) -> None:
    at = snapshotter.directory
    assert snapshotter.number_of(f"{at}/12/fs") == 12
    for other in (f"{at}/12", f"{at}/012/fs", f"{at}/x/fs", f"{at}/{'9' * 5000}/fs", "/12/fs", "12/fs", "fs", ""):
        assert snapshotter.number_of(other) is None


async def test_a_layer_of_which_nothing_is_known_any_more_goes_as_others(place: Path) -> None:
    """A power cut may leave zeros where a file was not durable. The layer is unpacked again."""
    async with ErofsSnapshotter(place / "e", idle=0.0, sync_remove=True) as made:
        await committed(made, "one", WHOLE)
        (about,) = (made.root / "layers").glob("*/about")
        about.write_bytes(bytes(50))
        (mount,) = await made.prepare("key", "", {DIFF_ID: digest_of(WHOLE)})
        assert "rw" in mount.options
        for name in ("one", "key"):
            await made.remove(name)
        assert not os.listdir(made.directory)
    async with ErofsSnapshotter(place / "e") as after:
        assert shelved(after) == []


async def test_an_index_that_is_cut_off_is_named(snapshotter: ErofsSnapshotter) -> None:
    """By who asks how much room it takes."""
    unpacked(await snapshotter.prepare("key"), WHOLE)
    (index,) = Path(snapshotter.directory).glob(f"*/{layout.LAYER}/{layout.INDEX}")
    os.truncate(index, 1000)
    with pytest.raises(errors.NodeError, match=f"{index}: it is cut off"):
        await snapshotter.usage("key")
