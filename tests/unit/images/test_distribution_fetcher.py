"""One blob, wanted by several pulls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from services.images.concurrency.budget import Budget
from services.images.distribution.fetcher import Fetched, Fetcher
from services.images.registry.client import Client
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from services.oci.references import Reference
from tests.unit.images.memory_node import MemoryNode

DATA = b"layer"
LABELS = {"containerd.io/distribution.source.example.com": "box"}
LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar", digest_of(DATA), len(DATA), data=DATA)


async def test_who_waited_for_a_fetch_need_not_look_at_the_blob(tmp_path: Path) -> None:
    """That holds if the other pull was of the same namespace, and gave the blob the same labels; and for those that
    waited, not for one that comes later.
    """
    fetcher, node = Fetcher(Budget()), MemoryNode(tmp_path)
    other = MemoryNode(tmp_path)
    other.namespace, other.blobs, other.labels = "other", node.blobs, node.labels

    def fetch(of: MemoryNode, labels: dict[str, str]) -> Any:
        reference = Reference.parse("example.com/box:1")
        return fetcher.fetch(of, cast(Client, None), reference, LAYER, labels, 0)

    fetches = [fetch(node, LABELS), fetch(node, LABELS), fetch(node, {}), fetch(other, LABELS)]
    found: list[Fetched] = await asyncio.gather(*fetches)
    assert found == [Fetched(False, len(DATA)), Fetched(True, 0, fresh=True), Fetched(True, 0), Fetched(True, 0)]
    assert await fetch(node, LABELS) == Fetched(True, 0)
