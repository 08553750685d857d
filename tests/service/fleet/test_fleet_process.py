"""The process ``fleet`` with a real etcd: two of them are a fleet, and none of them needs anything to answer."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.fleet_remote import FleetView, Standing
from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.fleet.local import FleetNode
from services.fleet.remote import RemoteFleet, RemoteOverview
from services.fleet.server import FleetServicer
from services.kit import loops, rpc
from tests.etcd_servers import DEBIAN, Cluster, etcd
from tests.fake_registry import Authority
from tests.suites.fleet import BLOB, FleetSuite, Member
from tests.support import ServiceProcess, eventually, eventually_async, short_directory

CONFIG = """
[fleet]
name = "{name}"
listen = "127.0.0.1:{port}"
advertise = "{name}:1"
ca = "{place}/ca.crt"
cert = "{place}/{name}.crt"
key = "{place}/{name}.key"

[fleet.etcd]
endpoints = [{endpoints}]
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass
class Running:
    cluster: Cluster
    authority: Authority
    place: Path

    @contextlib.contextmanager
    def process(self, name: str, *, port: int = 0) -> Iterator[ServiceProcess]:
        """A node's process ``fleet``, without the rest of the node."""
        home = self.place / name
        home.mkdir(exist_ok=True)
        self.certify(name)
        config = home / "config.toml"
        endpoints = ", ".join(f'"{each}"' for each in self.cluster.endpoints)
        config.write_text(CONFIG.format(name=name, port=port or free_port(), place=self.place, endpoints=endpoints))
        with ServiceProcess("services.fleet", home / "root", home / "state", config=config) as running:
            yield running

    def certify(self, name: str) -> None:
        for source, suffix in zip(self.authority.issue(name), ("crt", "key"), strict=True):
            shutil.copy(source, self.place / f"{name}.{suffix}")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with short_directory() as place, etcd(DEBIAN) as cluster:
        authority = Authority(place / "authority")
        shutil.copy(authority.certificate, place / "ca.crt")
        yield Running(cluster, authority, place)


@pytest.fixture(scope="module")
def one(running: Running) -> Iterator[ServiceProcess]:
    """The process of node ``a``."""
    with running.process("a") as process:
        yield process


async def standing(process: ServiceProcess) -> Standing:
    async with rpc.Channel(process.sockets[0], "fleet") as channel:
        return await FleetView(channel, 5.0).status()


async def says(process: ServiceProcess, *words: str) -> None:
    """Wait for these troubles, and no others."""

    async def look() -> bool:
        troubles = (await standing(process)).troubles
        assert len(troubles) == len(words), troubles
        return all(part in trouble for part, trouble in zip(words, troubles, strict=True))

    await eventually_async(look, f"{words}", 60)


GATEWAY = "which blobs this node has"


class TestOverEtcd(FleetSuite):
    """Two nodes, each behind the socket of its process."""

    @pytest.fixture(autouse=True)
    def cluster(self, running: Running, tmp_path: Path) -> None:
        self.running = running
        self.place = tmp_path

    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Member, Member]]:
        prefix = f"/{uuid.uuid4()}"
        async with self.member("a", prefix) as a, self.member("b", prefix) as b:
            yield a, b

    @contextlib.asynccontextmanager
    async def member(self, name: str, prefix: str) -> AsyncIterator[Member]:
        etcd = connect(EtcdConfig(endpoints=self.running.cluster.endpoints))
        node = FleetNode(etcd, prefix, name, f"{name}:1", ["default"])
        path = self.place / name
        try:
            async with (
                loops.running("the fleet", node.keep),
                rpc.serving(path, [FleetServicer(node)]),
                rpc.Channel(path, "fleet") as channel,
            ):
                await channel.reached(10)
                await eventually_async(lambda: asyncio.sleep(0, not node.trouble))
                yield Member(RemoteFleet(channel), RemoteOverview(channel), node)
        finally:
            await etcd.close()


async def test_nodes_and_their_ends(running: Running, one: ServiceProcess) -> None:
    """A node that ends in order is gone at once; one that is killed leaves its name to the next."""
    async with rpc.Channel(one.sockets[0], "fleet") as channel:
        view = FleetView(channel, 5.0)

        async def are(*names: str) -> bool:
            return [node.name async for node in view.nodes()] == list(names)

        with running.process("c") as process:
            await eventually_async(lambda: are("a", "c"))
            process.kill()
            process.start()
            await says(process, GATEWAY)
        await eventually_async(lambda: are("a"))
        assert "choose another" not in process.text()


async def test_two_nodes_of_one_name(running: Running, one: ServiceProcess, tmp_path: Path) -> None:
    """The second one says so, and gives blobs to nobody in the name of the first."""
    home = tmp_path / "twin"
    home.mkdir()
    config = (running.place / "a" / "config.toml").read_text()
    text = "\n".join(
        f'listen = "127.0.0.1:{free_port()}"' if line.startswith("listen") else line for line in config.splitlines()
    )
    (home / "config.toml").write_text(text)
    with short_directory() as state:
        with ServiceProcess("services.fleet", home / "root", state, config=home / "config.toml") as twin:
            await says(twin, "node a at a:1 is in the fleet: choose another [fleet] name", GATEWAY)


async def test_what_keeps_peers_out_does_not_end_the_process(running: Running) -> None:
    """An address that is taken, and certificates that are missing: each is told, and is over when it is mended. The
    others are told of an address only while it serves.
    """

    async def told(address: str) -> None:
        async def look() -> bool:
            async with rpc.Channel(process.sockets[0], "fleet") as channel:
                said = {node.name: node.address async for node in FleetView(channel, 5.0).nodes()}
            return said.get("d") == address

        await eventually_async(look, f"the address is not {address!r}", 30)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with running.process("d", port=taken.getsockname()[1]) as process:
            await says(process, "address already in use", GATEWAY)
            await told("")
            taken.close()
            await says(process, GATEWAY)
            await told("d:1")
            process.stop()
            (running.place / "d.crt").unlink()
            process.start()
            await says(process, f"[fleet] cert {running.place}/d.crt: no such file or directory", GATEWAY)
            running.certify("d")
            await says(process, GATEWAY)


async def test_an_etcd_that_is_away_makes_nobody_wait(running: Running, one: ServiceProcess) -> None:
    """Nobody has the blob, at once; the process is there again when etcd is, without being told."""
    member = running.cluster.members[0]
    member.kill()
    try:
        await says(one, "etcd cannot be used now", GATEWAY)
        async with rpc.Channel(one.sockets[0], "fleet") as channel:
            fleet = RemoteFleet(channel)
            assert list(await fleet.find("default", BLOB)) == []
            async with fleet.fetching("default", BLOB, 7) as fetch:
                assert (await fetch.claim()).ours
        assert one.text().count("this node is not in the fleet: ") == 1
    finally:
        running.cluster.heal()
    await says(one, GATEWAY)
    eventually(lambda: "this node is in the fleet again" in one.text(), "it does not log so")


def test_a_process_without_a_fleet_says_why_it_ends() -> None:
    """Nobody starts one, but by hand."""
    with short_directory() as place, pytest.raises(RuntimeError, match=r"\[fleet.etcd\] endpoints is missing"):
        ServiceProcess("services.fleet", place / "root", place / "state")
