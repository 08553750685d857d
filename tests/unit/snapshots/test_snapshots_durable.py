"""Commits share their waits for the disk, and get its errors."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from services.kit import errors
from services.snapshots import disk
from services.snapshots.durable import FilesystemSync
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.store import Usage
from tests.support import eventually_async


class SlowDisk:
    """A replacement for syncfs: each call waits for ``go`` and fails if its number is among ``failing``."""

    def __init__(self, *failing: int) -> None:
        self.go = threading.Event()
        self.begun = 0
        self._failing = failing

    def __call__(self, fd: int) -> None:
        self.begun += 1
        number = self.begun
        assert self.go.wait(10)
        if number in self._failing:
            raise OSError(errno.EIO, "a disk")


async def test_all_that_wait_share_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that come while a syncfs is under way wait for the one after it; so ten wait for two, and a caller that
    goes away ends no other's wait.
    """
    slow = SlowDisk()
    monkeypatch.setattr(disk, "sync_filesystem", slow)
    sync = FilesystemSync(str(place), lambda: None)
    first = asyncio.ensure_future(sync.start()())

    async def begun() -> bool:
        return slow.begun == 1

    await eventually_async(begun)
    others = [asyncio.ensure_future(sync.start()()) for _ in range(9)]
    await asyncio.sleep(0)
    others.pop().cancel()
    slow.go.set()
    await asyncio.gather(first, *others)
    assert slow.begun == 2
    await sync.start()()
    assert slow.begun == 3
    await sync.aclose()


async def test_an_error_is_told_to_those_that_wait_for_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next syncfs has its own result."""
    slow = SlowDisk(1)
    monkeypatch.setattr(disk, "sync_filesystem", slow)
    slow.go.set()
    sync = FilesystemSync(str(place), lambda: None)
    ends = await asyncio.gather(sync.start()(), sync.start()(), return_exceptions=True)
    assert [type(end) for end in ends] == [OSError, OSError]
    await sync.start()()
    await sync.aclose()


async def test_a_snapshot_that_may_have_lost_files_is_not_committed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk reports a loss once, and not of which file: no snapshot that was begun by then is committed, however often
    a client tries. One that is begun later is.
    """
    slow = SlowDisk(1)
    monkeypatch.setattr(disk, "sync_filesystem", slow)
    slow.go.set()
    async with OverlaySnapshotter(place / "o") as snapshotter:
        for key in ("one", "another"):
            await snapshotter.prepare(key)
        for key, why in (
            ("one", "failed to commit snapshot one: its files are not on the disk: a disk"),
            ("one", "failed to commit snapshot one: its files may not be on the disk"),
            ("another", "failed to commit snapshot another: its files may not be"),
        ):
            with pytest.raises(errors.Unknown, match=why):
                await snapshotter.commit("committed", key)
        await snapshotter.prepare("later")
        await snapshotter.commit("committed", "later")


async def test_a_sync_error_without_a_waiter_is_not_forgotten(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller went away, or only copied a parent: files of other snapshots that were begun by then may have been
    lost nevertheless.
    """
    slow = SlowDisk(1)
    monkeypatch.setattr(disk, "sync_filesystem", slow)
    async with OverlaySnapshotter(place / "o") as snapshotter:
        for key in ("one", "another"):
            await snapshotter.prepare(key)
        gone = asyncio.ensure_future(snapshotter.commit("committed", "one"))

        async def begun() -> bool:
            return slow.begun == 1

        await eventually_async(begun)
        gone.cancel()
        slow.go.set()
        with pytest.raises(errors.Unknown, match="its files may not be on the disk"):
            await snapshotter.commit("committed", "another")


async def test_a_snapshot_is_measured_while_the_disk_writes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a pull waits for the longer of the two, not for their sum."""
    slow, measured = SlowDisk(), asyncio.Event()
    monkeypatch.setattr(disk, "sync_filesystem", slow)

    async def usage(directory: str) -> Usage:
        await measured.wait()
        return Usage(1, 1)

    monkeypatch.setattr(disk, "usage", usage)
    async with OverlaySnapshotter(place / "o") as snapshotter:
        await snapshotter.prepare("one")
        committing = asyncio.ensure_future(snapshotter.commit("committed", "one"))

        async def begun() -> bool:
            return slow.begun == 1

        await eventually_async(begun)
        measured.set()
        slow.go.set()
        await committing
        assert (await snapshotter.usage("committed")).size == 1
