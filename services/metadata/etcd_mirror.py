"""The mirror of the records in etcd: a SQLite file in STATE that may vanish, and is made anew then.

It remembers what it shows, and when it last was in step with etcd, in seconds since the boot (CLOCK_BOOTTIME, which
goes on while the machine is suspended, and which nobody sets). In another boot neither counts, so nothing in it waits
for the disk: what a power cut leaves is not used.
"""

from __future__ import annotations

import functools
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from services.etcd.store import Delete, Operation
from services.kit import errors
from services.metadata import etcd_later, sqlite
from services.metadata.etcd_later import Later
from services.metadata.etcd_rows import Keys
from services.metadata.etcd_shown import NONE, Last
from services.metadata.sqlite import Original, SqliteTransactions

log = logging.getLogger(__name__)

LAYOUT = replace(
    sqlite.LAYOUT,
    version=2,  # a splitd that did not know the table later would not write what is owed
    tables=(
        *sqlite.LAYOUT.tables,
        "CREATE TABLE mirror (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE incoming (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        etcd_later.TABLE,
    ),
    # A page has room for several containers, and the log is as long as one of small pages.
    pragmas=("page_size = 16384", *sqlite.LAYOUT.pragmas, "synchronous = OFF", "wal_autocheckpoint = 256"),
    room=False,
)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def now() -> float:
    """Seconds since the boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Stands:
    """What a mirror shows."""

    revision: int = 0
    """0: nothing that can be used."""
    last: Last = NONE
    step: float = 0.0
    """When it was last in step with etcd (:func:`now`)."""


def opened(
    path: Path, caller: Callable[[], str], original: Original, prefix: bytes
) -> tuple[SqliteTransactions, Stands, Later]:
    """The mirror in ``path`` of the records below ``prefix``, made anew if it cannot be used, what it shows, and what
    etcd is still to get.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        found = SqliteTransactions(path, caller, layout=LAYOUT, original=original)
    except (errors.DataLoss, errors.FailedPrecondition) as error:
        why = str(error)
    else:
        why = found.file.lost
        try:
            if not why:
                return found, _stands(found.file.reader, prefix), Later(found.file.reader)
        except (sqlite3.Error, ValueError, LookupError, TypeError) as error:
            why = f"what it shows cannot be read: {error}"
        found.file.close()
    log.warning("the mirror of etcd's records is made anew: %s", why)
    remove(path)
    made = SqliteTransactions(path, caller, layout=LAYOUT, original=original)
    return made, Stands(), Later(made.file.reader)


def remove(path: Path) -> None:
    """Remove the files of a mirror. A process that has it open goes on with what it has."""
    for each in (path, *path.parent.glob(f"{path.name}-*")):
        each.unlink(missing_ok=True)


def note(connection: sqlite3.Connection, prefix: bytes, revision: int, last: Last) -> None:
    """Note in the mirror what it shows, and that it is in step now, in the transaction that shows it."""
    known = {"prefix": prefix.decode(), "revision": revision, "boot": _boot(), "step": now()}
    known |= {"last": last.mod, "id": last.id.hex()}
    connection.execute("INSERT OR REPLACE INTO mirror VALUES ('stands', ?)", (json.dumps(known),))


def _stands(connection: sqlite3.Connection, prefix: bytes) -> Stands:
    row = connection.execute("SELECT value FROM mirror WHERE name = 'stands'").fetchone()
    known = json.loads(row[0]) if row else {}
    if known.get("prefix") != prefix.decode() or not _boot() or known.get("boot") != _boot():
        return Stands()
    last = Last(known["last"], bytes.fromhex(known["id"]))
    return Stands(known["revision"], last, min(known["step"], now()))


class Listing:
    """A list of all records, on its way into the mirror. If the mirror is ``read`` meanwhile, the list is kept apart
    until it is whole; else it is written at once in the place of what there was, which takes half the time.
    """

    def __init__(self, *, read: bool) -> None:
        self._table = "incoming" if read else "records"

    def begin(self, connection: sqlite3.Connection) -> None:
        """Forget what there was."""
        connection.execute(f"DELETE FROM {self._table}")  # noqa: S608 - one of two names
        if self._table == "records":
            connection.execute("DELETE FROM mirror")  # until the end it shows nothing that can be used

    def add(self, connection: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> None:
        """Add some."""
        connection.executemany(f"INSERT INTO {self._table} VALUES (?, ?)", rows)  # noqa: S608

    def end(self, connection: sqlite3.Connection) -> list[bytes]:
        """Show it. Returns the keys that are new or have another value, if the mirror was read meanwhile."""
        if self._table == "records":
            return []
        connection.execute("DELETE FROM records WHERE key NOT IN (SELECT key FROM incoming)")
        changed = connection.execute(
            "INSERT INTO records SELECT key, value FROM incoming WHERE true ON CONFLICT (key) DO UPDATE SET value = "
            "excluded.value WHERE value != excluded.value RETURNING key"
        ).fetchall()
        connection.execute("DELETE FROM incoming")
        return [key for (key,) in changed]


def apply(connection: sqlite3.Connection, key: bytes, value: bytes | None) -> bool:
    """Show what a record became. Whether it was set to another value."""
    if value is None:
        connection.execute("DELETE FROM records WHERE key = ?", (key,))
        return False
    put = (
        "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE value != "
        "excluded.value"
    )
    return connection.execute(put, (key, value)).rowcount > 0


def ranges(operations: list[Operation], keys: Keys, connection: sqlite3.Connection) -> list[Operation]:
    """The same with one deletion for neighbours: keys between which the open transaction of the mirror has none."""
    between = "SELECT 1 FROM records WHERE key > ? AND key < ? LIMIT 1"
    start = len(keys.records)
    single = sorted(
        each.key
        for each in operations
        if isinstance(each, Delete) and each.end is None and each.key[:start] == keys.records
    )
    found: list[Operation] = []
    first = last = b""
    for key in [*single, b""]:
        if key and last and connection.execute(between, (last[start:], key[start:])).fetchone() is None:
            last = key
            continue
        if last:
            found.append(Delete(first) if first == last else Delete(first, last + b"\0"))
        first = last = key
    gone = set(single)
    return [*found, *(each for each in operations if not (isinstance(each, Delete) and each.key in gone))]


@functools.cache
def _boot() -> str:
    """The id of this boot; "" if it cannot be read."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
