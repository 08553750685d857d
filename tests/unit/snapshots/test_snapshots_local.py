"""The snapshotters on disk, without a process around them."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from pathlib import Path

import pytest

from deploy.processes import SOCKETS
from services.kit import damage, errors
from services.snapshots import local
from services.snapshots.native import NativeSnapshotter
from services.snapshots.snapshotters import SNAPSHOTTERS
from services.snapshots.tree import Tree


def test_names_of_snapshotters_are_short() -> None:
    """Each name is part of a socket's name, and all differ."""
    names = [each.NAME for each in SNAPSHOTTERS]
    assert len({*names}) == len(names)
    assert all(re.fullmatch(f"[a-z0-9]{{1,{local.LONGEST_NAME}}}", name) for name in names)
    assert f"snapshots-{'x' * local.LONGEST_NAME}.sock" in {re.sub("[0-9]{9}", "x" * 9, name) for name in SOCKETS}, (
        "what splitd up reckons with"
    )


async def test_a_commit_brings_no_parent_where_that_is_not_said(place: Path) -> None:
    """That would need a copy of another parent."""
    async with NativeSnapshotter(place / "n") as snapshotter:
        for name in ("below", "above"):
            await snapshotter.prepare(f"{name}-key")
        await snapshotter.commit("below", "below-key")
        with pytest.raises(
            errors.Unimplemented, match="^rebase of snapshot above-key by snapshotter native: not implemented$"
        ):
            await snapshotter.commit("above", "above-key", parent="below")


async def test_many_are_removed_in_one_call(place: Path) -> None:
    """They are removed in their order, a child before its parent; one that cannot be removed stops none of the
    others.
    """
    async with NativeSnapshotter(place / "n") as snapshotter:
        await snapshotter.prepare("a-key")
        await snapshotter.commit("a", "a-key")
        for key in ("b", "c"):
            await snapshotter.prepare(key, "a")
        done = await snapshotter.remove_all([("snapshot", key) for key in ("a", "b", "none", "c", "a")])
        assert [type(outcome) for outcome in done] == [
            errors.FailedPrecondition,
            type(None),
            errors.NotFound,
            type(None),
            type(None),
        ]
        assert [info async for info in snapshotter.list()] == []


async def _crashed(place: Path) -> Path:
    """Return a snapshotter's root as kill -9 leaves it, with ten snapshots."""
    running, left = place / "running", place / "left"
    async with NativeSnapshotter(running) as snapshotter:
        for n in range(10):
            await snapshotter.prepare(f"key-{n}", labels={"filler": "x" * 3000})
        shutil.copytree(running, left)
    return left


def _directories(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "snapshots").iterdir())


@pytest.mark.parametrize("loss", ["a flipped bit of the log", "the database is gone", "the database is empty"])
async def test_records_that_are_lost_take_no_directories_with_them(place: Path, loss: str) -> None:
    """The directories hold the only copy of what containers wrote. They stay, over starts and cleanups, until an
    operator releases them.
    """
    left = await _crashed(place)
    before = _directories(left)
    log = left / "metadata.db-wal"
    if loss != "a flipped bit of the log":
        for file in left.glob("metadata.db*"):
            file.unlink()
        if loss == "the database is empty":
            (left / "metadata.db").touch()
    else:
        data = bytearray(log.read_bytes())
        last = damage.committed(left / "metadata.db")
        data[32 + (last // 2) * (24 + 4096) + 900] ^= 4
        log.write_bytes(data)
    for _ in range(2):
        async with NativeSnapshotter(left) as snapshotter:
            known = len([info async for info in snapshotter.list()])
            assert known < 10
            with pytest.raises(
                errors.FailedPrecondition, match=f"directories without a record are kept, until {left}/held is removed"
            ):
                await snapshotter.cleanup()
            await snapshotter.prepare("new")
            await snapshotter.remove("new")
    assert set(before) <= set(_directories(left))
    (left / "held").unlink()
    async with NativeSnapshotter(left) as snapshotter:
        await snapshotter.cleanup()
        assert len(_directories(left)) == known


async def test_that_a_database_is_gone_is_noted_before_there_is_a_new_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that ends in between leaves a new database, which does not show the loss."""
    left = await _crashed(place)
    for file in left.glob("metadata.db*"):
        file.unlink()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "Tree", killed)
    with pytest.raises(KeyboardInterrupt):
        NativeSnapshotter(left)
    monkeypatch.undo()
    await Tree(left / "metadata.db").close()
    before = _directories(left)
    async with NativeSnapshotter(left) as snapshotter:
        with pytest.raises(errors.FailedPrecondition, match="is new, though there are snapshots"):
            await snapshotter.cleanup()
    assert _directories(left) == before


async def test_a_start_that_ends_before_it_holds_anything_leaves_that_to_the_next(place: Path) -> None:
    """The start has found the loss and begun the log again, so nothing in the database shows the loss any more."""
    left = await _crashed(place)
    data = bytearray((left / "metadata.db-wal").read_bytes())
    data[32 + (damage.committed(left / "metadata.db") // 2) * (24 + 4096) + 900] ^= 4
    (left / "metadata.db-wal").write_bytes(data)
    tree = Tree(left / "metadata.db")
    assert tree.file.lost
    await tree.close()
    before = _directories(left)
    async with NativeSnapshotter(left) as snapshotter:
        with pytest.raises(errors.FailedPrecondition, match="an earlier start found its log damaged"):
            await snapshotter.cleanup()
    assert _directories(left) == before
    assert [each.name.partition("-2")[0] for each in left.glob("*.damaged-*")] == ["metadata.db-wal.damaged"]


async def test_things_without_a_record_are_removed_after_a_crash(place: Path) -> None:
    """With whole records, a thing without a record belongs to a call that was never answered."""
    left = await _crashed(place)
    (left / "snapshots" / "new-77").mkdir()
    (left / "snapshots" / "78").mkdir()
    async with NativeSnapshotter(left) as snapshotter:
        await snapshotter.cleanup()
        assert len([info async for info in snapshotter.list()]) == 10
    assert len(_directories(left)) == 10
    assert not (left / "held").exists()


async def test_a_check_that_was_broken_off_proves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends during the check does not begin to remove things that a damaged database does not know."""
    begun, go = threading.Event(), threading.Event()

    def slow(_: Path) -> str:
        begun.set()
        go.wait(60)
        return ""

    monkeypatch.setattr(damage, "quick_check", slow)
    try:
        async with NativeSnapshotter(place / "n") as snapshotter:
            asked = asyncio.create_task(snapshotter.soundness.checked())
            await asyncio.to_thread(begun.wait)
        assert await asked is False
    finally:
        go.set()
