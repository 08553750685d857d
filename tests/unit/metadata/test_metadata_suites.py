"""The suites of metadata's public services in this process, over all stores."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.etcd.memory import MemoryEtcd
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_rows import Owner
from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from services.metadata.transactions import Transactions
from tests.suites import containers, leases, namespaces, sandboxes
from tests.suites.records_lives import Clients, LocalMetadata


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def clients(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Clients]:
    async with contextlib.AsyncExitStack() as stack:
        store: Transactions
        if request.param == "memory":
            store = MemoryTransactions()
        elif request.param == "sqlite":
            store = SqliteTransactions(tmp_path / "metadata.db")
        else:
            store = EtcdTransactions(MemoryEtcd(), "/splitd", tmp_path / "mirror.db", Owner(node="n"))
        local = LocalMetadata(store)
        stack.push_async_callback(local.close)
        if isinstance(store, EtcdTransactions):
            await stack.enter_async_context(store.running())
        yield local.client


class TestNamespaces(namespaces.NamespacesSuite):
    """Over all stores."""


class TestContainers(containers.ContainersSuite):
    """Over all stores."""


class TestLeases(leases.LeasesSuite):
    """Over all stores."""


class TestSandboxes(sandboxes.SandboxesSuite):
    """Over all stores."""
