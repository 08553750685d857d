"""Room in SQLite's log, made beforehand."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from services.kit import wal


def opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


def size(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def test_what_is_in_a_log_with_room_outlives_a_crash(tmp_path: Path) -> None:
    """Copied as a kill leaves it, with the room behind its frames, and opened again; room that is there is not made twice."""
    path, copy = tmp_path / "a.db", tmp_path / "b.db"
    connection = opened(path)
    connection.execute("CREATE TABLE t (n INTEGER)")
    wal.make_room(path)
    assert size(path) == wal.SIZE
    for n in range(5):
        connection.execute("INSERT INTO t VALUES (?)", (n,))
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    connection.close()
    again = opened(copy)
    wal.make_room(copy)
    assert size(copy) == wal.SIZE
    assert [n for (n,) in again.execute("SELECT n FROM t")] == [0, 1, 2, 3, 4]
    assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again.close()


def test_the_log_keeps_its_size(tmp_path: Path) -> None:
    """Through many commits and the checkpoints that they bring."""
    path = tmp_path / "a.db"
    connection = opened(path)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE t (n BLOB)")
    wal.make_room(path)
    for _ in range(1500):
        connection.execute("INSERT INTO t VALUES (zeroblob(3000))")
    assert size(path) == wal.SIZE
    connection.close()


def test_without_room_it_works_all_the_same(tmp_path: Path) -> None:
    """What cannot be made is only said."""
    (tmp_path / "a.db-wal").mkdir()
    wal.make_room(tmp_path / "a.db")
