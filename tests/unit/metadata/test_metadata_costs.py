"""The cost of a call does not depend on the other records in the store. Rows that are looked at are counted, so the
tests do not depend on the machine's speed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import pytest

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.splitd.records.v1 import records_pb2 as pb
from services.kit import errors
from services.metadata import schema
from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Lease, Resource, Snapshot
from services.metadata.transactions import Key, Reader, Transaction
from tests.suites.records import World, digest
from tests.suites.records_lives import LocalMetadata, headers
from tests.unit.metadata.test_metadata_records import Life

T = TypeVar("T")


class Counted:
    """A transaction that counts the keys it is asked for and the rows that it yields."""

    def __init__(self, tx: Transaction, store: Counting) -> None:
        self._tx = tx
        self._store = store
        self.put, self.delete, self.delete_all = tx.put, tx.delete, tx.delete_all
        self.put_many, self.delete_many = tx.put_many, tx.delete_many

    def get(self, key: Key) -> bytes | None:
        self._store.rows += 1
        return self._tx.get(key)

    def scan(self, prefix: Key, *, after: Key | None = None, limit: int | None = None) -> Iterator[tuple[Key, bytes]]:
        for row in self._tx.scan(prefix, after=after, limit=limit):
            self._store.rows += 1
            yield row

    def scan_encoded(self, prefix: Key) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        for rows in self._tx.scan_encoded(prefix):
            self._store.rows += len(rows)
            yield rows


class Counting(MemoryTransactions):
    """A store that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.writes = 0
        self.lasting: list[bool] = []
        """Whether each write waits for the disk."""

    def view(self, work: Callable[[Reader], T]) -> T:
        return super().view(lambda tx: work(Counted(tx, self)))  # type: ignore[arg-type]

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        self.writes += 1
        self.lasting.append(lasting)
        return await super().write(lambda tx: work(Counted(tx, self)), lasting=lasting)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
async def local(store: Counting) -> AsyncIterator[LocalMetadata]:
    local = LocalMetadata(store)
    yield local
    await local.close()


@pytest.fixture
async def world(local: LocalMetadata) -> World:
    return await World(Life(local)).begin()


async def an_operation_of_each_kind(world: World, number: int) -> None:
    """Run a commit of content, a Prepare, a commit upon a parent that is being committed, and an operation that is
    cancelled.
    """
    name = f"x{number}"
    await world.open(name)
    await world.finish(await world.begin_commit(name, digest(number)), digest(number), 3)
    for key in ("k1", "k2"):
        await world.snapshot(f"{key} {name}")
    below = await world.begin_commit_snapshot(f"n1 {name}", f"k1 {name}")
    above = await world.begin_commit_snapshot(f"n2 {name}", f"k2 {name}", parent=f"n1 {name}")
    await world.finish(below)
    await world.finish(above)
    await world.cancel(await world.begin_snapshot(f"k3 {name}"))


async def test_an_operation_costs_the_same_beside_many_open_ones(store: Counting, world: World) -> None:
    """This holds however many intents of each kind the same client has open."""

    async def cost(number: int) -> int:
        before = store.rows
        await an_operation_of_each_kind(world, number)
        return store.rows - before

    await cost(0)  # the first one looks for answers that need not be kept any longer
    alone = await cost(1)
    for i in range(40):
        await world.open(f"r{i}")
        await world.begin_commit(f"r{i}", digest(100 + i))
        await world.begin_snapshot(f"open {i}")
    assert await cost(2) == alone


async def test_few_writes_of_a_pull_wait_for_the_disk(store: Counting, world: World) -> None:
    """An ingest's record and, where a later record follows, that of its blob need not be on the disk when they are
    answered. The intent must, and that a lease holds a blob which was there already.
    """

    async def lasting(work: Awaitable[object]) -> list[bool]:
        store.lasting.clear()
        await work
        return store.lasting.copy()

    async def committed(number: int, *, later: bool = False) -> object:
        intent = await world.begin_commit(f"r{number}", digest(number))
        request = pb.FinishRequest(intent=intent.id, digest=digest(number), size=3, later=later)
        return await world.records.Finish(request, headers=world.headers)

    assert await lasting(world.open("r1", expected=digest(1))) == [False]
    assert await lasting(committed(1, later=True)) == [True, False]
    await world.open("r2", expected=digest(2))
    assert await lasting(committed(2)) == [True, True]
    with pytest.raises(errors.AlreadyExists):
        await lasting(world.open("r3", expected=digest(1)))
    assert store.lasting == [True]
    assert ("content", digest(1)) in await world.held()


async def test_an_end_costs_the_same_whatever_there_is(store: Counting, local: LocalMetadata, world: World) -> None:
    """A lease that holds much and a namespace with many leases are deleted, and the deletion of a namespace with many
    snapshots is refused, without reading all of them.
    """

    async def cost(number: int) -> int:
        other = await world.beside(f"ns{number}")
        leases = local.client(leases_stubs.LEASES)
        namespaces = local.client(namespaces_stubs.NAMESPACES)

        def fill(tx: Transaction) -> None:
            for i in range(number):
                schema.put_resource(tx, other.namespace, "l", Resource("images", f"i{i}"))
                schema.LEASES.put(tx, other.namespace, f"l{i}", value=Lease(id=f"l{i}"))
                for snapshotter in ("native", "overlayfs"):
                    schema.put_snapshot(
                        tx,
                        other.namespace,
                        snapshotter,
                        Snapshot(name=f"s{i}", raw_key=f"{i}", backend=f"snapshots.{snapshotter}", kind="active"),
                    )
                schema.SNAPSHOTS.put(
                    tx,
                    other.namespace,
                    "overlayfs",
                    "\U0010ffff!",
                    value=Snapshot(name="\U0010ffff!", raw_key="!", backend="b", kind="active"),
                )

        await local.database.write(fill)
        before = store.rows
        await leases.Delete(leases_pb2.DeleteRequest(id="l"), headers=headers(other.namespace))
        with pytest.raises(
            errors.FailedPrecondition,
            match='still has snapshots on "native" snapshotter, snapshots on "overlayfs" snapshotter: ',
        ):
            await namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name=other.namespace))
        await local.database.write(lambda tx: schema.SNAPSHOTS.delete_all(tx, other.namespace))
        await namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name=other.namespace))
        looked = store.rows - before
        assert not [
            key
            for table in (schema.LEASES, schema.RESOURCES)
            for key, _ in local.database.view(lambda tx, table=table: list(table.scan(tx, other.namespace)))  # type: ignore[misc]
        ]
        return looked

    assert await cost(3) == await cost(100)


async def test_only_writes_that_wait_for_the_ended_operation_are_woken(store: Counting, world: World) -> None:
    """A chain of commits whose raw commits were done in the wrong order: each end is tried a few times, whatever the
    length of the chain.
    """
    length = 30
    for i in range(length):
        await world.snapshot(f"k{i}")
    commits = [
        await world.begin_commit_snapshot(f"n{i}", f"k{i}", parent=f"n{i - 1}" if i else "") for i in range(length)
    ]
    store.writes = 0
    await asyncio.gather(*(world.finish(commit) for commit in reversed(commits)))
    assert store.writes <= 3 * length
    assert [(await world.stat(f"n{i}")).parent for i in range(length)] == ["", *(f"n{i}" for i in range(length - 1))]


async def test_an_end_between_two_looks_is_not_missed(local: LocalMetadata, world: World) -> None:
    """The second caller is answered as soon as the first operation has ended, at whatever moment that is."""
    for turns in range(8):
        first = await world.begin_snapshot(f"k{turns}")
        second = asyncio.ensure_future(world.begin_snapshot(f"k{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await world.cancel(first)
        async with asyncio.timeout(local.database.patience / 2):
            await second
    assert not local.database._waiting


async def test_open_intents_are_found_after_an_upgrade(local: LocalMetadata, world: World) -> None:
    """Intents of a splitd without the index are indexed at the start; index entries of intents that it ended are
    removed then.
    """
    await world.snapshot("key")
    committing = await world.begin_commit_snapshot("n", "key")
    ended = await world.begin_snapshot("k")

    def as_another_left_it(tx: Transaction) -> None:
        for key, _ in list(schema.CLAIMS.scan(tx, world.namespace, "overlayfs", "n")):
            schema.CLAIMS.delete(tx, *key)
        schema.INTENTS.delete(tx, ended.id)

    await local.database.write(as_another_left_it)
    await local.metadata.intents.index()
    assert [
        i.id
        for i in local.database.view(
            lambda tx: list(schema.intents_claiming(tx, world.namespace, "overlayfs", "n", "k"))
        )
    ] == [committing.id]
    await world.snapshot("upon")
    await world.begin_commit_snapshot("m", "upon", parent="n")
    assert {key[-1] for key, _ in local.database.view(lambda tx: list(schema.CLAIMS.scan(tx)))} == {
        key[0] for key, _ in local.database.view(lambda tx: list(schema.INTENTS.scan(tx)))
    }


async def test_much_work_leaves_room_for_others(tmp_path: Path) -> None:
    """Work that is queued at once is done in several turns of the loop."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def work(tx: Transaction) -> None:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass

    turning = asyncio.ensure_future(others())
    await asyncio.gather(*(store.write(work) for _ in range(100)))
    turning.cancel()
    assert turns >= 8
    await store.close()


async def test_callers_take_turns(tmp_path: Path) -> None:
    """A caller that asks for one thing does not wait for a hundred requests of another; each caller's requests are done
    in order.
    """
    asking = ContextVar("asking", default="")
    store = SqliteTransactions(tmp_path / "metadata.db", asking.get)
    done: list[str] = []

    def ask(what: str) -> asyncio.Task[None]:
        asking.set(what.split(maxsplit=1)[0])
        return asyncio.ensure_future(store.write(lambda tx: done.append(what)))

    await asyncio.gather(*[ask(f"much {n}") for n in range(100)], *[ask(f"little {n}") for n in range(2)])
    assert done.index("little 1") < 6
    assert [each for each in done if each.startswith("much")] == [f"much {n}" for n in range(100)]
    await store.close()


async def test_lasting_writes_are_not_committed_without_the_disk(tmp_path: Path) -> None:
    """This holds even if the write came right behind one that need not last."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    modes = await asyncio.gather(
        *(store.write(lambda tx: store._lasting, lasting=lasting) for lasting in (False, False, True, False, True))
    )
    assert modes == [False, False, True, True, True]
    await store.close()


async def test_where_nothing_can_be_begun_everybody_is_told(tmp_path: Path) -> None:
    """Every waiting caller gets the error, not only the first."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    store._writer.close()
    results = await asyncio.gather(*(store.write(lambda tx: None) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [errors.Unavailable] * 3
    await store.close()


class Unsettled(MemoryTransactions):
    """A store whose disk is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.written = asyncio.Event(), asyncio.Event()

    async def settle(self) -> None:
        self.writing.set()
        await self.written.wait()


async def test_a_synchronous_delete_is_answered_once_it_is_on_the_disk() -> None:
    """It begins to collect before."""
    store = Unsettled()
    local = LocalMetadata(store)
    leases = local.client(leases_stubs.LEASES)
    await leases.Create(leases_pb2.CreateRequest(id="l"), headers=headers("ns"))
    deleting = asyncio.ensure_future(leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True), headers=headers("ns")))
    await asyncio.wait_for(store.writing.wait(), 15)
    assert not store.view(lambda tx: schema.LEASES.has(tx, "ns", "l"))
    assert not deleting.done()
    store.written.set()
    await asyncio.wait_for(deleting, 15)
    await local.close()
