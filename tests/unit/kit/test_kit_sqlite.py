"""A file of records: the settings of its connections, and groups of work that are committed at once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import Connection

import pytest

from services.kit import errors
from services.kit.sqlite import File, Layout, Work, reading, run, undo

LAYOUT = Layout(
    version=3,
    tables=("CREATE TABLE t (x TEXT PRIMARY KEY)", "CREATE INDEX other ON t (x)"),
    pragmas=("cache_size = -77",),
)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    opened = File(tmp_path / "t.db", "test records", LAYOUT)
    yield opened
    opened.close()


def rows(connection: Connection) -> list[str]:
    """Return the committed rows."""
    with reading(connection):
        return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


def work(*statements: str) -> Work[Connection]:
    """Make work that executes these statements; "!" raises."""

    def does(connection: Connection) -> int:
        for statement in statements:
            if statement == "!":
                raise errors.NotFound("nothing there")
            connection.execute(statement)
        return len(statements)

    return Work(does, asyncio.get_running_loop().create_future())


def test_each_connection_has_what_the_layout_says(file: File) -> None:
    """Each waits for the disk: FULL is 2."""
    for connection in (file.writer, file.reader, another := file.connect()):
        assert [
            connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("synchronous", "cache_size", "user_version", "journal_mode")
        ] == [(2,), (-77,), (3,), ("wal",)]
    another.close()


def test_a_file_of_another_layout_is_refused(file: File) -> None:
    """Otherwise it would be misread."""
    with pytest.raises(errors.FailedPrecondition, match="t.db has layout 3, this splitd knows 4"):
        File(file.path, "test records", Layout(version=4, tables=()))


async def test_a_group_is_answered_as_one(file: File) -> None:
    """Work that raised has changed nothing, whatever it did before; a caller that was cancelled gets no answer, and its
    work is done.
    """
    group = [
        work("INSERT INTO t VALUES ('a')"),
        work("INSERT INTO t VALUES ('b')", "!"),
        work("INSERT INTO t VALUES ('c')"),
        work("!"),
    ]
    group[2].future.cancel()
    file.writer.execute("BEGIN IMMEDIATE")
    for each in group:
        run(each, file.writer, file.writer)
    assert not group[0].future.done()
    assert not rows(file.reader)
    file.writer.execute("COMMIT")
    file.answer(group)
    assert rows(file.reader) == ["a", "c"]
    assert await group[0].future == 1
    for failed in (group[1], group[3]):
        with pytest.raises(errors.NotFound, match="nothing there"):
            await failed.future


async def test_sqlites_own_error_is_the_groups(file: File) -> None:
    """After it nothing of the group can be trusted, and all of it is undone; repeating the group does no harm."""
    file.writer.execute("BEGIN IMMEDIATE")
    run(work("INSERT INTO t VALUES ('a')"), file.writer, file.writer)
    with pytest.raises(sqlite3.IntegrityError):
        run(work("INSERT INTO t VALUES ('a')"), file.writer, file.writer)
    undo(file.writer)
    undo(file.writer)
    assert not rows(file.reader)


def test_damage_is_told_and_other_errors_are_what_they_are(tmp_path: Path) -> None:
    """The error names the file and the document to read."""
    told: list[str] = []
    file = File(tmp_path / "t.db", "test records", LAYOUT, told.append)
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    refusal = file.met(error)
    assert isinstance(refusal, errors.DataLoss)
    assert told == [str(refusal)]
    assert str(refusal).startswith(
        f"test records: {tmp_path}/t.db is damaged: database disk image is malformed: see docs/damaged-database.md"
    )
    other = sqlite3.OperationalError("locked")
    assert file.met(other) is other
    assert len(told) == 1
    file.close()
