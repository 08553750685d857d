"""Free pages of the database are given back to the filesystem while nobody writes; SQLite by itself keeps them for
ever.

That takes a database with ``auto_vacuum = INCREMENTAL``, which new ones have. One from before is written anew once, at
a start, where it is not too large for that: https://www.sqlite.org/pragma.html#pragma_auto_vacuum.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

log = logging.getLogger(__name__)

SPARE = 1024
"""Free pages (of 4 KiB) that stay, for what comes next."""
_STEP = 500
"""Pages that are given back in one transaction: some milliseconds, for which a writer that comes has to wait."""
_LARGEST = 256 << 20
"""Bytes in use of a database that is written anew while the start waits."""
_TIMES = 3
"""What is in use is written twice to be written anew, into a temporary file and into the log; and somebody else may
need some room meanwhile.
"""
_INCREMENTAL = 2


def prepare(connection: sqlite3.Connection) -> None:
    """Before anything is written to a database that may be new. To one that is not, this pragma may write."""
    if not _value(connection, "page_count"):
        _set(connection)


def _set(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")


def convert(connection: sqlite3.Connection, path: Path, *, largest: int = _LARGEST, times: int = _TIMES) -> None:
    """Make a database from before one that can give pages back, unless more than ``largest`` bytes of it are in use
    or there is no room for ``times`` as many; what stands in the way is logged.
    """
    try:
        if _value(connection, "auto_vacuum") == _INCREMENTAL:
            return
        used = (_value(connection, "page_count") - _value(connection, "freelist_count")) * _value(
            connection, "page_size"
        )
        if used > largest:
            log.warning(
                "%s keeps its free pages: with %d MiB in use it is too large to be written anew at a start; while the "
                "node is down: sqlite3 %s "
                "'PRAGMA auto_vacuum = 2; VACUUM'",
                path,
                used >> 20,
                path,
            )
            return
        if (free := _free(path)) < times * used:
            log.warning(
                (
                    "%s keeps its free pages: to be written anew it takes %d MiB of room, of which there are %d; the "
                    "next "
                    "start tries it again"
                ),
                path,
                times * used >> 20,
                free >> 20,
            )
            return
        _set(connection)
        try:
            connection.execute("VACUUM")
        finally:  # all of it is in the log, which would keep its size; also where the disk became full meanwhile
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:  # a full disk, or damage, of which those say more who look for it
        log.warning("%s keeps its free pages: %s", path, error)


def _free(path: Path) -> int:
    """Bytes that its filesystem has left."""
    found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize


def spare(connection: sqlite3.Connection) -> int:
    """Pages that can be given back."""
    return (
        max(_value(connection, "freelist_count") - SPARE, 0) if _value(connection, "auto_vacuum") == _INCREMENTAL else 0
    )


def give_back(connection: sqlite3.Connection) -> None:
    """Some of them; it waits for the disk."""
    connection.execute(f"PRAGMA incremental_vacuum({min(_STEP, spare(connection))})").fetchall()


def end(connection: sqlite3.Connection) -> None:
    """The file is as small as its database."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _value(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
