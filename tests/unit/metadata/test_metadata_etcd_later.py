"""Changes that need not last: nobody waits for etcd with them, and it gets them in the order in which they were made."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from services.etcd.memory import MemoryEtcd
from services.etcd.store import Changes, Committed, Conflict, Mod, Operation, Put
from services.kit import errors
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_rows import LEAST, Keys, Owner
from services.metadata.transactions import Key, Transactions, encode
from tests.support import eventually_async

KEYS = Keys("/x")
NODE = Owner(node="n")
LONG = 1000.0


@contextlib.asynccontextmanager
async def opened(
    etcd: MemoryEtcd, path: Path, *, later: float = LONG, patience: float = 0.1
) -> AsyncIterator[EtcdTransactions]:
    store = EtcdTransactions(etcd, "/x", path, NODE, patience=patience, longest=0.05, later=later)
    try:
        async with store.running():
            yield store
    finally:
        await store.close()


async def put(store: Transactions, *keys: str, value: bytes = b"v", lasting: bool = False) -> None:
    await store.write(lambda tx: tx.put_many([((key,), value) for key in keys]), lasting=lasting)


def shown(store: Transactions) -> dict[Key, bytes]:
    return store.view(lambda tx: dict(tx.scan(())))


def records(etcd: MemoryEtcd) -> dict[bytes, bytes]:
    """The records that etcd has, by their encoded keys."""
    begin = KEYS.records
    return {key.removeprefix(begin): pair.value[1:] for key, pair in etcd.state.items() if key.startswith(begin)}


def copied(path: Path, copy: Path) -> Path:
    """The mirror in ``path`` as a process that is killed now leaves it."""
    with contextlib.closing(sqlite3.connect(path)) as one, contextlib.closing(sqlite3.connect(copy)) as other:
        one.backup(other)
    return copy


async def test_nobody_waits_for_etcd(tmp_path: Path) -> None:
    """They are shown at once, and are in the next transaction that has to last, as one with it."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", "b", "c", lasting=True)
        before = etcd.revision
        await put(store, "a", value=b"1")
        await put(store, "a", "d", value=b"2")
        await store.write(lambda tx: tx.delete(("b",)), lasting=False)
        await store.write(lambda tx: tx.delete(("d",)), lasting=False)
        expected = {("a",): b"2", ("c",): b"v"}
        assert shown(store) == expected
        assert etcd.revision == before
        await put(store, "c", value=b"3", lasting=True)
        assert etcd.revision == before + 1
        assert records(etcd) == {encode(("a",)): b"2", encode(("c",)): b"3"}
        await put(store, "e", lasting=True)
        assert etcd.revision == before + 2
        assert not store._later


async def test_what_lasts_replaces_what_is_owed(tmp_path: Path) -> None:
    """Also with the value that etcd has still."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", "b", lasting=True)
        await put(store, "a", "b", value=b"owed")
        await put(store, "a", lasting=True)
        assert records(etcd) == {encode(("a",)): b"v", encode(("b",)): b"owed"}
        assert shown(store) == {("a",): b"v", ("b",): b"owed"}


async def test_they_get_a_transaction_of_their_own_in_time(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db", later=0.01) as store:
        for number in range(3):
            await put(store, f"k{number}")
            await eventually_async(
                lambda: asyncio.sleep(0, len(records(etcd)) == number + 1),  # noqa: B023
                "etcd does not get it",
            )
        assert not store._later


async def test_who_waits_for_all_that_was_written_waits_for_etcd(tmp_path: Path) -> None:
    """As the answer to a synchronous delete does."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        await store.settle()
        assert records(etcd) == {encode(("a",)): b"v"}
        await store.settle()
        assert records(etcd) == {encode(("a",)): b"v"}


async def test_an_end_in_order_owes_nothing(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        assert not records(etcd)
    assert records(etcd) == {encode(("a",)): b"v"}


async def test_they_survive_the_death_of_the_process(tmp_path: Path) -> None:
    """The next one owes them. Without the mirror, as after a power cut, they are lost, and nothing that had to last."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", "b", lasting=True)
        await put(store, "a", value=b"owed")
        await store.write(lambda tx: tx.delete(("b",)), lasting=False)
        killed = copied(tmp_path / "one.db", tmp_path / "killed.db")
        store._later.clear()
    async with opened(etcd, tmp_path / "new.db") as store:
        assert shown(store) == {("a",): b"v", ("b",): b"v"}
    async with opened(etcd, killed) as store:
        assert shown(store) == {("a",): b"owed"}
        await put(store, "c", lasting=True)
    assert records(etcd) == {encode(("a",)): b"owed", encode(("c",)): b"v"}


class Stops(MemoryEtcd):
    """It writes a commit, and answers once it may ``go`` on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        done = await super().commit(operations, compares, seconds=seconds)
        await self.go.wait()
        return done


async def test_a_process_dies_when_etcd_has_them_and_the_mirror_does_not_know(tmp_path: Path) -> None:
    """What took them along is there too, and they are not written once more."""
    etcd = Stops()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        etcd.go.clear()
        writing = asyncio.ensure_future(put(store, "a", "b", value=b"lasts", lasting=True))
        await eventually_async(lambda: asyncio.sleep(0, len(records(etcd)) == 2), "etcd does not get it")
        killed = copied(tmp_path / "one.db", tmp_path / "killed.db")
        etcd.go.set()
        await writing
    async with opened(etcd, killed) as store:
        assert shown(store) == {("a",): b"lasts", ("b",): b"lasts"}
        assert not store._later


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_answer_loses_nothing(when: str, tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        etcd.uncertain = "before" if when == "before" else "after"
        await put(store, "b", lasting=True)
        assert records(etcd).keys() == {encode(("a",)), encode(("b",))}
        assert not store._later


class Silent(MemoryEtcd):
    """While it is ``silent``, nobody hears whether a commit was written, nor what there is."""

    silent = False

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        if self.silent:
            self.uncertain = "after"
        return await super().commit(operations, compares, seconds=seconds)

    async def get(self, key: bytes, *, seconds: float = 0.0) -> object:  # type: ignore[override]
        if self.silent:
            raise errors.Unavailable("etcd: silent")
        return await super().get(key, seconds=seconds)


async def test_nobody_knows_whether_etcd_has_them(tmp_path: Path) -> None:
    """The write fails, and says so. The next one waits until that is known, and is made of what etcd has."""
    etcd = Silent()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        etcd.silent = True
        with pytest.raises(errors.Unavailable, match="may have been written"):
            await put(store, "b", lasting=True)
        etcd.silent = False
        await put(store, "c")
        assert shown(store) == {("a",): b"v", ("b",): b"v", ("c",): b"v"}
        await put(store, "d", lasting=True)
        assert records(etcd).keys() == {encode((key,)) for key in "abcd"}


async def test_another_hand_comes_first(tmp_path: Path) -> None:
    """All records are listed, and what was owed is lost: it was made of records that have changed."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", lasting=True)
        await put(store, "a", "b", value=b"owed")
        await etcd.commit([Put(KEYS.records + encode(("c",)), b"\0hand"), Put(KEYS.last, b"another")])
        await eventually_async(lambda: asyncio.sleep(0, ("c",) in shown(store)), "it is not seen")
        assert shown(store) == {("a",): b"v", ("c",): b"hand"}
        await put(store, "d", lasting=True)
        assert records(etcd).keys() == {encode((key,)) for key in "acd"}


class Late(MemoryEtcd):
    """Its watches tell nothing while ``told`` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()
        self.told.set()

    @contextlib.asynccontextmanager
    async def watch(self, prefix: bytes, *, after: int) -> AsyncIterator[AsyncIterator[Changes]]:
        async def late() -> AsyncIterator[Changes]:
            async for each in changes:
                await self.told.wait()
                yield each

        async with super().watch(prefix, after=after) as changes:
            yield late()


async def test_a_put_by_hand_does_not_replace_what_is_owed(tmp_path: Path) -> None:
    """Such a put does not touch ``last``: it is as if it had come before."""
    etcd = Late()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", "b", lasting=True)
        etcd.told.clear()
        await etcd.commit([Put(KEYS.records + encode((key,)), b"\0hand") for key in "ab"])
        await put(store, "a", value=b"owed")
        etcd.told.set()
        expected = {("a",): b"owed", ("b",): b"hand"}
        await eventually_async(lambda: asyncio.sleep(0, shown(store) == expected), "the put is not seen")
        await put(store, "c", lasting=True)
        assert records(etcd)[encode(("a",))] == b"owed"


async def test_they_fail_while_etcd_is_away(tmp_path: Path) -> None:
    """As all writes do. What was owed before is written when it is back."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db", later=0.01) as store:
        await put(store, "a", lasting=True)
        etcd.cut()
        await put(store, "b")
        await eventually_async(lambda: asyncio.sleep(0, store.standing.away is not None), "nobody notices")

        async def refused() -> bool:
            try:
                await put(store, "c")
            except errors.Unavailable as error:
                return "while etcd is away" in str(error)
            return False

        await eventually_async(refused, "they do not fail")
        with contextlib.suppress(errors.Unavailable):
            await put(store, "c")
        kept = shown(store)
        assert {("a",), ("b",)} <= kept.keys()
        etcd.cut(away=False)
        await eventually_async(
            lambda: asyncio.sleep(0, records(etcd).keys() == {encode(key) for key in kept}), "etcd does not get them"
        )


async def test_many_or_large_ones_wait(tmp_path: Path) -> None:
    """What is owed stays small, and a large transaction does not take it along."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "large", value=bytes(LEAST))
        assert records(etcd) == {encode(("large",)): bytes(LEAST)}
        await put(store, "large")
        assert records(etcd) == {encode(("large",)): b"v"}
        for number in range(0, 2000, 100):
            await put(store, *(f"{each:04}" for each in range(number, number + 100)))
        assert len(records(etcd)) > 1700
        await put(store, "owed")
        before = etcd.revision
        await put(store, *(f"many{number:04}" for number in range(3000)), lasting=True)
        assert etcd.revision == before + 2
        assert len(records(etcd)) == len(shown(store)) == 5002


async def test_in_a_group_with_one_that_lasts_they_are_one_transaction(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        before = etcd.revision
        await asyncio.gather(put(store, "a"), put(store, "b", lasting=True), put(store, "c"))
        assert records(etcd).keys() >= {encode(("a",)), encode(("b",))}
        assert etcd.revision == before + 1
