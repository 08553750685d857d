"""Sweeping one backend: the raw things that no record and no intent names are removed there.

    take what the collector found in the records: what is named, and what once was            } from here on what is
    written is noted is the raw store ours (its stamp)? list what it has: what nobody names are victims. What once was
    named and is not there is gone mark some victims, up to ``Measures.together``, but those that came to be named since
    remove them, while the next are marked                                                   } while there are victims
    unmark them
    let the snapshotter clean up

The order matters: whatever appears in the backend by the time of marking has a record or an intent, known or noted, or
is not in the list.

What never was named by this database is in a store of ours only after a crash, so that a content store which was once
looked through, from one end to the other, is not listed each time: its victims are what is known and named no more.

Nothing is removed before the end of its record is on the disk; the first mark waits for that, the others need not: a
mark lost in a power cut is of a thing that nobody names, and a removal that was under way in a store of ours ended with
it. In a foreign one, which may be elsewhere, it may still happen: there each mark lasts.

Blobs that go in one call have one mark together, a row with all their digests.

A removal that fails is reported and its thing unmarked, for the next sweep. One whose outcome is not known is asked for
again; as long as the answer is not known the mark stays, and a next sweep begins with it. So do the marks that a dead
process left.

Whose a raw store is, by its stamp (rule 5 of the design):

- our id: it is ours, and what is in it and in no record is garbage;
- no id: a new store. If it holds nothing but what we named, it becomes ours. If there is more in it, it was filled by
  somebody else, or by a metadata store that is lost, and that is not ours to delete: as a foreign one, until its
  operator empties it, or says that it may go (:func:`.guard.release`);
- another id: then nothing is removed, until its operator says that the store is ours. Not so of a store that is
  another's by our configuration, such as another node's snapshotter, of which our operator says nothing; ours, but
  there is a sign that this database is an older copy (``guard.py``): only what we named is removed; that it is damaged:
  nothing;
- no Stamp service: foreign. Only what we named is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from services.kit import errors, loops
from services.kit.faults import fault
from services.kit.tracing import span
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc import guard, plan
from services.metadata.gc.changes import PORTION, Spared
from services.metadata.gc.measures import Measures
from services.metadata.gc.raw import Listing, RawStores
from services.metadata.gc.turns import Turns
from services.metadata.store import Mark, Nanoseconds, Raw
from services.metadata.transactions import Key, Reader, Transaction

log = logging.getLogger(__name__)

_FORGOTTEN = 256
"""Things that are not there any more whose names are forgotten at a time."""
_ATTEMPTS = 2
"""Times to ask for the removal of one thing while the outcome is not known; then it stays marked until the next
sweep.
"""
_UNKNOWN = (errors.Unavailable, errors.DeadlineExceeded, errors.Cancelled)

Ownership = Literal["own", "new", "taken", "named", "nothing"]
"""Whose a raw store is: all in it is ours; the same, but it has no stamp yet; the same, but it has another's; only
what we named; not even that.
"""
_OURS = ("own", "new", "taken")


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
    """Those with marks of an earlier sweep; of these some are ``kept``, and some ``missing`` in the listing and in
    all records.
    """
    kept: frozenset[Raw]
    missing: frozenset[Raw]
    deferred: bool
    """Blobs have to wait for a commit of an unknown digest."""
    reason: str
    """Why not all that is unknown may be removed."""
    sign: str
    """Of this database being older than the backend, or another than its, seen now; "" if there is none, or it was
    seen before.
    """
    unnoted: dict[str, int]
    """What :func:`.guard.note` is to be told when all went well."""

    def by_reference(self, raws: list[Raw]) -> dict[str, list[Raw]]:
        """``raws`` by the label containerd.io/snapshot.ref that they have."""
        if not self.listing.snapshots:
            return {"": raws}
        found: dict[str, list[Raw]] = {}
        for raw in raws:
            snapshot = self.listing.snapshots.get(raw.name) if raw.kind == "snapshot" else None
            found.setdefault(snapshot.reference if snapshot is not None else "", []).append(raw)
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """What a sweep begins with."""

    known: plan.Known | None
    """None: it has to look itself."""
    written: MutableSequence[Key]
    """What was written since, until ``noting`` ends."""
    noting: contextlib.ExitStack

    @classmethod
    def of(cls, database: Database, known: plan.Known | None, before: Sequence[Key] = ()) -> _Found:
        """``before``: what was written until now."""
        noting = contextlib.ExitStack()
        written = noting.enter_context(database.transactions.watch())
        written[:0] = before
        return cls(known, written, noting)


class Sweeper:
    """Sweeps ``backend``; one sweep at a time."""

    def __init__(
        self,
        backend: str,
        database: Database,
        stores: RawStores,
        store_id: str,
        *,
        foreign: bool = False,
        measures: Measures = Measures(),
    ) -> None:
        self.backend = backend
        self._measures = measures
        self._foreign = foreign
        self._database = database
        self._stores = stores
        self._store_id = store_id
        self._unseen = not backend.startswith("snapshots.")
        """Blobs have no numbers: what the snapshotters' names say of this database has yet to be seen."""
        self._said = ""
        self._failed: list[str] = []
        self._together: bool | None = None
        """Whether the backend takes many removals in one call; known when it was asked for the first."""
        self._everything = True
        """The next sweep looks through all that is there."""
        self._found: _Found | None = None
        self._turns = Turns(self._sweep_once)

    def ask(
        self, known: plan.Known | None = None, written: Sequence[Key] = (), *, everything: bool = True
    ) -> asyncio.Task[Swept]:
        """A sweep that begins after this call. ``known`` is what somebody found in the records, before ``written``
        was, which comes until now.
        """
        self._everything = self._everything or everything
        if self._found is not None:
            self._found.noting.close()  # older than this
        self._found = _Found.of(self._database, known, written) if known is not None else None
        return self._turns.ask()

    async def close(self) -> None:
        """End what runs, and what waits to."""
        await self._turns.close()
        if self._found is not None:
            self._found.noting.close()

    async def _sweep_once(self) -> Swept:
        """What the backend, or a metadata store that cannot write, refuses is in the result."""
        swept = Swept()
        everything, self._everything = self._everything, False
        with span("gc.sweep", backend=self.backend) as trace:
            try:
                well = await self._sweep(swept, everything=everything)
            except errors.NodeError as error:
                well, swept.postponed = False, True
                swept.failed.append(f"backend {self.backend}: {error}")
            except BaseException:
                self._everything = True
                raise
            self._everything = self._everything or not well
            trace.set(removed=len(swept.removed), failed=len(swept.failed), postponed=swept.postponed)
        for failure in swept.failed:
            if failure not in self._failed:  # said once, however often it is tried again
                log.log(logging.INFO if swept.postponed else logging.WARNING, "not collected: %s", failure)
        self._failed = swept.failed
        if swept.removed:
            log.debug("collected in backend %s: %d things", self.backend, len(swept.removed))
        return swept

    async def _sweep(self, swept: Swept, *, everything: bool) -> bool:
        """Whether it is as it should be: all is ours and known, and the next sweep need not look for more than what
        is not named any more.
        """
        found, self._found = self._found, None
        if found is None:
            found = _Found.of(self._database, None)
        with found.noting:
            read = self._database.transactions.read
            known = found.known if found.known is not None else await read(lambda tx: plan.known_of(tx, self.backend))
            stamp = await self._stores.stamp(self.backend)
            if (
                not everything
                and stamp == self._store_id
                and not self.backend.startswith("snapshots.")
                and self._database.view(guard.held) is None
            ):
                view = self._idle(known)
            else:
                listing = await self._stores.list(self.backend)
                if self._unseen and stamp == self._store_id:
                    await self._look_beside()
                view = await read(lambda tx: self._look(tx, stamp, listing, known))
            if view.sign:
                await guard.hold(self._database, view.sign)
            if view.ownership in ("new", "taken"):
                await self._stores.set_stamp(self.backend, self._store_id, replaces=stamp or "")
            if view.ownership == "nothing":
                swept.failed.append(f"backend {self.backend}: {view.reason}")
            elif view.reason != self._said:
                log.warning(
                    "backend %s: %s",
                    self.backend,
                    f"{view.reason}: only what is known here is collected"
                    if view.reason
                    else "all in it is collected again",
                )
            self._said = view.reason
            swept.postponed = view.deferred
            if not await self._act(view, Spared(view.listing, found.written), swept):
                return False
        well = view.ownership in _OURS and not swept.failed and not swept.postponed
        if well and view.unnoted:
            await self._database.transactions.write(
                lambda tx: guard.note(tx, self.backend, view.unnoted), lasting=False
            )
        if self.backend.startswith("snapshots.") and view.ownership != "nothing":
            try:
                await self._stores.cleanup(self.backend)
            except errors.NodeError as error:
                swept.failed.append(f"backend {self.backend}: cleanup: {error}")
        return well

    async def _look_beside(self) -> None:
        """Look for signs in the snapshotters that are ours. As long as one does not answer, or a gateway does not know
        yet which there are, no blob goes that is not known.
        """
        gateway = self._database.view(schema.GATEWAY.get)
        if gateway is not None and not gateway.snapshotters:
            return
        try:
            async with asyncio.timeout(self._measures.beside):
                for backend in gateway.backends() if gateway is not None else ():
                    if not backend.startswith("snapshots.") or await self._stores.stamp(backend) != self._store_id:
                        continue
                    listing = await self._stores.list(backend)
                    read = self._database.transactions.read
                    if sign := await read(
                        lambda tx, listing=listing: self._sign(  # type: ignore[misc]
                            tx, self._store_id, listing, plan.known_of(tx, listing.backend)
                        )
                    ):
                        await guard.hold(self._database, sign)
        except (errors.NodeError, TimeoutError):
            return
        self._unseen = False

    # -- deciding

    def _idle(self, known: plan.Known) -> _View:
        """Of a store of ours that was looked through: what is named no more, as if nothing else were there."""
        victims = [raw for raw in known.idle if raw.kind == "ingest"] if known.uses.every_blob else list(known.idle)
        return _View(
            Listing(self.backend),
            "own",
            [],
            victims,
            [],
            frozenset(),
            frozenset(),
            len(victims) < len(known.idle),
            "",
            "",
            self._database.view(lambda tx: guard.unnoted(tx, self.backend)),
        )

    def _look(self, tx: Reader, stamp: str | None, listing: Listing, known: plan.Known) -> _View:
        used, once = known.uses, known.named
        sign = self._sign(tx, stamp, listing, known)
        ownership, reason, undecided = self._owner(tx, stamp, listing, known, sign)
        if reason and stamp is not None and stamp != self._store_id and not self._foreign and guard.held(tx) is None:
            sign = f"{self.backend}: {reason}"
        own = ownership in _OURS
        found = [] if ownership == "nothing" else plan.victims(listing, used, once, own=own)
        deferred = undecided or (
            used.every_blob and len(found) < len(plan.victims(listing, replace(used, every_blob=False), once, own=own))
        )
        marked = list(schema.marked(tx, self.backend))
        listed, going = listing.raws(), set(found)
        return _View(
            listing,
            ownership,
            [raw for raw in known.idle if raw not in listed],
            found,
            marked,
            frozenset(raw for raw in marked if raw not in going),
            frozenset(raw for raw in marked if raw not in listed and raw not in used.raws),
            deferred,
            reason,
            sign,
            guard.unnoted(tx, self.backend),
        )

    def _sign(self, tx: Reader, stamp: str | None, listing: Listing, known: plan.Known) -> str:
        if stamp != self._store_id or guard.held(tx) is not None:
            return ""
        name = guard.stranger(tx, listing, known.named)
        return guard.OLDER.format(backend=listing.backend, name=name) if name else ""

    def _owner(
        self, tx: Reader, stamp: str | None, listing: Listing, known: plan.Known, sign: str
    ) -> tuple[Ownership, str, bool]:
        """Whose it is, why not ours, and whether that has to be asked again."""
        if stamp is None:
            return "named", "", False
        if stamp == self._store_id:
            before = guard.held(tx)
            if before is not None and before.damaged:
                return "nothing", before.reason, False
            reason = before.reason if before is not None else sign
            return ("named", reason, self._unseen) if reason or self._unseen else ("own", "", False)
        released = not self._foreign and guard.released(tx, self.backend)
        if stamp and released:
            return "taken", "", False
        if stamp:
            return (
                "nothing",
                f"it belongs to another metadata store ({stamp}, not {self._store_id}): nothing in it is collected",
                False,
            )
        unknown = {raw for raw in listing.raws() - known.named if not schema.NAMED.has(tx, *raw)}
        if not unknown or released:
            return "new", "", False
        if known.uses.every_blob:
            return "named", "", True  # one of these may be what an open commit made
        return (
            "named",
            (
                f"it was not empty when this metadata store first saw it ({len(unknown)} unknown things, such as "
                f"{title(min(unknown))})"
            ),
            False,
        )

    def _unmark(self, tx: Transaction, view: _View, spared: Spared) -> list[Raw]:
        """Resolve the marks that earlier sweeps left, but for those of victims, whose turn comes; the others' are
        taken off.
        """
        spared.look(tx)
        unmarked = [raw for raw in view.marked if raw in spared or raw in view.kept]
        for gone in (True, False):
            schema.clear_marks(
                tx, [raw for raw in unmarked if (raw in view.missing and raw not in spared) is gone], gone=gone
            )
        return unmarked

    def _forget(self, tx: Transaction, some: Iterable[Raw], spared: Spared) -> None:
        """What was once named is not there, and nobody names it."""
        spared.look(tx)
        for raw in some:
            if raw not in spared:
                schema.NAMED.delete(tx, *raw)

    def _mark(
        self, tx: Transaction, view: _View, batch: list[Raw], spared: Spared, now: Nanoseconds
    ) -> tuple[list[Raw], list[Raw]]:
        """Mark those of the batch that are victims still. These, and those that are none any more.

        A sweep may take hours, and damage may be met with meanwhile: what it was to take may have been judged by what
        this database had lost.
        """
        spared.look(tx)
        held = guard.held(tx)
        staying = {
            raw
            for raw in batch
            if raw in spared or (held is not None and (held.damaged or not schema.NAMED.has(tx, *raw)))
        }
        schema.clear_marks(tx, sorted(staying), gone=False)  # of an earlier sweep, it may be
        chosen = [raw for raw in batch if raw not in staying]
        if view.marked:
            schema.clear_marks(tx, chosen, gone=False)  # each has one
        if self._together and chosen and all(raw.kind == "blob" for raw in chosen):
            schema.mark_together(tx, self.backend, [raw.name for raw in chosen])
            return chosen, sorted(staying)
        for reference, some in view.by_reference(chosen).items():
            schema.set_marks(tx, some, Mark(since=now, reference=reference))
        return chosen, sorted(staying)

    # -- acting

    async def _act(self, view: _View, spared: Spared, swept: Swept) -> bool:
        """Do what the look gave rise to, bit by bit; False if the backend is away, so that the rest has to wait."""
        write = self._database.transactions.write
        await self._catch_up(spared)
        if view.marked:
            self._database.wake(*await write(lambda tx: self._unmark(tx, view, spared)))
        for start in range(0, len(view.gone), _FORGOTTEN):
            await write(
                lambda tx, some=view.gone[start : start + _FORGOTTEN]: self._forget(tx, some, spared),  # type: ignore[misc]
                lasting=False,
            )
        return await self._remove_victims(view, spared, swept)

    async def _remove_victims(self, view: _View, spared: Spared, swept: Swept) -> bool:
        """Mark, remove and unmark, some at a time: the next are marked, and the last unmarked, while some are
        removed. False if the backend is away.
        """
        unmarking = _Unmarking(self._database)
        marking: asyncio.Task[list[Raw]] | None = None
        there, start = True, 0

        def begin() -> asyncio.Task[list[Raw]]:
            nonlocal start
            lasting, batch = start == 0 or view.ownership == "named", self._batch(view.victims, start)
            start += len(batch)
            return loops.task("the marking of victims", self._marked(view, batch, spared, swept, lasting=lasting))

        try:
            while there and (marking is not None or start < len(view.victims)):
                pending, marking = marking or begin(), None
                chosen = await pending
                # Who waits for any blob, as its digest is not known yet, would never find none of them marked.
                awaited = self._database.awaited(self.backend)
                if start < len(view.victims) and not awaited:
                    marking = begin()
                there = await self._removed(chosen, unmarking, swept)
                if awaited:
                    await unmarking.done()
                    await self._database.looked_again()
            if marking is not None:
                for raw in await marking:
                    unmarking.add(raw, gone=False)  # never asked for
        except BaseException:
            if marking is not None:
                marking.cancel()
            raise
        await unmarking.done()
        return there

    def _batch(self, victims: Sequence[Raw], start: int) -> list[Raw]:
        """Those that go next, all of them snapshots or none."""
        snapshots = victims[start].kind == "snapshot"
        most, together = self._measures, self._together
        count = (
            (most.snapshots_together if snapshots else most.together)
            if together
            else (most.snapshots if snapshots else most.victims)
        )
        return [raw for raw in victims[start : start + count] if (raw.kind == "snapshot") is snapshots]

    async def _catch_up(self, spared: Spared) -> None:
        """Look at what was written, some at a time, until little is left for the next transaction."""
        while spared.behind > PORTION:
            await self._database.transactions.write(lambda tx: spared.look(tx, PORTION), lasting=False)

    async def _marked(self, view: _View, batch: list[Raw], spared: Spared, swept: Swept, *, lasting: bool) -> list[Raw]:
        """Mark those of a batch that are victims still."""
        await self._catch_up(spared)
        now = time.time_ns()
        chosen, staying = await self._database.transactions.write(
            lambda tx: self._mark(tx, view, batch, spared, now), lasting=lasting
        )
        self._database.wake(*staying)
        swept.postponed = swept.postponed or spared.every_blob
        fault("gc.after-mark")
        return chosen

    async def _removed(self, chosen: list[Raw], unmarking: _Unmarking, swept: Swept) -> bool:
        """Remove them; False if the backend is away, so that the rest has to wait."""
        there = (
            await self._removed_together(chosen, unmarking, swept) if self._together is not False and chosen else None
        )
        return await self._removed_singly(chosen, unmarking, swept) if there is None else there

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
            if not any(outcomes):  # as nearly always
                fault("gc.mid-sweep")
                swept.removed.extend(chosen)
                unmarking.add(*chosen, gone=True)
                return True
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
        self._waiting: dict[bool, list[Raw]] = {True: [], False: []}
        """By whether they are gone."""
        self._task: asyncio.Task[None] | None = None

    def add(self, *raws: Raw, gone: bool) -> None:
        """The removal of ``raws`` is over; ``gone``: the backend does not have them any more."""
        self._waiting[gone].extend(raws)
        if self._task is None or self._task.done():
            if self._task is not None and not self._task.cancelled():
                self._task.exception()  # what failed is tried again now
            self._task = loops.task("the unmarking of victims", self._run())

    async def done(self) -> None:
        """Wait until it is so."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while any(self._waiting.values()):
            taken, self._waiting = self._waiting, {True: [], False: []}

            def work(tx: Transaction, taken: dict[bool, list[Raw]] = taken) -> None:
                for gone, raws in taken.items():
                    schema.clear_marks(tx, raws, gone=gone)

            fault("gc.before-unmark")
            try:
                # a mark that is there again is resolved by the next sweep
                await self._database.transactions.write(work, lasting=False)
            except BaseException:
                for gone, raws in taken.items():
                    self._waiting[gone][:0] = raws
                raise
            self._database.wake(*taken[True], *taken[False])
