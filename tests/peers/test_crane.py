"""``crane registry serve`` and crane, of go-containerregistry: a registry without open-ended ranges, and a client of
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit.rpc import Channel
from tests.peers.registries import crane_registry, cut_and_gone_on_with, pushed_by_crane_and_pulled
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with crane_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


async def test_push_and_pull(node: Node, channel: Channel, host: str, tmp_path: Path) -> None:
    """crane pushes, the node pulls; the node pushes, crane pulls."""
    await pushed_by_crane_and_pulled(node, channel, host, tmp_path)


@pytest.mark.parametrize("of_large", [False, True], ids=["in one piece", "in parts"])
async def test_a_cut_pull_goes_on(node: Node, channel: Channel, host: str, tmp_path: Path, of_large: bool) -> None:
    """The layer comes on one connection, or in parts."""
    await cut_and_gone_on_with(node, channel, host, tmp_path, of_large=of_large)
