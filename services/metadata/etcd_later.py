"""Changes that need not last by themselves: the mirror shows them before etcd has them, so nobody waits for etcd.

They are *owed*. The next transaction that has to last takes them along, so etcd has them in the order in which they
were made; if none comes soon, they get one of their own. The mirror lists their keys, so they survive the death of the
process, but no power cut, as in SQLite. Nothing is owed beside a transaction of somebody else: if one is found, all
records are listed, and what was owed is lost as by a power cut.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sqlite3
from collections.abc import Collection, Mapping
from types import MappingProxyType

from services.kit import errors, loops
from services.metadata.etcd_rows import LEAST
from services.metadata.transactions import Transactions

log = logging.getLogger(__name__)

SECONDS = 0.5
"""For which etcd is owed something, at most, while it is there."""
TABLE = "CREATE TABLE later (key BLOB PRIMARY KEY) WITHOUT ROWID"
_NO_KEY = ("",)
"""No record has it: who removes it asks for a transaction that takes along what is owed."""
_KEYS, _BYTES = 250, 128 << 10
"""Keys and bytes that may be owed."""
_BESIDE_KEYS, _BESIDE_BYTES = 500, 256 << 10
"""Keys and bytes of a transaction that takes them along, at most, so that etcd's limits stay those of the rest."""


class OvertakenError(Exception):
    """Somebody else has written records that this node owed something to."""


def _size(changes: Mapping[bytes, bytes | None]) -> int:
    return sum(len(key) + len(value or b"") for key, value in changes.items())


class Later:
    """What is owed, at first by the mirror that ``connection`` reads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        listed = "SELECT later.key, value FROM later LEFT JOIN records ON records.key = later.key"
        self._owed: dict[bytes, bytes | None] = dict(connection.execute(listed).fetchall())

    def __bool__(self) -> bool:
        return bool(self._owed)

    def __contains__(self, key: bytes) -> bool:
        return key in self._owed

    @property
    def owed(self) -> Mapping[bytes, bytes | None]:
        """The keys and their values (None: removed)."""
        return MappingProxyType(self._owed)

    def takes(self, changes: Mapping[bytes, bytes | None], large: Collection[bytes]) -> bool:
        """Whether these may be owed, too. ``large``: those of the keys whose value in etcd may have pieces."""
        return (
            not large
            and all(len(value or b"") < LEAST for value in changes.values())
            and len(self._owed) + len(changes) <= _KEYS
            and _size(self._owed) + _size(changes) <= _BYTES
        )

    def fits_beside(self, changes: Mapping[bytes, bytes | None]) -> bool:
        """Whether a transaction of these may take along what is owed."""
        return len(changes) <= _BESIDE_KEYS and _size(changes) <= _BESIDE_BYTES

    def note(self, connection: sqlite3.Connection, changes: Collection[bytes]) -> None:
        """Note in the mirror's open transaction, which makes these changes, that they are owed."""
        connection.executemany("INSERT OR IGNORE INTO later VALUES (?)", [(key,) for key in changes])

    def add(self, changes: Mapping[bytes, bytes | None]) -> None:
        """That transaction has been committed."""
        self._owed.update(changes)

    def note_none(self, connection: sqlite3.Connection) -> None:
        """Note in the mirror's open transaction that nothing is owed."""
        connection.execute("DELETE FROM later")

    def clear(self) -> None:
        """All of it is in etcd."""
        self._owed.clear()

    def lose(self) -> None:
        """All records were listed, without what was owed."""
        if self._owed:
            log.warning("%d changes that did not have to last are lost", len(self._owed))
        self.clear()


class Payments:
    """Lets ``store`` write what is owed on its own, ``seconds`` after something is."""

    def __init__(self, later: Later, store: Transactions, seconds: float) -> None:
        self._later = later
        self._store = store
        self._seconds = seconds
        self._paying: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Have it written in time, if anything is owed. That time is not the caller's."""
        if self._later and (self._paying is None or self._paying.done()):
            paying = "writing what etcd is owed"
            self._paying = contextvars.Context().run(lambda: loops.aside(paying, self._pay_in_time()))

    async def end(self) -> None:
        """Write it now."""
        if self._paying is not None:
            self._paying.cancel()
        await self._pay()

    async def settle(self) -> None:
        """Write it now; errors are those of the store."""
        if self._later:
            await self._store.write(lambda tx: tx.delete(_NO_KEY))

    async def _pay_in_time(self) -> None:
        while self._later:
            await asyncio.sleep(self._seconds)
            await self._store.writable()
            await self._pay()

    async def _pay(self) -> None:
        try:
            await self.settle()
        except errors.NodeError as error:
            log.warning("etcd is owed %d changes still: %s", len(self._later.owed), error)
