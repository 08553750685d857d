"""The suites of metadata's services on a whole node: through the gateway, while the collector runs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.kit.rpc import Channel
from tests.suites import containers, leases, namespaces, sandboxes
from tests.suites.records_lives import Clients, over
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]


@pytest.fixture
async def clients(node: Node) -> AsyncIterator[Clients]:
    async with Channel(node.socket) as channel:
        yield over(channel)


class TestNamespaces(namespaces.NamespacesSuite):
    """On a node."""


class TestContainers(containers.ContainersSuite):
    """On a node."""


class TestLeases(leases.LeasesSuite):
    """On a node."""


class TestSandboxes(sandboxes.SandboxesSuite):
    """On a node."""
