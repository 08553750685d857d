"""The log of metadata's database is written back beside the commits."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from functools import partial
from pathlib import Path

from services.metadata.checkpoints import PAGES, frames
from services.metadata.sqlite import SqliteTransactions
from tests.support import eventually_async

_PAGE = 4096
_ENOUGH = PAGES // 16
"""Commits that make the log long enough; each is some nineteen pages."""


async def test_the_log_is_written_back_before_a_commit_has_to(place: Path) -> None:
    """The database grows while the log is still shorter than SQLite's own limit; what was written later is there."""
    path = place / "m.db"
    store = SqliteTransactions(path)
    try:
        rows = await _grow(store, _ENOUGH)
        assert frames(path) < 1000
        await eventually_async(partial(_there, path), "it stays in the log", 15)
        rows += await _grow(store, 5)
        assert store.view(lambda tx: len(list(tx.scan(("many",))))) == rows
    finally:
        await store.close()


async def test_a_state_that_is_being_read_stays(place: Path) -> None:
    """What is written back is what that reader may see; the rest follows when it has gone."""
    path = place / "m.db"
    store = SqliteTransactions(path)
    try:
        await store.write(lambda tx: tx.put(("old",), b"x"))
        with contextlib.closing(store.snapshot()) as old:
            assert old.get(("old",)) == b"x"
            await _grow(store, _ENOUGH)
            await store.write(lambda tx: tx.delete(("old",)))
            assert old.get(("old",)) == b"x"
            assert not list(old.scan(("many",)))
        await _grow(store, _ENOUGH)
        await eventually_async(partial(_there, path), "it stays in the log", 15)
    finally:
        await store.close()


def test_the_frames_of_a_log_are_counted(tmp_path: Path) -> None:
    """As SQLite counts them, also in a log that began again and has older frames behind its own."""
    path = tmp_path / "a.db"
    assert frames(path) == 0
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        connection.execute("CREATE TABLE t (a)")
        counted = []
        for rows in (1, 40, 3):
            connection.executemany("INSERT INTO t VALUES (?)", [(bytes(_PAGE),)] * rows)
            counted.append(frames(path))
            _, there, back = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            assert counted[-1] == there == back
        assert counted[2] < counted[1]


_numbers = itertools.count()


async def _grow(store: SqliteTransactions, commits: int) -> int:
    """Write ten rows, of most of a page each, in each of so many commits; the number of rows."""
    for _ in range(commits):
        await store.write(lambda tx: tx.put_many([(("many", str(next(_numbers))), bytes(3000)) for _ in range(10)]))
    return commits * 10


async def _there(path: Path) -> bool:
    return path.stat().st_size > 100 * _PAGE  # the log has most pages several times
