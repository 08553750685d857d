"""The keys of metadata's store as rows of a SQLite connection: what work sees of it (``sqlite.py``)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence

from services.metadata.deletes import DELETE, RANGE, delete_keys
from services.metadata.transactions import Key, decode, encode, span
from services.metadata.values import Values

_ROWS = 200
"""Rows that are read at once where very many are."""
_IDLE = 2
"""Idle connections that are kept for snapshots."""
_PUT = (
    "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE value != "
    "excluded.value"
)


class Rows:
    """Reader and Transaction over a connection that has an open transaction. The writing one has the cache ``values``,
    which shows what this transaction has written.
    """

    __slots__ = ("_connection", "_execute", "_values", "put_keys", "wrote")

    def __init__(self, connection: sqlite3.Connection, values: Values | None = None) -> None:
        self._execute = connection.execute
        self._connection = connection
        self._values = values
        self.wrote: set[Key] = set()
        self.put_keys: list[Key] = []

    def get(self, key: Key) -> bytes | None:
        if self._values is not None and key in self._values:
            return self._values[key]
        row = self._execute("SELECT value FROM records WHERE key = ?", (encode(key),)).fetchone()
        value = None if row is None else row[0]
        if self._values is not None:
            self._values.remember(key, value)
        return value

    def scan(self, prefix: Key, *, after: Key | None = None, limit: int | None = None) -> Iterator[tuple[Key, bytes]]:
        for key, value in self._select(prefix, after, limit).fetchall():
            yield decode(key), value

    def scan_encoded(self, prefix: Key) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        cursor = self._select(prefix, None, None)
        while rows := cursor.fetchmany(_ROWS):
            yield rows

    def _select(self, prefix: Key, after: Key | None, limit: int | None) -> sqlite3.Cursor:
        return self._execute(
            "SELECT key, value FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            (*span(prefix, after), -1 if limit is None else limit),
        )

    def put(self, key: Key, value: bytes) -> None:
        self.wrote.add(key)
        if self._values is not None:
            self._values.wrote(key, value)
        self.put_keys.append(key)
        self._execute(_PUT, (encode(key), value))

    def put_many(self, rows: Sequence[tuple[Key, bytes]]) -> None:
        self._forget([key for key, _ in rows])
        self._connection.executemany(_PUT, [(encode(key), value) for key, value in rows])

    def delete(self, key: Key) -> None:
        self._forget((key,))
        self._execute(DELETE, (encode(key),))

    def delete_many(self, keys: Sequence[Key]) -> None:
        self._forget(keys)
        delete_keys(self._connection, map(encode, keys))

    def _forget(self, keys: Sequence[Key]) -> None:
        self.wrote.update(keys)
        if self._values is not None:
            for key in keys:
                self._values.forget(key)

    def delete_all(self, prefix: Key, *, limit: int | None = None) -> None:
        self.wrote.add(prefix)
        if self._values is not None:
            self._values.clear()
        if limit is None:
            self._execute(RANGE, span(prefix, None))
        else:
            self._execute(
                (
                    "DELETE FROM records WHERE key IN (SELECT key FROM records WHERE key >= ? AND key < ? ORDER BY key "
                    "LIMIT ?)"
                ),
                (*span(prefix, None), limit),
            )


class ListedRows(Rows):
    """For an original: it lists each key that is removed, and counts the bytes that are put."""

    __slots__ = ("size",)

    def __init__(self, connection: sqlite3.Connection, values: Values | None = None) -> None:
        super().__init__(connection, values)
        self.size = 0

    def put(self, key: Key, value: bytes) -> None:
        self.size += len(value)
        super().put(key, value)

    def put_many(self, rows: Sequence[tuple[Key, bytes]]) -> None:
        self.size += sum(len(value) for _, value in rows)
        super().put_many(rows)

    def delete_all(self, prefix: Key, *, limit: int | None = None) -> None:
        self.delete_many([key for key, _ in self.scan(prefix, limit=limit)])


class StateSnapshot(Rows):
    """A state on a connection of its own, which is returned to ``idle`` on close."""

    __slots__ = ("_idle", "_reading", "_refusal")

    def __init__(
        self,
        connection: sqlite3.Connection,
        idle: list[sqlite3.Connection],
        refusal: Callable[[sqlite3.Error], Exception],
    ) -> None:
        super().__init__(connection)
        self._refusal = refusal
        self._idle = idle
        self._reading: set[sqlite3.Cursor] = set()
        connection.execute("BEGIN")

    def scan(self, prefix: Key, *, after: Key | None = None, limit: int | None = None) -> Iterator[tuple[Key, bytes]]:
        with self._cursor(prefix, after, limit) as cursor:
            for key, value in cursor:
                yield decode(key), value

    def scan_encoded(self, prefix: Key) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        with self._cursor(prefix, None, None) as cursor:
            while rows := cursor.fetchmany(_ROWS):
                yield rows

    @contextlib.contextmanager
    def _cursor(self, prefix: Key, after: Key | None, limit: int | None) -> Iterator[sqlite3.Cursor]:
        try:
            cursor = self._select(prefix, after, limit)
            self._reading.add(cursor)
            try:
                yield cursor
            finally:
                self._reading.discard(cursor)
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from None

    def close(self) -> None:
        for cursor in self._reading:  # a scan whose generator is still referenced would keep the state
            cursor.close()
        self._connection.execute("ROLLBACK")
        if len(self._idle) < _IDLE:
            self._idle.append(self._connection)
        else:
            self._connection.close()


class CachedReader:
    """Reader of the committed state, with a cache of the values that were read last. It opens a transaction only for a
    value that is not cached.
    """

    __slots__ = ("_connection", "_rows", "_values")

    def __init__(self, connection: sqlite3.Connection, values: Values) -> None:
        self._connection = connection
        self._values = values
        self._rows: Rows | None = None

    def _opened(self) -> Rows:
        if self._rows is None:
            self._connection.execute("BEGIN")
            self._rows = Rows(self._connection)
        return self._rows

    def get(self, key: Key) -> bytes | None:
        try:
            return self._values[key]
        except KeyError:
            value = self._opened().get(key)
            self._values.remember(key, value)
            return value

    def scan(self, prefix: Key, *, after: Key | None = None, limit: int | None = None) -> Iterator[tuple[Key, bytes]]:
        return self._opened().scan(prefix, after=after, limit=limit)

    def scan_encoded(self, prefix: Key) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        return self._opened().scan_encoded(prefix)

    def close(self) -> None:
        if self._rows is not None:
            self._connection.execute("ROLLBACK")
