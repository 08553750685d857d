"""The suite of services.etcd.store on real servers of one member. test_etcd_harmed.py runs it on three."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.etcd.store import Etcd
from tests.etcd_servers import RELEASES, Cluster, etcd
from tests.suites.etcd import EtcdSuite


@pytest.fixture(scope="module", params=RELEASES)
def servers(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with etcd(request.param) as cluster:
        yield cluster


class TestServers(EtcdSuite):
    @pytest.fixture
    async def etcd(self, servers: Cluster) -> AsyncIterator[Etcd]:
        client = connect(EtcdConfig(endpoints=servers.endpoints))
        yield client
        await client.close()
