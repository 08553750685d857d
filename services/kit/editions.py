"""Which edition of its tables a process has, for others on this machine that remember what it answered.

The owner of a table gives it an *edition*: eight bytes, in a file, which are others after each change. Records belong
to namespaces, so each namespace has an edition of its own besides that of the whole table: what one changes all the
time does not concern the others. (Two that have the same one of :data:`PLACES` share it.) Whoever asks the owner about
the table reads the edition before the question and behind the answer. If both are the same, the answer is what the
owner says for as long as the table has that edition. So a remembered answer is never older than one that is asked for,
although nobody is told of a change, and no change waits for anybody::

    asks           edition A - question - answer - edition A: remember the answer, of edition A
    is asked       edition A: give the answer
    owner          changing - COMMIT - edition B - answer to whoever made the change

While the file says *changing*, an answer may be from before the change or from behind it, so none is remembered or
given. Editions are random: none comes twice, whatever process was the owner before.

The owner locks the file for as long as it lives. Whoever remembers looks for the lock when it has connected to the
owner: without it the file is that of an earlier process, and this one (an older release) changes its tables and not the
file.

    STATE/editions/TABLE.65     65 editions, the first of them that of the whole table; zeros: changing
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_DIRECTORY = "editions"
_SIZE = 8
PLACES = 64
"""Editions of namespaces. Each namespace has one by its name."""
_ALL = 1 + PLACES
_CHANGING = bytes(_SIZE)
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock, which fcntl(2) takes; the locks are open file description locks."""
_WHOLE = 0, 0, 0
"""Of the file: from its beginning, all of it; and the pid, which is none."""


class Editions:
    """The editions of the tables ``names``, for their owner. All are changing until :meth:`begin`. Those whose files
    cannot be written, as on a full disk, have none: nobody remembers what they have.
    """

    def __init__(self, state: Path, names: Iterable[str]) -> None:
        self._files: dict[str, int] = {}
        for name in names:
            path = _path(state, name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._files[name] = _owned(path)
            except OSError as error:
                log.warning("%s: %s", path, error.strerror)

    def begin(self) -> None:
        """From now on each table has an edition."""
        for file in self._files.values():
            self._renew(file, range(_ALL))

    @contextlib.contextmanager
    def changing(self, keys: Iterable[Sequence[str]]) -> Iterator[None]:
        """The block changes the records whose keys begin so: the table, and the namespace, or whatever is the next
        part; without that all of the table. Tables that have no editions do not matter. Who made the change is told of
        it behind the block.
        """
        changed: dict[int, set[int]] = {}
        for name, *others in keys:
            if (file := self._files.get(name)) is not None:
                places = changed.setdefault(file, {0})
                if others:
                    places.add(_place(others[0]))
                else:
                    places.update(range(_ALL))
        for file, places in changed.items():
            for place in places:
                os.pwrite(file, _CHANGING, place * _SIZE)
        try:
            yield
        finally:
            for file, places in changed.items():
                self._renew(file, places)

    @staticmethod
    def _renew(file: int, places: Iterable[int]) -> None:
        try:
            for place in places:
                os.pwrite(file, os.urandom(_SIZE), place * _SIZE)
        except OSError as error:  # it stays as changing: nobody remembers anything
            log.warning("the edition of a table cannot be written: %s", error.strerror)

    def close(self) -> None:
        """The owner ends."""
        files, self._files = self._files, {}
        for file in files.values():
            with contextlib.suppress(OSError):
                os.pwrite(file, _CHANGING * _ALL, 0)
            os.close(file)


class Edition:
    """The edition of one table, for those who remember."""

    def __init__(self, state: Path, table: str) -> None:
        """Call :meth:`look` each time that the owner is connected."""
        self._path = _path(state, table)
        self._file = -1

    def look(self) -> None:
        """The owner may be another process now."""
        self.close()
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)
            return
        if _is_locked(file):
            self._file = file
        else:
            os.close(file)

    def now(self, namespace: str | None = None) -> bytes:
        """The edition of a namespace's records, or of the whole table; empty while they change, or if nobody says what
        edition they have.
        """
        if self._file < 0:
            return b""
        try:
            found = os.pread(self._file, _SIZE, 0 if namespace is None else _place(namespace) * _SIZE)
        except OSError:
            return b""
        return found if len(found) == _SIZE and found != _CHANGING else b""

    def close(self) -> None:
        """There is none from now on."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _path(state: Path, table: str) -> Path:
    """The name says how many editions the file has, since an older release has another number."""
    return state / _DIRECTORY / f"{table}.{_ALL}"


def _place(namespace: str) -> int:
    """Which of the editions is that of a namespace."""
    return 1 + zlib.crc32(namespace.encode(errors="replace")) % PLACES


def _owned(path: Path) -> int:
    """The file of a table, locked, which is changing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_WHOLE))
        os.pwrite(file, _CHANGING * _ALL, 0)  # in the place of what was there: a reader may have the file open
    except OSError:
        os.close(file)
        raise
    return file


def _is_locked(file: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_WHOLE)
    try:
        kind = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    except OSError:  # a file system without locks
        return False
    return bool(kind != fcntl.F_UNLCK)
