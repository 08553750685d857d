"""Nodes of a fleet on an etcd in memory, each behind the socket of its process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from services.etcd.memory import MemoryEtcd
from services.etcd.store import Put
from services.fleet import convert
from services.fleet.local import FleetNode
from services.fleet.remote import RemoteFleet, RemoteOverview
from services.fleet.server import FleetServicer
from services.fleet.store import NOBODY, Container, Peer, Target
from services.fleet.told import Told
from services.kit import loops, rpc
from tests.suites.fleet import BLOB, BOX, OLD, FleetSuite, Member, box, images, peers, until
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
    node = FleetNode(etcd, PREFIX, name, f"{name}:1", ["default"], "1", quiet=0.05)
    async with loops.running("the fleet", node.keep):
        await holds(lambda: not node.trouble)
        yield node


@contextlib.asynccontextmanager
async def asked(node: FleetNode, directory: Path) -> AsyncIterator[tuple[RemoteFleet, RemoteOverview]]:
    """The node as its other processes see it, and as the command does."""
    socket = directory / f"{node.node}.sock"
    async with rpc.serving(socket, [FleetServicer(node)]), rpc.Channel(socket, "fleet") as channel:
        await channel.reached(5)
        yield RemoteFleet(channel), RemoteOverview(channel)


async def keys(etcd: MemoryEtcd, below: str = "") -> list[str]:
    prefix = f"{PREFIX}/{below}".encode()
    return [pair.key.removeprefix(prefix).decode() async for page in etcd.pages(prefix) for pair in page.pairs]


class TestFleetNode(FleetSuite):
    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Member, Member]]:
        etcd = MemoryEtcd()
        async with member(etcd, "a") as a, member(etcd, "b") as b:
            yield Member(a, a, a), Member(b, b, b)


class TestRemoteFleet(FleetSuite):
    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Member, Member]]:
        etcd = MemoryEtcd()
        with short_directory() as directory:
            async with (
                member(etcd, "a") as one,
                member(etcd, "b") as other,
                asked(one, directory) as a,
                asked(other, directory) as b,
            ):
                yield Member(*a, one), Member(*b, other)


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
        await until(other, [Peer("a", "a:1", 7, 7)])
        lease = node._lease
        etcd.cut()
        etcd.revoke(lease)
        await holds(lambda: node.trouble)
        async with node.fetching("default", BLOB, 7) as fetch:
            assert await fetch.claim() == NOBODY
            assert await peers(node) == []
        etcd.cut(False)
        await holds(lambda: not node.trouble and not other.trouble)
        await until(other, [Peer("a", "a:1", 7, 7)])


async def test_where_a_node_serves_is_told_when_it_changes() -> None:
    """A node whose peer server cannot listen is asked for nothing; once it listens, for all that it has."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as node, member(etcd, "b") as other:
        node.blobs({str(BLOB): 7})
        await until(other, [Peer("a", "a:1", 7, 7)])
        node.serve("")
        await until(other, [])
        node.serve("elsewhere:2")
        await until(other, [Peer("a", "elsewhere:2", 7, 7)])
        assert {name: said["address"] async for name, said in other.nodes()} == {"a": "elsewhere:2", "b": "b:1"}
        assert node.standing().address == "elsewhere:2"


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


async def test_what_etcd_has_makes_no_sense() -> None:
    """Keys that no node would write are left out; long names are not told, long names of containers' images are cut."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as node, member(etcd, "b") as other:
        node.tell_images([box("a", OLD), box("a", OLD, name="x" * 513), box("a", OLD, name="")])
        node.tell_containers([Container("a", "default", "c", "\N{SNOWMAN}" * 600, 1)])
        await holds(lambda: not node._changed)
        key = f"{PREFIX}/images/default/{BOX}/"
        for name, value in {
            "c": '{"v":1,"digest":"sha256:1","size":1}',
            "d": f'{{"v":2,"digest":"{OLD.digest}"}}',
            "e": "[" * 5000,
            "": f'{{"v":1,"digest":"{OLD.digest}"}}',
            "g": f'{{"v":1,"digest":"{OLD.digest}","size":-1,"updated":{1 << 70}}}',
        }.items():
            await etcd.commit([Put(f"{key}{name}".encode(), value.encode())])
        await etcd.commit([Put(f"{PREFIX}/containers/z/default/c/d".encode(), b'{"v":1}')])
        await etcd.commit(
            [Put(f"{PREFIX}/containers/z/default/c".encode(), b'{"v":1,"image":"\\ud800","created":"x"}')]
        )
        assert await images(other) == [box("a", OLD), box("g", Target(OLD.digest, 0), updated=0)]
        with short_directory() as directory:
            async with asked(other, directory) as (_, overview):
                found = [each async for page in overview.containers() for each in page]
        assert found == [Container("a", "default", "c", "\N{SNOWMAN}" * 512, 1), Container("z", "default", "c", "?", 0)]


async def test_what_a_node_says_of_itself_can_be_passed_on() -> None:
    """JSON may have strings and numbers that no message can have."""
    etcd = MemoryEtcd()
    async with member(etcd, "a") as node:
        odd = '"address":"\\ud800:1","version":"\\udfff","since":1180591620717411303424'
        await etcd.commit([Put(f"{PREFIX}/nodes/z".encode(), f'{{"v":1,{odd}}}'.encode())])
        for name, size in (("y", 10), ("x", 1 << 70)):
            value = f'{{"v":1,{odd},"size":{size},"have":1}}'
            await etcd.commit([Put(f"{PREFIX}/has/{BLOB}/{name}".encode(), value.encode())])
        told_of = {name: convert.node_to_pb(name, said) async for name, said in node.nodes()}
        assert (told_of["z"].address, told_of["z"].version, told_of["z"].since) == ("?:1", "?", 0)
        assert [convert.peer_to_pb(peer).address for peer in await peers(node)] == ["?:1"]


def test_no_more_is_told_than_the_limit() -> None:
    """The first ones are kept; what is not told any more is deleted, and what is left out is counted."""
    wanted: dict[bytes, object] = {}
    told = Told(wanted.__setitem__, 2)
    told.tell({b"a": {"x": 1}, b"b": {"x": 2}, b"c": {"x": 3}})
    assert wanted == {b"a": {"x": 1}, b"b": {"x": 2}}
    assert told.left_out == 1
    told.tell({b"b": {"x": 4}})
    assert wanted == {b"a": None, b"b": {"x": 4}}
    assert told.left_out == 0


async def test_bytes_behind_a_gap_keep_readers_waiting(tmp_path: Path) -> None:
    """They are told through the process, as what is there without a gap is; etcd is told only of the latter."""
    etcd = MemoryEtcd()
    file = tmp_path / "arriving"
    file.write_bytes(bytes(100))
    with short_directory() as directory:
        async with member(etcd, "a") as node, asked(node, directory) as (fleet, _):
            async with fleet.fetching("default", BLOB, 100) as fetch:
                fetch.arrived(str(file), 10, 10)
                await holds(lambda: (part := node.arriving.get(str(BLOB))) is not None and part.have == 10)
                part = node.arriving.get(str(BLOB))
                assert part is not None
                await has_keys(etcd, "has/", bool)
                sign, revision = part._sign, etcd.revision
                fetch.arrived(str(file), 10, 50)
                await holds(lambda: part._sign > sign)
                assert (part.have, etcd.revision) == (10, revision)
            await has_keys(etcd, "has/", lambda found: not found)
            assert node.standing().arriving == 0


async def test_a_fetch_ends_although_the_fleet_was_away(tmp_path: Path) -> None:
    """The call to the process has failed before: that is nobody's error."""
    with short_directory() as directory:
        async with rpc.Channel(directory / "none.sock", "fleet") as channel:
            fleet = RemoteFleet(channel)
            async with fleet.fetching("default", BLOB, 7) as fetch:
                assert await fetch.claim() == NOBODY
                await holds(lambda: not fleet._telling)
                fetch.arrived(str(tmp_path), 7)
