"""Makes a new database with all that can be read of a damaged one.

A table is walked by its key. If a page cannot be read, the walk continues behind it, at the next key at which SQLite
finds a row: only what was on that page, or below it, is lost. (The shell's ``.recover`` looks at each page by itself;
but Debian 12's ends with "SQL logic error", whatever database it is given.) No process may have either database open.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit import errors

Key = int | bytes

_STEPS = 1000
"""Numbers that are tried one after the other behind a damaged page of a table with a numeric key; then the steps
grow.
"""


@dataclass(slots=True)
class Saved:
    """The outcome for one table."""

    rows: int = 0
    gaps: int = 0
    """Places where something could not be read."""
    orphans: int = 0
    """Rows that were read, and left out since a row that they refer to was not."""
    damaged: int = 0
    """Rows that were read, and left out since they are not what was written."""


def salvage(old: Path, new: Path, sound: Callable[[Sequence[Any]], bool]) -> dict[str, Saved]:
    """Make the database ``new`` of everything in ``old`` that can be read and is ``sound``. The result is by table.
    DataLoss if not even the list of tables can be read.
    """
    with (
        contextlib.closing(
            sqlite3.connect(f"{old.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        ) as source,
        contextlib.closing(sqlite3.connect(new, isolation_level=None)) as target,
    ):
        try:
            made = source.execute(
                "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY "
                "type = 'index'"
            ).fetchall()
            for setting in ("auto_vacuum", "user_version"):
                (value,) = source.execute(f"PRAGMA {setting}").fetchone()
                target.execute(f"PRAGMA {setting} = {int(value)}")
        except sqlite3.DatabaseError as error:
            raise errors.DataLoss(f"nothing can be read of {old}: {error}") from None
        target.execute("BEGIN")
        found = {}
        for kind, name, statement in made:
            target.execute(statement)
            if kind == "table":
                found[name] = _copied(source, target, name, sound)
        for name, saved in found.items():
            saved.orphans = _without_orphans(target, name)
        _keep_numbers(source, target)
        target.execute("COMMIT")
    return found


def _copied(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, sound: Callable[[Sequence[Any]], bool]
) -> Saved:
    columns = [(name, bool(key)) for _, name, _, _, _, key in target.execute(f"PRAGMA table_info({table})")]
    [at] = [number for number, (_, is_key) in enumerate(columns) if is_key]
    key, saved = columns[at][0], Saved()
    insert = f"INSERT INTO {table} VALUES ({', '.join('?' for _ in columns)})"  # noqa: S608 - names of its own schema
    start: Key | None = None
    while True:
        last = start
        try:
            rest = "" if start is None else f"WHERE {key} >= ?"
            rows = f"SELECT * FROM {table} {rest} ORDER BY {key}"  # noqa: S608
            for row in source.execute(rows, () if start is None else (start,)):
                last = row[at]
                try:
                    if good := sound(row):
                        target.execute(insert, row)
                except sqlite3.IntegrityError:
                    good = False
                saved.rows += good
                saved.damaged += not good
            return saved
        except sqlite3.DatabaseError:
            saved.gaps += 1
        start = _behind(source, table, key, last)
        if start is None:
            return saved


def _behind(source: sqlite3.Connection, table: str, key: str, last: Key | None) -> Key | None:
    """The next readable key behind ``last`` and what cannot be read; None if there is none."""
    for candidate in _candidates(last, source.execute(f"PRAGMA table_info({table})").fetchall()):
        try:
            behind = f"SELECT {key} FROM {table} WHERE {key} >= ? ORDER BY {key} LIMIT 1"  # noqa: S608
            row = source.execute(behind, (candidate,)).fetchone()
        except sqlite3.DatabaseError:
            continue
        found: Key | None = row and row[0]
        return found
    return None


def _candidates(last: Key | None, columns: list[tuple[int, str, str, int, object, int]]) -> Iterator[Key]:
    """Keys behind ``last``, from near to far."""
    if any(is_key and kind.upper() == "INTEGER" for _, _, kind, _, _, is_key in columns):
        number, step = last if isinstance(last, int) else 0, 1
        while number < 1 << 62:
            number += step
            yield number
            step = step * 2 if number - (last if isinstance(last, int) else 0) > _STEPS else 1
        return
    known = last if isinstance(last, bytes) else b""
    for length in reversed(range(len(known))):
        for byte in range(known[length] + 1, 256):
            yield known[:length] + bytes([byte])
    if last is None:
        yield from (bytes([byte]) for byte in range(256))


def _without_orphans(target: sqlite3.Connection, table: str) -> int:
    """Remove rows that refer to missing rows, until there are none. The result is their number."""
    count = 0
    while orphans := {rowid for _, rowid, _, _ in target.execute(f"PRAGMA foreign_key_check({table})")}:
        target.executemany(f"DELETE FROM {table} WHERE rowid = ?", [(rowid,) for rowid in orphans])  # noqa: S608
        count += len(orphans)
    return count


def _keep_numbers(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Numbers that were given out (AUTOINCREMENT) must not be given out again, although their rows are gone."""
    with contextlib.suppress(sqlite3.DatabaseError):
        for table, number in source.execute("SELECT name, seq FROM sqlite_sequence").fetchall():
            target.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            target.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, number))
