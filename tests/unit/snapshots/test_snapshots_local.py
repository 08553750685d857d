"""The snapshotters on disk, without a process around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.kit import errors
from services.snapshots.native import NativeSnapshotter
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.store import Snapshotter
from tests.suites.snapshots import SnapshotterSuite


class TestLocalOverlay(SnapshotterSuite):
    @pytest.fixture
    async def snapshotter(self, place: Path) -> AsyncIterator[Snapshotter]:
        async with OverlaySnapshotter(place / "o") as snapshotter:
            yield snapshotter


class TestLocalNative(SnapshotterSuite):
    name = "native"

    @pytest.fixture
    async def snapshotter(self, place: Path) -> AsyncIterator[Snapshotter]:
        async with NativeSnapshotter(place / "n") as snapshotter:
            yield snapshotter


async def test_many_are_removed_in_one_call(place: Path) -> None:
    """In their order, a child before its parent; one that cannot be removed stops none of the others."""
    async with NativeSnapshotter(place / "n") as snapshotter:
        await snapshotter.prepare("a-key")
        await snapshotter.commit("a", "a-key")
        for key in ("b", "c"):
            await snapshotter.prepare(key, "a")
        done = await snapshotter.remove_all([("snapshot", key) for key in ("a", "b", "none", "c", "a")])
        assert [type(outcome) for outcome in done] == [errors.FailedPrecondition, type(None), errors.NotFound, type(None), type(None)]
        assert [info async for info in snapshotter.list()] == []
