"""Some of the crash tests, on a node whose records are in etcd. ``make test-crash-etcd`` runs all of them so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.kit.rpc import Channel
from tests.crash import test_crash_transfers as crash
from tests.crash.test_crash_transfers import channel, client, faults, node
from tests.etcd_servers import records_in_etcd
from tests.fake_registry import FakeRegistry
from tests.pulls import Client
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]
__all__ = ["channel", "client", "faults", "node"]


@pytest.fixture(scope="module")
def records() -> Iterator[Callable[[], str]]:
    with records_in_etcd() as configured:
        yield configured


async def test_three_are_killed_in_the_middle_of_a_layer(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry
) -> None:
    """The one that has the records, and both who use them."""
    await crash.test_killed_in_the_middle_of_a_layer(node, channel, client, fake, ("gateway", "metadata", "images"))


async def test_images_dies_before_the_image_is_stored(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry, faults: Path
) -> None:
    """The next pull goes on, and nothing is left behind."""
    await crash.test_images_dies_at(node, channel, client, fake, faults, "images.pulled")
