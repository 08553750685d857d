"""The snapshotter suite on a whole node: gateway, metadata and snapshots between the suite and the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.kit.rpc import NAMESPACE, Channel
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Snapshotter
from tests.suites.snapshots import SnapshotterSuite
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]


class OnNode(SnapshotterSuite):
    namespaced = True

    @pytest.fixture
    async def snapshotter(self, node: Node) -> AsyncIterator[Snapshotter]:
        async with Channel(node.socket, "gateway") as channel:
            yield RemoteSnapshotter(channel, snapshotter=self.name, headers={NAMESPACE: "suite"})


class TestOverlay(OnNode):
    pass


class TestNative(OnNode):
    name = "native"
