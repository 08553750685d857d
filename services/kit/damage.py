"""Damage of a database: a log that ends too early, and pages that have changed.

SQLite reads its log up to the first frame whose checksum is wrong, and takes that for the end. After a power cut it
must, since what follows was never answered. But a flipped byte in the middle looks the same to it, and hundreds of
transactions behind that byte are lost without a word. So the log is checked here, before and after SQLite has read it.
If there is a commit behind the end, it is reported, and nothing is removed that this database does not know
(``services/metadata/gc/guard.py``, ``services/snapshots/local.py``). https://www.sqlite.org/walformat.html describes
the formats.

Damaged pages are found by calls that read them, and by :func:`quick_check`, which reads all pages.
"""

from __future__ import annotations

import errno
import filecmp
import logging
import os
import shutil
import sqlite3
import struct
import time
from pathlib import Path

from services.kit import errors, files

log = logging.getLogger(__name__)

WHAT_TO_DO = "see docs/damaged-database.md"
_HEADER = struct.Struct(">IIIIIIII")
"""Magic, format, page size, number, two salts, two checksums."""
_FRAME = struct.Struct(">IIIIII")
"""Page, pages of the database after a commit (else 0), the header's salts, two checksums."""
_MAGIC = 0x377F0682
"""Or one more: it says whether the words of the checksums are big-endian."""
_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


def committed(database: Path) -> int:
    """The frame of the last commit in the log of a database that is not open, as the frames themselves say. -1 if the
    log's own header is damaged, 0 without a log.

    OSError if the disk cannot read it. The file is not mapped, since that would be SIGBUS.
    """
    try:
        fd = os.open(f"{database}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        head = os.pread(fd, _HEADER.size, 0)
        if len(head) < _HEADER.size or not any(head):
            return 0  # room for a log
        magic, _, page, _, one, two, *checksum = _HEADER.unpack(head)
        if (
            magic & ~1 != _MAGIC
            or not 512 <= page <= 65536
            or _checksum(head[:24], big=bool(magic & 1)) != tuple(checksum)
        ):
            return -1
        last = 0
        for number, at in enumerate(
            range(_HEADER.size, os.fstat(fd).st_size - _FRAME.size - page + 1, _FRAME.size + page), 1
        ):
            _, after, *salts, _, _ = _FRAME.unpack(os.pread(fd, _FRAME.size, at))
            if after and salts == [one, two]:
                last = number
        return last
    finally:
        os.close(fd)


def _checksum(data: bytes, *, big: bool) -> tuple[int, int]:
    first = second = 0
    words = struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second


def read(connection: sqlite3.Connection) -> int:
    """The number of frames of the log that SQLite uses.

    SQLite is asked, although it writes the frames back to the database for that. The number is in -shm too, but a
    process that closes a file loses all locks that it has on it (POSIX). The next process that opens the database, for
    instance for a backup, would then take it for a dead process's, and cut off -shm while we use it.
    https://www.sqlite.org/howtocorrupt.html, 2.2.
    """
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames)


class Log:
    """The log of a database that is about to be opened. If it has lost something, it is copied, since SQLite overwrites
    the part that it ignores, and somebody may want to examine that.

    The copy is DATABASE-wal.lost-TIME until its owner has :meth:`noted` the loss. If the process ends before that, at
    whatever moment, the next start finds the copy. Then it is DATABASE-wal.damaged-TIME.
    """

    def __init__(self, database: Path) -> None:
        """Raises DataLoss if the disk cannot read the log."""
        self._database = database
        self._earlier = self._kept()
        try:
            self._committed = committed(database)
        except OSError as error:
            raise errors.DataLoss(
                f"{database} cannot be used: its log cannot be read: {errors.words(error)}: {WHAT_TO_DO}"
            ) from None
        if self._committed < 0:
            self._keep()

    def lost(self, connection: sqlite3.Connection) -> str:
        """What the log has lost, once ``connection`` has read, and not written; "" if nothing. A damaged log is begun
        anew.
        """
        what = self._found(connection)
        if what:
            if self._committed > 0:
                self._keep()
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            # a full disk: then the log is overwritten, and the next start reports it again
            except sqlite3.Error as error:
                log.warning("%s: its damaged log cannot be begun anew: %s", self._database, error)
        elif self._earlier:
            what = f"an earlier start found its log damaged: {self._earlier[-1].name}"
        if not what:
            return ""
        log.error("%s: %s; %s", self._database, what, WHAT_TO_DO)
        return f"{self._database} has lost its last transactions ({what})"

    def noted(self) -> None:
        """The owner has stored the loss durably."""
        try:
            for each in self._kept():
                if each.stat().st_size:
                    each.rename(each.with_name(each.name.replace(".lost-", ".damaged-")))
                else:
                    each.unlink()
        except OSError as error:
            log.warning(
                ("%s: the loss of log records cannot be noted, so the next start reports it again: %s"),
                self._database,
                error,
            )

    def _found(self, connection: sqlite3.Connection) -> str:
        if not self._committed:
            return ""
        try:
            frames = read(connection)
        except sqlite3.Error as error:  # a full disk, on which the database cannot grow
            log.warning("%s: cannot tell whether its log has lost something: %s", self._database, error)
            return ""
        if 0 < self._committed <= frames:
            return ""
        return (
            f"frame {frames + 1} of its log is damaged, and there are commits up to frame {self._committed}"
            if self._committed > 0
            else "the header of its log is damaged"
        )

    def _kept(self) -> list[Path]:
        return sorted(self._database.parent.glob(f"{self._database.name}-wal.lost-*"))

    def _keep(self) -> None:
        """Copy the log, once, however often a start is tried. If there is no room, an empty file notes it; what is left
        of the database is more urgent.
        """
        wal = Path(f"{self._database}-wal")
        kept = Path(f"{wal}.lost-{time.strftime('%Y%m%dT%H%M%S')}")
        try:
            if any(filecmp.cmp(wal, other, shallow=False) for other in self._kept()):
                return
            try:
                shutil.copyfile(wal, kept)
            except OSError:
                os.truncate(kept, 0)
                raise
            finally:
                files.sync(kept)
        except OSError as error:
            log.error("%s: its log is damaged, and cannot be kept: %s", self._database, error)
        else:
            log.error("%s: its log is damaged, and kept as %s", self._database, kept)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that pages or records have changed, or that the disk cannot read them."""
    # Python's own words, without a code
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode to UTF-8"):
        return True
    code = getattr(error, "sqlite_errorcode", 0)
    return code in _UNREADABLE or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def unusable(database: Path, error: sqlite3.Error) -> errors.NodeError:
    """The error for a database that cannot be opened: DataLoss if it is damaged, else FailedPrecondition."""
    if is_damage(error):
        return errors.DataLoss(f"{database} cannot be used: {error}: {WHAT_TO_DO}")
    return errors.FailedPrecondition(f"{database} cannot be used: {error}")


def is_disk(error: OSError) -> bool:
    """Whether a system call failed because the disk, or its filesystem, cannot read what was written."""
    return error.errno in (errno.EIO, errno.EUCLEAN)


def quick_check(database: Path) -> str:
    """What is wrong with the pages of a database; "" if nothing, or if that cannot be determined. It blocks, for
    seconds if the database is large.
    """
    try:
        connection = sqlite3.connect(
            f"{database.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=2.0
        )
        try:
            (first,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        if is_damage(error):
            return f"{database} is damaged: {error}"
        log.warning("the pages of %s cannot be checked: %s", database, error)
        return ""
    return "" if first == "ok" else f"{database} is damaged: {' '.join(first.split())}"
