"""Writes the log of metadata's database back into it beside the commits, so that hardly any commit has to.

SQLite itself does it in the commit that makes the log long: that one waits for two more fsyncs and for all pages since
the last time, and with it each call that has queued behind it. Commits that need not be lasting leave the log longer
still, and after a collection of thousands the next writer pays for all of it. Here a thread with a connection of its
own begins at half that length. It holds up neither readers nor writers
(https://www.sqlite.org/c3ref/wal_checkpoint_v2.html, SQLITE_CHECKPOINT_PASSIVE). SQLite's own limit stays, for writers
who never pause: what is left to such a commit are the pages since the thread began.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from services.kit import loops
from services.kit.sqlite import File

log = logging.getLogger(__name__)

PAGES = 500
"""Pages in the log that are not in the database yet, from which they are written back."""
_LOOK = 64
"""Keys and commits after which the log is looked at."""
_HEADER, _FRAME = 32, 24
"""Bytes of the headers of a log and of a frame."""


class Checkpoints:
    """Those of one file. Used in one event loop."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._unseen = 0
        self._done = 0
        """Frames of the log that are in the database."""
        self._under_way: asyncio.Task[None] | None = None

    def committed(self, keys: int) -> None:
        """A transaction that wrote so many keys is in the log."""
        self._unseen += 1 + keys
        if self._unseen < _LOOK or self._under_way is not None:
            return
        self._unseen = 0
        there = frames(self._file.path)
        self._done = min(self._done, there)
        if there < self._done + PAGES:
            return
        self._under_way = loops.aside("writing back the log of metadata", self._write_back(there))

    async def close(self) -> None:
        """Wait for the one that is under way."""
        if self._under_way is not None:
            await asyncio.wait([self._under_way])

    async def _write_back(self, there: int) -> None:
        try:
            await asyncio.to_thread(self._checkpoint)
            self._done = there
        except sqlite3.Error as error:  # a later commit tries again, and says so if it cannot
            log.warning("the log of %s was not written back: %s", self._file.path, self._file.met(error))
        finally:
            self._under_way = None

    def _checkpoint(self) -> None:
        with contextlib.closing(self._file.connect()) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def frames(database: Path) -> int:
    """Pages in the log of ``database``; 0 if there is none. Frames of the log have its salts, and what lies behind them
    has those of before: https://www.sqlite.org/fileformat2.html#walformat.

    (Closing the log here loses no locks: SQLite's are on the database and its -shm.)
    """
    try:
        fd = os.open(f"{database}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        header = os.pread(fd, _HEADER, 0)
        size = int.from_bytes(header[8:12]) + _FRAME
        if size == _FRAME:
            return 0
        few, many = 0, (os.fstat(fd).st_size - _HEADER) // size
        while few < many:
            middle = (few + many) // 2
            if os.pread(fd, 8, _HEADER + middle * size + 8) == header[16:24]:
                few = middle + 1
            else:
                many = middle
        return few
    finally:
        os.close(fd)
