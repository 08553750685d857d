"""Sweeping one backend: the raw things that no record and no intent names are removed there.

    read what was once named and is not any more            } what is not listed after that, and still not in use, is gone
    is the raw store ours (its stamp)?
    list what it has
    read records and intents: what nobody names are victims
    in one transaction: mark victims, up to :data:`_BATCH` of them, but those that came to be named since
    remove them, one after the other, and unmark each       } while there are victims
    let the snapshotter clean up

The order matters: whatever appears in the backend between listing and marking has a record or an intent by the time of marking, or is not in the list.

A removal that fails is reported and its thing unmarked, for the next sweep. One whose outcome is not known is asked for again; as long as the
answer is not known the mark stays, and a next sweep begins with it. So do the marks that a dead process left.

Whose a raw store is, by its stamp (rule 5 of the design):

- our id: it is ours, and what is in it and in no record is garbage;
- no id: a new store. If it holds nothing but what we named, it becomes ours. If there is more in it, it was filled by somebody else, or by a metadata store that is lost, and
  that is not ours to delete: as a foreign one, until its operator empties it;
- another id: then nothing is removed; ours, but there is a sign that this database is an older copy (``guard.py``): only what we named is removed; that it is damaged: nothing;
- no Stamp service: foreign. Only what we named is removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from services.kit import errors
from services.kit.faults import fault
from services.kit.tracing import span
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc import guard, plan
from services.metadata.gc.changes import PORTION, Spared
from services.metadata.gc.raw import Listing, RawStores
from services.metadata.store import Mark, Nanoseconds, Raw
from services.metadata.transactions import Reader, Transaction

log = logging.getLogger(__name__)

_BATCH, _SNAPSHOT_BATCH = 64, 16
"""Victims that are marked at a time; whoever wants one of them waits for as many removals at most. A snapshot's may take a second."""
_TOGETHER, _SNAPSHOTS_TOGETHER = 256, 64
"""The same where a backend takes many in one call: some milliseconds of its disk's."""
_FORGOTTEN = 256
"""Things that are not there any more whose names are forgotten at a time."""
_ATTEMPTS = 2
"""Times to ask for the removal of one thing while the outcome is not known; then it stays marked until the next sweep."""
_BESIDE = 5.0
"""Seconds for the snapshotters to be looked at."""
_UNKNOWN = (errors.Unavailable, errors.DeadlineExceeded, errors.Cancelled)

Ownership = Literal["own", "new", "named", "nothing"]
"""Whose a raw store is: all in it is ours; the same, but it has no stamp yet; only what we named; not even that."""


@dataclass(slots=True)
class Swept:
    """What one sweep did."""

    removed: list[Raw] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """With why, as ``Collected.failed`` has them."""
    postponed: bool = False
    """The backend could not be asked, or not all of it could be decided: to be swept again without being asked for."""


def title(raw: Raw) -> str:
    """A raw thing as ``Collected`` names it."""
    if raw.kind == "blob":
        return f"content {raw.name}"
    if raw.kind == "ingest":
        return f"ingest {raw.name}"
    return f"snapshot {raw.backend.removeprefix('snapshots.')} {raw.name}"


@dataclass(frozen=True, slots=True)
class _View:
    """What a sweep goes by: the backend as it was, and whose it is."""

    listing: Listing
    ownership: Ownership
    gone: Sequence[Raw]
    """What was named once and not any more, before the listing, and is not in it."""
    victims: list[Raw]
    """In the order in which they go."""
    marked: Sequence[Raw]
    """Those with marks of an earlier sweep; of these some are ``kept``, and some ``missing`` in the listing and in all records."""
    kept: frozenset[Raw]
    missing: frozenset[Raw]
    deferred: bool
    """Blobs have to wait for a commit of an unknown digest."""
    reason: str
    """Why not all that is unknown may be removed."""
    sign: str
    """Of this database being older than the backend, seen now; "" if there is none, or it was seen before."""
    unnoted: dict[str, int]
    """What :func:`.guard.note` is to be told when all went well."""


class Sweeper:
    """Sweeps ``backend``; one sweep at a time."""

    def __init__(self, backend: str, database: Database, stores: RawStores, store_id: str) -> None:
        self.backend = backend
        self._database = database
        self._stores = stores
        self._store_id = store_id
        self._unseen = not backend.startswith("snapshots.")
        """Blobs have no numbers: what the snapshotters' names say of this database has yet to be seen."""
        self._said = ""
        self._failed: list[str] = []
        self._together: bool | None = None
        """Whether the backend takes many removals in one call; known when it was asked for the first."""

    async def sweep(self) -> Swept:
        """Once. What the backend, or a metadata store that cannot write, refuses is in the result."""
        swept = Swept()
        with span("gc.sweep", backend=self.backend) as trace:
            try:
                await self._sweep(swept)
            except errors.NodeError as error:
                swept.postponed = True
                swept.failed.append(f"backend {self.backend}: {error}")
            trace.set(removed=len(swept.removed), failed=len(swept.failed), postponed=swept.postponed)
        for failure in swept.failed:
            if failure not in self._failed:  # said once, however often it is tried again
                log.log(logging.INFO if swept.postponed else logging.WARNING, "not collected: %s", failure)
        self._failed = swept.failed
        if swept.removed:
            log.debug("collected in backend %s: %d things", self.backend, len(swept.removed))
        return swept

    async def _sweep(self, swept: Swept) -> None:
        read = self._database.transactions.read
        idle = await read(lambda tx: plan.unused(tx, self.backend))
        stamp = await self._stores.stamp(self.backend)
        listing = await self._stores.list(self.backend)
        with self._database.transactions.watch() as written:
            if self._unseen and stamp == self._store_id:
                await self._look_beside()
            view = await read(lambda tx: self._look(tx, stamp, listing, idle))
            if view.sign:
                await guard.hold(self._database, view.sign)
            if view.ownership == "new":
                await self._stores.set_stamp(self.backend, self._store_id)
            if view.ownership == "nothing":
                swept.failed.append(f"backend {self.backend}: {view.reason}")
            elif view.reason != self._said:
                log.warning("backend %s: %s", self.backend, f"{view.reason}: only what is known here is collected" if view.reason else "all in it is collected again")
            self._said = view.reason
            swept.postponed = view.deferred
            if not await self._act(view, Spared(listing, written), swept):
                return
        if view.ownership in ("own", "new") and not swept.failed and not swept.postponed and view.unnoted:
            await self._database.transactions.write(lambda tx: guard.note(tx, self.backend, view.unnoted), lasting=False)
        if self.backend.startswith("snapshots.") and view.ownership != "nothing":
            try:
                await self._stores.cleanup(self.backend)
            except errors.NodeError as error:
                swept.failed.append(f"backend {self.backend}: cleanup: {error}")

    async def _look_beside(self) -> None:
        """Look for signs in the snapshotters that are ours. As long as one does not answer, no blob goes that is not known."""
        gateway = self._database.view(schema.GATEWAY.get)
        try:
            async with asyncio.timeout(_BESIDE):
                for backend in gateway.backends() if gateway is not None else ():
                    if not backend.startswith("snapshots.") or await self._stores.stamp(backend) != self._store_id:
                        continue
                    listing = await self._stores.list(backend)
                    read = self._database.transactions.read
                    if sign := await read(lambda tx, listing=listing: self._sign(tx, self._store_id, listing, plan.uses(tx, listing.backend),  # type: ignore[misc]
                                                                                 plan.named(tx, listing.backend))):
                        await guard.hold(self._database, sign)
        except (errors.NodeError, TimeoutError):
            return
        self._unseen = False

    # -- deciding

    def _look(self, tx: Reader, stamp: str | None, listing: Listing, idle: frozenset[Raw]) -> _View:
        used = plan.uses(tx, self.backend)
        once = plan.named(tx, self.backend)
        sign = self._sign(tx, stamp, listing, used, once)
        ownership, reason, undecided = self._owner(tx, stamp, listing, used, once, sign)
        own = ownership in ("own", "new")
        found = [] if ownership == "nothing" else plan.victims(listing, used, once, own=own)
        deferred = undecided or (used.every_blob and len(found) < len(plan.victims(listing, replace(used, every_blob=False), once, own=own)))
        marked = [Raw(*key) for key, _ in schema.SWEEPING.scan(tx, self.backend)]  # type: ignore[arg-type]
        listed, going = listing.raws(), set(found)
        return _View(listing, ownership, sorted(idle - listed - used.raws), found, marked, frozenset(raw for raw in marked if raw not in going),
                     frozenset(raw for raw in marked if raw not in listed and raw not in used.raws), deferred, reason, sign,
                     guard.unnoted(tx, self.backend))

    def _sign(self, tx: Reader, stamp: str | None, listing: Listing, used: plan.Uses, once: frozenset[Raw]) -> str:
        if stamp != self._store_id or guard.held(tx) is not None:
            return ""
        name = guard.stranger(tx, listing, used, once)
        return guard.OLDER.format(backend=listing.backend, name=name) if name else ""

    def _owner(self, tx: Reader, stamp: str | None, listing: Listing, used: plan.Uses, once: frozenset[Raw], sign: str) -> tuple[Ownership, str, bool]:
        """Whose it is, why not ours, and whether that has to be asked again."""
        if stamp is None:
            return "named", "", False
        if stamp == self._store_id:
            known = guard.held(tx)
            if known is not None and known.damaged:
                return "nothing", known.reason, False
            reason = known.reason if known is not None else sign
            return ("named", reason, self._unseen) if reason or self._unseen else ("own", "", False)
        if stamp:
            return "nothing", f"it belongs to another metadata store ({stamp}, not {self._store_id}): nothing in it is collected", False
        unknown = listing.raws() - once - used.raws
        if not unknown:
            return "new", "", False
        if used.every_blob:
            return "named", "", True  # one of these may be what an open commit made
        return "named", (f"it was not empty when this metadata store first saw it ({len(unknown)} unknown things, such as {title(min(unknown))})"), False

    def _unmark(self, tx: Transaction, view: _View, spared: Spared) -> list[Raw]:
        """Resolve the marks that earlier sweeps left, but for those of victims, whose turn comes; the others' are taken off."""
        spared.look(tx)
        unmarked = [raw for raw in view.marked if raw in spared or raw in view.kept]
        for raw in unmarked:
            schema.clear_mark(tx, raw, gone=raw in view.missing and raw not in spared)
        return unmarked

    def _forget(self, tx: Transaction, some: Iterable[Raw], spared: Spared) -> None:
        """What was once named is not there, and nobody names it."""
        spared.look(tx)
        for raw in some:
            if raw not in spared:
                schema.NAMED.delete(tx, *raw)

    def _mark(self, tx: Transaction, view: _View, batch: list[Raw], spared: Spared, now: Nanoseconds) -> tuple[list[Raw], list[Raw]]:
        """Mark those of the batch that are victims still. These, and those that are none any more.

        A sweep may take hours, and damage may be met with meanwhile: what it was to take may have been judged by what this database had lost.
        """
        spared.look(tx)
        held = guard.held(tx)
        staying = {raw for raw in batch if raw in spared or (held is not None and (held.damaged or not schema.NAMED.has(tx, *raw)))}
        for raw in staying:
            schema.clear_mark(tx, raw, gone=False)  # of an earlier sweep, it may be
        chosen = [raw for raw in batch if raw not in staying]
        for raw in chosen:
            snapshot = view.listing.snapshots.get(raw.name) if raw.kind == "snapshot" else None
            schema.set_mark(tx, raw, Mark(since=now, reference=snapshot.reference if snapshot is not None else ""))
        return chosen, sorted(staying)

    # -- acting

    async def _act(self, view: _View, spared: Spared, swept: Swept) -> bool:
        """Do what the look gave rise to, bit by bit; False if the backend is away, so that the rest has to wait."""
        write = self._database.transactions.write
        await self._catch_up(spared)
        if view.marked:
            self._database.wake(*await write(lambda tx: self._unmark(tx, view, spared)))
        for start in range(0, len(view.gone), _FORGOTTEN):
            await write(lambda tx, some=view.gone[start:start + _FORGOTTEN]: self._forget(tx, some, spared), lasting=False)  # type: ignore[misc]
        start = 0
        while start < len(view.victims):
            batch = self._batch(view.victims, start)
            start += len(batch)
            if not await self._take(view, batch, spared, swept):
                return False
        return True

    def _batch(self, victims: Sequence[Raw], start: int) -> list[Raw]:
        """Those that go next, all of them snapshots or none."""
        snapshots = victims[start].kind == "snapshot"
        most = (_SNAPSHOTS_TOGETHER if snapshots else _TOGETHER) if self._together else (_SNAPSHOT_BATCH if snapshots else _BATCH)
        return [raw for raw in victims[start:start + most] if (raw.kind == "snapshot") is snapshots]

    async def _catch_up(self, spared: Spared) -> None:
        """Look at what was written, some at a time, until little is left for the next transaction."""
        while spared.behind > PORTION:
            await self._database.transactions.write(lambda tx: spared.look(tx, PORTION))

    async def _take(self, view: _View, batch: list[Raw], spared: Spared, swept: Swept) -> bool:
        """Mark, remove and unmark a batch; False if the backend is away, so that the rest has to wait."""
        await self._catch_up(spared)
        now = time.time_ns()
        chosen, staying = await self._database.transactions.write(lambda tx: self._mark(tx, view, batch, spared, now))
        self._database.wake(*staying)
        swept.postponed = swept.postponed or spared.every_blob
        fault("gc.after-mark")
        unmarking = _Unmarking(self._database)
        there = await self._removed_together(chosen, unmarking, swept) if self._together is not False and chosen else None
        if there is None:
            there = await self._removed_singly(chosen, unmarking, swept)
        await unmarking.done()
        return there

    async def _removed_together(self, chosen: list[Raw], unmarking: _Unmarking, swept: Swept) -> bool | None:
        """Remove them in one call; False if the backend is away, None if it takes one at a time only."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                outcomes = await self._stores.remove_all(self.backend, chosen)
            except errors.Unimplemented:
                self._together = False
                return None
            except _UNKNOWN as error:
                if attempt < _ATTEMPTS and not isinstance(error, errors.DeadlineExceeded):
                    continue
                for raw in chosen:
                    self._ended(raw, error, unmarking, swept)
                return not isinstance(error, errors.Unavailable)
            self._together = True
            for raw, outcome in zip(chosen, outcomes, strict=True):
                if isinstance(outcome, errors.NotFound):
                    self._ended(raw, attempt > 1, unmarking, swept)  # by our first attempt, then
                else:
                    self._ended(raw, outcome or True, unmarking, swept)
            return not any(isinstance(outcome, errors.Unavailable) for outcome in outcomes)
        raise AssertionError

    async def _removed_singly(self, chosen: list[Raw], unmarking: _Unmarking, swept: Swept) -> bool:
        """Remove one after the other; False if the backend is away."""
        away = False
        for raw in chosen:
            if away:
                unmarking.add(raw, gone=False)  # never asked for
                continue
            try:
                ended: bool | errors.NodeError = await self._remove(raw)
            except errors.NodeError as error:
                ended, away = error, isinstance(error, errors.Unavailable)
            self._ended(raw, ended, unmarking, swept)
        return not away

    def _ended(self, raw: Raw, ended: bool | errors.NodeError, unmarking: _Unmarking, swept: Swept) -> None:
        """A removal failed, or the thing is gone: whether by us."""
        if isinstance(ended, errors.NodeError):
            swept.failed.append(f"{title(raw)}: {ended}")
            if isinstance(ended, _UNKNOWN):
                swept.postponed = True  # it stays marked: the removal may still happen
            else:
                unmarking.add(raw, gone=False)
            return
        fault("gc.mid-sweep")
        if ended:
            swept.removed.append(raw)
        unmarking.add(raw, gone=True)

    async def _remove(self, raw: Raw) -> bool:
        """Whether it was us who removed it. An error of :data:`_UNKNOWN` says that nobody knows whether it is there."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._stores.remove(raw)
            except errors.NotFound:
                return attempt > 1  # by our first attempt, then
            except _UNKNOWN as error:
                if attempt == _ATTEMPTS or isinstance(error, errors.DeadlineExceeded):
                    raise
            else:
                return True
        raise AssertionError


class _Unmarking:
    """Takes marks off while removals go on: those that came together in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Raw, bool]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, raw: Raw, *, gone: bool) -> None:
        """The removal of ``raw`` is over; ``gone``: the backend does not have it any more."""
        self._waiting.append((raw, gone))
        if self._task is None or self._task.done():
            if self._task is not None and not self._task.cancelled():
                self._task.exception()  # what failed is tried again now
            self._task = asyncio.ensure_future(self._run())

    async def done(self) -> None:
        """Wait until it is so."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []

            def work(tx: Transaction, taken: list[tuple[Raw, bool]] = taken) -> None:
                for raw, gone in taken:
                    schema.clear_mark(tx, raw, gone=gone)

            fault("gc.before-unmark")
            try:
                await self._database.transactions.write(work, lasting=False)  # a mark that is there again is resolved by the next sweep
            except BaseException:
                self._waiting[:0] = taken
                raise
            self._database.wake(*(raw for raw, _ in taken))
