"""Lists show one instant if they are read at once. They are read in pieces that delay no other call, and the number of
old states that they keep is bounded.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from services.kit import errors
from services.kit.slices import Lane
from services.metadata import schema, server, walks
from services.metadata.database import Database
from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Blob, Lease, Resource
from services.metadata.transactions import Key, Transaction, Transactions
from services.metadata.walks import Walks
from tests.suites.records import digest
from tests.suites.records_lives import LocalMetadata, headers


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Transactions]:
    store: Transactions = (
        MemoryTransactions() if request.param == "memory" else SqliteTransactions(tmp_path / "metadata.db")
    )
    yield store
    await store.close()


async def put(store: Transactions, *names: str) -> None:
    def work(tx: Transaction) -> None:
        for name in names:
            tx.put(("t", name), name.encode())

    await store.write(work)


def rest(walk: walks.Walk) -> list[str]:
    return [key[1] for key, _ in walk]


async def test_a_walk_sees_one_instant(store: Transactions) -> None:
    """Records that are written during the walk do not appear in it."""
    await put(store, "a", "b", "c")
    with Walks(store).over(("t",)) as walk:
        first: tuple[Key, bytes] = next(walk)
        await store.write(lambda tx: tx.delete(("t", "b")))
        await put(store, "d")
        assert (first[0], rest(walk)) == (("t", "a"), ["b", "c"])


async def test_a_walk_that_lost_its_state_goes_on_behind_its_last_record(store: Transactions) -> None:
    """It goes on in the current state; a record that exists all the while comes once."""
    await put(store, "a", "b", "d")
    with Walks(store).over(("t",)) as walk:
        next(walk)
        walk.release_state()
        await put(store, "c")
        assert rest(walk) == ["b", "c", "d"]


async def test_few_walks_have_a_state_of_their_own(store: Transactions) -> None:
    """The walk that has had its state longest gives it up; all walks come to their end."""
    await put(store, "a", "b", "c")
    everybody = Walks(store, most=2)
    three = [everybody.over(("t",)) for _ in range(3)]
    for walk in three:
        next(walk)
    assert [walk._snapshot is not None for walk in three] == [False, True, True]
    assert [rest(walk) for walk in three] == [["b", "c"]] * 3
    for walk in three:
        walk.release_state()
    assert not everybody._open


async def test_a_walk_that_gets_no_state_does_not_take_anothers(
    store: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because the process has no file descriptors left."""
    everybody = Walks(store)

    def none_left() -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(store, "snapshot", none_left)
    with everybody.over(("t",)) as walk, pytest.raises(sqlite3.OperationalError):
        next(walk)
    assert not everybody._open


async def test_a_state_is_not_kept_for_long(tmp_path: Path) -> None:
    """Otherwise the log of a store whose reader sleeps would grow without end."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    await put(store, "a", "b", "c")

    def forgotten() -> bool:
        with sqlite3.connect(tmp_path / "metadata.db", timeout=0) as other:
            busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        other.close()
        return not busy

    with Walks(store, kept=0.05).over(("t",)) as walk:
        next(walk)
        await put(store, "d")
        assert not forgotten()
        async with asyncio.timeout(10):
            while walk._snapshot is not None:
                await asyncio.sleep(0.01)
        assert forgotten()
        assert rest(walk) == ["b", "c", "d"]
    await store.close()


async def test_a_long_list_leaves_room_for_others(store: Transactions) -> None:
    """The loop turns between the pieces of the list; together the pieces have all records."""
    database = Database(store)

    def work(tx: Transaction) -> None:
        for number in range(300):
            schema.LEASES.put(tx, "n", f"{number:03}", value=Lease(id=f"{number:03}"))

    await store.write(work)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def slowly(_key: Key, lease: Lease) -> str | None:
        end = time.perf_counter() + 0.0002
        while time.perf_counter() < end:
            pass
        return lease.id if int(lease.id) % 2 else None

    turning = asyncio.ensure_future(others())
    found = [one async for some in database.select(schema.LEASES, "n", make=slowly) for one in some]
    turning.cancel()
    assert found == [f"{number:03}" for number in range(1, 300, 2)]
    assert turns >= 50


async def test_messages_of_a_streamed_list_are_bounded() -> None:
    """A message has a hundred infos, as in containerd, and fewer if they are large, since clients accept at most 16
    MiB.
    """
    local = LocalMetadata(MemoryTransactions())

    def work(tx: Transaction) -> None:
        for number in range(250):
            schema.put_blob(tx, "n", Blob(digest=digest(number), size=1, backend="content", labels={"x": "y" * 4000}))

    await local.database.write(work)
    found = [
        answer
        async for answer in local.client(content_stubs.CONTENT).List(
            content_pb2.ListContentRequest(), headers=headers("n")
        )
    ]
    assert [len(answer.info) for answer in found] == [100, 100, 50]
    infos = [info for answer in found for info in answer.info]
    assert [info.digest for info in infos] == sorted(digest(number) for number in range(250))

    async def pieces() -> AsyncIterator[list[content_pb2.Info]]:
        yield infos

    smaller = [piece async for piece in server.batches(pieces(), most=40_000)]
    assert [len(piece) for piece in smaller] == [10] * 25
    assert [info for piece in smaller for info in piece] == infos
    await local.close()


async def test_an_answer_in_pieces_is_one_message() -> None:
    """The message is the same as one that is made at once."""
    local = LocalMetadata(MemoryTransactions(), lane=Lane(0.0))
    leases = local.client(leases_stubs.LEASES)
    await leases.Create(leases_pb2.CreateRequest(id="l"), headers=headers("n"))

    def work(tx: Transaction) -> None:
        for number in range(50):
            schema.put_resource(tx, "n", "l", Resource("images", f"{number:02}"))

    await local.database.write(work)
    found = await leases.ListResources(leases_pb2.ListResourcesRequest(id="l"), headers=headers("n"))
    assert [(resource.type, resource.id) for resource in found.resources] == [
        ("images", f"{number:02}") for number in range(50)
    ]
    await local.close()


@pytest.mark.parametrize("size", [1, 20_000], ids=["small", "large"])
async def test_a_damaged_blob_is_reported_by_its_reader(size: int) -> None:
    """The record is read outside of the store, that of the large blob in steps; the process is told of the damage
    nevertheless.
    """
    local, said = LocalMetadata(MemoryTransactions()), list[str]()
    local.database.damaged = said.append
    await local.database.write(lambda tx: tx.put((schema.BLOBS.name, "n", digest(0)), b"{" + b" " * size))
    content = local.client(content_stubs.CONTENT)
    for call in (
        content.Info(content_pb2.InfoRequest(digest=digest(0)), headers=headers("n")),
        content.Update(
            content_pb2.UpdateRequest(
                info=content_pb2.Info(digest=digest(0), labels={f"l{number}": "x" for number in range(size)})
            ),
            headers=headers("n"),
        ),
    ):
        before = len(said)
        with pytest.raises(errors.DataLoss, match="the record blob n sha256:[0-9a-f]+ is damaged"):
            await call
        assert len(said) > before or size == 1  # what the store reads itself, it tells its owner
    assert said


async def test_a_blob_of_thousands_of_labels_leaves_room_for_others() -> None:
    """A manifest of 20,000 layers has as many labels: the loop turns while they are read and while they are changed,
    and the answers are complete.
    """
    local = LocalMetadata(MemoryTransactions())
    labels = {f"containerd.io/gc.ref.content.l.{number}": digest(number) for number in range(20_000)}
    await local.database.write(
        lambda tx: schema.put_blob(
            tx, "n", Blob(digest=digest(0), size=1, backend="content", labels={"other": "label"})
        )
    )
    content = local.client(content_stubs.CONTENT)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.ensure_future(others())
    update = content_pb2.UpdateRequest(
        info=content_pb2.Info(digest=digest(0), labels=labels),
        update_mask={"paths": [f"labels.{key}" for key in labels]},
    )
    updated = await content.Update(update, headers=headers("n"))
    changing, turns = turns, 0
    told = await content.Info(content_pb2.InfoRequest(digest=digest(0)), headers=headers("n"))
    telling, turns = turns, 0
    small = Blob(digest=digest(1), size=2, backend="content", labels={"another": "label"})
    await local.database.write(lambda tx: schema.put_blob(tx, "n", small))
    turns = 0
    answers = content.List(content_pb2.ListContentRequest(), headers=headers("n"))
    listed = [info for answer in [each async for each in answers] for info in answer.info]
    listing = turns
    turning.cancel()
    assert {info.digest: (info.size, dict(info.labels)) for info in listed} == {
        digest(0): (1, {**labels, "other": "label"}),
        digest(1): (2, small.labels),
    }
    assert listing >= 10
    assert dict(updated.info.labels) == dict(told.info.labels) == {**labels, "other": "label"}
    assert (told.info.digest, told.info.size) == (digest(0), 1)
    assert changing >= 10
    assert telling >= 10
    await local.close()
