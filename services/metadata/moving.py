"""All records of a node move between stores, or between a store and a file (``archive.py``), while no metadata process
runs.

A move compares the two sides record by record, in order of the keys, and writes what differs. So it may be killed at
any point and begun again: what is there already is not written again, and what has changed since is. What the record
``moving`` says (:class:`store.Move`) decides which store counts:

    1. target: arriving     the target was empty, or has what an earlier move left there
    2. the records, in transactions of at most 500 of them
    3. target: arrived      the target was opened anew and read whole: count and digest are those of the source
    4. source: left         from this transaction on the target counts
    5. target: no record    it can be used

Until step 4 nothing is written to the source. A metadata process starts on no store that has the record
(:func:`check`), nor on etcd while the SQLite database beside it has records that have not left (:func:`check_beside`):
it would take all blobs and snapshots for garbage. An import is steps 1, 2, the comparison of step 3, and 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from services.kit import damage, errors
from services.kit.faults import fault
from services.metadata import schema
from services.metadata.archive import Archive, Row, Sum, Summing, shown, write
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Move
from services.metadata.transactions import Key, Reader, Transaction, Transactions, encode

Opener = Callable[[], AbstractAsyncContextManager[Transactions]]

_CHUNK = 500
"""Records that one transaction writes at most."""
_CHUNK_BYTES = 512 << 10
"""Bytes after which it writes no more: etcd's limit of a request is 1.5 MiB."""
_OWN = (schema.STORE.name, schema.GATEWAY.name, schema.CHECKED.name)
"""Tables that have records once a node was started. A store with no others counts as empty."""


@dataclass(frozen=True, slots=True)
class Side:
    """A store, as a move opens it: once to write, and once more to read what it has."""

    name: str
    """In messages: "SQLite (ROOT/metadata/metadata.db)"."""
    open: Opener


@dataclass(frozen=True, slots=True)
class Moved:
    """The outcome of a move."""

    sum: Sum
    already: bool = False
    """Whether there was nothing to do any more."""


# ---------------------------------------------------------------------------------------------- what moves


def _rows(reader: Reader) -> Iterator[Row]:
    """All records but :data:`schema.MOVING`."""
    return ((key, value) for key, value in reader.scan(()) if key[0] != schema.MOVING.name)


def _sound(rows: Iterable[Row], where: str) -> Iterator[Row]:
    """The same rows. DataLoss at one that no splitd of this version would have written."""
    for key, value in rows:
        if not schema.readable((encode(key), value)):
            raise errors.DataLoss(
                f"{where}: the record {shown(key)} cannot be read: it is damaged, or of a newer splitd: "
                f"{damage.WHAT_TO_DO}"
            )
        yield key, value


async def total(store: Transactions) -> Sum:
    """The number of the records and their digest. Reads all of them."""

    def summed() -> Sum:
        sum_ = Summing()
        for key, value in _rows(snapshot):
            sum_.add(encode(key), value)
        return sum_.sum()

    with contextlib.closing(store.snapshot()) as snapshot:
        return await asyncio.to_thread(summed)


def _is_empty(reader: Reader) -> bool:
    """Whether there are no records but those of a node that was only started."""
    after: Key | None = None
    while rows := [key for key, _ in reader.scan((), after=after, limit=_CHUNK)]:
        if any(key[0] not in _OWN and key[0] != schema.MOVING.name for key in rows):
            return False
        after = rows[-1]
    return True


# ---------------------------------------------------------------------------------------------- which store counts


def check(store: Transactions, name: str) -> None:
    """FailedPrecondition, in words, if a move says that ``store`` does not count."""
    move = store.view(schema.MOVING.get)
    if move is None:
        return
    if move.state == "left":
        raise errors.FailedPrecondition(
            f"since {_clock(move.since)} the node's records are in {move.other}, no longer in {name}: set [metadata] "
            "store to that, or move them back: splitd metadata migrate"
        )
    raise errors.FailedPrecondition(
        f"the records are being moved to {name} from {move.other} since {_clock(move.since)}, which was interrupted: "
        "repeat that splitd metadata command"
    )


async def check_beside(path: Path) -> None:
    """FailedPrecondition if the SQLite database in ``path`` has records that have not left, for a node whose store is
    another.
    """
    if not path.exists():
        return
    async with sqlite(path) as store:
        if store.view(lambda reader: schema.MOVING.get(reader) is None and not _is_empty(reader)):
            raise errors.FailedPrecondition(
                f"{path} has the node's records, and [metadata] store is another: move them first (splitd metadata "
                "migrate --to etcd), or move the file elsewhere if they are no longer wanted"
            )


@contextlib.asynccontextmanager
async def sqlite(path: Path) -> AsyncIterator[Transactions]:
    """The embedded store in ``path``."""
    store = SqliteTransactions(path)
    try:
        yield store
    finally:
        await store.close()


# ---------------------------------------------------------------------------------------------- to and from a file


async def export(source: Side, path: Path) -> Sum:
    """Write all records to the file ``path``, durably. Errors are those of ``archive.write``, DataLoss for a damaged
    record, and FailedPrecondition if the store does not count.
    """
    async with source.open() as store:
        check(store, source.name)
        with contextlib.closing(store.snapshot()) as snapshot:
            rows = _sound(_rows(snapshot), source.name)
            id_ = schema.STORE.get(snapshot) or ""
            return await asyncio.to_thread(write, path, id_, time.time_ns(), rows)


async def load(path: Path, target: Side) -> Moved:
    """Make the records of the file ``path`` those of the empty store ``target``. FailedPrecondition if that has others;
    InvalidArgument or DataLoss, before anything is written, if the file is not a whole export.
    """
    with contextlib.closing(Archive(path)) as archive:
        wanted = _checked(archive)
        other = f"the file {path} (sha256:{wanted.digest[:16]})"
        async with target.open() as store:
            move = store.view(schema.MOVING.get)
            if move is None and not store.view(_is_empty):
                if await total(store) == wanted:
                    return Moved(wanted, already=True)
                raise _full(await total(store), target)
            if move is not None and not (move.state == "arriving" and move.other.startswith("the file ")):
                check(store, target.name)
            await _note(store, Move(state="arriving", other=other, since=time.time_ns()))
            await _copy(archive.rows(), store)
        async with target.open() as store:
            _compare(wanted, await total(store), str(path), target.name)
            fault("metadata.moving.compared")
            await _note(store, None)
    return Moved(wanted)


def _checked(archive: Archive) -> Sum:
    """Read the whole file. What is damaged is said before what is unknown: a damaged byte may look like that."""
    sum_, unknown = Summing(), None
    for key, value in archive.rows():
        sum_.add(encode(key), value)
        if unknown is None and not schema.readable((encode(key), value)):
            unknown = key
    if unknown is not None:
        raise errors.InvalidArgument(
            f"{archive.path} is whole, but the record {shown(unknown)} is none that this splitd knows: import it with "
            "the splitd that wrote it, or a newer one; nothing of it was imported"
        )
    return sum_.sum()


def _full(found: Sum, target: Side) -> errors.NodeError:
    return errors.FailedPrecondition(
        f"{target.name} has {found} already, and they are not of an interrupted move: nothing was changed"
    )


# ---------------------------------------------------------------------------------------------- between stores


async def migrate(source: Side, target: Side) -> Moved:
    """Move all records. FailedPrecondition if the source does not have them, or the target has others; DataLoss if the
    two sides differ in the end. Then nothing has changed in the source, and it counts.
    """
    async with source.open() as one:
        async with target.open() as other:
            here, there = one.view(schema.MOVING.get), other.view(schema.MOVING.get)
            if here is not None and here.state == "left" and (there is None or there.state == "arrived"):
                await _note(other, None)
                return Moved(await total(other), already=there is None)
            check(one, source.name)
            if there is None and not other.view(_is_empty):
                found = await total(other)
                if one.view(_is_empty):
                    return Moved(found, already=True)
                raise _full(found, target)
            await _note(other, Move(state="arriving", other=source.name, since=time.time_ns()))
            with contextlib.closing(one.snapshot()) as snapshot:
                await _copy(_sound(_rows(snapshot), source.name), other)
        async with target.open() as other:
            sum_ = await total(one)
            _compare(sum_, await total(other), source.name, target.name)
            fault("metadata.moving.compared")
            now = time.time_ns()
            await _note(
                other, Move(state="arrived", other=source.name, since=now, records=sum_.records, digest=sum_.digest)
            )
            fault("metadata.moving.arrived")
            await _note(one, Move(state="left", other=target.name, since=now, records=sum_.records, digest=sum_.digest))
            fault("metadata.moving.left")
            await _note(other, None)
    return Moved(sum_)


def _compare(wanted: Sum, found: Sum, source: str, target: str) -> None:
    if wanted != found:
        raise errors.DataLoss(
            f"{target} has {found}, and {source} has {wanted}: the target is not used; repeat the command"
        )


async def _note(store: Transactions, move: Move | None) -> None:
    def work(tx: Transaction) -> None:
        if move is None:
            schema.MOVING.delete(tx)
        else:
            schema.MOVING.put(tx, value=move)

    await store.write(work)


async def _copy(rows: Iterable[Row], target: Transactions) -> None:
    """Make ``rows``, which are in order, the records of ``target``."""
    chunk = _Chunk(target)
    with contextlib.closing(target.snapshot()) as old:
        there = _rows(old)
        known = next(there, None)
        for key, value in rows:
            encoded = encode(key)
            while known is not None and encode(known[0]) < encoded:
                await chunk.delete(known[0])
                known = next(there, None)
            if known is not None and known[0] == key:
                same, known = known[1] == value, next(there, None)
                if same:
                    continue
            await chunk.put(key, value)
        while known is not None:
            await chunk.delete(known[0])
            known = next(there, None)
    await chunk.write()


class _Chunk:
    """What the next transaction writes."""

    def __init__(self, target: Transactions) -> None:
        self._target = target
        self._puts: list[Row] = []
        self._deletes: list[Key] = []
        self._bytes = 0

    async def put(self, key: Key, value: bytes) -> None:
        self._puts.append((key, value))
        await self._added(len(value))

    async def delete(self, key: Key) -> None:
        self._deletes.append(key)
        await self._added(0)

    async def _added(self, size: int) -> None:
        self._bytes += size + 100
        if self._bytes >= _CHUNK_BYTES or len(self._puts) + len(self._deletes) >= _CHUNK:
            await self.write()

    async def write(self) -> None:
        """Write it, and begin anew."""
        puts, deletes = self._puts, self._deletes

        def work(tx: Transaction) -> None:
            tx.put_many(puts)
            tx.delete_many(deletes)

        if puts or deletes:
            await self._target.write(work)
            fault("metadata.moving.chunk")
        self._puts, self._deletes, self._bytes = [], [], 0


def _clock(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment / 1e9))
