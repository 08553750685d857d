"""Room in SQLite's log that is allocated beforehand."""

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


def test_the_log_of_a_process_survives_its_crash(tmp_path: Path) -> None:
    """The log is copied as a kill leaves it, with the room behind its frames, and opened again; existing room is not
    made twice.
    """
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
    """It does so through many commits and their checkpoints."""
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
    """A failure to make the room is only logged."""
    (tmp_path / "a.db-wal").mkdir()
    wal.make_room(tmp_path / "a.db")


def test_the_room_outlives_the_closing_and_has_no_frames(tmp_path: Path) -> None:
    """The blocks stay the same, also those of the log's index: on a full disk there are no others. The frames of the
    log are in the database, and none of them comes back.
    """
    path = tmp_path / "a.db"
    connection = opened(path)
    wal.make_room(path)
    connection.execute("CREATE TABLE t (n INTEGER)")
    connection.execute("INSERT INTO t VALUES (1)")
    before = {name: (tmp_path / name).stat().st_ino for name in ("a.db-wal", "a.db-shm")}
    with wal.kept(path):
        connection.close()
    assert {name: (tmp_path / name).stat().st_ino for name in before} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.db", "a.db-shm", "a.db-wal"]
    assert size(path) == wal.SIZE
    alone = tmp_path / "alone.db"
    shutil.copy(path, alone)
    for file in (alone, path):
        again = opened(file)
        assert [n for (n,) in again.execute("SELECT n FROM t")] == [1]
        again.execute("UPDATE t SET n = 2")
        assert [n for (n,) in again.execute("SELECT n FROM t")] == [2]
        again.close()


def test_a_crash_while_it_is_closed_loses_nothing(tmp_path: Path) -> None:
    """Before SQLite has removed the log, the log counts and its second name is removed; afterwards the second name
    becomes the log, empty.
    """
    path, copy = tmp_path / "a.db", tmp_path / "b.db"
    connection = opened(path)
    wal.make_room(path)
    connection.execute("CREATE TABLE t (n INTEGER)")
    connection.execute("INSERT INTO t VALUES (1)")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    Path(f"{copy}-wal.room").hardlink_to(f"{copy}-wal")
    wal.take_back(copy)
    assert not Path(f"{copy}-wal.room").exists()
    again = opened(copy)
    assert [n for (n,) in again.execute("SELECT n FROM t")] == [1]
    again.close()
    Path(f"{path}-wal.room").hardlink_to(f"{path}-wal")
    connection.execute("UPDATE t SET n = 2")
    connection.close()
    assert not Path(f"{path}-wal").exists()
    wal.take_back(path)
    again = opened(path)
    assert [n for (n,) in again.execute("SELECT n FROM t")] == [2]
    again.close()


def test_a_log_that_could_not_be_written_back_stays_as_it_is(tmp_path: Path) -> None:
    """Another connection still reads it: SQLite removes nothing, and no frame is made invalid."""
    path = tmp_path / "a.db"
    connection, reader = opened(path), opened(path)
    connection.execute("CREATE TABLE t (n INTEGER)")
    connection.execute("INSERT INTO t VALUES (1)")
    with wal.kept(path):
        connection.close()
    assert Path(f"{path}-wal").read_bytes()[:4] != bytes(4)
    assert not list(tmp_path.glob("*.room"))
    assert [n for (n,) in reader.execute("SELECT n FROM t")] == [1]
    reader.close()
