"""Sweeping one backend: the raw things there that no record and no intent names are removed.

    1. take what the collector found in the records: the raw things that are named, and those that once were.
       From here on, everything that is written is noted
    2. ask whether the raw store is ours (its stamp)
    3. list its raw things: those that nothing names are victims; those that once were named and are not listed are gone
    4. mark some victims, at most ``Tuning.together``, except those that were named since
    5. remove them, while the next are marked; clear their marks; go on with 4 while there are victims
    6. let the snapshotter clean up

The order matters: each raw thing that appears in the backend before the marking has a record or an intent, which is
known or noted, or it is not in the list.

A raw store of ours holds things that this database never named only after a crash. So a content store that was swept
completely once is not listed again each time: its victims are the things that are known and no longer named.

Nothing is removed before the end of its record is on the disk. The first mark waits for that; the others need not. If a
power cut loses a mark, nothing names the marked thing, and in a raw store of ours the removal that was under way ended
in the same power cut. In a foreign raw store, which may be on another machine, the removal may still happen: there each
mark is lasting.

Blobs that are removed in one call have one mark together, a row with all their digests.

If a removal fails, the failure is reported and the mark cleared, for the next sweep. If its outcome is unknown, the
removal is repeated. While the outcome stays unknown the mark stays, and the next sweep begins with it, as with marks
that a dead process left.

The stamp says which metadata database owns a raw store (rule 5 of the design):

- Our id: it is ours. Everything in it that has no record is garbage. But if there is a sign that this database is an
  older copy (``guard.py``), only what we named is removed; if this database is damaged, nothing is.
- No id: a new raw store. If it holds only things that we named, it becomes ours. If it holds more, a third party or a
  lost metadata store has filled it, and we must not delete that. It is treated as foreign, until its operator empties
  it or releases it (:func:`.guard.release`).
- Another id: nothing is removed, until the operator says that the raw store is ours. The operator's word does not cover
  a raw store that our configuration declares foreign, such as another node's snapshotter.
- No Stamp service: the raw store is foreign. Only what we named is removed. A candidate's store is foreign, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

from services.kit import errors, loops
from services.kit.faults import fault
from services.kit.tracing import span
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc import guard, plan
from services.metadata.gc.changes import Spared
from services.metadata.gc.coalescing import Coalescing
from services.metadata.gc.forgetting import Forgetting
from services.metadata.gc.raw import Listing, RawStores
from services.metadata.gc.tuning import Tuning
from services.metadata.gc.unmarking import Unmarking
from services.metadata.store import Mark, Nanoseconds, Raw, is_candidate
from services.metadata.transactions import Key, Reader, Transaction

log = logging.getLogger(__name__)

_ATTEMPTS = 2
"""Attempts to remove one thing while the outcome is unknown; after that it stays marked until the next sweep."""
_UNKNOWN = (errors.Unavailable, errors.DeadlineExceeded, errors.Cancelled)

Ownership = Literal["own", "new", "taken", "named", "nothing"]
"""Which things in a raw store may be removed. "own", "new", "taken": all, since it is ours; a "new" one has no stamp
yet, a "taken" one has another's. "named": only those that we named. "nothing": none.
"""
_OURS = ("own", "new", "taken")


@dataclass(slots=True)
class Swept:
    """The result of one sweep."""

    removed: list[Raw] = field(default_factory=list)
    gone: list[Raw] = field(default_factory=list)
    """What is there no longer: ``removed``, and what somebody else had removed before."""
    failed: list[str] = field(default_factory=list)
    """Each with its reason, as in ``Collected.failed``."""
    postponed: bool = False
    """The backend could not be asked, or could not be decided completely: the collector repeats the sweep by itself."""


def title(raw: Raw) -> str:
    """A raw thing as ``Collected`` names it."""
    if raw.kind == "blob":
        return f"content {raw.name}"
    if raw.kind == "ingest":
        return f"ingest {raw.name}"
    return f"snapshot {raw.backend.removeprefix('snapshots.')} {raw.name}"


@dataclass(frozen=True, slots=True)
class _View:
    """The decisions of a sweep about the listed backend and its ownership."""

    listing: Listing
    ownership: Ownership
    gone: Sequence[Raw]
    """The things that were once named and no longer are, as of before the listing, and that are not in it."""
    victims: list[Raw]
    """In the order of their removal."""
    marked: Sequence[Raw]
    """The things with marks of an earlier sweep. Of these, ``kept`` are no victims, and ``missing`` are neither in the
    listing nor in any record.
    """
    kept: frozenset[Raw]
    missing: frozenset[Raw]
    deferred: bool
    """Blobs must wait for a commit whose digest is unknown."""
    reason: str
    """Why unknown things may not be removed."""
    sign: str
    """A sign, seen for the first time, that this database is older than the backend, or not the backend's; "" if there
    is none.
    """
    unchecked: dict[str, int]
    """The numbers for :func:`.guard.record_checked` if the sweep ends well."""

    def by_reference(self, raws: list[Raw]) -> dict[str, list[Raw]]:
        """Group ``raws`` by the value of their label containerd.io/snapshot.ref."""
        if not self.listing.snapshots:
            return {"": raws}
        found: dict[str, list[Raw]] = {}
        for raw in raws:
            snapshot = self.listing.snapshots.get(raw.name) if raw.kind == "snapshot" else None
            found.setdefault(snapshot.reference if snapshot is not None else "", []).append(raw)
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """The input of a sweep."""

    known: plan.Known | None
    """None: the sweep reads the records itself."""
    written: MutableSequence[Key]
    """The keys that are written from then on, until ``noting`` is closed."""
    noting: contextlib.ExitStack

    @classmethod
    def of(cls, database: Database, known: plan.Known | None, before: Sequence[Key] = ()) -> _Found:
        """Begin to note writes; ``before`` are the keys written until now."""
        noting = contextlib.ExitStack()
        written = noting.enter_context(database.transactions.watch())
        written[:0] = before
        return cls(known, written, noting)


class Sweeper:
    """Sweeps ``backend``, one sweep at a time."""

    def __init__(
        self,
        backend: str,
        database: Database,
        stores: RawStores,
        store_id: str,
        *,
        foreign: bool = False,
        tuning: Tuning = Tuning(),
    ) -> None:
        self.backend = backend
        self._tuning = tuning
        self._foreign = foreign
        self._database = database
        self._stores = stores
        self._store_id = store_id
        self._unseen = not backend.startswith("snapshots.")
        """Blobs have no numbers, so the names in the snapshotters must be checked first for signs of an old
        database.
        """
        self._said = ""
        self._failed: list[str] = []
        self._together: bool | None = None
        """Whether the backend removes many things in one call; known after the first request."""
        self._everything = True
        """The next sweep looks at all raw things."""
        self._found: _Found | None = None
        self._forgetting: asyncio.Task[None] | None = None
        """The rest of the last sweep."""
        self._names = Forgetting(database, tuning)
        self._runs = Coalescing(f"the sweep of backend {backend}", self._sweep_once)
        self.moved = 0.0
        """When the backend answered last, or was asked first in this sweep (monotonic); 0.0 without a sweep."""
        self._check_at = 0.0
        """When the snapshotters are looked at again (monotonic)."""

    def ask(
        self, known: plan.Known | None = None, written: Sequence[Key] = (), *, everything: bool = True
    ) -> asyncio.Task[Swept]:
        """A sweep that begins after this call. ``known`` is what the records said before the keys ``written`` were set;
        those are all keys set until now.
        """
        self._everything = self._everything or everything
        if self._found is not None:
            self._found.noting.close()  # older than this
        self._found = _Found.of(self._database, known, written) if known is not None else None
        return self._runs.request()

    async def close(self) -> None:
        """Cancel the current sweep and the next one."""
        await self._runs.close()
        if self._forgetting is not None:
            self._forgetting.cancel()
            await asyncio.gather(self._forgetting, return_exceptions=True)
        if self._found is not None:
            self._found.noting.close()

    async def _sweep_once(self) -> Swept:
        """Sweep. Errors of the backend, and of a metadata store that cannot write, are part of the result."""
        swept = Swept()
        everything, self._everything = self._everything, False
        self.moved = time.monotonic()
        with span("gc.sweep", **{"splitd.backend": self.backend}) as trace:
            try:
                well = await self._sweep(swept, everything=everything)
            except errors.NodeError as error:
                well, swept.postponed = False, True
                swept.failed.append(f"backend {self.backend}: {error}")
            except BaseException:
                self._everything = True
                raise
            finally:
                self.moved = 0.0
            self._everything = self._everything or not well
            trace.put({"splitd.gc.swept": len(swept.removed), "splitd.gc.failed": len(swept.failed)})
        for failure in swept.failed:
            if failure not in self._failed:  # logged once, however often it is repeated
                log.log(logging.INFO if swept.postponed else logging.WARNING, "not collected: %s", failure)
        self._failed = swept.failed
        if swept.removed:
            log.debug("collected in backend %s: %d things", self.backend, len(swept.removed))
        return swept

    async def _sweep(self, swept: Swept, *, everything: bool) -> bool:
        """Sweep, and return whether all is well: everything is ours and known, and the next sweep needs to look only at
        things that are no longer named.
        """
        found, self._found = self._found, None
        if found is None:
            found = _Found.of(self._database, None)
        if self._forgetting is not None:
            await asyncio.wait([self._forgetting])
        with found.noting as noting:
            read = self._database.transactions.read
            known = found.known if found.known is not None else await read(lambda tx: plan.known_of(tx, self.backend))
            # a candidate's store stays its operator's, whatever stamp it has: only what records named is removed there
            stamp = None if is_candidate(self.backend) else await self._stores.stamp(self.backend)
            if (
                not everything
                and stamp == self._store_id
                and not self.backend.startswith("snapshots.")
                and self._database.view(guard.held) is None
            ):
                view = self._idle(known)
            else:
                self.moved = time.monotonic()
                listing = await self._stores.list(self.backend)
                if self._unseen and stamp == self._store_id and time.monotonic() >= self._check_at:
                    await self._check_snapshotters()
                self.moved = time.monotonic()
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
                    f"{view.reason}: only what this database knows is collected"
                    if view.reason
                    else "everything in it is collected again",
                )
            self._said = view.reason
            swept.postponed = view.deferred
            spared = Spared(view.listing, found.written)
            there = await self._act(view, spared, swept)
            if view.ownership in _OURS and swept.gone:
                watch = noting.pop_all()
                self._forgetting = loops.aside(
                    f"forgetting names in {self.backend}", self._names.forget_removed(swept.gone, spared)
                )
                self._forgetting.add_done_callback(lambda _: watch.close())
            if not there:
                return False
        well = view.ownership in _OURS and not swept.failed and not swept.postponed
        if well and view.unchecked:
            await self._database.transactions.write(
                lambda tx: guard.record_checked(tx, self.backend, view.unchecked), lasting=False
            )
        if self.backend.startswith("snapshots.") and view.ownership != "nothing":
            try:
                await self._stores.cleanup(self.backend)
            except errors.NodeError as error:
                swept.failed.append(f"backend {self.backend}: cleanup: {error}")
        return well

    async def _check_snapshotters(self) -> None:
        """Look for signs of an old database in the snapshotters that are ours. No unknown blob is removed while one of
        them does not answer, or while a gateway does not know yet which snapshotters there are.
        """
        gateway = self._database.view(schema.GATEWAY.get)
        if gateway is not None and not gateway.snapshotters:
            return
        try:
            async with asyncio.timeout(self._tuning.beside):
                for backend in gateway.backends() if gateway is not None else ():
                    if not backend.startswith("snapshots.") or is_candidate(backend):
                        continue
                    if await self._stores.stamp(backend) != self._store_id:
                        continue
                    listing = await self._stores.list(backend)
                    read = self._database.transactions.read
                    if sign := await read(
                        lambda tx, listing=listing: self._sign(  # type: ignore[misc]
                            tx, self._store_id, listing, plan.known_of(tx, listing.backend)
                        )
                    ):
                        await guard.hold(self._database, sign)
        except TimeoutError:
            self._check_at = time.monotonic() + self._tuning.again
            return
        except errors.NodeError:
            return
        self._unseen = False

    # -- deciding

    def _idle(self, known: plan.Known) -> _View:
        """The decision about a raw store of ours that was swept completely before: the victims are the things that are
        no longer named, and nothing is listed.
        """
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
            self._database.view(lambda tx: guard.unchecked_numbers(tx, self.backend)),
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
            guard.unchecked_numbers(tx, self.backend),
        )

    def _sign(self, tx: Reader, stamp: str | None, listing: Listing, known: plan.Known) -> str:
        if stamp != self._store_id or guard.held(tx) is not None:
            return ""
        name = guard.unknown_name(tx, listing, known.named)
        return guard.OLDER.format(backend=listing.backend, name=name) if name else ""

    def _owner(
        self, tx: Reader, stamp: str | None, listing: Listing, known: plan.Known, sign: str
    ) -> tuple[Ownership, str, bool]:
        """Return the raw store's ownership, the reason if it is not ours, and whether that must be decided again."""
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
            return "named", "", True  # one of these may be the result of an open commit
        return (
            "named",
            (
                f"it was not empty when this metadata store first saw it ({len(unknown)} unknown things, such as "
                f"{title(min(unknown))})"
            ),
            False,
        )

    def _unmark(self, tx: Transaction, view: _View, spared: Spared) -> list[Raw]:
        """Clear the marks that earlier sweeps left, except those of victims, which are removed later."""
        spared.look(tx)
        unmarked = [raw for raw in view.marked if raw in spared or raw in view.kept]
        for gone in (True, False):
            schema.clear_marks(
                tx, [raw for raw in unmarked if (raw in view.missing and raw not in spared) is gone], gone=gone
            )
        return unmarked

    def _mark(
        self, tx: Transaction, view: _View, batch: list[Raw], spared: Spared, now: Nanoseconds
    ) -> tuple[list[Raw], list[Raw]]:
        """Mark those things of the batch that are still victims. Returns these, and those that no longer are.

        A sweep may take hours. If damage is met meanwhile, the victims may have been chosen because their records were
        lost.
        """
        spared.look(tx)
        held = guard.held(tx)
        staying = {
            raw
            for raw in batch
            if raw in spared or (held is not None and (held.damaged or not schema.NAMED.has(tx, *raw)))
        }
        schema.clear_marks(tx, sorted(staying), gone=False)  # an earlier sweep may have marked them
        chosen = [raw for raw in batch if raw not in staying]
        if view.marked:
            schema.clear_marks(tx, chosen, gone=False)  # each is marked already
        if self._together and chosen and all(raw.kind == "blob" for raw in chosen):
            schema.mark_blobs(tx, self.backend, [raw.name for raw in chosen])
            return chosen, sorted(staying)
        for reference, some in view.by_reference(chosen).items():
            schema.set_marks(tx, some, Mark(since=now, reference=reference))
        return chosen, sorted(staying)

    # -- acting

    async def _act(self, view: _View, spared: Spared, swept: Swept) -> bool:
        """Carry out the decision, in steps. Returns False if the backend is away, so that the rest must wait."""
        write = self._database.transactions.write
        await self._names.catch_up(spared)
        if view.marked:
            self._database.wake(*await write(lambda tx: self._unmark(tx, view, spared)))
        await self._names.forget(view.gone, spared)
        return await self._remove_victims(view, spared, swept)

    async def _remove_victims(self, view: _View, spared: Spared, swept: Swept) -> bool:
        """Mark, remove and unmark, some at a time. While some are removed, the next are marked and the previous
        unmarked. Where one call removes many blobs, a second call is on its way while the first is worked on, so that
        the backend's disk need not wait for us. Return False if the backend is away.
        """
        unmarking = Unmarking(self._database, forget=view.ownership not in _OURS)
        marking: asyncio.Task[list[Raw]] | None = None
        removing: deque[asyncio.Task[bool]] = deque()
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
                # A call that waits for any blob, since its digest is unknown, needs a moment at which none is marked.
                awaited = self._database.has_waiters(self.backend)
                removing.append(loops.task("the removal of victims", self._removed(chosen, unmarking, swept)))
                if start < len(view.victims) and not awaited:
                    marking = begin()
                ahead = 0 if awaited or not self._together or any(raw.kind == "snapshot" for raw in chosen) else 1
                while len(removing) > ahead:
                    there = await removing.popleft() and there
                if awaited:
                    await unmarking.done()
                    await self._database.woken_have_queued()
            while removing:
                there = await removing.popleft() and there
            if marking is not None:
                for raw in await marking:
                    unmarking.add(raw, gone=False)  # their removal was not requested
        except BaseException:
            for task in (marking, *removing):
                if task is not None:
                    task.cancel()
            raise
        await unmarking.done()
        return there

    def _batch(self, victims: Sequence[Raw], start: int) -> list[Raw]:
        """The next victims, of one kind: blobs alone are removed at less cost than other things."""
        kind = victims[start].kind
        snapshots = kind == "snapshot"
        most, together = self._tuning, self._together
        count = (
            (most.snapshots_together if snapshots else most.together)
            if together
            else (most.snapshots if snapshots else most.victims)
        )
        return list(takewhile(lambda raw: raw.kind == kind, victims[start : start + count]))

    async def _marked(self, view: _View, batch: list[Raw], spared: Spared, swept: Swept, *, lasting: bool) -> list[Raw]:
        """Mark those things of a batch that are still victims."""
        await self._names.catch_up(spared)
        now = time.time_ns()
        chosen, staying = await self._database.transactions.write(
            lambda tx: self._mark(tx, view, batch, spared, now), lasting=lasting
        )
        self._database.wake(*staying)
        swept.postponed = swept.postponed or spared.every_blob
        fault("gc.after-mark")
        return chosen

    async def _removed(self, chosen: list[Raw], unmarking: Unmarking, swept: Swept) -> bool:
        """Remove things; False if the backend is away, so that the rest must wait."""
        there = (
            await self._removed_together(chosen, unmarking, swept) if self._together is not False and chosen else None
        )
        self.moved = time.monotonic()
        return await self._removed_singly(chosen, unmarking, swept) if there is None else there

    async def _removed_together(self, chosen: list[Raw], unmarking: Unmarking, swept: Swept) -> bool | None:
        """Remove things in one call; False if the backend is away, None if it removes one at a time only."""
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
                swept.gone.extend(chosen)
                unmarking.add(*chosen, gone=True)
                return True
            for raw, outcome in zip(chosen, outcomes, strict=True):
                if isinstance(outcome, errors.NotFound):
                    self._ended(raw, attempt > 1, unmarking, swept)  # removed by our first attempt
                else:
                    self._ended(raw, outcome or True, unmarking, swept)
            return not any(isinstance(outcome, errors.Unavailable) for outcome in outcomes)
        raise AssertionError

    async def _removed_singly(self, chosen: list[Raw], unmarking: Unmarking, swept: Swept) -> bool:
        """Remove things one by one; False if the backend is away."""
        away = False
        for raw in chosen:
            if away:
                unmarking.add(raw, gone=False)  # its removal was not requested
                continue
            try:
                ended: bool | errors.NodeError = await self._remove(raw)
            except errors.NodeError as error:
                ended, away = error, isinstance(error, errors.Unavailable)
            self.moved = time.monotonic()
            self._ended(raw, ended, unmarking, swept)
        return not away

    def _ended(self, raw: Raw, ended: bool | errors.NodeError, unmarking: Unmarking, swept: Swept) -> None:
        """Note the end of a removal: it failed, or the thing is gone, by us (True) or not."""
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
        swept.gone.append(raw)
        unmarking.add(raw, gone=True)

    async def _remove(self, raw: Raw) -> bool:
        """Remove one thing. Returns whether we removed it. After an error of :data:`_UNKNOWN` it may or may not
        exist.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._stores.remove(raw)
            except errors.NotFound:
                return attempt > 1  # removed by our first attempt
            except _UNKNOWN as error:
                if attempt == _ATTEMPTS or isinstance(error, errors.DeadlineExceeded):
                    raise
            else:
                return True
        raise AssertionError
