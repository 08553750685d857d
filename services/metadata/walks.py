"""Walks: each reads all records below a prefix, while the loop does other work in between.

A walk reads one state of the store, which the store keeps for it. SQLite's log grows for as long as a state is kept, so
neither many states nor old ones are kept. A walk loses its state after :data:`KEPT` seconds, or when it is the oldest
of more than :data:`WALKS`; it then goes on behind its last record, in the current state. A walk whose reader is fast
sees one instant. A slower one still sees every record that exists for the whole duration of the walk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from services.metadata.transactions import Key, Snapshot, Transactions

WALKS = 16
"""Walks that may have a state at once."""
KEPT = 10.0
"""Seconds for which a walk keeps its state."""


class Walks:
    """The walks over one store."""

    def __init__(self, transactions: Transactions, *, most: int = WALKS, kept: float = KEPT) -> None:
        """At most ``most`` walks have a state at once, each for ``kept`` seconds."""
        self.kept = kept
        self._most = most
        self._transactions = transactions
        self._open: dict[Walk, None] = {}
        """The walks that have a state, the oldest first."""

    def over(self, prefix: Key) -> Walk:
        """A walk over all keys below ``prefix``: a context manager and an iterator."""
        return Walk(self, prefix)

    def snapshot(self, walk: Walk) -> Snapshot:
        """A state for ``walk``; the oldest walk may lose its own."""
        if len(self._open) >= self._most:
            next(iter(self._open)).release_state()
        snapshot = self._transactions.snapshot()
        self._open[walk] = None
        return snapshot

    def gone(self, walk: Walk) -> None:
        """Note that ``walk`` has no state any more."""
        self._open.pop(walk, None)


class Walk:
    """An iterator over keys and values in order."""

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
        self.release_state()

    def __iter__(self) -> Iterator[tuple[Key, bytes]]:
        return self._found

    def __next__(self) -> tuple[Key, bytes]:
        return next(self._found)

    def _reading(self) -> Iterator[tuple[Key, bytes]]:
        rows = None
        while rows is not self._rows:  # at the end of the rows
            if self._snapshot is None:
                self._snapshot = self._walks.snapshot(self)
                self._rows = self._snapshot.scan(self._prefix, after=self._after)
                self._timer = asyncio.get_running_loop().call_later(self._walks.kept, self.release_state)
            rows = self._rows
            for row in rows:
                self._after = row[0]
                yield row
                if rows is not self._rows:  # the state was given back
                    break

    def release_state(self) -> None:
        """Give the state back."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._rows = iter(())
            snapshot.close()
            self._walks.gone(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
