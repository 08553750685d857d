"""Free pages of metadata's database go back to the filesystem."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from services.kit import wal
from services.metadata import freeing
from services.metadata.database import Database
from services.metadata.sqlite import LAYOUT, SqliteTransactions
from services.metadata.store import Change
from services.metadata.transactions import Transaction, encode
from tests.support import eventually_async

_MANY, _VALUE = 6000, bytes(3000)
_MOST = (freeing.KEPT_FREE + 200) * 4096


def fill(tx: Transaction) -> None:
    for number in range(_MANY):
        tx.put(("many", f"{number:05}"), _VALUE)


async def test_free_pages_are_given_back_when_idle(place: Path) -> None:
    """The database shrinks down to its reserve. Writers come between the steps, and what they wrote is there."""
    path = place / "m.db"
    store = SqliteTransactions(path, quiet=0.05)
    try:
        await store.write(fill)
        await store.write(lambda tx: tx.delete_all(("many",)))
        written = 0

        async def small() -> bool:
            nonlocal written
            written += 1
            await store.write(lambda tx: tx.put(("kept", str(written)), b"x"))
            await asyncio.sleep(0.1)  # what it is about: a while without a write
            return path.stat().st_size < _MOST

        await eventually_async(small, "it does not become smaller", 30)
        assert store.view(lambda tx: len(list(tx.scan(("kept",))))) == written
    finally:
        await store.close()


def test_a_step_gives_back_many_pages(place: Path) -> None:
    """Each step is a commit that waits for the disk, so there must be few."""
    with contextlib.closing(sqlite3.connect(place / "m.db", isolation_level=None)) as connection:
        for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(bytes(4096 * freeing.KEPT_FREE),), (bytes(4096 * 1200),)])
        connection.execute("DELETE FROM t")
        before = freeing.free_pages(connection)
        freeing.give_back(connection)
        assert before >= 1200
        assert before - freeing.free_pages(connection) == 500


async def test_a_log_that_grew_long_becomes_short_again(place: Path) -> None:
    """The log cannot start again from its beginning while an old state is read. Once it does, it has the size that is
    kept for it, also over a stop.
    """
    path = place / "m.db"
    store = SqliteTransactions(path)
    log = Path(f"{path}-wal")
    with contextlib.closing(store.snapshot()) as old:
        next(iter(old.scan(())), None)
        for _ in range(2):
            await store.write(fill)
            await store.write(lambda tx: tx.delete_all(("many",)))
    assert log.stat().st_size > 4 * wal.SIZE
    for number in range(3):
        await store.write(lambda tx, number=number: tx.put(("kept", str(number)), b"x"))  # type: ignore[misc]
    assert log.stat().st_size <= wal.SIZE
    await store.close()
    assert log.stat().st_size <= wal.SIZE


async def test_a_database_from_before_is_made_one_that_gives_back(place: Path) -> None:
    """The conversion runs at the first start, and no record in use is lost."""
    path = place / "m.db"
    old = sqlite3.connect(path, isolation_level=None)
    old.execute("PRAGMA journal_mode = WAL")
    old.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    old.execute("PRAGMA user_version = 1")
    old.executemany(
        "INSERT INTO records VALUES (?, ?)", [(encode(("many", str(number))), _VALUE) for number in range(_MANY)]
    )
    old.execute("DELETE FROM records WHERE key != ?", (encode(("many", "7")),))
    old.close()
    assert path.stat().st_size > 2 * _MOST
    store = SqliteTransactions(path)
    try:
        assert path.stat().st_size < _MOST
        assert store.view(lambda tx: list(tx.scan(("many",)))) == [(("many", "7"), _VALUE)]
    finally:
        await store.close()
    store = SqliteTransactions(path)
    await store.close()


async def test_a_large_database_from_before_stays_as_it_is(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No start takes minutes for the conversion; the log says how it can be done."""
    path = place / "m.db"
    old = sqlite3.connect(path, isolation_level=None)
    old.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    old.execute("PRAGMA user_version = 1")
    old.close()
    store = SqliteTransactions(
        path, quiet=0.0, layout=replace(LAYOUT, convert=functools.partial(freeing.convert, largest=4096))
    )
    try:
        await store.write(fill)
        await store.write(lambda tx: tx.delete_all(("many",)))
        assert "VACUUM" in caplog.text
    finally:
        await store.close()


async def test_the_collector_hears_of_a_deletion_whose_caller_went_away(place: Path) -> None:
    """The deletion was on its way to the disk when the caller went away, and it is done."""
    told: list[Change] = []

    class Collector:
        def schedule(self, change: Change) -> None:
            told.append(change)

        async def collect(self) -> None:
            raise NotImplementedError

    store = SqliteTransactions(place / "m.db")
    try:
        database = Database(store)
        database.collector = Collector()  # type: ignore[assignment]
        ran = asyncio.Event()

        def work(tx: Transaction) -> None:
            tx.put(("k",), b"v")
            ran.set()

        caller = asyncio.create_task(database.write(work, "deletion"))
        await ran.wait()
        caller.cancel()
        await asyncio.wait([caller])
        await store.write(lambda tx: None)
        assert caller.cancelled()
        assert store.view(lambda tx: tx.get(("k",))) == b"v"
        assert told == ["deletion"]
    finally:
        await store.close()


@pytest.mark.root
@pytest.mark.parametrize("seen", [True, False])
async def test_a_database_from_before_takes_no_disk_away(
    place: Path, caplog: pytest.LogCaptureFixture, *, seen: bool
) -> None:
    """If there is too little room to rewrite the database, it stays as it is and the free room stays free, even if the
    shortage is only noticed during the rewriting.
    """
    place.joinpath("small").mkdir()
    path = place / "small" / "m.db"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(path.parent)], check=True)
    try:
        old = sqlite3.connect(path, isolation_level=None)
        old.execute("PRAGMA journal_mode = WAL")
        old.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        old.execute("PRAGMA user_version = 1")
        old.executemany(
            "INSERT INTO records VALUES (?, ?)", [(encode(("many", str(number))), _VALUE) for number in range(_MANY)]
        )
        old.close()
        (path.parent / "fill").write_bytes(bytes(freeing._free(path) - (12 << 20)))
        store = SqliteTransactions(
            path, layout=LAYOUT if seen else replace(LAYOUT, convert=functools.partial(freeing.convert, times=0))
        )
        assert freeing._free(path) >= (12 << 20) - wal.SIZE - (1 << 20)
        assert store.view(lambda tx: len(list(tx.scan(("many",))))) == _MANY
        await store.close()
    finally:
        subprocess.run(["umount", "--lazy", str(path.parent)], check=True)
    assert ("MiB of free disk space" if seen else "keeps its free pages: database or disk is full") in caplog.text
