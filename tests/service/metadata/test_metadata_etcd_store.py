"""The metadata process with its records in a real etcd: the suites, and what becomes of it when etcd or the process
itself is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from api.containerd.services.containers.v1 import containers_pb2 as pb
from api.containerd.services.containers.v1 import containers_stubs
from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.kit import errors, rpc
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_rows import Owner
from services.metadata.transactions import Transactions
from tests.etcd_servers import DEBIAN, RELEASES, Cluster, etcd
from tests.suites import containers, leases, namespaces
from tests.suites.records_lives import Clients, headers, new_namespace, over
from tests.suites.records_transactions import TransactionsSuite
from tests.support import ServiceProcess, eventually_async, short_directory

CONFIG = """
[metadata]
store = "etcd"

[metadata.etcd]
endpoints = [{}]
prefix = "/splitd/{}"
"""


def configured(cluster: Cluster, directory: Path, name: str = "one") -> Path:
    """A file that names the cluster."""
    path = directory / f"{name}.toml"
    path.write_text(CONFIG.format(", ".join(f'"{each}"' for each in cluster.endpoints), name))
    return path


@pytest.fixture(scope="module", params=RELEASES)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with etcd(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Path]:
    """The socket of a metadata process."""
    with (
        short_directory() as place,
        ServiceProcess("services.metadata", place / "root", place / "state", config=configured(cluster, place)),
    ):
        yield place / "state" / "metadata.sock"


class TestTransactions(TransactionsSuite):
    @pytest.fixture
    async def store(
        self, cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
    ) -> AsyncIterator[Transactions]:
        client = connect(EtcdConfig(endpoints=cluster.endpoints))
        store = EtcdTransactions(client, f"/{request.node.name}", tmp_path / "mirror.db", Owner(node="n"))
        async with store.running():
            yield store
        await store.close()
        await client.close()


class Served:
    @pytest.fixture
    async def clients(self, served: Path) -> AsyncIterator[Clients]:
        async with rpc.Channel(served) as channel:
            yield over(channel)


class TestNamespaces(Served, namespaces.NamespacesSuite):
    """The process."""


class TestContainers(Served, containers.ContainersSuite):
    """The process."""


class TestLeases(Served, leases.LeasesSuite):
    """The process."""


class Containers:
    """Containers of a namespace in a metadata process."""

    def __init__(self, channel: rpc.Channel) -> None:
        self._client = channel.client(containers_stubs.CONTAINERS)
        self._headers = headers(new_namespace())

    async def create(self, name: str) -> None:
        container = pb.Container(id=name)
        container.runtime.name = "io.containerd.runc.v2"
        container.spec.type_url, container.spec.value = "x", b"{}"
        await self._client.Create(pb.CreateContainerRequest(container=container), headers=self._headers, timeout=20)

    async def names(self) -> set[str]:
        answer = await self._client.List(pb.ListContainersRequest(), headers=self._headers, timeout=20)
        return {each.id for each in answer.containers}

    async def are(self, *names: str) -> None:
        async def same() -> bool:
            try:
                return await self.names() == set(names)
            except errors.Unavailable:
                return False

        await eventually_async(same, "the records are not those that were answered", 30)


async def test_etcd_is_killed_and_comes_back() -> None:
    """Meanwhile reads are answered, and writes fail at once and say why. Nothing that was answered is lost."""
    with etcd(DEBIAN) as cluster, short_directory() as place:
        with ServiceProcess("services.metadata", place / "r", place / "s", config=configured(cluster, place)):
            async with rpc.Channel(place / "s" / "metadata.sock") as channel:
                containers = Containers(channel)
                await containers.create("before")
                cluster.members[0].kill()
                with pytest.raises(errors.Unavailable, match="etcd"):
                    await containers.create("meanwhile")

                async def said() -> bool:
                    loop = asyncio.get_running_loop()
                    begun = loop.time()
                    try:
                        await containers.create("meanwhile")
                    except errors.Unavailable as error:
                        return "while etcd is away" in str(error) and loop.time() < begun + 1
                    return False

                await eventually_async(said, "writes do not fail at once", 30)
                assert await containers.names() == {"before"}
                cluster.heal()

                async def written() -> bool:
                    try:
                        await containers.create("after")
                    except errors.Unavailable:
                        return False
                    except errors.AlreadyExists:  # it was written by an attempt whose answer was lost
                        return True
                    return True

                await eventually_async(written, "writes do not go on", 30)
                await containers.are("before", "after")


async def test_a_process_is_killed_and_its_mirror_lost() -> None:
    """kill -9 while it writes: what it answered is there, whether its mirror is left or not."""
    with etcd(DEBIAN) as cluster, short_directory() as place:
        process = ServiceProcess("services.metadata", place / "r", place / "s", config=configured(cluster, place))
        with process:
            async with rpc.Channel(place / "s" / "metadata.sock") as channel:
                containers = Containers(channel)
                answered: list[str] = []
                for round_ in range(3):

                    async def write(round_: int = round_) -> None:
                        for number in range(1000):
                            await containers.create(name := f"c{round_}-{number}")
                            answered.append(name)

                    writing = asyncio.ensure_future(write())
                    wanted = len(answered) + 20
                    while len(answered) < wanted:
                        await asyncio.sleep(0.01)
                        assert not writing.done()
                    await asyncio.to_thread(process.kill)
                    with pytest.raises(errors.NodeError):
                        await writing
                    if round_ == 1:
                        for path in (place / "s" / "metadata").iterdir():
                            path.unlink()
                    await asyncio.to_thread(process.start)

                    async def there() -> bool:
                        try:
                            return await containers.names() >= set(answered)
                        except errors.Unavailable:
                            return False

                    await eventually_async(there, "records are lost", 30)


async def test_another_node_on_the_prefix_is_refused() -> None:
    """It says whose the records are and what to do; the first one goes on."""
    with etcd(DEBIAN) as cluster, short_directory() as place:
        config = configured(cluster, place)
        with ServiceProcess("services.metadata", place / "r", place / "s", config=config):
            async with rpc.Channel(place / "s" / "metadata.sock") as channel:
                containers = Containers(channel)
                await containers.create("one")
                with pytest.raises(RuntimeError, match="--take-over"):
                    ServiceProcess("services.metadata", place / "r2", place / "s2", config=config)
                await containers.create("two")
                await containers.are("one", "two")
