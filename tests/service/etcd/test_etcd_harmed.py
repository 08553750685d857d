"""The suites of etcd and of metadata's records on three members, while one after the other is killed, hangs, and is cut
off: each time the leader, and then another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from services.etcd.client import RemoteEtcd
from services.etcd.cluster import pause
from services.etcd.config import EtcdConfig
from services.etcd.store import (
    LIMIT,
    Changes,
    ClusterStatus,
    Committed,
    Conflict,
    Etcd,
    KeyValue,
    Lease,
    Mod,
    Operation,
    Page,
    Put,
    size_of,
)
from services.kit import errors, loops
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_rows import Owner
from services.metadata.transactions import Key, Transaction, Transactions
from tests.etcd_servers import RELEASES, Cluster, etcd
from tests.suites.etcd import EtcdSuite
from tests.suites.records_transactions import TransactionsSuite
from tests.support import eventually_async

PATIENCE = 60.0
_marks = itertools.count(1)


class Patient:
    """An Etcd whose calls are made until they succeed, as those do who may wait. A commit writes a key of its own
    beside, which it compares, too: so it happens once, and is known to have happened.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.repeated = 0

    async def _wait(self, failures: int) -> int:
        self.repeated += 1
        await asyncio.sleep(pause(failures + 1))
        return failures + 1

    async def get(self, key: bytes, *, seconds: float = 0.0) -> KeyValue | None:
        failures = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self._etcd.get(key, seconds=seconds)
                except errors.Unavailable:
                    failures = await self._wait(failures)

    async def pages(
        self, prefix: bytes, *, revision: int = 0, after: bytes = b"", count: int = 1000
    ) -> AsyncIterator[Page]:
        failures, told = 0, False
        while True:
            try:
                async for page in self._etcd.pages(prefix, revision=revision, after=after, count=count):
                    if not told or page.pairs:
                        yield page
                    revision, told = page.revision, True
                    after = page.pairs[-1].key if page.pairs else after
                return
            except errors.Unavailable:
                failures = await self._wait(failures)

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        mark = b"/marks/%d" % next(_marks)
        marked = bool(operations) and size_of(operations) < LIMIT - 100 and len(operations) < 4096
        more, own = ([Put(mark, b"")], [Mod(mark, 0)]) if marked else ([], [])
        failures = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    done = await self._etcd.commit([*operations, *more], [*compares, *own], seconds=seconds)
                except errors.Unavailable:
                    failures = await self._wait(failures)
                    continue
                if failures and isinstance(done, Conflict) and (written := await self.get(mark)) is not None:
                    return Committed(written.mod)
                return done

    @contextlib.asynccontextmanager
    async def watch(self, prefix: bytes, *, after: int) -> AsyncIterator[AsyncIterator[Changes]]:
        async with contextlib.aclosing(self._watched(prefix, after)) as changes:
            yield changes

    async def _watched(self, prefix: bytes, after: int):
        failures = 0
        while True:
            try:
                async with self._etcd.watch(prefix, after=after) as changes:
                    async for each in changes:
                        after = each.revision
                        yield each
            except errors.Unavailable:
                failures = await self._wait(failures)

    @contextlib.asynccontextmanager
    async def lease(self, ttl: float) -> AsyncIterator[Lease]:
        failures = 0
        async with contextlib.AsyncExitStack() as stack:
            while True:
                try:
                    lease = await stack.enter_async_context(self._etcd.lease(max(ttl, 30.0)))
                    break
                except errors.Unavailable:
                    failures = await self._wait(failures)
            yield lease

    async def status(self) -> ClusterStatus:
        failures = 0
        while True:
            status = await self._etcd.status()
            if status.available and any(member.leader for member in status.members):
                return status
            failures = await self._wait(failures)

    async def close(self) -> None:
        await self._etcd.close()


@pytest.fixture(scope="module", params=RELEASES)
def servers(request) -> Iterator[Cluster]:
    with etcd(request.param, count=3, networked=True) as cluster:
        yield cluster


class Harm:
    """What happens to the members, one at a time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.done: list[tuple[str, str]] = []

    async def go_on(self) -> None:
        client = RemoteEtcd(EtcdConfig(endpoints=self._cluster.endpoints))
        try:
            for what, whom in itertools.cycle(itertools.product(("kill", "freeze", "cut"), ("leader", "other"))):
                leader = await eventually_async(lambda: self._leader(client), "there is no leader", 60)
                member = self._cluster.members[(leader - 1 if whom == "leader" else leader) % 3]
                if what == "kill":
                    member.kill()
                elif what == "freeze":
                    member.freeze()
                else:
                    assert self._cluster.network is not None
                    self._cluster.network.cut(member.number)
                self.done.append((what, whom))
                await asyncio.sleep(2.0)
                await asyncio.to_thread(self._cluster.heal)
        finally:
            await client.close()

    async def _leader(self, client: RemoteEtcd) -> int:
        """The number of the member, from 1; 0: there is none now."""
        return next((n for n, each in enumerate((await client.status()).members, 1) if each.leader), 0)


@pytest.fixture(scope="module")
async def harm(servers: Cluster) -> AsyncIterator[Harm]:
    made = Harm(servers)
    task = loops.aside("harm", made.go_on())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.to_thread(servers.heal)


@pytest.mark.root
class TestHarmed(EtcdSuite):
    @pytest.fixture
    async def etcd(self, servers: Cluster, harm: Harm) -> AsyncIterator[Patient]:
        client = Patient(RemoteEtcd(EtcdConfig(endpoints=servers.endpoints, timeout=2.0)))
        yield client
        await client.close()


@contextlib.asynccontextmanager
async def records(cluster: Cluster, prefix: str, mirror: Path) -> AsyncIterator[EtcdTransactions]:
    """The records below a prefix. Nobody repeats their writes; these wait longer than by default, since a machine that
    is loaded elects slowly.
    """
    client = RemoteEtcd(EtcdConfig(endpoints=cluster.endpoints))
    store = EtcdTransactions(client, prefix, mirror, Owner(node="n"), patience=16.0)
    async with store.running():
        yield store
    await store.close()
    await client.close()


@pytest.mark.root
class TestRecordsHarmed(TransactionsSuite):
    @pytest.fixture
    async def store(
        self, servers: Cluster, harm: Harm, tmp_path: Path, request: pytest.FixtureRequest
    ) -> AsyncIterator[Transactions]:
        async with records(servers, f"/{request.node.name}", tmp_path / "mirror.db") as store:
            yield store


@pytest.mark.root
async def test_each_harm_was_done_to_the_leader_and_another(servers: Cluster, harm: Harm, tmp_path: Path) -> None:
    """The tests before ran meanwhile. What is counted until all is done is there, in etcd and in the mirror: each write
    has happened once, and none has failed.
    """

    async def counted(etcd: Patient) -> int:
        for count in itertools.count(1):
            assert isinstance(await etcd.commit([Put(b"/counted/%d" % count, b"")]), Committed)
            if len(harm.done) > 6 and count > 20:
                return count
        raise AssertionError

    async def added(store: EtcdTransactions) -> int:
        for count in itertools.count(1):

            def work(tx: Transaction, count: int = count) -> int:
                tx.put(("n", f"{count}"), b"")
                return len([*tx.scan(("n",))])

            assert await store.write(work) == count
            if len(harm.done) > 6 and count > 20:
                return count
            await asyncio.sleep(0.01)
        raise AssertionError

    etcd = Patient(RemoteEtcd(EtcdConfig(endpoints=servers.endpoints, timeout=2.0)))
    async with asyncio.timeout(150), records(servers, "/records", tmp_path / "mirror.db") as store:
        counts = await asyncio.gather(counted(etcd), added(store))
        assert len(set(harm.done)) == 6
        found = [pair.key async for page in etcd.pages(b"/counted/") for pair in page.pairs]
        assert set(found) == {b"/counted/%d" % n for n in range(1, counts[0] + 1)}
        expected: list[Key] = sorted(("n", f"{n}") for n in range(1, counts[1] + 1))
        assert store.view(lambda tx: [key for key, _ in tx.scan(())]) == expected
    await etcd.close()
    async with records(servers, "/records", tmp_path / "new.db") as store:
        assert store.view(lambda tx: [key for key, _ in tx.scan(())]) == expected
