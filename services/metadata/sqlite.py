"""Transactions in one SQLite file: the embedded store, durable when ``write`` returns.

Commits are grouped (``kit/sqlite.py``). All work runs in the loop's thread, where a read of cached pages costs less
than a hop to another thread. Only COMMIT, the call that waits for the disk, runs in a thread of its own. Work that
arrives meanwhile is queued, and the next commit takes as much of it as runs in some milliseconds. So fifty writers at
once wait for two fsyncs, not for fifty. A batch of work that need not be lasting is committed without the fsync
(synchronous=NORMAL) and without the thread; the next fsync of the log covers it.

When nothing has been written for some seconds, free pages are given back (``freeing``), in steps between which writers
run.

Reads use a connection of their own and never wait for writers. Long reads (``read``) run in a thread with another
connection, and each snapshot has one.

    ROOT/metadata/metadata.db        table "records": key BLOB PRIMARY KEY, value BLOB, without rowid
    ROOT/metadata/metadata.db-wal    SQLite's own, as is -shm

A store may be the mirror of another (:class:`Original`), which takes each commit before it counts here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from services.kit import errors, loops, tracing, wal
from services.kit.sqlite import File, Group, Layout, Work, reading, run, undo
from services.kit.thread_times import measured
from services.metadata import freeing
from services.metadata.callers import Queue
from services.metadata.sqlite_rows import CachedReader, ListedRows, Rows, StateSnapshot
from services.metadata.transactions import Key, Reader, Snapshot, Standing, Transaction, decode, encode
from services.metadata.values import Values

log = logging.getLogger(__name__)
T = TypeVar("T")

LAYOUT = Layout(
    version=1,
    tables=("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",),
    # journal_size_limit is about the log: slow readers make it long, and it would stay long for ever.
    pragmas=("cache_size = -8192", f"journal_size_limit = {wal.SIZE}"),
    prepare=freeing.prepare,
    convert=freeing.convert,
)
_BATCH = 0.004
"""Seconds that the work of one commit may take, apart from its last: the rest of the queue is left to the next commit,
and the loop's other work comes between.
"""
_TURN = 0.002
"""Seconds of it without the loop's other work, so that readers do not wait for writers."""
_CHECKPOINT = 1000
"""Pages in the log after which it is written back to the database; SQLite's own default."""

_GET = "SELECT value FROM records WHERE key = ?"
_MOST_KEYS = 500
_MOST_BYTES = 256 << 10
"""Keys and bytes of one commit, if an original has to take it, apart from those of its last work."""


class Again(Exception):
    """The original has changed since this store was brought up to date. Nothing was written: the works run again."""


Changes: TypeAlias = Mapping[bytes, bytes | None]
"""Encoded keys and their new values; None: removed."""


class Original(Protocol):
    """Another store, of which this one is the mirror."""

    async def commit(self, changes: Changes, connection: sqlite3.Connection, *, lasting: bool) -> None:
        """Take these changes, if any, all or none; those that need not be ``lasting`` at once or later. They are
        committed here after that, in the open transaction of ``connection``. :class:`Again`, or the error for all who
        wait.
        """
        ...

    def committed(self) -> None:
        """They are committed here, too."""
        ...

    async def catch_up(self) -> None:
        """Called after :class:`Again`: bring the mirror up to date, by :meth:`SqliteTransactions.replicate`."""
        ...


_Waiting: TypeAlias = "Work[Rows]"  # not a call: typing takes a microsecond for that


class SqliteTransactions:
    """The store in ``path``, created if it does not exist. FailedPrecondition if it cannot be used, DataLoss if it is
    damaged. It is used in one event loop, by one process (``kit.process.owned``).

    ``caller`` names the caller on whose behalf a write is made.
    """

    def __init__(
        self,
        path: Path,
        caller: Callable[[], str] = str,
        *,
        quiet: float = 10.0,
        layout: Layout = LAYOUT,
        original: Original | None = None,
        changing: Callable[[Iterable[Key]], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        """``quiet``: seconds without a write after which free pages are given back. The mirror of an ``original`` does
        not wait for the disk. ``changing``, around each COMMIT that is no mirror's, gets the keys' first two parts.
        """
        self.file = File(path, "metadata store", layout)
        """The database file: it says what was lost, and is told of damage."""
        self._writer, self._reader = self.file.writer, self.file.reader
        self._path = path
        self._quiet = quiet
        self._timer: asyncio.TimerHandle | None = None
        self._wrote = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._long = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._idle: list[sqlite3.Connection] = []
        """Idle connections for snapshots."""
        self._caller = caller
        self._original = original
        self._changing = changing
        self._exclusive = asyncio.Lock()
        """Held while the writing connection has an open transaction."""
        self._queue = Queue()
        self._lasting = True
        self._values = Values()
        self._watches: list[list[Key]] = []
        self._uncommitted: list[Key] = []
        """The keys that the open transaction has set."""
        self._in_flight = False
        """A commit is on its way to the disk: the committed state may change at any instant."""
        self._committing: asyncio.Task[None] | None = None
        self._last: Group | None = None
        self._closed = False

    def view(self, work: Callable[[Reader], T]) -> T:
        try:
            if self._in_flight:
                with reading(self._reader):
                    return work(Rows(self._reader))
            reader = CachedReader(self._reader, self._values)
            try:
                return work(reader)
            finally:
                reader.close()
        except sqlite3.DatabaseError as error:
            raise self.file.met(error) from None
        except errors.DataLoss as error:
            self.file.damaged(str(error))
            raise

    def snapshot(self) -> Snapshot:
        return StateSnapshot(self._idle.pop() if self._idle else self.file.connect(), self._idle, self.file.met)

    async def read(self, work: Callable[[Reader], T]) -> T:
        def run() -> T:
            with contextlib.closing(self.file.connect()) as connection, reading(connection):
                return work(Rows(connection))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._long, run)
        except sqlite3.DatabaseError as error:
            raise self.file.met(error) from None
        except errors.DataLoss as error:
            self.file.damaged(str(error))
            raise

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[Key]]:
        written = self._uncommitted.copy()
        self._watches.append(written)
        try:
            yield written
        finally:
            self._watches[:] = [each for each in self._watches if each is not written]

    def _add(self, works: Iterable[Callable[[Transaction], T]], *, lasting: bool) -> list[_Waiting]:
        """Queue work."""
        if self._closed:
            raise errors.Unavailable("metadata store: closed")
        loop, caller = asyncio.get_running_loop(), self._caller()
        added: list[_Waiting] = [Work(work, loop.create_future(), lasting) for work in works]
        for waiting in added:
            self._queue.add(caller, waiting)
        if self._committing is None:
            self._committing = loops.vital("the commits", self._commit_all())
        return added

    async def write_all(
        self, works: Sequence[Callable[[Transaction], T]], *, lasting: bool = True
    ) -> list[T | Exception]:
        added = self._add(works, lasting=lasting)
        try:
            found: list[T | Exception] = await asyncio.gather(
                *(waiting.future for waiting in added), return_exceptions=True
            )
            return found
        finally:
            for waiting in added[-1:]:
                waiting.told("metadata.commit")

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        (waiting,) = self._add((work,), lasting=lasting)
        try:
            result: T = await waiting.future
        finally:
            waiting.told("metadata.commit")
        return result

    async def replicate(self, work: Callable[[sqlite3.Connection], Iterable[bytes] | None]) -> None:
        """Bring a mirror up to date: ``work`` writes what the original has, in a transaction between the commits, and
        without the original. It returns the encoded keys that it has set, for :meth:`watch`.
        """
        async with self._exclusive:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                keys = [decode(each) for each in work(self._writer) or ()]
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                undo(self._writer)
                raise self.file.met(error) from None
            except BaseException:
                undo(self._writer)
                raise
            finally:
                self._values.clear()
            for noted in self._watches:
                noted.extend(keys)

    @property
    def standing(self) -> Standing:
        return Standing()

    async def writable(self) -> None:
        """It always is."""

    async def settle(self) -> None:
        if self._closed:
            raise errors.Unavailable("metadata store: closed")
        if self._original is None:  # it has all that was written
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, wal.settle, self._path)
            except OSError as error:
                raise wal.failure(error, "metadata store") from None

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._committing is not None:
            await self._committing
        self._thread.shutdown()
        self._long.shutdown()
        self.file.close(*self._idle)

    async def _commit_all(self) -> None:
        try:
            while self._queue:
                if not await self._commit():
                    await asyncio.sleep(0)  # readers, and callers that were answered, come between
        finally:
            self._committing = None
            self._wrote = asyncio.get_running_loop().time()
            if self._timer is None and not self._closed:
                self._timer = asyncio.get_running_loop().call_later(self._quiet, self._check_idle)

    def shrink(self) -> None:
        """Free the cached pages and values, up to 8 MiB for each connection. Those in use stay."""
        if self._closed:
            return
        self._values.clear()
        idle = [self._reader, *self._idle]
        if self._committing is None:
            idle.append(self._writer)
        for connection in idle:
            connection.execute("PRAGMA shrink_memory")

    def _check_idle(self) -> None:
        """Give pages back if nothing was written for a while, else set the timer again."""
        loop = asyncio.get_running_loop()
        self._timer = None
        left = self._wrote + self._quiet - loop.time()
        if self._committing is not None or left > 0:
            self._timer = loop.call_later(max(left, 0.001), self._check_idle)
        elif not self._closed:
            self._committing = loops.aside("giving back pages", self._give_back())

    async def _give_back(self) -> None:
        """Give free pages back until a write arrives."""
        in_thread = asyncio.get_running_loop().run_in_executor
        try:
            self._wait_for_disk(True)
            left = before = freeing.free_pages(self._writer)
            while left and not self._queue and not self._closed:
                await in_thread(self._thread, freeing.give_back, self._writer)
                had, left = left, freeing.free_pages(self._writer)
                if left >= had:
                    break
            if before and not left:
                await in_thread(self._thread, freeing.shrink_file, self._writer)
                log.info("%s gave back %d pages", self._path, before)
        except sqlite3.Error as error:
            log.warning("%s keeps its free pages: %s", self._path, self.file.met(error))
        finally:
            self._committing = loops.vital("the commits", self._commit_all()) if self._queue else None

    async def _commit(self) -> bool:
        """Commit some of the queue. Returns whether the loop's other work came between."""
        try:
            async with self._exclusive:
                return await self._commit_some()
        except Again:
            assert self._original is not None
            try:
                await self._original.catch_up()
            except errors.NodeError as error:
                for waiting in self._queue.take_all():
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
            return True

    async def _commit_some(self) -> bool:
        waited = False
        batch: list[_Waiting] = []
        self._last = group = Group.after(self._last, self._queue.first().span)
        try:
            self._wait_for_disk(self._queue.first().lasting and self._original is None)
            wrote = await self._run(batch, group)
            group.size = len(batch)
            if not wrote:
                self._writer.execute("ROLLBACK")
            elif self._original is not None:
                changes, lasting = self._changes(wrote), any(each.lasting for each in batch)
                self._in_flight, waited = True, lasting and bool(changes)
                try:
                    await self._original.commit(changes, self._writer, lasting=lasting)
                    self._writer.execute("COMMIT")
                    self._original.committed()
                finally:
                    self._in_flight = False
            elif self._lasting:
                self._in_flight = waited = True
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._write_out, group, wrote)
                finally:
                    self._in_flight = False
            else:
                with self._changing({key[:2] for key in wrote}):
                    self._writer.execute("COMMIT")
        except Again:
            self._undo()
            self._queue.put_back([each for each in batch if not each.future.cancelled()])
            for each in batch:
                each.error = None
            raise
        except errors.NodeError as error:  # the original's, in its words
            self._undo()
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return waited
        except Exception as error:  # any error: the waiting callers must hear of it
            log.error(
                "the metadata store cannot write %s: %s",
                self._path,
                error,
                exc_info=not isinstance(error, (sqlite3.Error, OSError)),
            )
            self._undo()
            refusal = self.file.met(error) if isinstance(error, sqlite3.Error) else error
            # If not even a transaction can be begun, no work can be done.
            for waiting in batch or self._queue.take_all():
                if not waiting.future.done():
                    waiting.future.set_exception(
                        refusal if isinstance(refusal, errors.DataLoss) else wal.failure(error, "metadata store")
                    )
            return waited
        finally:
            self._uncommitted.clear()
            group.done = tracing.now()
        self.file.answer(batch)
        return waited

    def _undo(self) -> None:
        undo(self._writer)
        self._values.clear()

    def _changes(self, wrote: set[Key]) -> dict[bytes, bytes | None]:
        """What the open transaction has changed, of the keys that its works wrote."""
        found: dict[bytes, bytes | None] = {}
        for key in wrote:
            encoded = encode(key)
            (was, now) = (
                row[0] if (row := connection.execute(_GET, (encoded,)).fetchone()) else None
                for connection in (self._reader, self._writer)
            )
            if was != now:
                found[encoded] = now
        return found

    def _write_out(self, group: Group, wrote: set[Key]) -> None:
        with measured() as group.times, self._changing({key[:2] for key in wrote}):
            self._writer.execute("COMMIT")

    def _wait_for_disk(self, lasting: bool) -> None:
        """Set whether the next commit waits for the disk. Only a commit that does may checkpoint, too. A mirror never
        waits, and checkpoints whenever its log is long.
        """
        if lasting is not self._lasting and self._original is None:
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT if lasting else 0}")
            self._lasting = lasting

    async def _run(self, batch: list[_Waiting], group: Group) -> set[Key]:
        """Run queued work in one open transaction, and append it to ``batch``. Returns the keys that it wrote.

        At least one work runs. No more are begun once :data:`_BATCH` is over, nor if the next must be lasting and this
        commit is not, nor if this commit has as much as an original takes at once. Other work of the loop runs in
        between; reads then see the committed state.
        """
        self._writer.execute("BEGIN IMMEDIATE")
        wrote: set[Key] = set()
        size = 0
        turn = begun = time.perf_counter()
        while self._queue and (not batch or time.perf_counter() < begun + _BATCH):
            if batch and time.perf_counter() > turn + _TURN:
                self._in_flight = True
                try:
                    await asyncio.sleep(0)
                finally:
                    self._in_flight = False
                turn = time.perf_counter()
            if self._original is not None:
                if len(wrote) > _MOST_KEYS or size > _MOST_BYTES:
                    break
            elif self._queue.first().lasting > self._lasting:
                break
            waiting = self._queue.take()
            batch.append(waiting)
            waiting.group = group
            if waiting.future.cancelled():  # not begun: as if never asked
                continue
            rows = (Rows if self._original is None else ListedRows)(self._writer, self._values)
            run(waiting, rows, self._writer)
            if waiting.error is not None:
                if rows.wrote:  # SQLite has what was there before; what the work read may be its own
                    self._values.clear()
                continue
            wrote |= rows.wrote
            if isinstance(rows, ListedRows):
                size += rows.size
            for noted in (self._uncommitted, *self._watches):
                noted.extend(rows.put_keys)
        return wrote
