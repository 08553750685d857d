"""The store in a SQLite file of bounded size.

    ROOT/traces/traces.db    table traces: a row for each trace, with what a list shows of it
                             table pieces: its spans, each piece a TracesData of OTLP in zlib's format

Spans that come together are written in one transaction, a piece for each trace. Once a trace has been quiet for a
while, its pieces become one (:meth:`LocalStore.tidy`), which takes a fifth of the room.

Nothing waits for the disk (synchronous=OFF): a killed process loses nothing that was written, a power cut may damage
the file. A file that is damaged, or has another layout, is removed, and an empty one takes its place: a node that works
is worth more than its traces.

The size is that of the pages in use, so it is exact, and SQLite itself refuses to grow further (max_page_count). When
there is no room, traces go by the time at which their last spans came, the oldest first. Single calls go before all
others once they have more than an eighth, since monitors make thousands; slow and failed operations go only if together
they have more than their share.

All work is done in one thread, which waits for the disk instead of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from isal import igzip_lib, isal_zlib

from services.kit import errors
from services.traces import convert, plain
from services.traces.config import Config
from services.traces.store import Figures, Head, Piece, Query, Span, Summary, Trace, Value, best

log = logging.getLogger(__name__)
T = TypeVar("T")

QUIET = 5.0
"""Seconds without spans after which the pieces of a trace become one."""
SPANS, BYTES = 20_000, 32 << 20
"""Spans of a trace, and their bytes as they came. Of what comes later only the root is kept, and what comes with it."""
WHOLE = 4 << 20
"""Bytes of a piece that is made of others."""
_OPEN = 20_000
"""Ids of spans that are remembered of traces that are not quiet yet, to know what comes twice."""
_LOG = 8 << 20
"""Bytes of the size that are left for SQLite's log and for one transaction."""
_SINGLE = 1 / 8
"""The share of the size that single calls have in any case."""
_SLACK = 1 << 20
"""Bytes of room that are made at once."""
_LAYOUT = 3
_TRACES = """
CREATE TABLE traces (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    arrived INTEGER NOT NULL,  -- when its last spans came
    rank INTEGER NOT NULL,     -- who goes first when there is no room (_rank)
    bytes INTEGER NOT NULL,    -- of its pieces
    whole INTEGER NOT NULL,    -- the same, as they came
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    spans INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    root INTEGER NOT NULL,     -- whether the rest and the times are the root's, else of a span that began at:
    begun INTEGER NOT NULL,
    name TEXT NOT NULL,
    operation TEXT NOT NULL,
    namespace TEXT NOT NULL,
    image TEXT NOT NULL,
    outcome TEXT NOT NULL,
    attributes TEXT NOT NULL
)
"""
_TABLES = (
    _TRACES,
    "CREATE INDEX oldest ON traces (rank, arrived)",
    "CREATE INDEX newest ON traces (start)",
    "CREATE TABLE pieces (number INTEGER PRIMARY KEY, trace INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE INDEX of_trace ON pieces (trace)",
)
_UPDATE = """
UPDATE traces
SET arrived = ?, rank = ?, bytes = ?, whole = ?, start = ?, end = ?, spans = ?, errors = ?, root = ?, begun = ?,
    name = ?, operation = ?, namespace = ?, image = ?, outcome = ?, attributes = ?
WHERE id = ?
"""
_INSERT = """
INSERT INTO traces (
    arrived, rank, bytes, whole, start, end, spans, errors, root, begun,
    name, operation, namespace, image, outcome, attributes, id
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_LIST = """
SELECT id, name, operation, namespace, image, outcome, start, end, spans, errors, attributes FROM traces
WHERE start >= :since
    AND (:operation = '' OR operation = :operation)
    AND (:namespace = '' OR namespace = :namespace)
    AND instr(image, :image)
    AND (NOT :failed OR outcome = 'failed' OR (outcome = '' AND errors > 0))
    AND max(end - start, 0) >= :longer
    AND (NOT :operations OR NOT (operation = 'collect' OR instr(operation, '.'))
        OR outcome = 'failed' OR (outcome = '' AND errors > 0))
ORDER BY start DESC, number DESC LIMIT :limit
"""


@dataclass(slots=True)
class _Open:
    """A trace to which spans came a moment ago."""

    since: float
    """When the last ones came, on the monotonic clock."""
    ids: set[bytes] = field(default_factory=set)
    pieces: int = 0
    doubtful: bool = False
    """Whether a span may be in two pieces."""


class LocalStore:
    """A ``Store`` in ``directory``, which only this process uses."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = directory / "traces.db"
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, "traces")
        self._open: dict[str, _Open] = {}
        self._ids = 0
        self._bytes = [0, 0, 0]
        """Bytes of the traces of each rank."""
        self._dropped = 0
        self._complained = -60.0
        self._connection: sqlite3.Connection | None = None
        self._tried = float("-inf")
        self._why = ""
        with contextlib.suppress(errors.Unavailable):  # such as on a full disk: spans are lost, and nothing else
            self._ready()

    # ---------------------------------------------------------------- the interface

    async def add(self, spans: Sequence[Span]) -> None:
        await self.take([*convert.pieces(convert.spans_to_pb(spans).resource_spans)])

    async def take(self, pieces: Sequence[Piece]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._take_or_drop, pieces)

    async def traces(self, query: Query) -> list[Summary]:
        return await self._run(lambda: self._list(query))

    async def trace(self, prefix: str) -> Trace:
        return await self._run(lambda: convert.trace(*self._parts(prefix)))

    async def encoded(self, prefix: str) -> Sequence[bytes]:
        return (await self._run(lambda: self._parts(prefix)))[1]

    async def delete(self, trace: str) -> None:
        def run() -> None:
            with self._transaction():
                row = self._database.execute("SELECT number FROM traces WHERE id = ?", (trace,)).fetchone()
                if row is None:
                    raise errors.NotFound(f"trace {trace}")
                self._remove([row[0]])
            self._forget(trace)

        await self._run(run)

    async def figures(self) -> Figures:
        return await self._run(self._figures)

    async def tidy(self) -> None:
        """Make one piece of each trace that is quiet, and remove what is too old."""
        with contextlib.suppress(errors.Unavailable):  # whoever sends spans is told
            await self._run(self._tidy)

    def close(self) -> None:
        """Close the file; nothing may be under way."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do ``work``, in the thread. If the file turns out to be damaged, it is replaced, and the work done again.
        Unavailable if it cannot be used now.
        """
        connection = self._ready()
        try:
            return work()
        except (sqlite3.DatabaseError, errors.DataLoss) as error:
            if not _is_damage(error):
                raise errors.Unavailable(f"{self._path}: {error}") from None
            log.error("%s is damaged, and is replaced by an empty one: %s", self._path, error)
            connection.close()
            self._connection, self._tried = None, float("-inf")
            for ending in _ENDINGS:
                Path(f"{self._path}{ending}").unlink(missing_ok=True)
            self._ready()
            return work()

    # ---------------------------------------------------------------- the file

    @property
    def _database(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    def _ready(self) -> sqlite3.Connection:
        """The open file. Unavailable if it cannot be opened; that is tried again after a while."""
        if self._connection is not None and not self._path.exists():
            log.warning("%s was removed, and is made anew", self._path)
            self._connection.close()
            self._connection, self._tried = None, float("-inf")
        if self._connection is None:
            now = self._monotonic()
            if now - self._tried < _AGAIN:
                raise errors.Unavailable(self._why)
            self._tried = now
            self._open.clear()
            self._ids = 0
            try:
                self._connection = self._opened()
            except (OSError, sqlite3.Error) as error:
                self._why = f"{self._path} cannot be used: {error}"
                log.warning("%s; spans are lost", self._why)
                raise errors.Unavailable(self._why) from None
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except (sqlite3.DatabaseError, _OtherLayout) as error:
            if not _is_damage(error):
                raise
            log.error("%s cannot be read, and is replaced by an empty one: %s", self._path, error)
        for ending in _ENDINGS:
            Path(f"{self._path}{ending}").unlink(missing_ok=True)
        return self._connected()

    def _connected(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (
                "auto_vacuum = INCREMENTAL",
                "journal_mode = WAL",
                "synchronous = OFF",
                "cache_size = -1024",
                "wal_autocheckpoint = 256",
                f"journal_size_limit = {1 << 20}",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            (layout,) = connection.execute("PRAGMA user_version").fetchone()
            if layout not in (0, _LAYOUT):
                raise _OtherLayout(f"it has layout {layout}, and this splitd knows {_LAYOUT}")
            if not layout:
                with _transaction(connection):
                    for statement in _TABLES:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_LAYOUT}")
            (self._page,) = connection.execute("PRAGMA page_size").fetchone()
            self._most = (self._config.size - _LOG) // self._page
            self._bytes = [0, 0, 0]
            for rank, size in connection.execute("SELECT rank, sum(bytes) FROM traces GROUP BY rank"):
                self._bytes[rank] = size
            self._make_room(connection)
            # execute() would free one page only (findings/sqlite-python-steps.sh)
            connection.executescript("PRAGMA incremental_vacuum")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute(f"PRAGMA max_page_count = {self._most + _LOG // 2 // self._page}").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection | None = None) -> Iterator[None]:
        before = [*self._bytes]
        try:
            with _transaction(connection or self._database):
                yield
        except BaseException:
            self._bytes = before
            raise

    # ---------------------------------------------------------------- spans come

    def _take_or_drop(self, pieces: Sequence[Piece]) -> None:
        try:
            self._guarded(functools.partial(self._take, pieces))
        except errors.Unavailable as error:
            self._dropped += sum(len(piece.spans) for piece in pieces)
            for piece in pieces:  # what these spans left behind in memory
                self._forget(piece.trace)
            if (now := self._monotonic()) - self._complained >= 60:
                self._complained = now
                log.warning("spans are lost: %s", error)

    def _take(self, pieces: Sequence[Piece]) -> None:
        by_trace: dict[str, list[Piece]] = {}
        for piece in pieces:
            by_trace.setdefault(piece.trace, []).append(piece)
        now, moment = self._clock(), self._monotonic()
        with self._transaction():
            for trace, some in by_trace.items():
                self._store(trace, some, now, moment)
        self._make_room(self._database)
        while self._ids > _OPEN:
            self._settle(next(iter(self._open)))

    def _store(self, trace: str, pieces: Sequence[Piece], now: int, moment: float) -> None:
        row = self._database.execute(
            "SELECT number, rank, bytes, start, end, spans, errors, root, begun, name, operation, namespace, image, "
            "outcome, attributes, whole FROM traces WHERE id = ?",
            (trace,),
        ).fetchone()
        known, whole = (row[5], row[15]) if row else (0, 0)
        chosen, new, failed = [], 0, 0
        opened = self._open.pop(trace, None) or _Open(moment, doubtful=row is not None, pieces=1 if row else 0)
        self._open[trace] = opened  # at the end: the one that has been quiet longest comes first
        opened.since = moment
        for piece in pieces:
            room = 2 if piece.head.root else 1
            if known + new + len(piece.spans) > room * SPANS or whole + len(piece.data) > room * BYTES:
                self._dropped += len(piece.spans)
                continue
            chosen.append(piece)
            whole += len(piece.data)
            for span, error in piece.spans:
                if span in opened.ids:
                    opened.doubtful = True
                    continue
                if any(span):
                    opened.ids.add(span)
                    self._ids += 1
                new += 1
                failed += error
        if not chosen:
            return
        opened.pieces += 1
        start, end = min(p.start for p in chosen), max(p.end for p in chosen)
        heads, stored = [piece.head for piece in chosen], dict[str, Value]()
        count, size, rank = new, 0, 0
        if row:
            number, rank, size = row[:3]
            start, end = min(start, row[3]), max(end, row[4])
            count, failed = count + row[5], failed + row[6]
            operation, namespace, image, outcome = row[10:14]
            heads.insert(0, Head(bool(row[7]), row[8], row[4], row[9], operation, namespace, image, outcome, stored))
        said = best(heads)
        if said.root:
            start, end = said.start, said.end
        attributes = row[14] if said.attributes is stored else plain.to_json(said.attributes)
        data = isal_zlib.compress(b"".join(piece.data for piece in chosen), 1)
        summary = Summary(
            trace, said.name, said.operation, said.namespace, said.image, said.outcome, start, end, count, failed
        )
        self._bytes[rank] -= size
        rank = _rank(summary, self._config.slow)
        self._bytes[rank] += size + len(data)
        columns: tuple[Any, ...] = (
            *(now, rank, size + len(data), whole, start, end, count, failed, said.root, said.start),
            *(said.name[:1000], said.operation, said.namespace, said.image[:1000], said.outcome, attributes),
        )
        if row:
            self._database.execute(_UPDATE, (*columns, trace))
        else:
            number = self._database.execute(_INSERT, (*columns, trace)).lastrowid
        self._database.execute("INSERT INTO pieces (trace, data) VALUES (?, ?)", (number, data))

    # ---------------------------------------------------------------- order and room

    def _tidy(self) -> None:
        now = self._monotonic()
        for trace, opened in [*self._open.items()]:
            if now - opened.since < QUIET:
                break
            self._settle(trace)
        moment = self._clock()
        for rank, age in enumerate((self._config.age, self._config.age, self._config.kept_age)):
            while rows := self._database.execute(
                "SELECT number FROM traces WHERE rank = ? AND arrived < ? LIMIT 100", (rank, moment - int(age * 1e9))
            ).fetchall():
                with self._transaction():
                    self._remove([number for (number,) in rows])

    def _settle(self, trace: str) -> None:
        """Make one piece of a trace's pieces."""
        opened = self._open[trace]
        self._forget(trace)
        if opened.pieces < 2 and not opened.doubtful:
            return
        row = self._database.execute("SELECT number, bytes, rank FROM traces WHERE id = ?", (trace,)).fetchone()
        if row is None:
            return
        number, size, rank = row
        parts = [_inflated(data) for data in self._data(number)]
        if sum(map(len, parts)) > WHOLE:
            return
        with self._transaction():
            if opened.doubtful:
                whole, spans = convert.joined(parts)
                self._database.execute(
                    "UPDATE traces SET spans = ?, errors = ? WHERE number = ?",
                    (len(spans), sum(error for _, error in spans), number),
                )
            else:
                whole = b"".join(parts)
            data = isal_zlib.compress(whole, 2)
            self._bytes[rank] += len(data) - size
            self._database.execute(
                "UPDATE traces SET bytes = ?, whole = ? WHERE number = ?", (len(data), len(whole), number)
            )
            self._database.execute("DELETE FROM pieces WHERE trace = ?", (number,))
            self._database.execute("INSERT INTO pieces (trace, data) VALUES (?, ?)", (number, data))

    def _forget(self, trace: str) -> None:
        """Remember nothing of an open trace."""
        if opened := self._open.pop(trace, None):
            self._ids -= len(opened.ids)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Remove traces until the pages in use are within the size."""
        if self._used(connection) <= self._most:
            return
        while self._used(connection) > self._most - _SLACK // self._page:
            oldest = sorted(
                row
                for rank in self._going()
                for row in connection.execute(
                    "SELECT arrived, number FROM traces WHERE rank = ? ORDER BY arrived LIMIT 20", (rank,)
                )
            )
            if not oldest:
                return
            with self._transaction(connection):
                self._remove([number for _, number in oldest[:20]], connection)

    def _going(self) -> Sequence[int]:
        """The ranks of which the oldest goes when there is no room."""
        single, usual, kept = self._bytes
        if single > _SINGLE * self._config.size:
            return (0,)
        if not single + usual or kept > self._config.kept_share * self._config.size:
            return (0, 1, 2)
        return (0, 1)

    def _used(self, connection: sqlite3.Connection) -> int:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free)

    def _remove(self, numbers: Sequence[int], connection: sqlite3.Connection | None = None) -> None:
        connection = connection or self._database
        for number in numbers:
            rank, size = connection.execute("SELECT rank, bytes FROM traces WHERE number = ?", (number,)).fetchone()
            self._bytes[rank] -= size
            connection.execute("DELETE FROM pieces WHERE trace = ?", (number,))
            connection.execute("DELETE FROM traces WHERE number = ?", (number,))

    # ---------------------------------------------------------------- questions

    def _list(self, query: Query) -> list[Summary]:
        wanted = {
            **dataclasses.asdict(query),
            "since": max(query.since, 0),
            "longer": min(query.longer * 1e9, 2.0**62),
            "limit": max(query.limit, 0),
        }
        rows = self._database.execute(_LIST, wanted).fetchall()
        return [
            Summary(trace, name, operation, namespace, image, outcome, start, end, spans, failed, plain.from_json(rest))
            for trace, name, operation, namespace, image, outcome, start, end, spans, failed, rest in rows
        ]

    def _parts(self, prefix: str) -> tuple[str, list[bytes]]:
        if not prefix:
            raise errors.InvalidArgument("the id of a trace is empty")
        wanted = prefix.lower()
        found = self._database.execute(
            "SELECT id, number FROM traces WHERE id >= ? AND id < ? ORDER BY id LIMIT 2", (wanted, f"{wanted}g")
        ).fetchall()
        if not found:
            raise errors.NotFound(f"trace {prefix}")
        if len(found) > 1:
            raise errors.InvalidArgument(f"trace {prefix}: several begin so, such as {found[0][0]} and {found[1][0]}")
        ((name, number),) = found
        return name, [_inflated(data) for data in self._data(number)]

    def _data(self, number: int) -> list[bytes]:
        return [
            data
            for (data,) in self._database.execute("SELECT data FROM pieces WHERE trace = ? ORDER BY number", (number,))
        ]

    def _figures(self) -> Figures:
        traces, spans, oldest = self._database.execute(
            "SELECT count(*), coalesce(sum(spans), 0), coalesce(min(arrived), 0) FROM traces"
        ).fetchone()
        size = 0
        for ending in _ENDINGS:
            with contextlib.suppress(OSError):
                size += Path(f"{self._path}{ending}").stat().st_size
        return Figures(traces, spans, size, oldest, self._dropped)


def _rank(summary: Summary, slow: float) -> int:
    """0: a single call, which has the call's name as its operation. 1: an operation. 2: one that was slow or failed.
    What lasts as long as a container is not slow.
    """
    if "." in summary.operation:
        return 0
    return 1 + (summary.failed or (summary.seconds >= slow and summary.operation not in _LASTING))


_LASTING = ("run", "exec")


class _OtherLayout(Exception):
    """A file of another splitd."""


_AGAIN = 5.0
"""Seconds until a file that could not be opened is tried again."""
_ENDINGS = ("", "-wal", "-shm")


def _is_damage(error: Exception) -> bool:
    """Whether it is about what the file holds, and not about the disk or the machine."""
    return not isinstance(error, sqlite3.OperationalError) or error.sqlite_errorcode & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _inflated(data: bytes) -> bytes:
    """A piece as it came. Its size is bounded by what was taken."""
    inflater = isal_zlib.decompressobj()
    try:
        found: bytes = inflater.decompress(data, _MOST)
    except igzip_lib.IsalError as error:  # type: ignore[misc]
        raise errors.DataLoss(f"a piece cannot be read: {error}") from None
    if not inflater.eof:
        raise errors.DataLoss("a piece is cut off")
    return found


_MOST = 64 << 20
