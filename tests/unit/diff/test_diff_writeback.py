"""Writeback of unpacked files starts early: large files each by itself, small ones many at a time."""

from __future__ import annotations

import os
import threading

import pytest

from services.snapshots.diff import writeback
from services.snapshots.diff.mounts import MountError
from services.snapshots.diff.writeback import LARGE, Writeback
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
