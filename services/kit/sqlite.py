"""One SQLite file in which a service keeps its records: how it is opened, checked, written in groups, and closed.

It uses WAL with synchronous=FULL: a commit is one append to the log and one fsync. So work that arrives while the disk
is busy is *grouped*: each piece is a savepoint of its own in one transaction, and one commit makes all of it durable.
Nothing of a group is answered before that commit is done, not even failures, since what they saw might not have lasted.
In a trace, a piece that took long is a ``wait.lock`` for the groups before its own, and the commit of its group.

The owner chooses the thread. metadata's work is short and runs in the event loop; only the commit leaves the loop
(``services/metadata/sqlite.py``). A snapshotter's work makes directories, too, and has a thread for all of it
(``services/snapshots/tree.py``). Reading has a connection of its own and never waits for writers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Generic, TypeVar

from services.kit import damage, errors, tracing, wal
from services.kit.thread_times import Times

log = logging.getLogger(__name__)
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The contents of a file."""

    version: int
    """Stored in the file's user_version. A file with another version is refused."""
    tables: tuple[str, ...]
    """Statements that make the tables, in a new file."""
    also: tuple[int, ...] = ()
    """Other versions that are not refused: the owner sets them himself."""
    pragmas: tuple[str, ...] = ()
    """``NAME = VALUE``, for each connection."""
    room: bool = True
    """Whether the log has its size beforehand, since commits wait for the disk."""
    prepare: Callable[[Connection], None] = lambda _: None
    """Called first of all; the file may be new and empty."""
    convert: Callable[[Connection, Path], None] = lambda _, __: None
    """Called when the tables exist and the log has lost nothing, before the first read or write."""


class File:
    """The file at ``path``, which is made if it does not exist. FailedPrecondition if it cannot be used, DataLoss if it
    is damaged. ``what`` names its records in messages. Only one process uses the file (``kit.process.owned``).
    """

    def __init__(self, path: Path, what: str, layout: Layout, damaged: Callable[[str], None] = log.error) -> None:
        self.path = path
        self.what = what
        self.damaged = damaged
        """Called in the event loop's thread, with a message, when a request meets pages or records that have changed.
        The request fails with the same message.
        """
        self._layout = layout
        wal.take_back(path)
        self._log = damage.Log(path)
        try:
            self.writer = self.connect()
            try:
                self._prepare()
                self.lost = self._log.lost(self.writer)
                """What the log has lost; "" if nothing. The next start reports it again, unless it is ``noted``."""
                if not self.lost:
                    layout.convert(self.writer, path)
                if layout.room:
                    wal.make_room(path)
                self.reader = self.connect()
            except BaseException:
                self.writer.close()
                raise
        except sqlite3.Error as error:
            raise damage.unusable(path, error) from None

    def noted(self) -> None:
        """The owner has stored durably what was ``lost``."""
        self._log.noted()

    def connect(self) -> Connection:
        """Open another connection. Threads may take turns on it, but not use it at once."""
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=2.0, cached_statements=32
        )
        try:
            # Debian's SQLite would overwrite deleted pages with zeros, and write these to the log
            for pragma in ("synchronous = FULL", "secure_delete = FAST", *self._layout.pragmas):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        connection, layout = self.writer, self._layout
        layout.prepare(connection)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise errors.FailedPrecondition(f"{self.path}: this filesystem has no shared memory for SQLite's WAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, layout.version, *layout.also):
            raise errors.FailedPrecondition(f"{self.path} has layout {version}, this splitd knows {layout.version}")
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            for statement in layout.tables:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {layout.version}")
            connection.execute("COMMIT")

    def refusal(self, error: sqlite3.Error) -> Exception:
        """The error to answer instead of ``error``: DataLoss, if pages have changed."""
        return (
            errors.DataLoss(f"{self.what}: {self.path} is damaged: {error}: {damage.WHAT_TO_DO}")
            if damage.is_damage(error)
            else error
        )

    def met(self, error: sqlite3.Error) -> Exception:
        """Like :meth:`refusal`, and ``damaged`` is called."""
        refusal = self.refusal(error)
        if isinstance(refusal, errors.DataLoss):
            self.damaged(str(refusal))
        return refusal

    def answer(self, group: Iterable[Work[Any]]) -> None:
        """Report the results of a group, in the event loop's thread. A caller that was cancelled gets none; the changes
        of its work stay.
        """
        for work in group:
            if isinstance(work.error, errors.DataLoss):
                self.damaged(str(work.error))
            if work.future.done():
                continue
            if work.error is not None:
                work.future.set_exception(work.error)
            else:
                work.future.set_result(work.result)

    def close(self, *others: Connection) -> None:
        """Close all connections, ``others`` first; the log keeps its room."""
        with wal.kept(self.path):
            for connection in (*others, self.reader, self.writer):
                connection.close()


@contextlib.contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """While the block lasts, ``connection`` sees the state of one instant."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")  # ends what still reads, too


# ---------------------------------------------------------------------------------------------- grouped commits


_FOR: dict[str, Any] = {"splitd.wait.for": "the commits before this one"}


@dataclass(slots=True)
class Group:
    """A group, for traces. Times are those of ``tracing.now``."""

    begun: int
    span: tracing.Span
    """Of the caller of its first work."""
    before: str = ""
    """That of the group before, which this one may have waited for."""
    free: int = 0
    """When that group had ended."""
    done: int = 0
    """When it has ended itself."""
    size: int = 0
    times: Times = field(default_factory=Times)
    """What the time of its commit went for."""

    @classmethod
    def after(cls, last: Group | None, span: tracing.Span) -> Group:
        """The group that begins now."""
        now = tracing.now()
        return cls(now, span) if last is None else cls(now, span, last.span.ref(), last.done)


@dataclass(slots=True)
class Work(Generic[R]):
    """A piece of work on the rows ``R`` of an open transaction, and its result."""

    run: Callable[[R], Any]
    future: asyncio.Future[Any]
    lasting: bool = True
    """Whether its commit waits for the disk."""
    result: Any = None
    error: BaseException | None = None
    span: tracing.Span = field(default_factory=tracing.current)
    """Its caller's."""
    asked: int = field(default_factory=tracing.now)
    group: Group | None = None

    def told(self, name: str) -> None:
        """Record what the caller has waited for, if that took long; ``name`` is the span of the commit."""
        over, fold, group = tracing.now(), tracing.fold(), self.group
        if group is None or over - self.asked < fold:
            return
        begun = self.asked
        if group.free > self.asked and group.begun - self.asked > fold:
            begun = group.begun
            tracing.recorded("wait.lock", self.asked, begun, group.before, **_FOR)
        rest = max(0, over - begun - group.times.whole)
        attributes: dict[str, Any] = {
            "splitd.group": group.size,
            **group.times.attributes(),
            "splitd.time.rest_ms": rest / 1e6,
        }
        tracing.recorded(name, begun, over, **attributes)


def run(work: Work[R], rows: R, connection: Connection) -> None:
    """Do it, as a savepoint in the open transaction of ``connection``: work that raises has changed nothing. SQLite's
    own errors concern the whole group, and are raised.
    """
    connection.execute("SAVEPOINT work")
    try:
        work.result = work.run(rows)
    except sqlite3.Error:
        raise
    except Exception as error:
        work.error = error
        connection.execute("ROLLBACK TO work")
    connection.execute("RELEASE work")


def undo(connection: Connection) -> None:
    """Roll back what could not be committed. SQLite may have done so already."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
