"""The records of a snapshotter of one's own: which snapshots there are, what they are called, and on which each stands.

They are in one SQLite file, of the same layout and under the same rules as those of this project's snapshotters
(``tree``, ``rules``). Methods block, and any thread may call them. A change is durable when its method returns.

What a snapshot consists of, such as a directory, is its owner's. It exists before its record and goes after it::

    with records.adding(Kind.ACTIVE, key, parent, labels) as record:
        ...                                 # make what belongs to record.id; an error here, and there is no record

    number = records.remove(key)
    ...                                     # remove what belongs to this id

So a crash leaves at worst something without a record, which :meth:`Records.leftovers` names.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from services.kit import damage, errors, wal
from services.kit.files import replace, sync_directory
from services.kit.sqlite import undo
from services.snapshots import rules
from services.snapshots.store import Info, Kind, Usage
from services.snapshots.tree import Row, Rows, opened, row_of

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A snapshot as recorded."""

    id: int
    """A number that is never used twice: the name of what belongs to it."""
    info: Info
    usage: Usage
    """What it took when it was committed; nothing before."""
    parents: Sequence[int] = ()
    """The ids of its parent, of that one's parent, and so on."""


class Records:
    """The records in the file ``path``, which is made if it does not exist. One process uses it at a time.

    DataLoss if the file is damaged, FailedPrecondition if it is no such file. A disk that is full is ResourceExhausted,
    one that cannot be written Unavailable; the change has then not happened.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._held = path.with_name(f"{path.name}.held")
        self._new = not path.exists() or not path.stat().st_size
        self._checked = False
        """All pages of the file have been looked at, since this process began."""
        self._file = opened(path)
        sync_directory(path.parent)
        if self._file.lost:
            self._hold(self._file.lost)
            self._file.noted()
        found = self._file.reader.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").fetchone()
        self._last = int(found[0]) if found else 0
        self._making: dict[str, int] = {}
        """The ids of snapshots that have no record yet, by key."""
        self._used: Counter[int] = Counter()
        """By id of a parent: the number of those."""

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    # ---------------------------------------------------------------- reading

    def get(self, key: str) -> Record:
        """The snapshot with this key or name; NotFound."""
        return self._read(lambda rows: _record(rows, rules.existing(rows, key)))

    def mountable(self, key: str) -> Record:
        """The active snapshot or view with this key; NotFound, or FailedPrecondition for a committed one."""
        return self._read(lambda rows: _record(rows, rules.mountable(rows, key)))

    def list(self) -> list[Info]:
        """All snapshots, ordered by name."""
        return [row_of(*columns).info for columns in self._read(Rows.all)]

    # ---------------------------------------------------------------- changing

    @contextlib.contextmanager
    def adding(
        self, kind: Kind, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Iterator[Record]:
        """Add a snapshot at the end of the block, in which the caller makes what belongs to it, durably. Meanwhile the
        key is taken, and the parent cannot be removed.

        AlreadyExists for a key that is taken, NotFound for a parent that does not exist, InvalidArgument for one that
        is not committed, and for an empty key.
        """
        if not key:
            raise errors.InvalidArgument("snapshot key must not be empty")
        record, row = self._reserve(kind, key, parent, labels or {})
        try:
            yield record
            self._write(lambda rows: rows.insert(row))
        finally:
            with self._lock:
                del self._making[key]
                self._used -= Counter(record.parents[:1])

    def _reserve(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Record, Row]:
        def reserve(rows: Rows) -> tuple[Record, Row]:
            base = rules.base(rows, key, parent)
            if key in self._making:
                raise errors.AlreadyExists(f"snapshot {key}")
            self._last += 1
            row = rules.new(self._last, base, kind, key, labels)
            self._making[key] = row.id
            self._used.update([base.id] if base else [])
            return _record(rows, row), row

        return self._read(reserve)

    def commit(self, active: Record, name: str, labels: Mapping[str, str] | None, usage: Usage) -> None:
        """Make ``active`` a committed snapshot called ``name``; its files are durable, and take ``usage``.

        AlreadyExists for a name that is taken, FailedPrecondition if it is not active, NotFound if it was removed
        meanwhile, InvalidArgument for an empty name.
        """
        if not name:
            raise errors.InvalidArgument("snapshot name must not be empty")

        def commit(rows: Rows) -> None:
            if name in self._making:
                raise errors.AlreadyExists(f"committed snapshot {name}")
            rules.commit(rows, Row(active.id, None, active.info, usage), name, labels or {}, usage)

        self._write(commit)

    def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change labels as containerd's Update does: all of them, or those that ``paths`` name (``labels.KEY``)."""
        return self._write(lambda rows: rules.update(rows, key, labels, paths)).info

    def remove(self, key: str) -> int:
        """Remove the record of a snapshot. Returns its id: what belongs to it can now be removed. NotFound, or
        FailedPrecondition while it has children.
        """
        (number,) = self._write(lambda rows: rules.remove(rows, key, self._used))
        return number

    # ---------------------------------------------------------------- what a crash left

    def leftovers(self, names: Iterable[str]) -> Sequence[str]:
        """Those of ``names``, the names of all that is stored, that are no id of a snapshot: they may be removed. What
        is being made is kept, also under a name such as ``new-ID``.

        None are named, and the log says why, if records may have been lost: what has no record may then be the only
        copy of what somebody wrote. An operator who knows better removes the file RECORDS.held.
        """
        names = list(names)  # first: what appears in it later has a record, or is being made
        with self._lock:
            newest = max([self._last, *(int(name) for name in names if name.isdecimal())])
            if self._new and newest > self._last:
                self._hold(f"{self._file.path} is new, though there are snapshots")
            if not self._checked and (found := damage.quick_check(self._file.path)):
                self._hold(found)
            self._last, self._new, self._checked = newest, False, True
        if self._held.exists():
            log.error("%s: what has no record is kept, until %s is removed", self._held.read_text().strip(), self._held)
            return ()
        making, known = self._read(lambda rows: (set(self._making.values()), rows.things()))
        return [name for name in names if not (_id(name) in making or (name.isdecimal() and int(name) in known))]

    def _hold(self, why: str) -> None:
        log.error("%s: %s", why, damage.WHAT_TO_DO)
        replace(self._held, f"{why}\n")

    # ---------------------------------------------------------------- transactions

    def _read(self, work: Callable[[Rows], T]) -> T:
        with self._lock:
            try:
                return work(Rows(self._file.reader))
            except sqlite3.Error as error:
                raise self._file.refusal(error) from None

    def _write(self, work: Callable[[Rows], T]) -> T:
        """The result of ``work``, once its changes are durable. If it raises, it has changed nothing."""
        with self._lock:
            writer = self._file.writer
            try:
                writer.execute("BEGIN IMMEDIATE")
                result = work(Rows(writer))
                writer.execute("COMMIT")
            except sqlite3.Error as error:
                undo(writer)
                refusal = self._file.refusal(error)
                raise (refusal if refusal is not error else wal.failure(error, "snapshot records")) from None
            except BaseException:
                undo(writer)
                raise
            return result


def _record(rows: Rows, row: Row) -> Record:
    return Record(row.id, row.info, row.usage, rows.ancestors(row))


def _id(name: str) -> int:
    """The id at the end of a name; -1 if it has none."""
    number = name.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdecimal() else -1
