"""The node of the images' tests keeps what a node promises to transfers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.suites.transfer_node import Damage, NodeSuite
from tests.unit.images.memory_node import MemoryNode


class TestMemory(NodeSuite):
    @pytest.fixture
    def node(self, tmp_path: Path) -> MemoryNode:
        return MemoryNode(tmp_path)

    @pytest.fixture
    def damage(self, node: MemoryNode) -> Damage:
        return node.blobs.__setitem__
