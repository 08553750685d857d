"""The store of ordered keys: its suite on both implementations, and the behaviour of SQLite alone."""

from __future__ import annotations

import _sqlite3
import asyncio
import contextlib
import ctypes
import errno
import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest

from services.kit import errors, tracing
from services.metadata import schema, sqlite
from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from services.metadata.transactions import Transaction, Transactions, decode, encode
from tests.spans import attribute, recorded
from tests.suites.records_transactions import TransactionsSuite
from tests.support import turns


class TestMemory(TransactionsSuite):
    @pytest.fixture
    def store(self) -> Transactions:
        return MemoryTransactions()


class TestSqlite(TransactionsSuite):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Transactions]:
        store = SqliteTransactions(tmp_path / "metadata.db")
        yield store
        await store.close()


def test_encoded_keys_sort_as_tuples_and_come_back() -> None:
    """Random keys are over an alphabet of characters that are easily encoded wrongly."""
    rng = random.Random(7)
    keys = {
        tuple("".join(rng.choices("\0\1ab\x7fÿ", k=rng.randrange(4))) for _ in range(rng.randrange(1, 4)))
        for _ in range(2000)
    }
    ordered = sorted(keys, key=lambda key: [part.encode() for part in key])
    assert [decode(data) for data in sorted(map(encode, keys))] == ordered


async def test_readers_come_between_writers(tmp_path: Path) -> None:
    """One commit may take milliseconds of work for all its writers. A reader that comes meanwhile sees the committed
    state, and nothing of the later one.
    """
    store = SqliteTransactions(tmp_path / "metadata.db")
    await store.write(lambda tx: tx.put(("a",), b"before"))
    ran: list[bytes] = []

    def slow(tx: Transaction) -> None:
        tx.put(("a",), b"after")
        time.sleep(sqlite._TURN * 1.5)
        ran.append(b"")

    writing = asyncio.gather(*(store.write(slow) for _ in range(3)))
    seen = []
    while not writing.done():
        seen.append((len(ran), store.view(lambda tx: tx.get(("a",)))))
        await asyncio.sleep(0)
    assert (1, b"before") in seen
    assert store.view(lambda tx: tx.get(("a",))) == b"after"
    await store.close()


async def test_pages_that_were_read_are_given_back(tmp_path: Path) -> None:
    """SQLite keeps up to 8 MiB of pages for each connection, long after the work that needed them. The data itself
    stays.
    """
    used = ctypes.CDLL(_sqlite3.__file__).sqlite3_memory_used
    store = SqliteTransactions(tmp_path / "metadata.db")
    before = used()
    for n in range(100):
        await store.write(lambda tx, n=n: tx.put(("a", str(n)), bytes(64 << 10)))  # type: ignore[misc]
    assert len(store.view(lambda tx: list(tx.scan(("a",))))) == 100
    assert used() > before + (8 << 20)
    store.shrink()
    assert used() < before + (1 << 20)
    assert store.view(lambda tx: tx.get(("a", "7"))) == bytes(64 << 10)
    await store.close()
    store.shrink()


async def test_a_database_is_what_it_was(tmp_path: Path) -> None:
    """A database that is closed and opened again has the same contents; a file of a future layout is refused."""
    path = tmp_path / "metadata.db"
    store = SqliteTransactions(path)
    await store.write(lambda tx: tx.put(("a",), b"1"))
    await store.close()
    with pytest.raises(errors.Unavailable):
        await store.write(lambda tx: tx.put(("a",), b"2"))
    store = SqliteTransactions(path)
    assert store.view(lambda tx: tx.get(("a",))) == b"1"
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(errors.FailedPrecondition, match="layout 99"):
        SqliteTransactions(path)


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + bytes(4096)])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    """The error has its path; the file stays as it is."""
    path = tmp_path / "metadata.db"
    path.write_bytes(content)
    with pytest.raises(errors.DataLoss, match=f"{path} cannot be used: "):
        SqliteTransactions(path)
    assert path.read_bytes() == content


async def test_damaged_values_are_told_of(tmp_path: Path) -> None:
    """To SQLite damaged values are values like others. A read that decodes one as a record tells the store's owner,
    whichever way it is read.
    """
    store = SqliteTransactions(tmp_path / "metadata.db")
    said = list[str]()
    store.file.damaged = said.append
    await store.write(lambda tx: tx.put((schema.IMAGES.name, "space", "a"), b"{"))
    for expected, reading in enumerate((store.read, store.write), 1):
        with pytest.raises(errors.DataLoss, match="the record image space a is damaged"):
            await reading(lambda tx: schema.IMAGES.get(tx, "space", "a"))
        assert len(said) == expected
    with pytest.raises(errors.DataLoss) as refused:
        store.view(lambda tx: schema.IMAGES.get(tx, "space", "a"))
    assert said[2:] == [str(refused.value)]
    await store.close()


@pytest.mark.parametrize("staying", [0, 1, 30, 700])
async def test_of_many_keys_those_that_are_named_are_removed(tmp_path: Path, staying: int) -> None:
    """Whatever lies between them, and whether they exist or not: few others are left by ranges, many are not looked
    at.
    """
    chance = random.Random(staying)
    keys = [("a", f"{n:04}") for n in range(1400)]
    stay = set(chance.sample(keys, staying))
    there = [key for key in keys if chance.random() < 0.9 or key in stay]
    below = [(*key, "x") for key in chance.sample(keys, 5)]
    named = [key for key in keys if key not in stay]
    chance.shuffle(named)
    store = SqliteTransactions(tmp_path / "metadata.db")
    await store.write(lambda tx: tx.put_many([(key, b"") for key in (*there, *below, ("a",), ("b",))]))
    await store.write(lambda tx: tx.delete_many([*named, *named[:3]]))
    assert store.view(lambda tx: [key for key, _ in tx.scan(())]) == sorted([*stay, *below, ("a",), ("b",)])
    await store.close()


async def test_commits_are_grouped(tmp_path: Path) -> None:
    """A hundred writers that come at once wait for a few commits, not for a hundred."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    statements: list[str] = []
    store._writer.set_trace_callback(statements.append)
    await asyncio.gather(*(store.write(lambda tx, n=n: tx.put((str(n),), b"")) for n in range(100)))  # type: ignore[misc]
    commits = statements.count("COMMIT")
    assert 1 <= commits <= 20  # a batch is what runs in some milliseconds, and a busy machine lets little run
    await store.write(lambda tx: tx.get(("1",)))
    assert statements.count("COMMIT") == commits  # what writes nothing commits nothing
    await store.close()


async def test_writes_that_need_not_last_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    """A write is visible to all, also after this process was killed; committed together with a lasting write it is as
    durable as that.
    """
    store = SqliteTransactions(tmp_path / "metadata.db")

    def synchronous() -> int:
        (level,) = store._writer.execute("PRAGMA synchronous").fetchone()
        return int(level)

    await store.write(lambda tx: tx.put(("a",), b"1"), lasting=False)
    assert (synchronous(), store.view(lambda tx: tx.get(("a",)))) == (1, b"1")
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"metadata.db{suffix}", tmp_path / f"copy.db{suffix}")
    await asyncio.gather(
        store.write(lambda tx: tx.put(("b",), b"2")), store.write(lambda tx: tx.put(("c",), b"3"), lasting=False)
    )
    assert synchronous() == 2
    await store.write(lambda tx: tx.put(("d",), b"4"), lasting=False)
    await store.write(lambda tx: tx.put(("e",), b"5"))
    assert synchronous() == 2
    await store.close()
    store = SqliteTransactions(tmp_path / "copy.db")
    assert store.view(lambda tx: tx.get(("a",))) == b"1"
    await store.close()


@pytest.mark.parametrize("lasting", [True, False])
async def test_what_is_around_a_commit_knows_what_it_changes(tmp_path: Path, lasting: bool) -> None:
    """It begins before anybody can see the change, and ends behind that, before the writer is answered. Works that change
    nothing have none.
    """
    told: list[object] = []

    def seen() -> bytes:
        with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
            return b"".join(value for (value,) in connection.execute("SELECT value FROM records ORDER BY key"))

    @contextlib.contextmanager
    def changing(places: Iterable[tuple[str, ...]]) -> Iterator[None]:
        told.append((sorted(places), seen()))
        yield
        told.append(seen())

    store = SqliteTransactions(tmp_path / "metadata.db", changing=changing)
    await store.write(lambda tx: tx.put(("image", "n", "a"), b"1"), lasting=lasting)
    assert told == [([("image", "n")], b""), b"1"]
    told.clear()

    def both(tx: Transaction) -> None:
        tx.delete_all(("image",))
        tx.put_many([(("lease", "a"), b"2")])

    await store.write(both, lasting=lasting)
    assert told == [([("image",), ("lease", "a")], b"1"), b"2"]
    told.clear()
    await store.write(lambda tx: tx.get(("lease", "a")), lasting=lasting)
    with pytest.raises(errors.NotFound):
        await store.write(refused, lasting=lasting)
    assert told == []
    await store.close()


def refused(tx: Transaction) -> None:
    tx.put(("lease", "a"), b"3")
    raise errors.NotFound("lease")


async def test_what_need_not_last_can_be_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is written to the disk then, without another commit. A disk that fails is an error."""
    path, synced, fdatasync = tmp_path / "metadata.db", list[str](), os.fdatasync

    def noted(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    store = SqliteTransactions(path)
    await store.write(lambda tx: tx.put(("a",), b""), lasting=False)
    assert synced == []
    await store.settle()
    assert synced == [f"{path}-wal"]

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(errors.ResourceExhausted, match="no space left"):
        await store.settle()
    await store.close()


async def test_a_full_disk_fails_the_writers_and_not_the_store(tmp_path: Path) -> None:
    """The writers get UNAVAILABLE with the reason; when there is room again, writes work."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    await store.write(lambda tx: tx.put(("a",), b"1"))
    store._writer.execute("PRAGMA max_page_count = 3")

    def big(tx: Transaction) -> None:
        tx.put(("a",), b"2")
        tx.put(("big",), bytes(1 << 20))

    with pytest.raises(errors.ResourceExhausted, match="metadata store: no space left on device"):
        await store.write(big)
    assert store.view(lambda tx: tx.get(("a",))) == b"1"
    store._writer.execute("PRAGMA max_page_count = 1000000")
    await store.write(big)
    assert store.view(lambda tx: tx.get(("a",))) == b"2"
    await store.close()


async def test_who_waits_for_the_disk_says_so(tmp_path: Path) -> None:
    """Two writes come while a commit is on its way to the disk: they wait for it, and then for one commit of both."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    disk = threading.Event()

    async def write(name: str) -> None:
        with tracing.span(name):
            await store.write(lambda tx: tx.put((name,), b"x"))

    with recorded() as spans:
        store._thread.submit(disk.wait)  # the thread that waits for the disk has something to do
        first = asyncio.ensure_future(write("first"))
        await turns()
        others = [asyncio.ensure_future(write(name)) for name in ("second", "third")]
        await turns()
        disk.set()
        await asyncio.gather(first, *others)
        waits = {spans.parent(each).name: spans.linked(each) for each in spans.named("wait.lock")}
        assert {name: [each.name for each in linked] for name, linked in waits.items()} == {
            "second": ["first"],
            "third": ["first"],
        }
        commits = {spans.parent(each).name: each for each in spans.named("metadata.commit")}
        assert {name: attribute(each, "splitd.group") for name, each in commits.items()} == {
            "first": 1,
            "second": 2,
            "third": 2,
        }
        assert float(str(attribute(commits["second"], "splitd.time.disk_ms"))) > 0
    await store.close()
