"""Transactions in a dict: the fake. It stores nothing, and runs each write twice, since work must bear that."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from services.metadata.transactions import Key, Reader, Snapshot, Standing, Transaction, decode, encode, span

T = TypeVar("T")


class _State:
    """The encoded keys in order, and their values."""

    def __init__(self, keys: list[bytes], values: dict[bytes, bytes], watches: list[list[Key]]) -> None:
        self.keys = keys
        self.values = values
        self.watches = watches

    def get(self, key: Key) -> bytes | None:
        return self.values.get(encode(key))

    def scan(self, prefix: Key, *, after: Key | None = None, limit: int | None = None) -> Iterator[tuple[Key, bytes]]:
        low, high = span(prefix, after)
        found = self.keys[bisect.bisect_left(self.keys, low) : bisect.bisect_left(self.keys, high)]
        for key in islice(found, limit):
            if key in self.values:
                yield decode(key), self.values[key]

    def scan_encoded(self, prefix: Key) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        for key, value in self.scan(prefix):
            yield [(encode(key), value)]

    def put(self, key: Key, value: bytes) -> None:
        self._put(encode(key), value)
        for watch in self.watches:
            watch.append(key)

    def _put(self, encoded: bytes, value: bytes) -> None:
        if encoded not in self.values:
            bisect.insort(self.keys, encoded)
        self.values[encoded] = bytes(value)

    def put_many(self, rows: Sequence[tuple[Key, bytes]]) -> None:
        for key, value in rows:
            self._put(encode(key), value)

    def delete_many(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self.delete(key)

    def delete(self, key: Key) -> None:
        encoded = encode(key)
        if self.values.pop(encoded, None) is not None:
            del self.keys[bisect.bisect_left(self.keys, encoded)]

    def delete_all(self, prefix: Key, *, limit: int | None = None) -> None:
        for key, _ in list(self.scan(prefix, limit=limit)):
            self.delete(key)

    def close(self) -> None:
        """Nothing to release."""

    def copy(self) -> _State:
        return _State(self.keys.copy(), self.values.copy(), self.watches)


class MemoryTransactions:
    """A store that ends with its process."""

    def __init__(self) -> None:
        self._state = _State([], {}, [])

    def view(self, work: Callable[[Reader], T]) -> T:
        return work(self._state)

    def snapshot(self) -> Snapshot:
        return _State(self._state.keys, self._state.values, [])  # each write makes a new state

    async def read(self, work: Callable[[Reader], T]) -> T:
        await asyncio.sleep(0)
        return work(self._state)

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[Key]]:
        written: list[Key] = []
        self._state.watches.append(written)
        try:
            yield written
        finally:
            self._state.watches[:] = [each for each in self._state.watches if each is not written]

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        await asyncio.sleep(0)
        work(self._state.copy())  # as if another write had changed what it read
        await asyncio.sleep(0)
        state = self._state.copy()
        result = work(state)
        self._state = state
        return result

    async def write_all(
        self, works: Sequence[Callable[[Transaction], T]], *, lasting: bool = True
    ) -> list[T | Exception]:
        found = list[T | Exception]()
        for work in works:
            try:
                found.append(await self.write(work))
            except Exception as error:
                found.append(error)
        return found

    @property
    def standing(self) -> Standing:
        return Standing()

    async def writable(self) -> None:
        """It always is."""

    async def settle(self) -> None:
        """Nothing outlives its process."""

    async def close(self) -> None:
        """Nothing to release."""
