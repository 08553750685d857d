"""Gives free pages of the database back to the filesystem while no call writes. SQLite by itself keeps them for ever.

This takes a database with ``auto_vacuum = INCREMENTAL``, which new databases have. A database that an older splitd made
is rewritten once, at a start, if it is not too large for that: https://www.sqlite.org/pragma.html#pragma_auto_vacuum.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

log = logging.getLogger(__name__)

KEPT_FREE = 1024
"""Free pages (of 4 KiB) that stay, for the next writes."""
_STEP = 500
"""Pages given back in one transaction: some milliseconds, for which a writer may have to wait."""
_LARGEST = 256 << 20
"""Bytes in use up to which a database is rewritten, while the start waits."""
_TIMES = 3
"""Rewriting writes all pages in use twice, into a temporary file and into the log; other programs may need some room
meanwhile.
"""
_INCREMENTAL = 2


def prepare(connection: sqlite3.Connection) -> None:
    """Set auto_vacuum in a new database, before anything is written. In an old one the pragma itself might write."""
    if not _value(connection, "page_count"):
        _set(connection)


def _set(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")


def convert(connection: sqlite3.Connection, path: Path, *, largest: int = _LARGEST, times: int = _TIMES) -> None:
    """Rewrite an old database so that it can give pages back, unless more than ``largest`` bytes of it are in use, or
    less than ``times`` as many are free on the disk. The reason why it is not rewritten is logged.
    """
    try:
        if _value(connection, "auto_vacuum") == _INCREMENTAL:
            return
        used = (_value(connection, "page_count") - _value(connection, "freelist_count")) * _value(
            connection, "page_size"
        )
        if used > largest:
            log.warning(
                "%s keeps its free pages: with %d MiB in use it is too large to be rewritten at a start; to rewrite it "
                "while the node is down: sqlite3 %s 'PRAGMA auto_vacuum = 2; VACUUM'",
                path,
                used >> 20,
                path,
            )
            return
        if (free := _free(path)) < times * used:
            log.warning(
                "%s keeps its free pages: rewriting it takes %d MiB of free disk space, and %d MiB are free; the next "
                "start tries again",
                path,
                times * used >> 20,
                free >> 20,
            )
            return
        _set(connection)
        try:
            connection.execute("VACUUM")
        finally:  # the log now has all of it and would keep its size, also if the disk became full meanwhile
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:  # a full disk, or damage, which other checks report in detail
        log.warning("%s keeps its free pages: %s", path, error)


def _free(path: Path) -> int:
    """Bytes free on the database's filesystem."""
    found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize


def free_pages(connection: sqlite3.Connection) -> int:
    """Pages that can be given back."""
    return (
        max(_value(connection, "freelist_count") - (KEPT_FREE << 12) // _value(connection, "page_size"), 0)
        if _value(connection, "auto_vacuum") == _INCREMENTAL
        else 0
    )


def give_back(connection: sqlite3.Connection) -> None:
    """Give back some pages; waits for the disk."""
    # execute() takes one step of a statement without columns, which is one page (findings/sqlite-python-steps.sh)
    connection.executescript(f"PRAGMA incremental_vacuum({min(_STEP, free_pages(connection))})")


def shrink_file(connection: sqlite3.Connection) -> None:
    """Make the file as small as its database."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _value(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
