"""The snapshotter of the images' tests passes the snapshotters' suite, as far as it implements the interface."""

from __future__ import annotations

import pytest

from tests.suites.snapshots import SnapshotterSuite
from tests.unit.images.memory_node import MemorySnapshotter


class TestMemory(SnapshotterSuite):
    name = "memory"
    mountable = False

    @pytest.fixture
    def snapshotter(self) -> MemorySnapshotter:
        return MemorySnapshotter()
