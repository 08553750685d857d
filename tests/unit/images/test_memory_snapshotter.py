"""The snapshotter of the images' tests keeps what a snapshotter promises, as far as it has it."""

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
