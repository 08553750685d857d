"""Nodes of a fleet on an etcd in memory, each behind the socket of its process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from services.etcd.memory import MemoryEtcd
from services.fleet.local import FleetNode
from services.fleet.remote import RemoteFleet
from services.fleet.server import FleetServicer
from services.fleet.store import NOBODY, Fleet, Peer
from services.kit import loops, rpc
from tests.suites.fleet import BLOB, FleetSuite, until
from tests.support import eventually_async, short_directory

PREFIX = "/splitd/fleet"


async def holds(condition: Callable[[], object]) -> None:
    """Wait for a condition."""

    async def look() -> object:
        return condition()

    await eventually_async(look, seconds=20)


async def has_keys(etcd: MemoryEtcd, below: str, wanted: Callable[[list[str]], bool]) -> None:
    """Wait for the keys below a prefix to be as wanted."""

    async def look() -> bool:
        return wanted(await keys(etcd, below))

    await eventually_async(look)


@contextlib.asynccontextmanager
async def member(etcd: MemoryEtcd, name: str) -> AsyncIterator[FleetNode]:
    node = FleetNode(etcd, PREFIX, name, f"{name}:1", ["default"], "1")
    async with loops.running("the fleet", node.keep):
        await holds(lambda: not node.trouble)
        yield node


@contextlib.asynccontextmanager
async def asked(node: FleetNode, directory: Path) -> AsyncIterator[RemoteFleet]:
    """The node as its other processes see it."""
    socket = directory / f"{node.node}.sock"
    async with rpc.serving(socket, [FleetServicer(node)]), rpc.Channel(socket, "fleet") as channel:
        await channel.reached(5)
        yield RemoteFleet(channel)


async def keys(etcd: MemoryEtcd, below: str = "") -> list[str]:
    prefix = f"{PREFIX}/{below}".encode()
    return [pair.key.removeprefix(prefix).decode() async for page in etcd.pages(prefix) for pair in page.pairs]


class TestFleetNode(FleetSuite):
    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Fleet, Fleet]]:
        etcd = MemoryEtcd()
        with short_directory() as directory:
            async with (
                member(etcd, "a") as one,
                member(etcd, "b") as other,
                asked(one, directory) as a,
                asked(other, directory) as b,
            ):
                yield a, b


async def test_what_etcd_has_is_not_written_again() -> None:
    """A node with 10,000 blobs writes them in a dozen commits, nothing for the same list, and one key for a new one."""
    etcd = MemoryEtcd()
    blobs = {f"sha256:{number:064x}": number + 1 for number in range(10_000)}
    async with member(etcd, "a") as node:
        node.blobs(blobs)
        await has_keys(etcd, "has/", lambda found: len(found) == len(blobs))
        written = etcd.revision
        assert written < 15
        node.blobs(dict(blobs))
        node.blobs({**blobs, str(BLOB): 7})
        await holds(lambda: etcd.revision > written)
        assert etcd.revision == written + 1
        assert (await etcd.get(f"{PREFIX}/has/{BLOB}/a".encode())) is not None


async def test_a_lost_lease_brings_all_back() -> None:
    """Etcd was away until the lease ended: the node is in the fleet again, with its blobs; meanwhile nobody waits."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as node, member(etcd, "b") as other:
        node.blobs({str(BLOB): 7})
        async with other.find("default", BLOB) as found:
            async for peers in found:
                if peers:
                    break
        lease = node._lease
        etcd.cut()
        etcd.revoke(lease)
        await holds(lambda: node.trouble)
        async with node.fetching("default", BLOB, 7) as fetch, node.find("default", BLOB) as none:
            assert await fetch.claim() == NOBODY
            assert list(await anext(none)) == []
        etcd.cut(False)
        await holds(lambda: not node.trouble and not other.trouble)
        async with other.find("default", BLOB) as found:
            await until(found, [Peer("a", "a:1", 7, 7)])


async def test_two_nodes_of_one_name() -> None:
    """The second is told, and takes the name once the first has gone."""
    etcd = MemoryEtcd()
    async with contextlib.AsyncExitStack() as first:
        await first.enter_async_context(member(etcd, "a"))
        twin = FleetNode(etcd, PREFIX, "a", "elsewhere:2", ["default"])
        async with loops.running("the fleet", twin.keep):
            await holds(lambda: "choose another [fleet] name" in twin.trouble)
            await first.aclose()
            await holds(lambda: not twin.trouble)


async def test_nothing_private_is_in_etcd(tmp_path: Path) -> None:
    """A fetch of a namespace that is not shared leaves etcd as it was."""
    etcd = MemoryEtcd()
    file = tmp_path / "arriving"
    file.write_bytes(bytes(9))
    async with member(etcd, "a") as node:
        before, revision = await keys(etcd), etcd.revision
        async with node.fetching("private", BLOB, 9) as fetch:
            fetch.arrived(str(file), 9)
            await fetch.claim()
            async with node.fetching("default", BLOB, 9) as shared:
                await shared.claim()
                shared.arrived(str(file), 1)
                await holds(lambda: etcd.revision >= revision + 2)
            assert before == ["nodes/a"]
        await has_keys(etcd, "", lambda found: found == before)
