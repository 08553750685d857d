"""Writeback of unpacked files starts early: large files each by itself, small ones many at a time; a file that is a
layer is synced while it grows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.snapshots.diff import writeback
from services.snapshots.diff.mounts import MountError
from services.snapshots.diff.writeback import EACH, LARGE, SYNCED, Trail, Writeback
from tests.support import eventually


class Disk:
    """A disk that records which writebacks start; a sweep lasts until ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.begun: list[int] = []
        self.sweeps = 0
        self.swept = 0
        monkeypatch.setattr(writeback, "start_writeback", self.begun.append)
        monkeypatch.setattr(writeback, "syncfs", self._swept)

    def _swept(self, fd: int) -> None:
        self.sweeps += 1
        assert os.fstat(fd).st_ino == os.stat("/").st_ino
        assert self.go.wait(10)
        self.swept += 1


def test_a_large_file_is_begun_by_itself_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for each small file would cost more than writing it."""
    disk, files = Disk(monkeypatch), Writeback()
    for size in (0, 1, LARGE - 1, LARGE, 5):
        files.written(7, size)
    assert disk.begun == [7]
    assert disk.sweeps == 0


@pytest.mark.parametrize(("count", "size"), [(3000, 10), (64, 512 << 10)])
def test_many_are_swept_up_at_once(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> None:
    """A sweep starts after many files or many bytes; files that come during a sweep wait for the next."""
    disk, files = Disk(monkeypatch), Writeback()
    for _ in range(count - 1):
        files.written(7, size)
    assert disk.sweeps == 0
    for _ in range(2 * count):
        files.written(7, size)
    eventually(lambda: disk.sweeps == 1, "no sweep")
    disk.go.set()
    eventually(lambda: disk.swept == 1, "no end of the sweep")

    def another() -> bool:
        files.written(7, size)
        return disk.sweeps == 2

    eventually(another, "no second sweep")
    assert disk.begun == []


def test_a_write_error_is_raised_to_the_syncs_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking goes on, and the next sweep comes."""
    calls: list[int] = []

    def broken(fd: int) -> None:
        calls.append(fd)
        raise MountError("syncfs: input/output error")

    monkeypatch.setattr(writeback, "syncfs", broken)
    files = Writeback()

    def twice() -> bool:
        files.written(7, LARGE - 1)
        return len(calls) >= 2

    eventually(twice, "no second sweep")


class Syncs:
    """The syncs of a layer's file, where its writing was started, and what left memory. A sync lasts until ``go`` is
    set; it fails if ``broken``. A start lasts until ``taken`` is set.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.taken = threading.Event(), threading.Event()
        self.taken.set()
        self.begun: list[tuple[int, int]] = []
        self.dropped: list[tuple[int, int]] = []
        self.files: list[int] = []
        """The inodes of the files that were synced, as each began."""
        self.done = 0
        self.broken = False
        monkeypatch.setattr(writeback, "start_writeback", self._begin)
        monkeypatch.setattr(os, "fdatasync", self._sync)
        monkeypatch.setattr(os, "posix_fadvise", self._drop)

    def _begin(self, fd: int, start: int, size: int) -> None:
        os.fstat(fd)
        self.begun.append((start, size))
        assert self.taken.wait(15)

    def _drop(self, fd: int, start: int, size: int, advice: int) -> None:
        assert (os.fstat(fd).st_ino, advice) == (self.files[-1], os.POSIX_FADV_DONTNEED)
        self.dropped.append((start, size))

    def _sync(self, fd: int) -> None:
        self.files.append(os.fstat(fd).st_ino)
        assert self.go.wait(15)
        assert os.fstat(fd).st_ino == self.files[-1]
        self.done += 1
        if self.broken:
            raise OSError(5, "Input/output error")


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[int]:
    """An open file."""
    with (tmp_path / "data").open("wb") as file:
        yield file.fileno()


def test_a_file_is_synced_while_it_grows(monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """What comes during a sync waits for the next one, which begins at its end. What is on the disk leaves memory:
    a mount of the layer reads it from there.
    """
    syncs, trail = Syncs(monkeypatch), Trail(layer)
    trail.grown(SYNCED)
    eventually(lambda: len(syncs.files) == 1, "no sync")
    for size in range(SYNCED + EACH, 3 * SYNCED + 1, EACH):
        trail.grown(size)
    assert syncs.dropped == []
    syncs.go.set()
    eventually(lambda: len(syncs.dropped) == 2, "no second sync")
    trail.grown(4 * SYNCED)
    eventually(lambda: len(syncs.dropped) == 3, "no third sync")
    assert syncs.dropped == [(0, SYNCED), (0, 3 * SYNCED), (0, 4 * SYNCED)]
    assert set(syncs.files) == {os.fstat(layer).st_ino}


def test_the_writer_does_not_wait_for_a_busy_device(monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """Writing is started each few bytes, also during a sync; what comes while the device takes no more, at once."""
    syncs, trail = Syncs(monkeypatch), Trail(layer)
    syncs.taken.clear()
    trail.grown(EACH - 1)
    trail.grown(EACH)
    eventually(lambda: syncs.begun == [(0, EACH)], "it is not started")
    for size in (2 * EACH, 3 * EACH, SYNCED):
        trail.grown(size)
    eventually(lambda: len(syncs.files) == 1, "no sync")
    syncs.taken.set()
    eventually(lambda: syncs.begun == [(0, EACH), (EACH, SYNCED - EACH)], "the rest is not started")

    def started() -> bool:
        return syncs.begun[-1] == (SYNCED, EACH)

    trail.grown(SYNCED + EACH)
    eventually(started, "it is not started during a sync")
    syncs.go.set()
    eventually(lambda: syncs.done == 1, "no end of the sync")


def test_the_last_bytes_are_synced_unless_they_are_few(monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """Its index is made meanwhile. A small layer is left to its commit."""
    syncs, trail = Syncs(monkeypatch), Trail(layer)
    syncs.go.set()
    trail.ended(LARGE - 1)
    trail.ended(LARGE)
    eventually(lambda: syncs.done == 1, "no sync")
    trail.ended(2 * LARGE - 1)
    trail.ended(2 * LARGE)
    eventually(lambda: syncs.done == 2, "no second sync")
    assert len(syncs.files) == 2


def test_the_writer_closes_its_file_during_a_sync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sync has a descriptor of its own, which no other file gets meanwhile."""
    syncs = Syncs(monkeypatch)
    with (tmp_path / "data").open("wb") as file:
        inode = os.fstat(file.fileno()).st_ino
        Trail(file.fileno()).ended(SYNCED)
        eventually(lambda: syncs.files == [inode], "no sync")
    with (tmp_path / "other").open("wb"):
        syncs.go.set()
        eventually(lambda: syncs.done == 1, "no end of the sync")


def test_a_disk_that_fails_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """The writer goes on; the commit gets the error."""
    syncs, trail = Syncs(monkeypatch), Trail(layer)
    syncs.broken = True
    before = len(os.listdir("/proc/self/fd"))
    syncs.go.set()
    trail.grown(SYNCED)
    eventually(lambda: syncs.done == 1 and len(os.listdir("/proc/self/fd")) == before, "the sync's file stays open")
    trail.grown(2 * SYNCED)
    trail.ended(3 * SYNCED)
    assert len(syncs.files) == 1
    assert syncs.dropped == []
