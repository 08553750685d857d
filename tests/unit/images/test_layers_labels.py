"""Labels that are set a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.images.layers.labels import Labels
from services.kit import errors
from tests.support import turns
from tests.unit.images.memory_node import MemoryNode


class Counting(MemoryNode):
    """Notes how many labels are being set at once, each time that this begins."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.under_way = 0
        self.most = list[int]()

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        self.under_way += 1
        await asyncio.sleep(0)
        self.most.append(self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        await super().label(digest, labels)


async def test_labels_are_set_some_at_once_and_all_at_the_end(tmp_path: Path) -> None:
    """A few wait for others, until no more come."""
    node = Counting(tmp_path)
    blobs = [node.put(b"%d" % number) for number in range(19)]
    labels = Labels(node)
    running = asyncio.ensure_future(labels.run())
    for blob in blobs[:7]:
        labels.add(blob, {"a": "1"})
        await turns()
    assert not any(node.labels[blob] for blob in blobs)
    for blob in blobs[7:]:
        labels.add(blob, {"a": "1"})
    await turns(20)
    assert not running.done()
    labels.end()
    await running
    assert all(node.labels[blob] == {"a": "1"} for blob in blobs)
    assert max(node.most) >= 8


async def test_a_label_that_cannot_be_set_is_an_error(tmp_path: Path) -> None:
    """Also if others follow."""
    node = MemoryNode(tmp_path)
    labels = Labels(node)
    labels.add("sha256:absent", {"a": "1"})
    labels.add(node.put(b"1"), {"a": "1"})
    labels.end()
    with pytest.raises(errors.NotFound):
        await labels.run()


async def test_without_labels_nothing_is_set(tmp_path: Path) -> None:
    labels = Labels(Counting(tmp_path))
    labels.end()
    await labels.run()
