"""Walks: all records below a prefix, read while the loop does other things.

A walk reads one state of the store, which the store keeps for it. Nobody may make it keep many states, nor one for
long: SQLite's log grows meanwhile. So a walk loses its state after :data:`KEPT` seconds, or when it is the oldest of
more than :data:`WALKS`, and goes on behind its last record in the state that is then current. A walk as fast as the
disk sees one instant; one whose reader is slow still sees each record once that is there all the while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from services.metadata.transactions import Key, Snapshot, Transactions

WALKS = 16
"""Walks that have a state of their own at once."""
KEPT = 10.0
"""Seconds for which a walk keeps its state."""


class Walks:
    """The walks over one store."""

    def __init__(self, transactions: Transactions, *, most: int = WALKS, kept: float = KEPT) -> None:
        """``most`` have a state of their own at once, each for ``kept`` seconds."""
        self.kept = kept
        self._most = most
        self._transactions = transactions
        self._open: dict[Walk, None] = {}
        """Those with a state, the oldest first."""

    def over(self, prefix: Key) -> Walk:
        """A walk over all keys below ``prefix``; a context manager and an iterator."""
        return Walk(self, prefix)

    def snapshot(self, walk: Walk) -> Snapshot:
        """A state for ``walk``."""
        if len(self._open) >= self._most:
            next(iter(self._open)).let_go()
        snapshot = self._transactions.snapshot()
        self._open[walk] = None
        return snapshot

    def gone(self, walk: Walk) -> None:
        """``walk`` has none any more."""
        self._open.pop(walk, None)


class Walk:
    """One of them: keys and values in order."""

    __slots__ = ("_after", "_found", "_prefix", "_rows", "_snapshot", "_timer", "_walks")

    def __init__(self, walks: Walks, prefix: Key) -> None:
        self._walks = walks
        self._prefix = prefix
        self._after: Key | None = None
        self._snapshot: Snapshot | None = None
        self._rows: Iterator[tuple[Key, bytes]] = iter(())
        self._timer: asyncio.TimerHandle | None = None
        self._found = self._reading()

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.let_go()

    def __iter__(self) -> Iterator[tuple[Key, bytes]]:
        return self._found

    def __next__(self) -> tuple[Key, bytes]:
        return next(self._found)

    def _reading(self) -> Iterator[tuple[Key, bytes]]:
        rows = None
        while rows is not self._rows:  # else these were all
            if self._snapshot is None:
                self._snapshot = self._walks.snapshot(self)
                self._rows = self._snapshot.scan(self._prefix, after=self._after)
                self._timer = asyncio.get_running_loop().call_later(self._walks.kept, self.let_go)
            rows = self._rows
            for row in rows:
                self._after = row[0]
                yield row
                if rows is not self._rows:  # the state is lost
                    break

    def let_go(self) -> None:
        """Give the state back."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._rows = iter(())
            snapshot.close()
            self._walks.gone(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
