"""The records in etcd: the suite of transactions, and what happens between the mirror and etcd, on the fake."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.etcd.memory import MemoryEtcd
from services.etcd.store import Changes, Delete, Put
from services.kit import errors
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_owner import Claims, NotOwnerError, this_node
from services.metadata.etcd_rows import PIECE, WHOLE, Keys, Owner
from services.metadata.transactions import Key, Reader, Transaction, Transactions, encode
from tests.suites.records_transactions import TransactionsSuite
from tests.support import eventually_async, within

PREFIX = "/splitd/one"
KEYS = Keys(PREFIX)
NODE = Owner(node="n1", host="h", machine="m", root="/r")


@contextlib.asynccontextmanager
async def opened(
    etcd: MemoryEtcd,
    path: Path,
    node: Owner = NODE,
    stale_reads: float = 600.0,
    claims: Claims | None = None,
    patience: float = 0.1,
) -> AsyncIterator[EtcdTransactions]:
    store = EtcdTransactions(
        etcd, PREFIX, path, node, stale_reads=stale_reads, patience=patience, longest=0.05, claims=claims
    )
    try:
        async with store.running():
            yield store
    finally:
        await store.close()


class TestEtcd(TransactionsSuite):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Transactions]:
        async with opened(MemoryEtcd(), tmp_path / "mirror.db") as store:
            yield store


def records(etcd: MemoryEtcd) -> set[bytes]:
    """The keys of the records that etcd has."""
    return {key.removeprefix(KEYS.records) for key in etcd.state if key.startswith(KEYS.records)}


def shown(store: Transactions) -> dict[Key, bytes]:
    return store.view(lambda tx: dict(tx.scan(())))


async def put(store: Transactions, *keys: str, value: bytes = b"v") -> None:
    await store.write(lambda tx: tx.put_many([((key,), value) for key in keys]))


async def settled(store: EtcdTransactions, etcd: MemoryEtcd) -> None:
    await eventually_async(
        lambda: asyncio.sleep(0, store.standing.away is None and store.standing.revision >= etcd.revision),
        "the mirror does not catch up",
    )


async def test_a_lost_mirror_is_made_anew(tmp_path: Path) -> None:
    """The records outlive the disk."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", "b", "c")
        await store.write(lambda tx: tx.delete_all(("b",)))
        before = shown(store)
    async with opened(etcd, tmp_path / "two.db") as store:
        assert shown(store) == before == {("a",): b"v", ("c",): b"v"}
        await put(store, "d")
    async with opened(etcd, tmp_path / "one.db") as store:  # the mirror of before: it follows
        await settled(store, etcd)
        assert set(shown(store)) == {("a",), ("c",), ("d",)}


async def test_a_forgotten_revision_means_a_list(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", "b")
    async with opened(etcd, tmp_path / "two.db") as store:
        await put(store, "c")
        await store.write(lambda tx: tx.delete(("a",)))
    etcd.compact(etcd.revision)
    async with opened(etcd, tmp_path / "one.db") as store:
        assert set(shown(store)) == {("b",), ("c",)}


async def test_a_mirror_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
    (tmp_path / "one.db").write_bytes(b"no database" * 1000)
    async with opened(etcd, tmp_path / "one.db") as store:
        assert set(shown(store)) == {("a",)}


@pytest.mark.parametrize("size", [WHOLE, WHOLE + 1, PIECE + 1, 3 * PIECE + 7])
async def test_a_large_value_comes_back(size: int, tmp_path: Path) -> None:
    """From the mirror and from etcd; its pieces go with it."""
    etcd, value = MemoryEtcd(), bytes(range(256)) * (size // 256 + 1)
    value = value[:size]
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "large", value=b"small")
        await put(store, "large", "other", value=value)
        await put(store, "large", value=value[::-1])
    async with opened(etcd, tmp_path / "two.db") as store:
        assert shown(store) == {("large",): value[::-1], ("other",): value}
        if size > WHOLE:
            ids = {key.rpartition(b"/")[0] for key in etcd.state if key.startswith(KEYS.pieces)}
            assert len(ids) == 2
        await put(store, "large")
        await store.write(lambda tx: tx.delete(("other",)))
        assert not [key for key in etcd.state if key.startswith(KEYS.pieces)]
        assert shown(store) == {("large",): b"v"}


async def test_pieces_of_a_transaction_that_was_not_written_go(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
    await etcd.commit([Put(KEYS.pieces_of(encode(("a",))) + b"left/0000", b"x")])
    async with opened(etcd, tmp_path / "two.db") as store:
        assert not [key for key in etcd.state if key.startswith(KEYS.pieces)]
        assert shown(store) == {("a",): b"v"}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_answer_is_read_back(when: str, tmp_path: Path) -> None:
    """The transaction is written once, and its caller never hears of it."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "n", value=b"0")
        for number in range(1, 4):
            etcd.uncertain = "before" if when == "before" else "after"

            def add(tx: Transaction) -> int:
                now = int(tx.get(("n",)) or b"0") + 1
                tx.put(("n",), b"%d" % now)
                return now

            assert await store.write(add) == number
        assert shown(store) == {("n",): b"3"}
    async with opened(etcd, tmp_path / "two.db") as store:
        assert shown(store) == {("n",): b"3"}


async def test_an_equal_value_is_no_transaction(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        before = etcd.revision
        await put(store, "a")
        assert etcd.revision == before


async def test_many_works_are_one_transaction(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        before = etcd.revision
        await asyncio.gather(*(put(store, f"k{number}") for number in range(60)))
        assert etcd.revision - before < 30
        assert len(records(etcd)) == 60


async def test_more_than_one_transaction_takes_is_refused(tmp_path: Path) -> None:
    """In words, and nothing of it is written."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        keys: list[Key] = [("k", f"{number:06}", "x" * 60) for number in range(17_000)]
        with pytest.raises(errors.ResourceExhausted, match="transaction of"):
            await store.write(lambda tx: tx.put_many([(key, b"") for key in keys]))
        assert shown(store) == {}
        await put(store, "a")
        assert records(etcd) == {encode(("a",))}


async def test_large_values_side_by_side(tmp_path: Path) -> None:
    """However they are grouped, and in one work, too."""
    etcd, value = MemoryEtcd(), bytes(200_000)
    async with opened(etcd, tmp_path / "one.db") as store:
        await asyncio.gather(*(put(store, f"a{number}", value=value) for number in range(10)))
        await put(store, *(f"b{number}" for number in range(10)), value=value)
        before = shown(store)
        assert len(before) == 20
    async with opened(etcd, tmp_path / "two.db") as store:
        assert shown(store) == before
        await put(store, *(f"b{number}" for number in range(10)))
        await put(store, *(f"a{number}" for number in range(10)))
        assert not [key for key in etcd.state if key.startswith(KEYS.pieces)]


async def test_thousands_are_removed_at_once(tmp_path: Path) -> None:
    """What lies between them stays."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        for start in range(0, 6000, 1000):
            rows: list[tuple[Key, bytes]] = [(("lease", "a", f"{n:05}"), b"") for n in range(start, start + 1000)]
            await store.write(lambda tx, rows=rows: tx.put_many(rows))  # type: ignore[misc]
        await put(store, "before", "last")

        def work(tx: Transaction) -> None:
            tx.delete_all(("lease",))
            tx.put(("lease", "a", "03000"), b"kept")
            tx.put(("lease", "b"), b"new")
            tx.delete(("last",))

        await store.write(work)
        expected = {("before",): b"v", ("lease", "a", "03000"): b"kept", ("lease", "b"): b"new"}
        assert shown(store) == expected
    async with opened(etcd, tmp_path / "two.db") as store:
        assert shown(store) == expected


async def test_while_etcd_is_away(tmp_path: Path) -> None:
    """Reads go on, and writes fail at once and say why. Later both go on, and what was refused is nowhere."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        etcd.cut()
        with pytest.raises(errors.Unavailable, match="etcd"):
            await put(store, "b")
        await eventually_async(lambda: asyncio.sleep(0, store.standing.away is not None), "nobody notices")
        calls = etcd.calls
        with pytest.raises(errors.Unavailable, match="while etcd is away .*containers run on"):
            await put(store, "b")
        assert etcd.calls - calls < 3
        assert set(shown(store)) == {("a",)}
        assert set(await store.read(lambda tx: [key for key, _ in tx.scan(())])) == {("a",)}
        etcd.cut(away=False)
        await settled(store, etcd)
        await put(store, "c")
        assert set(shown(store)) == {("a",), ("c",)}


async def test_reads_end_after_a_while(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db", stale_reads=0.05) as store:
        await put(store, "a")
        etcd.cut()

        async def refused() -> bool:
            try:
                shown(store)
            except errors.Unavailable as error:
                return "stale_reads" in str(error)
            return False

        await eventually_async(refused, "reads go on for ever")
        etcd.cut(away=False)
        await settled(store, etcd)
        assert set(shown(store)) == {("a",)}


async def test_what_another_hand_has_written_is_seen_first(tmp_path: Path) -> None:
    """Work that was begun on an older state runs again: one of a key that it read, and one of a scan."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a", value=b"1")
        runs = 0

        def work(tx: Transaction) -> list[bytes]:
            nonlocal runs
            runs += 1
            found = [value for _, value in tx.scan(())]
            tx.put(("sum",), b"".join(found))
            return found

        writing = asyncio.ensure_future(store.write(work))
        await etcd.commit([Put(KEYS.records + encode(("b",)), b"\0" + b"2"), Put(KEYS.last, b"another")])
        assert await writing in ([b"1", b"2"], [b"1"])
        await settled(store, etcd)
        await etcd.commit([Delete(KEYS.records + encode(("a",))), Put(KEYS.last, b"another")])
        await settled(store, etcd)
        assert ("a",) not in shown(store)
        assert shown(store)[("b",)] == b"2"
        assert runs >= 1


async def test_a_second_node_is_refused(tmp_path: Path) -> None:
    """One with an id of its own always; a copy of this one while this one runs. The message says what to do."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        with pytest.raises(NotOwnerError, match=r"those of the node n1 .*serves them now.*prefix.*--take-over"):
            async with opened(etcd, tmp_path / "two.db", Owner(node="n2", host="x", machine="y", root="/z")):
                pass
        with pytest.raises(NotOwnerError, match="a copy of it"):
            async with opened(etcd, tmp_path / "two.db", Owner(node="n1", host="x", machine="y", root="/z")):
                pass
        await put(store, "b")
    with pytest.raises(NotOwnerError, match="is not running"):
        async with opened(etcd, tmp_path / "two.db", Owner(node="n2", host="x", machine="y", root="/z")):
            pass
    async with opened(etcd, tmp_path / "two.db", Owner(node="n1", host="x", machine="y", root="/z")) as store:
        assert set(shown(store)) == {("a",), ("b",)}


async def test_who_was_replaced_writes_nothing(tmp_path: Path) -> None:
    """Not even what was begun before it knew."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        await etcd.commit([Put(KEYS.owner, Owner(node="n2", host="elsewhere").encode())])
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match="taken over by the node n2 .host elsewhere"):
                await put(store, "b")
        assert records(etcd) == {encode(("a",))}


async def test_an_etcd_that_was_made_anew_is_refused(tmp_path: Path) -> None:
    """The node would begin without a record otherwise. It says what to do, and that works."""
    claims = Claims(tmp_path)
    async with opened(MemoryEtcd(), tmp_path / "one.db", claims=claims) as store:
        await put(store, "a")
    etcd = MemoryEtcd()
    with pytest.raises(NotOwnerError, match=f"not in etcd any more.*remove {tmp_path}/claimed"):
        async with opened(etcd, tmp_path / "one.db", claims=claims):
            pass
    (tmp_path / "claimed").unlink()
    async with opened(etcd, tmp_path / "one.db", claims=claims) as store:
        assert shown(store) == {}
        await put(store, "b")
    async with opened(etcd, tmp_path / "one.db", claims=claims) as store:
        assert set(shown(store)) == {("b",)}


async def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    node = this_node(tmp_path / "metadata")
    assert node == this_node(tmp_path / "metadata")
    assert node.root == str(tmp_path)
    assert Owner.decode(node.encode()) == node
    with pytest.raises(errors.DataLoss):
        Owner.decode(b"nonsense")


async def test_views_see_whole_commits(tmp_path: Path) -> None:
    """While one is on its way to etcd, too."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:

        def both(tx: Reader) -> tuple[bytes | None, bytes | None]:
            return tx.get(("a",)), tx.get(("b",))

        for number in range(20):
            writing = asyncio.ensure_future(put(store, "a", "b", value=b"%d" % number))
            while not writing.done():
                a, b = store.view(both)
                assert a == b
                await asyncio.sleep(0)
            assert store.view(both) == (b"%d" % number,) * 2


async def test_the_log_of_a_mirror_stays_short(tmp_path: Path) -> None:
    """However much is written without a pause: STATE is in memory on most machines."""
    async with opened(MemoryEtcd(kept=2), tmp_path / "one.db") as store:
        for number in range(600):
            await put(store, f"k{number % 100}", value=b"%d" % number * 5000)
        assert (tmp_path / "one.db-wal").stat().st_size < 8 << 20


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


def record(key: str) -> bytes:
    return KEYS.records + encode((key,))


async def test_a_put_by_hand_is_seen_though_an_own_commit_follows(tmp_path: Path) -> None:
    """Such a put does not touch ``last``. What this node has written over it stays; also if the process is killed
    before it hears of either.
    """
    etcd, mirror, killed = Late(), tmp_path / "one.db", tmp_path / "killed.db"
    expected = {("a",): b"hand", ("b",): b"mine", ("d",): b"mine", ("f",): b"mine"}
    async with opened(etcd, mirror) as store:
        await put(store, "b", "c", "d", "e")
        await settled(store, etcd)
        etcd.told.clear()
        await etcd.commit([Put(record(key), b"\0hand") for key in "abc"] + [Delete(record("d")), Delete(record("e"))])

        def work(tx: Transaction) -> None:
            tx.put_many([((key,), b"mine") for key in "bdf"])
            tx.delete(("c",))

        await store.write(work)
        assert set(shown(store)) == {("b",), ("d",), ("e",), ("f",)}
        with contextlib.closing(sqlite3.connect(mirror)) as one, contextlib.closing(sqlite3.connect(killed)) as copy:
            one.backup(copy)
        etcd.told.set()
        await settled(store, etcd)
        assert shown(store) == expected
        assert not store._shown.ahead
    async with opened(etcd, killed) as store:
        assert shown(store) == expected


async def test_a_mirror_of_another_past_is_made_anew(tmp_path: Path) -> None:
    """etcd was restored from a backup, and has grown since: no revision is missing, but what follows is another."""
    before, after = MemoryEtcd(), MemoryEtcd()
    for etcd, key in ((before, "a"), (after, "b")):
        async with opened(etcd, tmp_path / f"{key}.db") as store:
            await put(store, "both")
            await put(store, key)
    for number in range(10):
        await after.commit([Put(b"/others", b"%d" % number)])
    async with opened(after, tmp_path / "a.db") as store:
        assert set(shown(store)) == {("both",), ("b",)}


async def test_a_large_value_that_was_replaced_twice_is_followed(tmp_path: Path) -> None:
    """The pieces of the first one are gone when the mirror comes to it."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
    async with opened(etcd, tmp_path / "two.db") as store:
        for byte in (b"1", b"2"):
            await put(store, "a", value=byte * (WHOLE + 1))
    async with opened(etcd, tmp_path / "one.db") as store:
        assert shown(store) == {("a",): b"2" * (WHOLE + 1)}


async def test_writes_wait_while_all_records_are_listed(tmp_path: Path) -> None:
    """The process has fallen behind what etcd remembers. What it wrote before is there afterwards, too."""
    etcd = Late()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        etcd.told.clear()
        await etcd.commit([Put(record("hand"), b"\0v")])
        await put(store, "b")
        etcd.compact(etcd.revision)
        etcd.told.set()
        etcd.cut()
        await eventually_async(lambda: asyncio.sleep(0, store.standing.away is not None), "nobody notices")
        etcd.cut(away=False)
        await settled(store, etcd)
        assert set(shown(store)) == {("a",), ("b",), ("hand",)}
        store._shown.revision = 0
        writing = asyncio.ensure_future(put(store, "c"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.shield(writing)
        assert encode(("c",)) not in records(etcd)
        await store._list()
        await writing
        assert encode(("c",)) in records(etcd)


async def test_a_write_waits_for_an_election(tmp_path: Path) -> None:
    """Others wait with it, and all of them are written once. Nobody is told anything."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db", patience=20.0) as store:
        await put(store, "a")
        etcd.cut()
        writing = [asyncio.ensure_future(put(store, f"k{number}")) for number in range(5)]
        await eventually_async(lambda: asyncio.sleep(0, store.standing.away is not None), "nobody notices")
        writing += [asyncio.ensure_future(put(store, f"l{number}", value=bytes(WHOLE + 1))) for number in range(2)]
        done, _ = await asyncio.wait(writing, timeout=0.3, return_when=asyncio.FIRST_COMPLETED)
        assert not done
        etcd.cut(away=False)
        await asyncio.gather(*writing)
        assert len(shown(store)) == 8
        await settled(store, etcd)
    async with opened(etcd, tmp_path / "two.db") as store:
        assert len(shown(store)) == 8


async def test_writes_wait_once_for_an_etcd_that_does_not_come_back(tmp_path: Path) -> None:
    """Not each of them, one after the other; later ones fail at once."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db", patience=1.0) as store:
        await put(store, "a")
        etcd.cut()
        with within(4.0, at_least=0.9):
            for number in range(10):
                with pytest.raises(errors.Unavailable, match="nothing was written|nothing can be written"):
                    await put(store, f"k{number}")
        assert set(shown(store)) == {("a",)}


async def test_a_lost_lease_is_replaced_at_once(tmp_path: Path) -> None:
    """Without it a copy of the node could begin. Writes go on meanwhile."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        await put(store, "a")
        for lease in list(etcd._leases):
            etcd.revoke(lease)
        assert KEYS.alive not in etcd.state
        await put(store, "b")
        await eventually_async(lambda: asyncio.sleep(0, KEYS.alive in etcd.state), "no lease is made")
        assert store.standing.away is None


async def test_a_long_list_tells_that_it_goes_on(tmp_path: Path) -> None:
    """So that whoever waits for it may wait for longer than for an etcd that is silent."""
    etcd = MemoryEtcd()
    async with opened(etcd, tmp_path / "one.db") as store:
        for start in range(0, 2500, 500):
            await put(store, *(f"{number}" for number in range(start, start + 500)))
    store = EtcdTransactions(etcd, PREFIX, tmp_path / "two.db", NODE)
    parts: list[float] = []
    store.progressed = lambda: parts.append(store.standing.revision)
    async with store.running():
        assert len(shown(store)) == 2500
    await store.close()
    assert len(parts) == 3
