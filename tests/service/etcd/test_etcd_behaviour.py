"""What real etcd does where a good guess is wrong, as our users meet it: each on 3.4 and on 3.5."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from services.etcd import protocol
from services.etcd.client import RemoteEtcd
from services.etcd.config import EtcdConfig
from services.etcd.leasing import RemoteLease
from services.etcd.store import Committed, Compacted, Delete, Put, TooLarge, Uncertain, end_of
from services.etcd.watching import Watching
from services.kit import errors
from tests.etcd_servers import DEBIAN, RELEASES, Cluster, etcd, version_of
from tests.suites.etcd import committed, gathered, listed
from tests.support import eventually_async, within


@pytest.fixture(scope="module", params=RELEASES)
def release(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def one(release: str) -> Iterator[Cluster]:
    """A server that all tests of the module use, so it must be alive after each."""
    with etcd(release) as cluster:
        yield cluster


@pytest.fixture
def harmed(one: Cluster) -> Iterator[Cluster]:
    """The same. It is mended after the test."""
    yield one
    one.heal()


@pytest.fixture(scope="module")
def of_three(release: str) -> Iterator[Cluster]:
    with etcd(release, count=3) as cluster:
        yield cluster


@pytest.fixture
def three(of_three: Cluster) -> Iterator[Cluster]:
    """Three members, mended after the test."""
    yield of_three
    of_three.heal()


@contextlib.asynccontextmanager
async def client_of(cluster: Cluster, **settings) -> AsyncIterator[RemoteEtcd]:
    client = RemoteEtcd(EtcdConfig(endpoints=cluster.endpoints, **settings))
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def client(one: Cluster) -> AsyncIterator[RemoteEtcd]:
    async with client_of(one) as made:
        yield made


async def compact(client: RemoteEtcd, revision: int) -> None:
    await client._cluster.call(protocol.KV, "Compact", protocol.CompactionRequest(revision=revision, physical=True))


# -- sizes


async def test_a_long_list_comes_in_pages(client: RemoteEtcd) -> None:
    """etcd3's get_prefix does not page: 100,000 keys exceed gRPC's 4 MiB."""
    for start in range(0, 28_000, 4000):
        await committed(client, *(Put(b"/long/%06d" % n, bytes(200)) for n in range(start, start + 4000)))
    pages = [page async for page in client.pages(b"/long/", count=10_000)]
    assert sum(len(page.pairs) for page in pages) == 28_000
    assert len({page.revision for page in pages}) == 1
    assert max(len(page.pairs) for page in pages) <= 10_000
    await committed(client, Delete(b"/long/", end_of(b"/long/")))


async def test_any_prefix_can_be_listed(client: RemoteEtcd) -> None:
    """etcd3 raises IndexError for an empty one, and ValueError for one that ends in 0xff."""
    keys = [b"\xff", b"\xff\xff", b"\xff\xffz", b"a\xff", b"a\xff1", b"b"]
    await committed(client, *(Put(key, b"") for key in keys))
    for prefix in (b"", b"\xff", b"\xff\xff", b"a\xff"):
        found = [pair.key for pair in await listed(client, prefix)]
        assert [key for key in found if key in keys] == sorted(key for key in keys if key.startswith(prefix))
        assert all(key.startswith(prefix) for key in found)
    begin = (await anext(client.pages(b""))).revision
    async with client.watch(b"\xff\xff", after=begin) as one, client.watch(b"", after=begin) as every:
        last = await committed(client, *(Delete(key) for key in keys))
        assert {change.key for change in await gathered(one, last)} == {key for key in keys if key[:2] == b"\xff\xff"}
        assert {change.key for change in await gathered(every, last)} == set(keys)


async def test_what_the_server_finds_too_large_is_one_error(release: str) -> None:
    """etcd has two codes for it: INVALID_ARGUMENT for more than its limit, RESOURCE_EXHAUSTED for 512 KiB more."""
    with etcd(release, arguments=["--max-request-bytes", "65536", "--max-txn-ops", "10"]) as cluster:
        async with client_of(cluster) as client:
            for size in (100_000, 1_000_000):
                with pytest.raises(TooLarge, match="--max-request-bytes"):
                    await client.commit([Put(b"k", bytes(size))])
            with pytest.raises(TooLarge, match="--max-txn-ops"):
                await client.commit([Put(b"%d" % n, b"") for n in range(11)])
            assert not await listed(client, b"")


async def test_a_watch_catches_up_with_more_than_a_message_may_have(client: RemoteEtcd) -> None:
    """etcd sends up to 1000 revisions as one response, unless the watch asks for fragments, as ours does."""
    begin = await committed(client, Put(b"/much/", b""))
    for n in range(60):
        last = await committed(client, *(Put(b"/much/%d" % part, b"%03d" % n + bytes(150_000)) for part in range(4)))
    async with client.watch(b"/much/", after=begin) as changes:
        found = await gathered(changes, last)
    assert [change.pair.value[:3] for change in found] == [b"%03d" % n for n in range(60) for _ in range(4)]
    await committed(client, Delete(b"/much/", end_of(b"/much/")))


async def test_a_full_database_says_what_to_do(release: str) -> None:
    """The quota is reached: writes fail, reads go on, and the status says it."""
    with etcd(release, arguments=["--quota-backend-bytes", "2000000"]) as cluster:
        async with client_of(cluster) as client:
            await committed(client, Put(b"k", b"v"))
            end = time.monotonic() + 15.0
            with pytest.raises(errors.ResourceExhausted, match="compact it, defragment each member, disarm the alarm"):
                while time.monotonic() < end:  # 3.4 compares with a size that it updates each 100 ms
                    await client.commit([Put(b"much", bytes(900_000))])
            assert await client.get(b"k")
            status = await client.status()
            assert status.members[0].full
            assert "NOSPACE" in status.members[0].error


# -- revisions


async def test_what_is_compacted_is_said(client: RemoteEtcd) -> None:
    """A list at an old revision, and a watch from one, are told to list again."""
    first = await committed(client, Put(b"/old/", b"1"))
    last = await committed(client, Put(b"/old/", b"2"))
    await compact(client, last)
    with pytest.raises(Compacted, match="compacted"):
        await listed(client, b"/old/", revision=first)
    with pytest.raises(Compacted, match=f"the first one is {last}"):
        async with client.watch(b"/old/", after=first - 1) as changes:
            await gathered(changes, last)
    async with client.watch(b"/old/", after=last - 1) as changes:
        assert [change.pair.value for change in await gathered(changes, last)] == [b"2"]


async def test_a_cluster_that_went_back_is_noticed(client: RemoteEtcd) -> None:
    """A watch from a revision that was never reached would be silent until it is, and lose what comes before."""
    now = await committed(client, Put(b"/back/", b"1"))
    with pytest.raises(Compacted, match="restored from a backup"):
        async with client.watch(b"/back/", after=now + 100):
            pass
    with pytest.raises(Compacted, match="future revision"):
        await listed(client, b"/back/", revision=now + 100)


async def test_endpoints_of_two_clusters_are_refused(release: str, one: Cluster) -> None:
    """One of them is used, and the other one is named."""
    with etcd(release) as other:
        both = RemoteEtcd(EtcdConfig(endpoints=(*one.endpoints, *other.endpoints)))
        await committed(both, Put(b"k", b"v"))
        status = await both.status()
        assert status.available
        assert [bool(member.error) for member in status.members] == [False, True]
        assert "a member of another cluster" in status.members[1].error
        await both.close()


# -- leases


async def test_a_lease_is_never_shorter_than_etcd_makes_it(client: RemoteEtcd) -> None:
    """etcd makes one of 1 s last 2 s. It is renewed, so its keys stay for longer than that."""
    async with client.lease(0.5) as lease:
        await committed(client, Put(b"/lease/", b"", lease.id))
        assert isinstance(lease, RemoteLease)
        assert lease._ttl == 2.0
        first = lease._ends
        await eventually_async(lambda: asyncio.sleep(0, lease._ends > first + 2.5), "nobody renews it")
        assert await client.get(b"/lease/")
        assert not lease.lost.is_set()


async def test_a_lease_that_somebody_revokes_is_lost(client: RemoteEtcd) -> None:
    """etcd3's refresh of a dead lease raises nothing."""
    async with client.lease(2.0) as lease:
        await client._cluster.call(protocol.LEASE, "LeaseRevoke", protocol.LeaseRevokeRequest(ID=lease.id))
        with within(5.0):
            await asyncio.wait_for(lease.lost.wait(), 5.0)


async def test_a_lease_is_lost_in_time_while_etcd_is_away(harmed: Cluster) -> None:
    """Nobody has to answer for that: whoever holds it knows when it has ended at the latest."""
    async with client_of(harmed) as client, client.lease(2.0) as lease:
        harmed.members[0].freeze()
        with within(3.5, at_least=1.0):
            await asyncio.wait_for(lease.lost.wait(), 6.0)
        harmed.members[0].thaw()


# -- servers that are away


async def test_while_etcd_is_away_calls_fail_at_once(harmed: Cluster) -> None:
    """One write may find it out; the others say why, and cost nothing. Afterwards all is as before."""
    async with client_of(harmed) as client:
        begin = await committed(client, Put(b"k", b"1"))
        async with client.watch(b"", after=begin) as changes:
            harmed.members[0].kill()
            with pytest.raises(errors.Unavailable, match="the watch ended"):
                await gathered(changes, begin + 1)
        with within(2.0):
            for _ in range(300):
                with pytest.raises(errors.Unavailable):
                    await client.commit([Put(b"k", b"2")])
        assert not (await client.status()).available
        harmed.members[0].start()

        async def back() -> bool:
            with contextlib.suppress(errors.Unavailable):
                return isinstance(await client.commit([Put(b"k", b"3")]), Committed)
            return False

        await eventually_async(back, "it is not used again", 15)


async def test_its_absence_costs_no_processor(harmed: Cluster) -> None:
    """A watch of etcd3 asks without a pause while its server is away: a fifth of a processor."""
    async with client_of(harmed) as client:
        begin = await committed(client, Put(b"k", b"1"))
        harmed.members[0].kill()
        tries = 0

        async def ended() -> bool:
            nonlocal tries
            tries += 1
            with contextlib.suppress(errors.Unavailable):
                async with client.watch(b"", after=begin):
                    return True
            return False

        spent, begun = time.process_time(), time.monotonic()
        await eventually_async(lambda: over(begun, ended), "", 10)
        assert tries > 50
        assert time.process_time() - spent < 1.0  # polls of the test: 50 a second


async def over(begun: float, ask) -> bool:
    """Ask once more, until 3 s are over."""
    await ask()
    return time.monotonic() - begun > 3


async def test_a_member_that_hangs_is_noticed(harmed: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and answers nothing: a write is uncertain after its time, and a watch ends."""
    monkeypatch.setattr(Watching.__init__, "__kwdefaults__", {"silence": 1.0})
    async with client_of(harmed, timeout=1.0) as client:
        begin = await committed(client, Put(b"k", b"1"))
        async with client.watch(b"", after=begin) as changes:
            harmed.members[0].freeze()
            with within(3.0, at_least=0.7), pytest.raises(Uncertain):
                await client.commit([Put(b"k", b"2")])
            with within(10.0), pytest.raises(errors.Unavailable, match="did not answer within 2 s"):
                await gathered(changes, begin + 100)
        harmed.members[0].thaw()


async def test_an_endpoint_that_hangs_delays_nobody(one: Cluster) -> None:
    """It takes connections and says nothing. It is not waited for, though it is the first one."""
    silent = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = RemoteEtcd(EtcdConfig(endpoints=(f"127.0.0.1:{port}", *one.endpoints)))
        with within(1.5):
            await committed(client, Put(b"k", b"v"))
        await client.close()
        silent.set()


async def test_without_quorum_nothing_hangs(three: Cluster) -> None:
    """A plain put fails after 7 s, and a plain watch is silent for ever. Ours ask for a leader."""
    async with client_of(three) as client:
        begin = await committed(client, Put(b"k", b"1"))
        async with client.watch(b"", after=begin) as changes:
            for member in three.members[1:]:
                member.kill()
            with within(20.0), pytest.raises(errors.Unavailable, match="no leader"):
                await gathered(changes, begin + 1)
        with within(6.0), pytest.raises(errors.Unavailable) as refused:
            await client.commit([Put(b"k", b"2")])
        assert not isinstance(refused.value, Uncertain)
        status = await client.status()
        assert [member.reachable for member in status.members] == [True, False, False]
        assert "no leader" in status.members[0].error
        assert not status.available
        three.heal()

        async def back() -> bool:
            with contextlib.suppress(errors.Unavailable):
                return isinstance(await client.commit([Put(b"k", b"3")]), Committed)
            return False

        await eventually_async(back, "it is not used again", 15)


async def test_a_write_goes_on_when_the_leader_dies(three: Cluster) -> None:
    """etcd3 knows one endpoint, and the first put after the leader's death takes 7 s and fails."""
    async with client_of(three) as client:
        await committed(client, Put(b"k", b"1"))
        leader = next(n for n, member in enumerate((await client.status()).members) if member.leader)
        three.members[leader].kill()

        async def written() -> bool:
            with contextlib.suppress(errors.Unavailable):
                return isinstance(await client.commit([Put(b"k", b"2")]), Committed)
            return False

        await eventually_async(written, "nobody takes it", 7)


async def test_what_is_not_etcd_is_said(release: str) -> None:
    """An endpoint where something else listens fails in words, and in time."""
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        client = RemoteEtcd(EtcdConfig(endpoints=(f"{host}:{port}",), timeout=1.0))
        with within(3.0), pytest.raises(errors.Unavailable, match=f"failed to connect to {host}:{port}"):
            await client.get(b"k")
        assert not (await client.status()).members[0].reachable
        await client.close()


def test_the_releases_are_those_that_are_promised(release: str) -> None:
    """The tests of 3.4 and 3.5 are of these."""
    assert version_of(release).startswith(f"{release}.")
    assert release in (DEBIAN, "3.5")
