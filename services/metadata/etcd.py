"""Transactions in etcd: a node's records outlive its disk. ``etcd_rows`` says how they lie there.

Everything is read from a *mirror* in SQLite (``sqlite.py``), in STATE, also while etcd is away.
The work of a write runs on the mirror, too, in an open transaction. What it changed goes to etcd as one transaction,
and is committed in the mirror when etcd has it. So the mirror has nothing that etcd does not have; but for changes that
need not last, which go to etcd some moments later (``etcd_later``).

A transaction compares two keys. ``owner``: this node still owns the records. ``last``: nothing was written since the
state that the work has seen, by whomever. That is stronger than a compare of each key that was read, and as cheap for
scans; it lets nobody write side by side, but one node is the only writer anyway, and groups its commits.

If the answer of a transaction is lost, it may have been written, or may be written later. ``last`` has the id of the
last one, so it is read back; as long as ``last`` is unchanged the same transaction is sent again, since only one of
them can find ``last`` unchanged.

The mirror knows what it shows (``etcd_shown``). It follows by a watch from there, and sees its own commits pass by. If
etcd has forgotten that revision or has another past, or the mirror is new, all records are listed, and writes wait.

If etcd does not answer, a write waits for some seconds: the members may be electing a leader. While etcd is away for
longer, reads go on for a configured time, and writes fail at once. So do those of a process that starts meanwhile, if
its mirror was in step with etcd not longer ago.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, MutableSequence, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from services.etcd.answers import short
from services.etcd.store import (
    Change,
    Committed,
    Compacted,
    Conflict,
    Delete,
    Etcd,
    KeyValue,
    Lease,
    Mod,
    Put,
    Uncertain,
    end_of,
)
from services.kit import errors, loops, metrics
from services.kit.faults import fault
from services.metadata import etcd_later, etcd_mirror
from services.metadata.etcd_later import OvertakenError, Payments
from services.metadata.etcd_owner import Claims, NotOwnerError
from services.metadata.etcd_patience import PATIENCE, Patience
from services.metadata.etcd_rows import ALIVE, LEAST, Keys, Owner, Pieces, Written, decode, joined
from services.metadata.etcd_shown import NONE, Last, Shown
from services.metadata.sqlite import Again, Changes
from services.metadata.transactions import Key, Reader, Snapshot, Standing, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")

_COMMITS = metrics.Counter("splitd_etcd_commits_total", "Transactions that etcd has written.")
_CONFLICTS = metrics.Counter("splitd_etcd_conflicts_total", "Transactions that ran again, since others had written.")
_RETRIES = metrics.Counter("splitd_etcd_retries_total", "Transactions that were sent again, since the answer was lost.")

PAUSE, LONGEST = 0.2, 5.0
"""Seconds between attempts while etcd is away: they double."""
NOTED = 10.0
"""Seconds by which the next process may believe the mirror to be older than it is."""
_MANY = 1000
"""Operations above which deletions of neighbours become one."""
_CAUGHT_UP = 10.0
"""Seconds that a write waits for changes that somebody else has made."""


class EtcdTransactions:
    """The records of ``node`` below ``prefix`` in etcd, with a mirror in ``path``, which may vanish whenever no process
    uses it. Use it within :meth:`running`.

    ``stale_reads``: seconds for which reads go on while etcd is away. ``patience``: seconds that a write waits for it.
    ``longest``: seconds of the longest pause between attempts to reach it. ``noted``: seconds after which the mirror
    notes again that it is in step. ``later``: seconds for which etcd may be owed what need not last. ``claims``
    remembers that there were records.
    """

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        path: Path,
        node: Owner,
        caller: Callable[[], str] = str,
        *,
        stale_reads: float = 600.0,
        patience: float = PATIENCE,
        longest: float = LONGEST,
        noted: float = NOTED,
        later: float = etcd_later.SECONDS,
        claims: Claims | None = None,
    ) -> None:
        self._etcd = etcd
        self._claims = claims
        self._keys = Keys(prefix)
        self._node = node
        self._stale_reads = stale_reads
        self._patience = Patience(patience)
        self._longest = longest
        self._noted = noted
        self._instance = uuid.uuid4().hex.encode()
        self.mirror, stands, self._later = etcd_mirror.opened(path, caller, self, self._keys.prefix)
        self.file = self.mirror.file
        self._owner = 0
        """The revision of our claim, which every transaction compares; 0: there is none yet."""
        self._shown = Shown(stands.revision, stands.last)
        self._payments = Payments(self._later, self, later)
        self._next: tuple[Last, Changes] = NONE, {}
        """The transaction that is on its way, and what it writes; NONE: the mirror alone has it."""
        self._doubted: Last | None = None
        """After it a transaction may have been written, or may be yet: nothing else is left for later."""
        self._away: float | None = stands.step if stands.revision else etcd_mirror.now()
        """When the mirror was last in step with etcd, if it is not now."""
        self._lost: float | None = None
        """When the watch ended; None: it has not, or another member has gone on since."""
        self._why = "it was not reached yet"
        self._tried = self._answers = False
        self._read = False
        """Whether anybody may read the mirror."""
        self.progressed: Callable[[], None] = lambda: None
        """Called when a part of the list of all records has come."""
        self.listed = False
        """Whether all that the mirror shows has come from etcd since this process began."""
        self._refused: NotOwnerError | None = None
        self._moved = asyncio.Event()
        """Set whenever the mirror has caught up, or etcd went away or came back."""

    @property
    def standing(self) -> Standing:
        """Where the mirror stands."""
        if self._away is None:
            return Standing(store="etcd", revision=self._shown.revision)
        away = etcd_mirror.now() - self._away
        return Standing(
            store="etcd",
            revision=self._shown.revision,
            away=away,
            reads=max(self._stale_reads - away, 0.0),
            why=self._why,
        )

    async def moved(self) -> None:
        """Wait until the mirror has caught up with anything, or etcd goes away or comes back."""
        await self._moved.wait()

    async def writable(self) -> None:
        while self._away is not None:
            await self._moved.wait()

    async def settle(self) -> None:
        """Return once etcd has all that was written, also what it is owed."""
        await self._payments.settle()

    async def reached(self) -> None:
        """Wait while etcd does not answer. It may answer though the mirror does not get in step."""
        while not self._answers:
            await self._moved.wait()

    # ------------------------------------------------------------------------------------------ reads

    def _check_fresh(self) -> None:
        if self._away is not None and etcd_mirror.now() > self._away + self._stale_reads:
            raise errors.Unavailable(
                f"metadata store: etcd has been away for more than {self._stale_reads:g} s ([metadata] stale_reads), "
                f"and nothing is read any more until it is back: {self._why}"
            )

    def view(self, work: Callable[[Reader], T]) -> T:
        if self._away is not None:
            self._check_fresh()
        return self.mirror.view(work)

    def snapshot(self) -> Snapshot:
        self._check_fresh()
        return self.mirror.snapshot()

    async def read(self, work: Callable[[Reader], T]) -> T:
        self._check_fresh()
        return await self.mirror.read(work)

    def watch(self) -> AbstractContextManager[MutableSequence[Key]]:
        return self.mirror.watch()

    def shrink(self) -> None:
        """Free the mirror's caches."""
        self.mirror.shrink()

    # ------------------------------------------------------------------------------------------ writes

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        self._check_writable()
        return await self.mirror.write(work, lasting=lasting)

    async def write_all(
        self, works: Sequence[Callable[[Transaction], T]], *, lasting: bool = True
    ) -> list[T | Exception]:
        self._check_writable()
        return await self.mirror.write_all(works, lasting=lasting)

    def _check_writable(self) -> None:
        if self._refused is not None:
            raise errors.Unavailable(str(self._refused))
        # a process that has claimed nothing yet cannot write, however short etcd has been away
        if self._away is not None and (not self._owner or etcd_mirror.now() > self._away + self._patience.seconds):
            raise errors.Unavailable(
                f"metadata store: nothing can be written while etcd is away ({self._why}): repeat it once etcd is "
                "back; splitd status shows its members. Meanwhile containers run on, and reads are answered"
            )

    async def commit(self, changes: Changes, connection: sqlite3.Connection, *, lasting: bool) -> None:
        """Write what the mirror is about to commit (``sqlite.Original``)."""
        if not changes and not (lasting and self._later):
            self._next = NONE, {}
            return
        self._check_writable()
        if not self._shown.revision:  # all records are listed
            raise Again
        large, later = self._large(changes), self._later
        if not lasting and self._shown.last != self._doubted and later.takes(changes, large):
            self._next = NONE, changes
            later.note(connection, changes)
            return
        end = self._patience.end(self._away)
        try:
            if later and not later.fits_beside(changes):
                owed = dict(later.owed)
                self._shown.committed(await self._write(Written(self._keys, owed, frozenset()), end), owed)
                later.clear()
            changes = {**later.owed, **changes}
            written = Written(self._keys, changes, large)
            if len(written.operations) > _MANY:
                written.operations = etcd_mirror.ranges(written.operations, self._keys, connection)
            for piece in written.pieces:
                await self._put_piece(piece, end)
                fault("metadata.etcd.piece")
            fault("metadata.etcd.before")
            last = await self._write(written, end)
        except Uncertain as error:
            self._doubted = self._shown.last
            raise errors.Unavailable(f"metadata store: it may have been written: {short(error)}") from None
        except errors.Unavailable as error:
            words = short(error).removeprefix("metadata store: ")
            raise errors.Unavailable(f"metadata store: nothing was written: {words}") from None
        fault("metadata.etcd.written")
        self._next = last, changes
        etcd_mirror.note(connection, self._keys.prefix, self._shown.revision, last)
        later.note_none(connection)
        for operation in written.rest:
            try:
                await self._etcd.commit(
                    [operation], [Mod(self._keys.owner, self._owner)], seconds=self._patience.attempt
                )
            except errors.NodeError as error:  # the next list of all records removes them
                log.warning("pieces of replaced records stay in etcd for now: %s", error)

    def committed(self) -> None:
        """The mirror shows the last transaction."""
        last, changes = self._next
        if last == NONE:
            self._later.add(changes)
            self._payments.begin()
        else:
            self._shown.committed(last, changes.keys())
            self._later.clear()
        fault("metadata.etcd.mirrored")

    def _large(self, changes: Changes) -> frozenset[bytes]:
        """The keys whose value in etcd may have pieces."""
        lengths = "SELECT length(value) FROM records WHERE key = ?"
        found = ((key, self.file.reader.execute(lengths, (key,)).fetchone()) for key in changes)
        return frozenset(key for key, row in found if row is not None and row[0] >= LEAST)

    async def _put_piece(self, piece: Put, end: float) -> None:
        """Nobody sees it before the transaction, so that it may be written twice."""
        compares = [Mod(self._keys.owner, self._owner)]
        if isinstance(
            await self._patience.asked(lambda seconds: self._etcd.commit([piece], compares, seconds=seconds), end),
            Conflict,
        ):
            await self._find_cause(end)
            raise errors.Unavailable("etcd contradicts itself")

    async def _write(self, written: Written, end: float) -> Last:
        """Write a transaction, once. Uncertain if nobody can say."""
        keys, token = self._keys, uuid.uuid4().hex.encode()
        operations = [*written.operations, Put(keys.last, token)]
        compares = [Mod(keys.owner, self._owner), Mod(keys.last, self._shown.last.mod)]
        lost: Uncertain | None = None
        for number in itertools.count():
            _RETRIES.add(1 if number else 0)
            try:
                done = await self._etcd.commit(operations, compares, seconds=self._patience.attempt)
                if isinstance(done, Committed):
                    return self._written(Last(done.revision, token))
            except Uncertain as error:
                lost = error
            except errors.Unavailable as error:  # this one was not written
                await self._patience.failed(end, lost or error)
                continue
            try:
                last = Last.of(
                    await self._patience.asked(lambda seconds: self._etcd.get(keys.last, seconds=seconds), end)
                )
            except errors.Unavailable as error:
                raise lost or error from None
            if last.id == token:
                return self._written(last)
            if last.mod != self._shown.last.mod:  # so none that was sent can be written any more
                await self._find_cause(end)
                _CONFLICTS.add(1)
                raise Again
            if lost is None:  # it was the other compare
                await self._find_cause(end)
            await self._patience.failed(end, lost or errors.Unavailable("etcd contradicts itself"))
        raise AssertionError("unreachable")

    def _written(self, last: Last) -> Last:
        _COMMITS.add(1)
        self._patience.worked()
        return last

    async def _find_cause(self, end: float) -> None:
        """After a false compare: NotOwnerError's words if another node owns the records now."""
        owner = await self._patience.asked(lambda seconds: self._etcd.get(self._keys.owner, seconds=seconds), end)
        if owner is None or owner.mod != self._owner:
            self._refuse(owner)
            raise errors.Unavailable(str(self._refused))

    def _refuse(self, owner: KeyValue | None) -> None:
        who = "nobody" if owner is None else str(Owner.decode(owner.value))
        self._refused = NotOwnerError(
            f"metadata store: the records at {self._keys.prefix.decode()} in etcd were taken over by {who}; this node "
            "writes nothing any more"
        )
        log.error("%s", self._refused)

    async def catch_up(self) -> None:
        """Wait until the mirror shows what others have written (``sqlite.Original``)."""
        keys = self._keys
        wanted = Last.of(
            await self._patience.asked(
                lambda seconds: self._etcd.get(keys.last, seconds=seconds), self._patience.end(self._away)
            )
        )
        try:
            async with asyncio.timeout(_CAUGHT_UP):
                while not self._shows(wanted):
                    self._check_writable()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1.0):
                            await self._moved.wait()
        except TimeoutError:
            raise errors.Unavailable(f"metadata store: etcd's changes did not come within {_CAUGHT_UP:g} s") from None
        self._check_writable()

    def _shows(self, last: Last) -> bool:
        return bool(self._shown.revision) and self._shown.last.mod >= last.mod

    # ------------------------------------------------------------------------------------------ following etcd

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow etcd during the block, which begins when the mirror is up to date; or, if etcd does not answer, with a
        mirror that may be read for some more time. Else it begins when etcd is back. NotOwnerError if the records are
        another node's.
        """
        async with (
            loops.running("the changes in etcd", self._follow_always),
            loops.running("the time of etcd's mirror", self._keep_time),
        ):
            said = time.monotonic() + 2.0
            while self._away is not None:
                if self._refused is not None:
                    raise self._refused
                if self._tried and self._shown.revision and (left := self.standing.reads):
                    log.warning("etcd is away: reads go on for %.0f s, nothing is written: %s", left, self._why)
                    break
                if time.monotonic() > said:
                    log.warning("waiting for etcd: %s", self._why)
                    said = time.monotonic() + 10.0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._moved.wait()
            self._read = True
            self._payments.begin()
            try:
                yield
            finally:
                await self._payments.end()

    async def _keep_time(self) -> None:
        """Note in the mirror that it is in step, for the next process."""
        while True:
            await asyncio.sleep(self._noted)
            if self._away is None:
                await self.mirror.replicate(self._note)

    def _note(self, connection: sqlite3.Connection) -> None:
        etcd_mirror.note(connection, self._keys.prefix, self._shown.revision, self._shown.last)

    async def close(self) -> None:
        await self.mirror.close()

    async def _follow_always(self) -> None:
        pause = PAUSE
        while True:
            begun = time.monotonic()
            try:
                await self._follow()
            except Compacted:
                log.warning("etcd has forgotten revision %d: all records are listed", self._shown.revision)
                self._shown.revision = 0
            except NotOwnerError as error:
                self._refused = error
                self._left(short(error))
            except errors.NodeError as error:
                self._left(short(error))
            except Exception as error:
                self._left(f"this node failed to follow it: {error!r}")
                raise
            pause = PAUSE if time.monotonic() > begun + self._longest else min(2 * pause, self._longest)
            await asyncio.sleep(pause)

    def _left(self, why: str) -> None:
        if self._away is None:
            log.error("etcd is away: %s", why)
            self._away = self._lost or etcd_mirror.now()
        self._why, self._tried, self._answers = why, True, False
        self._tell()

    def _reached(self) -> None:
        if self._away is not None:
            log.info("etcd is there, at revision %d", self._shown.revision)
        self._away, self._lost, self._why, self._refused = None, None, "", None
        self._patience.worked()
        self._tell()

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _follow(self) -> None:
        """Follow etcd as long as a lease lasts. It outlives an election, and the member that was watched."""
        async with self._etcd.lease(ALIVE) as lease:
            await self._claim(lease.id)
            fault("metadata.etcd.claimed")
            while not lease.lost.is_set():
                try:
                    async with asyncio.timeout(None) as limit:
                        lost = loops.aside("waiting for the end of etcd's lease", _ends(lease, limit))
                        try:
                            await self._watch()
                        finally:
                            lost.cancel()
                except TimeoutError:
                    if not limit.expired():
                        raise
                except OvertakenError as error:
                    log.warning("%s: all records are listed", error)
                    self._shown.revision = 0
                except errors.Unavailable as error:
                    if self._away is None and self._lost is None:
                        # only the member that was watched may be away: another one is asked at once
                        self._lost = etcd_mirror.now()
                        continue
                    self._left(short(error))
                    await asyncio.sleep(min(PAUSE, self._longest))

    async def _watch(self) -> None:
        self._answers = True
        self._tell()
        if not self._shown.revision or not await self._has_same_past():
            await self._list()
        async with self._etcd.watch(self._keys.prefix, after=self._shown.revision) as changes:
            wanted = Last.of(await self._etcd.get(self._keys.last))
            if self._shows(wanted):
                self._reached()
            async for each in changes:
                await self._apply(each.revision, each.changes)
                if (self._away is not None or self._lost is not None) and self._shows(wanted):
                    self._reached()

    async def _claim(self, lease: int) -> None:
        """Own the records, or still own them. NotOwnerError."""
        keys, node = self._keys, self._node
        found = await self._etcd.get(keys.owner)
        alive = Put(keys.alive, self._instance, lease)
        if found is not None and self._owner:
            if found.mod != self._owner:
                self._refuse(found)
                assert self._refused is not None
                raise self._refused
            if not isinstance(await self._etcd.commit([alive], [Mod(keys.owner, self._owner)]), Committed):
                raise errors.Unavailable("metadata store: the owner of the records has just changed")
            return
        if found is not None:
            owner = Owner.decode(found.value)
            there = await self._etcd.get(keys.alive)
            if owner.node != node.node:
                raise NotOwnerError(
                    f"metadata store: the records at {keys.prefix.decode()} in etcd are those of {owner}, which "
                    f"{'serves them now' if there else 'is not running'}. Give this node another [metadata.etcd] "
                    "prefix; or, if it is to take the other's place, splitd metadata migrate --to etcd --take-over"
                )
            if there is not None and (owner.machine, owner.root) != (node.machine, node.root):
                raise NotOwnerError(
                    f"metadata store: the records at {keys.prefix.decode()} in etcd are served by {owner}, and this "
                    f"node is a copy of it. Stop one of them; this one may start {ALIVE:g} s later"
                )
        prefix = keys.prefix.decode()
        if found is None and self._claims is not None and self._claims.has(prefix):
            raise NotOwnerError(
                f"metadata store: this node's records at {prefix} are not in etcd any more. Restore etcd from a "
                f"backup; or remove {self._claims}, to begin without records (splitd metadata import can bring some)"
            )
        done = await self._etcd.commit(
            [Put(keys.owner, node.encode()), alive, *([] if found else [Put(keys.last, uuid.uuid4().hex.encode())])],
            [Mod(keys.owner, found.mod if found else 0)],
        )
        if not isinstance(done, Committed):
            raise errors.Unavailable("metadata store: another process claims the same records")
        self._owner = done.revision
        if found is None:  # whatever the mirror shows was another store's
            self._shown.revision = 0
        if self._claims is not None:
            await asyncio.to_thread(self._claims.add, prefix)

    async def _apply(self, revision: int, changes: tuple[Change, ...]) -> None:
        """Show in the mirror what happened in etcd up to ``revision``; our own commits are there already."""
        keys, shown = self._keys, self._shown
        owner = next((each.pair for each in reversed(changes) if each.key == keys.owner), None)
        if owner is not None and owner.mod > self._owner > 0:
            self._refuse(owner)
            assert self._refused is not None
            raise self._refused
        last = next((Last.of(each.pair) for each in reversed(changes) if each.key == keys.last), NONE)
        newest = {each.key.removeprefix(keys.records): each for each in changes if each.key.startswith(keys.records)}
        rows: list[tuple[bytes, int, bytes | None]] = []
        for key, each in newest.items():
            if not shown.has(key, each.revision):
                value = None if each.pair is None else await self._value(key, each.pair, revision)
                rows.append((key, each.revision, value))

        def work(connection: sqlite3.Connection) -> list[bytes]:
            if self._later and last.mod > shown.last.mod:
                raise OvertakenError(f"at revision {last.mod} another hand has written the records in etcd")
            etcd_mirror.note(connection, keys.prefix, revision, max(last, shown.last, key=lambda each: each.mod))
            return [
                key
                for key, at, value in rows
                if not shown.has(key, at)  # an own commit may have ended meanwhile
                and key not in self._later
                and etcd_mirror.apply(connection, key, value)
            ]

        if rows or last.mod > shown.last.mod or not changes:
            await self.mirror.replicate(work)
        shown.reached(revision, last)
        self._tell()

    async def _value(self, key: bytes, pair: KeyValue, revision: int) -> bytes | None:
        """A record's value, whose pieces are fetched. None if it is of an own commit that has just ended."""
        found = decode(key, pair.value)
        if not isinstance(found, Pieces):
            return found
        await self.mirror.replicate(lambda _: [])  # waits for the commit that is on its way
        if self._shown.has(key, pair.mod):
            return None
        prefix = self._keys.pieces_of(key) + found.id.encode() + b"/"
        pieces = [
            pair.value async for page in self._etcd.pages(prefix, revision=revision, count=1) for pair in page.pairs
        ]
        return joined(key, found, pieces)

    async def _has_same_past(self) -> bool:
        """Whether etcd has had what the mirror shows. It has not if it was restored from a backup, and has grown since,
        or if it is another one. Compacted if it has forgotten.
        """
        key, shown = self._keys.last, self._shown
        pages = self._etcd.pages(key, revision=shown.newest)
        found = [Last.of(pair) async for page in pages for pair in page.pairs if pair.key == key]
        if found == [shown.last]:
            return True
        log.warning("etcd at revision %d is not what the mirror shows: all records are listed", shown.newest)
        return False

    async def _list(self) -> None:
        """Show everything that etcd has now."""
        keys, begun = self._keys, time.monotonic()
        listing = etcd_mirror.Listing(read=self._read)
        self._shown.revision = 0  # from here on nothing is written
        await self.mirror.replicate(listing.begin)
        pieces: dict[bytes, list[bytes]] = {}
        count, revision, last = 0, 0, NONE
        async for page in self._etcd.pages(keys.prefix):
            revision, rows = page.revision, []
            for pair in page.pairs:
                if pair.key == keys.last:
                    last = Last.of(pair)
                elif pair.key.startswith(keys.pieces):
                    pieces.setdefault(pair.key.rpartition(b"/")[0], []).append(pair.value)
                elif pair.key.startswith(keys.records):
                    key = pair.key.removeprefix(keys.records)
                    value = decode(key, pair.value)
                    if isinstance(value, Pieces):
                        value = joined(key, value, pieces.pop(keys.pieces_of(key) + value.id.encode(), []))
                    rows.append((key, value))
            count += len(rows)
            await self.mirror.replicate(lambda connection, rows=rows: listing.add(connection, rows))  # type: ignore[misc]
            fault("metadata.etcd.listing")
            self.progressed()

        def work(connection: sqlite3.Connection) -> list[bytes]:
            etcd_mirror.note(connection, keys.prefix, revision, last)
            self._later.note_none(connection)
            return listing.end(connection)

        await self.mirror.replicate(work)
        self._shown.listed(revision, last)
        self._later.lose()
        self.listed = True
        self._tell()
        log.info("%d records were listed in %.1f s, at revision %d", count, time.monotonic() - begun, revision)
        for left in pieces:  # of transactions that were not written
            await self._etcd.commit([Delete(left, end_of(left))], [Mod(keys.owner, self._owner)])


async def _ends(lease: Lease, limit: asyncio.Timeout) -> None:
    """End what has this limit when the lease ends."""
    await lease.lost.wait()
    limit.reschedule(asyncio.get_running_loop().time())
