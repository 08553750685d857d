"""The suites of metadata's public services in this process, over both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from tests.suites import containers, leases, namespaces, sandboxes
from tests.suites.records_lives import Clients, LocalMetadata


@pytest.fixture(params=["memory", "sqlite"])
async def clients(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Clients]:
    local = LocalMetadata(
        MemoryTransactions() if request.param == "memory" else SqliteTransactions(tmp_path / "metadata.db")
    )
    yield local.client
    await local.close()


class TestNamespaces(namespaces.NamespacesSuite):
    """Over both stores."""


class TestContainers(containers.ContainersSuite):
    """Over both stores."""


class TestLeases(leases.LeasesSuite):
    """Over both stores."""


class TestSandboxes(sandboxes.SandboxesSuite):
    """Over both stores."""
