"""A layer that is there on another parent is not unpacked again: which layers that holds for, and what becomes of the
files that several snapshots share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.kit import errors
from services.kit.salvage import salvage
from services.kit.sqlite import File
from services.oci.digests import chain_ids, digest_of
from services.snapshots import tree
from services.snapshots.diff import note
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.store import DIFF_ID, TARGET, UID_MAPPING, Info, Kind, Usage

pytestmark = pytest.mark.root

BASE, OTHER, LAYER, ABOVE = (digest_of(name) for name in (b"base", b"other", b"layer", b"above"))


@pytest.fixture
async def snapshotter(place: Path) -> AsyncIterator[OverlaySnapshotter]:
    async with OverlaySnapshotter(place / "o", sync_remove=True) as snapshotter:
        yield snapshotter


class Images:
    """A client in a namespace that unpacks images."""

    def __init__(self, snapshotter: OverlaySnapshotter, namespace: str = "mine") -> None:
        self.snapshotter = snapshotter
        self._namespace = namespace
        self._number = 0

    def _raw(self, name: str) -> str:
        self._number += 1
        return f"{self._namespace}/{self._number}/{name}"

    async def unpacked(
        self,
        diff_id: str,
        parent: str = "",
        *,
        hides: bool = False,
        overlay: str = "trusted.overlay.",
        unnamed: Sequence[str] = (),
        name: str = "",
        says: bool = True,
    ) -> str:
        """The committed snapshot of a layer: one that is shared, or a new one."""
        target = name or chain(parent, diff_id)
        labels = {TARGET: target, **({DIFF_ID: diff_id} if says else {})}
        key = self._raw(f"extract {target}")
        try:
            await self.snapshotter.prepare(key, parent, labels)
        except errors.AlreadyExists:
            return (await self.target(target, parent)).name
        thing = self.thing(key)
        for each in unnamed:
            (thing / "fs" / each).mkdir(parents=True)
        (thing / "fs" / f"file-{diff_id[7:15]}").write_text(diff_id)
        fd = os.open(thing, os.O_RDONLY | os.O_DIRECTORY)
        note.write(fd, note.Note(diff_id, overlay, hides, [Unnamed(b"/" + each.encode()) for each in unnamed]))
        os.close(fd)
        committed = self._raw(target)
        await self.snapshotter.commit(committed, key, labels)
        return committed

    async def target(self, target: str, parent: str) -> Info:
        """The snapshot that the gateway would find for a target."""
        (found,) = [
            info
            async for info in self.snapshotter.list([f'labels."{TARGET}"=={target},parent=="{parent}"'])
            if info.kind is Kind.COMMITTED
        ]
        return found

    def thing(self, key: str) -> Path:
        """The directory of a snapshot."""
        row = self.snapshotter._tree.view(lambda rows: rows.get(key))
        assert row is not None
        return Path(self.snapshotter.path(self.snapshotter._tree.view(lambda rows: rows.thing(row.id))))


def chain(parent: str, diff_id: str) -> str:
    return chain_ids([*([parent.rpartition("/")[2]] if parent else []), diff_id])[-1]


def directories(snapshotter: OverlaySnapshotter) -> set[str]:
    return set(snapshotter.names())


def version(snapshotter: OverlaySnapshotter) -> int:
    with contextlib.closing(sqlite3.connect(snapshotter.root / "metadata.db")) as file:
        return int(file.execute("PRAGMA user_version").fetchone()[0])


async def test_a_layer_on_another_parent_makes_no_files(snapshotter: OverlaySnapshotter) -> None:
    """Its snapshot is named as the gateway names snapshots, and stands on the other parent. What is made on it is
    mounted on the files that are there. The space is counted once.
    """
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    first = await images.unpacked(LAYER, base)
    before = directories(snapshotter)
    second = await images.unpacked(LAYER, other)
    assert directories(snapshotter) == before
    assert second != first
    assert second.startswith("mine/")
    assert second.endswith(chain(other, LAYER))
    info = await snapshotter.stat(second)
    assert (info.kind, info.parent) == (Kind.COMMITTED, other)
    assert info.labels == {TARGET: chain(other, LAYER), DIFF_ID: LAYER}
    (mount,) = await snapshotter.prepare("box", second)
    assert mount.option("lowerdir").split(":") == [f"{images.thing(each)}/fs" for each in (first, other)]
    assert (await snapshotter.usage(first)).inodes == 2
    assert await snapshotter.usage(second) == Usage()


async def test_layers_above_a_shared_one_are_shared(snapshotter: OverlaySnapshotter) -> None:
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    for lower in (base, other):
        await images.unpacked(ABOVE, await images.unpacked(LAYER, lower))
    assert len(directories(snapshotter)) == 4
    assert len([info async for info in snapshotter.list()]) == 6


@pytest.mark.parametrize("first", [True, False], ids=["the first one", "the second one"])
async def test_shared_files_go_with_the_last_snapshot(snapshotter: OverlaySnapshotter, first: bool) -> None:
    """Whichever is removed before, the other has the files, and from then on takes the space."""
    images = Images(snapshotter)
    both = [await images.unpacked(LAYER, await images.unpacked(lower)) for lower in (BASE, OTHER)]
    thing, took = images.thing(both[0]), await snapshotter.usage(both[0])
    gone, left = both if first else reversed(both)
    await snapshotter.remove(gone)
    await snapshotter.cleanup()
    assert images.thing(left) == thing
    assert [path.name for path in (thing / "fs").iterdir()] == [f"file-{LAYER[7:15]}"]
    assert await snapshotter.usage(left) == took
    await snapshotter.remove(left)
    assert not thing.exists()


async def test_a_crash_after_the_removal_of_the_first_loses_no_files(
    snapshotter: OverlaySnapshotter, place: Path
) -> None:
    """At the next start the directory belongs to no snapshot of that name, and is swept nevertheless only when the
    other one is gone, too.
    """
    images = Images(snapshotter)
    first, second = [await images.unpacked(LAYER, await images.unpacked(lower)) for lower in (BASE, OTHER)]
    name = images.thing(first).name
    await snapshotter.remove(first)
    shutil.copytree(snapshotter.root, place / "crashed")
    async with OverlaySnapshotter(place / "crashed", sync_remove=True) as after:
        await after.cleanup()
        assert name in directories(after)
        assert Images(after).thing(second).name == name
        await after.remove(second)
        assert name not in directories(after)


async def test_an_older_splitd_refuses_records_of_shared_files(snapshotter: OverlaySnapshotter) -> None:
    """It would remove the files together with the first snapshot. Once nothing is shared, it takes them again."""
    images = Images(snapshotter)
    first, second = [await images.unpacked(LAYER, await images.unpacked(lower)) for lower in (BASE, OTHER)]
    older = replace(tree.LAYOUT, also=())
    assert version(snapshotter) == 2
    with pytest.raises(errors.FailedPrecondition, match="has layout 2, this splitd knows 1"):
        File(snapshotter.root / "metadata.db", "snapshot records", older)
    await snapshotter.remove(first)
    assert version(snapshotter) == 2, "the files are in the directory of another one"
    await snapshotter.remove(second)
    assert version(snapshotter) == 1


async def test_salvage_keeps_who_shares_what(snapshotter: OverlaySnapshotter, place: Path) -> None:
    images = Images(snapshotter)
    both = [await images.unpacked(LAYER, await images.unpacked(lower)) for lower in (BASE, OTHER)]
    names = [images.thing(each).name for each in both]
    found = salvage(snapshotter.root / "metadata.db", place / "new.db", tree.readable)
    assert {table: (saved.rows, saved.damaged) for table, saved in found.items()} == {
        "snapshots": (4, 0),
        "layers": (4, 0),
    }
    file = tree.opened(place / "new.db")
    rows = tree.Rows(file.reader)
    assert [str(rows.thing(row.id)) for each in both if (row := rows.get(each))] == names
    file.close()


async def test_records_of_an_older_splitd_are_read(place: Path) -> None:
    """It has no table of layers; its snapshots are no layers that can be shared."""
    async with OverlaySnapshotter(place / "o") as snapshotter:
        base = await Images(snapshotter).unpacked(BASE)
    with contextlib.closing(sqlite3.connect(place / "o" / "metadata.db")) as file:
        file.execute("DROP TABLE layers")
    async with OverlaySnapshotter(place / "o") as snapshotter:
        assert (await snapshotter.stat(base)).kind is Kind.COMMITTED
        assert not snapshotter._tree.view(lambda rows: rows.layers(BASE))
        await Images(snapshotter, "later").unpacked(BASE)
        assert snapshotter._tree.view(lambda rows: rows.layers(BASE))


async def test_clients_that_do_not_say_the_diff_id(snapshotter: OverlaySnapshotter) -> None:
    """The target is the chain id of one of the layers that are there."""
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    first = await images.unpacked(LAYER, base, says=False)
    assert images.thing(await images.unpacked(LAYER, other, says=False)) == images.thing(first)


async def test_whiteouts_are_shared_between_upper_directories_only(snapshotter: OverlaySnapshotter) -> None:
    """In a plain directory they were carried out."""
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    first = await images.unpacked(LAYER, base, hides=True)
    assert images.thing(await images.unpacked(LAYER, other, hides=True)) == images.thing(first)
    plain = await images.unpacked(ABOVE, base, hides=True, overlay="")
    assert images.thing(await images.unpacked(ABOVE, other, hides=True)) != images.thing(plain)


async def test_a_lowest_layer_is_shared_with_one_above_another(snapshotter: OverlaySnapshotter) -> None:
    images = Images(snapshotter)
    lowest = await images.unpacked(LAYER, overlay="")
    assert images.thing(await images.unpacked(LAYER, await images.unpacked(BASE))) == images.thing(lowest)


@pytest.mark.parametrize("what", ["mode", "owner", "time", "attribute", "a file", "only in one"])
async def test_directories_that_a_layer_does_not_name(snapshotter: OverlaySnapshotter, what: str) -> None:
    """Their attributes come from the layers below. Where these differ, the layer is unpacked again."""
    images = Images(snapshotter)
    base, other, third = [await images.unpacked(each) for each in (BASE, OTHER, ABOVE)]
    for lower in (base, other, third):
        inner = images.thing(lower) / "fs" / "usr" / "bin"
        inner.mkdir(parents=True)
        os.setxattr(inner.parent, "user.x", b"1")
        for each in (inner, inner.parent):
            os.utime(each, ns=(0, 10**9))
    changed = images.thing(third) / "fs" / "usr"
    match what:
        case "mode":
            changed.chmod(stat.S_ISGID | 0o755)
        case "owner":
            os.chown(changed, 0, 5)
        case "time":
            os.utime(changed, ns=(0, 2 * 10**9))
        case "attribute":
            os.setxattr(changed, "user.x", b"2")
        case "a file":
            shutil.rmtree(changed)
            changed.touch()
        case _:
            shutil.rmtree(changed)
    first, second, last = [
        images.thing(await images.unpacked(LAYER, lower, unnamed=("usr", "usr/bin") if lower == base else ()))
        for lower in (base, other, third)
    ]
    assert second == first
    assert last != first


@pytest.mark.parametrize(
    "why", ["another namespace", "another name", "no note", "a cut note", "mapped ids", "the root's owner"]
)
async def test_layers_that_are_not_shared(snapshotter: OverlaySnapshotter, why: str) -> None:
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    first = await images.unpacked(LAYER, base, name="mine" if why == "another name" else "")
    written = images.thing(first) / note.NAME
    match why:
        case "another namespace":
            images = Images(snapshotter, "other")
            other = await images.unpacked(OTHER)
        case "no note":
            written.unlink()
        case "a cut note":
            written.write_bytes(written.read_bytes()[:-1])
        case "the root's owner":
            os.chown(images.thing(other) / "fs", 1000, 1000)
    labels = {TARGET: chain(other, LAYER), DIFF_ID: LAYER}
    if why == "mapped ids":
        labels[UID_MAPPING] = "0:1000:65536"
    assert await snapshotter.prepare("key", other, labels)


async def test_a_layer_is_not_twice_in_a_stack(snapshotter: OverlaySnapshotter) -> None:
    """overlayfs refuses the same directory twice. A second copy is shared as well."""
    images = Images(snapshotter)
    stacks = []
    for lower in (BASE, OTHER):
        once = await images.unpacked(LAYER, await images.unpacked(lower))
        twice = await images.unpacked(LAYER, once)
        stacks.append([images.thing(each) for each in (once, twice)])
    assert stacks[0] == stacks[1]
    assert len({*stacks[0]}) == 2


async def test_what_is_asked_for_twice_is_made_once(snapshotter: OverlaySnapshotter) -> None:
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    await images.unpacked(LAYER, base)
    labels = {TARGET: chain(other, LAYER), DIFF_ID: LAYER}
    asked = [snapshotter.prepare(f"mine/9{number}/key", other, labels) for number in range(3)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found] == [errors.AlreadyExists] * 3
    await images.target(labels[TARGET], other)


@pytest.mark.parametrize("gone", ["the layer", "the parent"])
async def test_what_is_removed_meanwhile_is_not_shared(
    snapshotter: OverlaySnapshotter, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the files are compared, anything may be removed."""
    images = Images(snapshotter)
    base, other = await images.unpacked(BASE), await images.unpacked(OTHER)
    first = await images.unpacked(LAYER, base)
    removed = {"the layer": first, "the parent": other}[gone]
    loop = asyncio.get_running_loop()

    def late(*_: object) -> bool:
        asyncio.run_coroutine_threadsafe(snapshotter.remove(removed), loop).result(30)
        return True

    monkeypatch.setattr(snapshotter._sharing, "_same", late)
    asked = snapshotter.prepare("mine/9/key", other, {TARGET: chain(other, LAYER), DIFF_ID: LAYER})
    if gone == "the layer":
        assert await asked
    else:
        with pytest.raises(errors.NotFound):
            await asked
    assert [info.name async for info in snapshotter.list() if info.name.endswith(chain(other, LAYER))] == []


def test_a_note_belongs_to_one_layer_in_an_empty_directory(place: Path) -> None:
    """Only a snapshotter that wants notes gets them."""
    upper = place / "root" / "snapshots" / "1" / "fs"
    upper.mkdir(parents=True)
    assert note.place_of(str(upper)) is None
    (place / "root" / note.WANTED).touch()
    fd = note.place_of(str(upper))
    assert fd is not None
    written = note.Note(LAYER, "", True, [Unnamed(b"/a\nb", inside=True), Unnamed(b"/c", named=True)])
    note.write(fd, written)
    os.close(fd)
    assert note.read(str(upper.parent)) == written
    _check_cut(upper.parent)
    (upper / "file").touch()
    assert note.place_of(str(upper)) is None
    assert note.read(str(upper.parent)) is None
    assert note.place_of(str(place)) is None


def _check_cut(snapshot: Path) -> None:
    """Check that no part of a note is taken for a whole one: its last directory would have another name."""
    whole = (snapshot / note.NAME).read_bytes()
    for end in range(len(whole)):
        for cut in (whole[:end], whole[:end] + bytes(len(whole) - end)):
            (snapshot / note.NAME).write_bytes(cut)
            assert note.read(str(snapshot)) is None
    (snapshot / note.NAME).write_bytes(whole)


def test_without_a_note_everything_else_works(place: Path) -> None:
    """It may not be possible to write one, as on a full disk."""
    (place / "gone").mkdir()
    fd = os.open(place / "gone", os.O_RDONLY)
    (place / "gone").rmdir()
    note.write(fd, note.Note(LAYER, "", False, []))
    os.close(fd)
    note.want(place / "gone")
    assert os.listdir(place) == []
