"""The records of a snapshotter: all its snapshots, in one SQLite file, durable when ``write`` returns.

All changes run in one thread of their own, in the order of their requests, and commits are grouped (``kit/sqlite.py``):
the requests that arrive while the disk is busy form one *batch*. Work may also touch the disk beside the database, for
example to make a snapshot's directory. It calls :meth:`Rows.sync_first` for directories that must be on disk before its
rows are; each of these is fsynced once for a batch.

    metadata.db        table "snapshots", one row for each; table "layers", one for each committed snapshot of which is
                       known which layer it is; -wal and -shm beside it are SQLite's own

The *thing* of a snapshot is its data (``local.py``). It has the snapshot's id as its name, but the same layer on
another parent may need no data of its own: such snapshots *share* the thing of the first. While there are any, the file
has another version, so that an older splitd, which would remove the thing together with the first of them, refuses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from services.kit import damage, errors, loops, tracing, wal
from services.kit.faults import fault
from services.kit.files import sync_directory
from services.kit.metrics_stores import Size
from services.kit.sqlite import File, Group, Layout, Work, run, undo
from services.kit.thread_times import measured
from services.snapshots.store import Info, Kind, Usage

log = logging.getLogger(__name__)
T = TypeVar("T")

_SCHEMA = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- the directory; never used twice
    key TEXT NOT NULL UNIQUE,              -- of an active one or a view, the name of a committed one
    parent INTEGER REFERENCES snapshots (id),
    kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL,           -- nanoseconds since the epoch
    updated_at INTEGER NOT NULL,
    labels TEXT NOT NULL,                  -- JSON
    size INTEGER NOT NULL DEFAULT 0,       -- usage of a committed one
    inodes INTEGER NOT NULL DEFAULT 0
)"""

_LAYERS = (
    """
CREATE TABLE IF NOT EXISTS layers (
    id INTEGER PRIMARY KEY REFERENCES snapshots (id) ON DELETE CASCADE,
    diff_id TEXT NOT NULL,                 -- of the layer that was unpacked, and nothing else
    thing INTEGER NOT NULL                 -- whose data it uses: its own id, or that of another, which may be gone
)""",
    "CREATE INDEX IF NOT EXISTS unpacked ON layers (diff_id)",
    "CREATE INDEX IF NOT EXISTS users ON layers (thing)",
)
_ALONE, _SHARED = 1, 2
"""Versions of the file: each snapshot has its own thing, or some share one."""

LAYOUT = Layout(
    version=_ALONE,
    also=(_SHARED,),
    tables=(_SCHEMA, "CREATE INDEX children ON snapshots (parent)"),
    pragmas=("foreign_keys = ON",),
)

_SELECT = """
SELECT s.id, s.key, s.parent, coalesce(p.key, ''), s.kind, s.created_at, s.updated_at, s.labels, s.size, s.inodes
FROM snapshots AS s LEFT JOIN snapshots AS p ON p.id = s.parent """

_BATCH = 64


class Layer(NamedTuple):
    """A committed snapshot that is nothing but a layer on its parent."""

    snapshot: int
    diff_id: str
    thing: int
    """The thing with its files."""


class Row(NamedTuple):
    """A snapshot as recorded."""

    id: int
    parent: int | None
    """The parent's id."""
    info: Info
    usage: Usage


class Rows:
    """The snapshots, within a transaction."""

    __slots__ = ("_execute", "to_sync")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self.to_sync: set[str] = set()

    def get(self, key: str) -> Row | None:
        """The snapshot with this key or name."""
        row = self._execute(_SELECT + "WHERE s.key = ?", (key,)).fetchone()
        return None if row is None else row_of(*row)

    def all(self) -> list[tuple[Any, ...]]:
        """The columns of every snapshot, ordered by key. :meth:`Tree.row` makes a Row of each; that takes longer than
        reading, and can be done in steps.
        """
        return self._execute(_SELECT + "ORDER BY s.key").fetchall()

    def by_id(self, number: int) -> Row | None:
        """The snapshot with this id."""
        row = self._execute(_SELECT + "WHERE s.id = ?", (number,)).fetchone()
        return None if row is None else row_of(*row)

    def children(self, key: str) -> list[tuple[Any, ...]]:
        """As :meth:`all`, for the snapshots on the parent ``key``."""
        return self._execute(_SELECT + "WHERE p.key = ? ORDER BY s.key", (key,)).fetchall()

    def things(self) -> set[int]:
        """The things of all snapshots."""
        return {row[0] for row in self._execute("SELECT id FROM snapshots UNION SELECT thing FROM layers")}

    def thing(self, number: int) -> int:
        """The thing of a snapshot."""
        found = self._execute("SELECT thing FROM layers WHERE id = ?", (number,)).fetchone()
        return number if found is None else int(found[0])

    def ancestors(self, row: Row) -> list[int]:
        """The things of a snapshot's ancestors, its parent's first."""
        return [] if row.parent is None else self.stack(row.parent)

    def stack(self, number: int) -> list[int]:
        """The things of a snapshot and of its ancestors, from its own on."""
        return [
            found[0]
            for found in self._execute(
                "WITH RECURSIVE up (id, depth) AS (SELECT ?, 0 UNION ALL SELECT s.parent, depth + 1 FROM up JOIN "
                "snapshots AS s ON s.id = up.id WHERE s.parent IS NOT NULL) "
                "SELECT coalesce(l.thing, up.id) FROM up LEFT JOIN layers AS l ON l.id = up.id ORDER BY depth",
                (number,),
            )
        ]

    # ---------------------------------------------------------------- layers

    def layers(self, diff_id: str) -> list[tuple[Row, Layer]]:
        """The snapshots that are this layer, on whatever parent, in the order in which they were made."""
        return [
            (row_of(*columns), Layer(columns[0], diff_id, thing))
            for *columns, thing in self._execute(
                _SELECT.replace("s.inodes", "s.inodes, l.thing")
                + "JOIN layers AS l ON l.id = s.id WHERE l.diff_id = ? ORDER BY s.id",
                (diff_id,),
            )
        ]

    def diff_ids(self) -> list[str]:
        """The diff ids of all layers that are here."""
        return [row[0] for row in self._execute("SELECT DISTINCT diff_id FROM layers")]

    def add_layer(self, layer: Layer) -> None:
        """Note which layer a committed snapshot is."""
        self._execute("INSERT INTO layers (id, diff_id, thing) VALUES (?, ?, ?)", layer)
        if layer.thing != layer.snapshot:
            self._execute(f"PRAGMA user_version = {_SHARED}")

    def left(self, row: Row, thing: int) -> bool:
        """Whether nothing uses the ``thing`` of a snapshot that was just deleted. Who does use it takes it over: the
        space that the snapshot took is from now on its.
        """
        heir = self._execute(
            "SELECT id FROM (SELECT id FROM layers WHERE thing = ? UNION SELECT id FROM snapshots WHERE id = ?) "
            "ORDER BY id LIMIT 1",
            (thing, thing),
        ).fetchone()
        if heir is not None and row.usage.inodes:
            self._execute(
                "UPDATE snapshots SET size = ?, inodes = ? WHERE id = ?", (row.usage.size, row.usage.inodes, heir[0])
            )
        if thing != row.id and self._execute("SELECT 1 FROM layers WHERE thing != id LIMIT 1").fetchone() is None:
            self._execute(f"PRAGMA user_version = {_ALONE}")
        return heir is None

    def has_children(self, row: Row) -> bool:
        """Whether any snapshot has this one as its parent."""
        return self._execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (row.id,)).fetchone() is not None

    def insert(self, row: Row) -> None:
        """Add a snapshot. Its id was never used, and its key is free."""
        info = row.info
        self._execute(
            (
                "INSERT INTO snapshots (id, key, parent, kind, created_at, updated_at, labels) VALUES (?, ?, ?, ?, ?, "
                "?, "
                "?)"
            ),
            (row.id, info.name, row.parent, info.kind, info.created_at, info.updated_at, _dump(info.labels)),
        )

    def replace(self, row: Row) -> None:
        """Change the record of the snapshot with this id."""
        info, usage = row.info, row.usage
        self._execute(
            (
                "UPDATE snapshots SET key = ?, parent = ?, kind = ?, created_at = ?, updated_at = ?, labels = ?, size "
                "= "
                "?, "
                "inodes = ? WHERE id = ?"
            ),
            (
                info.name,
                row.parent,
                info.kind,
                info.created_at,
                info.updated_at,
                _dump(info.labels),
                usage.size,
                usage.inodes,
                row.id,
            ),
        )

    def delete(self, row: Row) -> None:
        """Remove a snapshot; its id is never used again."""
        self._execute("DELETE FROM snapshots WHERE id = ?", (row.id,))

    def sync_first(self, directory: str) -> None:
        """Make the entries of ``directory`` durable before the changes of this transaction are."""
        self.to_sync.add(directory)


def readable(columns: Sequence[Any]) -> bool:
    """Whether a row of a table can be decoded: rows that come from damaged pages may not."""
    if len(columns) == len(Layer._fields):
        number, diff_id, thing = columns
        return isinstance(number, int) and isinstance(diff_id, str) and isinstance(thing, int)
    number, key, parent, kind, created_at, updated_at, labels, size, inodes = columns
    try:
        row_of(number, key, parent, "", kind, created_at, updated_at, labels, size, inodes)
    except errors.DataLoss:
        return False
    return isinstance(key, str)


def row_of(
    number: int,
    key: str,
    parent: int | None,
    parent_key: str,
    kind: int,
    created_at: int,
    updated_at: int,
    labels: str,
    size: int,
    inodes: int,
) -> Row:
    """A Row from its columns, in the order of :meth:`Rows.all`; DataLoss if they are not what was written."""
    try:
        return Row(
            number,
            parent,
            Info(key, Kind(kind), created_at, updated_at, parent_key, json.loads(labels)),
            Usage(size, inodes),
        )
    except (ValueError, TypeError) as error:
        raise errors.DataLoss(f"snapshot records: that of {key} is damaged ({error}): {damage.WHAT_TO_DO}") from None


def _dump(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), ensure_ascii=False, separators=(",", ":"))


_Work: TypeAlias = "Work[Rows]"


def opened(path: Path, damaged: Callable[[str], None] = log.error) -> File:
    """Open a file of records; errors are those of :class:`~services.kit.sqlite.File`."""
    file = File(path, "snapshot records", LAYOUT, damaged)
    try:
        for statement in _LAYERS:  # files that are older do not have it
            file.writer.execute(statement)
    except sqlite3.Error as error:
        file.close()
        raise damage.unusable(path, error) from None
    return file


class Tree:
    """The records in ``path``, created if they do not exist. Used in one event loop, by one process
    (``kit.process.owned``).
    """

    def __init__(self, path: Path, damaged: Callable[[str], None] = log.error) -> None:
        """DataLoss if the file is damaged, FailedPrecondition if it cannot be used. ``damaged`` is called, in the
        loop's thread, with a message about damaged pages and records; the request gets the same words.
        """
        self.file = opened(path, damaged)
        """The database file, which also says what was lost of it."""
        self._writer, self._reader = self.file.writer, self.file.reader
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def last_id(self) -> int:
        """The highest id that a snapshot ever had; DataLoss if the page with it is damaged."""
        try:
            row = self._reader.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").fetchone()
        except sqlite3.DatabaseError as error:
            raise self.file.refusal(error) from None
        return 0 if row is None else int(row[0])

    def view(self, work: Callable[[Rows], T]) -> T:
        """The result of ``work`` on the current records; the work is short and changes nothing."""
        self._reader.execute("BEGIN")
        try:
            return work(Rows(self._reader))
        except sqlite3.DatabaseError as error:
            raise self.file.met(error) from None
        except errors.DataLoss as error:
            self.file.damaged(str(error))
            raise
        finally:
            self._reader.execute("ROLLBACK")

    def row(self, columns: tuple[Any, ...]) -> Row:
        """A Row from the columns that :meth:`Rows.all` returns."""
        try:
            return row_of(*columns)
        except errors.DataLoss as error:
            self.file.damaged(str(error))
            raise

    async def write(self, work: Callable[[Rows], T]) -> T:
        """The result of ``work``, which runs in the tree's thread, once its changes are durable.

        If it raises, it has changed nothing. It runs even if the caller is cancelled. Unavailable or ResourceExhausted
        if the disk fails.
        """
        if self._closed:
            raise errors.Unavailable("snapshot records: closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._thread = loops.thread(f"tree {self.file.path.parent.name}", self._run, vital=True)
        future: asyncio.Future[T] = loop.create_future()
        asked = Work(work, future)
        self._queue.put(asked)
        try:
            return await future
        finally:
            asked.told("snapshots.record")

    def give_up(self) -> None:
        """Close a tree that was never used."""
        self._closed = True
        self.file.close()

    async def close(self) -> None:
        """Finish all requests. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
        self.file.close()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        assert self._loop is not None
        group: Group | None = None
        while (first := self._queue.get()) is not None:
            batch = [first]
            last = False
            with contextlib.suppress(queue.Empty):
                while len(batch) < _BATCH:
                    more = self._queue.get_nowait()
                    if more is None:
                        last = True
                        break
                    batch.append(more)
            group = Group.after(group, first.span)
            group.size = len(batch)
            for work in batch:
                work.group = group
            try:
                self._commit(batch, group)
            except Exception as error:
                failure = self._failure(error)
                for work in batch:
                    work.error = failure
            group.done = tracing.now()
            self._loop.call_soon_threadsafe(self.file.answer, batch)
            if last:
                return

    def _failure(self, error: Exception) -> errors.NodeError:
        """Undo a batch that could not be committed. Returns the error for its callers."""
        log.error("cannot write the snapshot records %s: %s", self.file.path, error)
        undo(self._writer)
        if isinstance(error, sqlite3.Error) and isinstance(refusal := self.file.refusal(error), errors.DataLoss):
            return refusal
        return wal.failure(error, "snapshot records")

    def _commit(self, batch: list[_Work], group: Group) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        before = self._writer.total_changes
        to_sync: set[str] = set()
        for work in batch:
            rows = Rows(self._writer)
            run(work, rows, self._writer)
            if work.error is None:
                to_sync |= rows.to_sync
        if self._writer.total_changes == before:
            self._writer.execute("ROLLBACK")
            return
        with measured() as group.times:
            for directory in to_sync:
                sync_directory(directory)
            fault("snapshots.before-row")
            self._writer.execute("COMMIT")
        fault("snapshots.after-row")


def sizes(directory: Path) -> Size:
    """The bytes of the committed snapshots of a snapshotter, and the number of each kind, for metrics; by a connection
    of its own, in any thread. OSError if its records cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"file:{directory}/metadata.db?mode=ro", uri=True, timeout=1)) as file:
            rows = file.execute("SELECT kind, count(*), sum(size) FROM snapshots GROUP BY kind").fetchall()
    except sqlite3.Error as error:
        raise OSError(f"{directory}/metadata.db: {error}") from None
    names = {kind.value: kind.name.lower() for kind in Kind}
    return Size(
        sum(int(size or 0) for _, _, size in rows),
        {names[kind]: int(count) for kind, count, _ in rows if kind in names},
    )
