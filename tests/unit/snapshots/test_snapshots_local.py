"""The snapshotters on disk, without a process around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
