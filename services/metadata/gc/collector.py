"""The loop: collects when :mod:`.pace` says so, when somebody waits for it, and when the next lease, image or
ingest expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit import errors, loops
from services.kit.faults import fault
from services.kit.slices import Lane, Steps
from services.kit.tracing import span
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc import guard, plan
from services.metadata.gc.changes import PORTION, ordering, revived, touched
from services.metadata.gc.config import Config
from services.metadata.gc.mark import Everything, Marking, Node, expires, marking, reading
from services.metadata.gc.measures import Measures
from services.metadata.gc.pace import Pace
from services.metadata.gc.raw import RawStores
from services.metadata.gc.sweep import Sweeper, Swept, title
from services.metadata.store import Change, Collected, Event, Nanoseconds
from services.metadata.transactions import Key, Reader, Transaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a look at all records says."""

    size: int
    dead: int
    wake: Nanoseconds | None
    known: dict[str, plan.Known]
    """Of the backends that the gateway has, once the dead records are gone."""
    records: Everything
    marking: Marking
    order: list[Node]
    """The dead, in the order in which they go."""


class Collector:
    """Collects the garbage of one metadata store. ``publish`` gets the events of what it removed. Runs while
    :meth:`running` lasts.
    """

    def __init__(
        self,
        database: Database,
        stores: RawStores,
        config: Config,
        publish: Callable[[Event], None],
        ready: Callable[[], Awaitable[None]] | None = None,
        foreign: Collection[str] = (),
        measures: Measures = Measures(),
    ) -> None:
        """``ready`` is waited for before the first collection; ``foreign`` are the backends that are other people's
        services.
        """
        self._measures = measures
        self._foreign = frozenset(foreign)
        self._ready = ready
        self._database = database
        self._stores = stores
        self._publish = publish
        self._config = config
        self.lane = Lane()
        """Its own: however many lists are read, it gets on."""
        self._pace = Pace(config, time.monotonic())
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[Collected]] = []
        self._store_id = ""
        self._sweepers: dict[str, Sweeper] = {}
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._watchers = loops.Tasks()
        self._all = True
        """The next collection looks through all that the backends have."""
        self._expiry: float | None = None
        self._wake: Nanoseconds | None = None
        """The same by the clock that records go by."""
        self._written: MutableSequence[Key] = []
        """Keys that were set since the last look."""
        self._look_at: float | None = None
        self._closed = False

    # -- what others call

    def schedule(self, change: Change) -> None:
        """Something was written, or removed: collect when it is time."""
        now = time.monotonic()
        before = (self._pace.due(), self._look_at)
        if self._look_at is None:
            self._look_at = now + self._measures.look
        self._pace.changed(now, deletion=change == "deletion")
        if before != (self._pace.due(), self._look_at):
            self._changed.set()

    def connected(self) -> None:
        """A gateway is there, maybe with other backends: look through all of them, for what nobody knows of too.

        At once, not at the next turn: a raw store gets our mark when it is first looked through, and as long as it has
        none, the next metadata store takes it for its own.
        """
        self._all = True
        self._pace.asked(time.monotonic())
        self._changed.set()

    async def collect(self, *, everything: bool = True) -> Collected:
        """Collect what can be, in a collection that begins after this call, and wait for its sweeps. Not
        ``everything``: what is in our stores though nobody here ever named it may stay.
        """
        if self._closed:
            raise errors.Unavailable("the collector has ended")
        self._all = self._all or everything
        future: asyncio.Future[Collected] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._pace.asked(time.monotonic())
        self._changed.set()
        return await future

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Collector]:
        """Collect in the background while the block lasts."""
        with self._database.transactions.watch() as self._written:
            async with self._collecting():
                yield self

    @contextlib.asynccontextmanager
    async def _collecting(self) -> AsyncIterator[None]:
        try:
            async with loops.running("the collector", self._run):
                yield
        finally:
            self._closed = True
            await self._watchers.cancel()  # first, since one may begin to try again
            for retry in self._retries.values():
                retry.cancel()
            await asyncio.gather(*self._retries.values(), return_exceptions=True)
            for sweeper in self._sweepers.values():
                await sweeper.close()
            self._fail(self._waiting, errors.Unavailable("the collector has ended"))

    # -- the loop

    async def _run(self) -> None:
        if self._ready is not None:
            await self._ready()
        while True:
            now = time.monotonic()
            due = self._pace.due()
            if due is not None and due <= now:
                await self._collect()
                continue
            if self._expiry is not None and self._expiry <= now:
                self._expiry = self._wake = None
                self._pace.changed(now, deletion=True)
                continue
            if self._look_at is not None and self._look_at <= now:
                await self._look()
                continue
            self._changed.clear()
            times = [t for t in (due, self._expiry, self._look_at) if t is not None]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(min(times) - now, 0.001) if times else None):
                    await self._changed.wait()

    async def _look(self) -> None:
        """What was written since the last look may expire before anything else."""
        self._look_at = None
        keys = list(self._written)
        with self._database.transactions.watch() as later:
            unseen = list(later)  # its commit is under way: what is read may not have it
            try:
                wake = await self._database.transactions.read(lambda tx: _next_expiry(tx, keys))
            except Exception:
                log.exception("cannot read when leases expire")
                return
        self._written[: len(keys)] = unseen
        if wake is not None and (self._wake is None or wake < self._wake):
            self._expect(wake)

    def _expect(self, wake: Nanoseconds | None) -> None:
        """Collect soon after ``wake``."""
        self._wake = wake
        # Looked at once an hour at least, since the clock may be set.
        self._expiry = (
            None if wake is None else time.monotonic() + min(max(wake - time.time_ns(), 0) / 1e9 + 0.001, 3600.0)
        )

    async def _collect(self) -> None:
        """One collection: the records, then the sweeps that it gives rise to, which nobody waits for but those who
        asked.
        """
        waiting, self._waiting = self._waiting, []
        every, self._all = self._all, False
        self._pace.begun()
        started = time.monotonic()
        try:
            if (held := self._database.view(guard.held)) is not None and held.damaged:
                self._held(waiting, held.reason, started)
                return
            if not self._store_id:
                self._store_id = await self._database.store_id()
            found, sweeps = await self._collect_records(every=every)
        except asyncio.CancelledError:
            self._fail(waiting, errors.Unavailable("the collector has ended"))
            raise
        except Exception as error:
            if isinstance(error, errors.NodeError):
                log.error("garbage collection failed: %s", error)
            else:
                log.exception("garbage collection failed")
            self._all = self._all or every
            self._pace.failed(time.monotonic())
            self._fail(
                waiting,
                error
                if isinstance(error, errors.NodeError)
                else errors.Internal("garbage collection failed, see the log of metadata"),
            )
            return
        self._pace.collected(time.monotonic(), time.monotonic() - started)
        self._look_at = time.monotonic() + self._measures.look if self._written else None
        self._expect(found.wake)
        self._watchers.start(
            "the end of a collection",
            self._end(
                sweeps, waiting, started, [*found.records.left, *(node for node in found.order if node.type == "lease")]
            ),
        )

    def _held(self, waiting: Iterable[asyncio.Future[Collected]], reason: str, started: float) -> None:
        """Nothing is collected, and whoever waits is told why."""
        self._pace.collected(time.monotonic(), time.monotonic() - started)
        self._look_at = self._expiry = self._wake = None
        self._written.clear()
        for future in waiting:
            if not future.done():
                future.set_result(Collected(failed=(reason,), seconds=time.monotonic() - started))

    async def _collect_records(self, *, every: bool) -> tuple[_Found, dict[str, asyncio.Task[Swept]]]:
        """Remove the dead records, and begin the sweeps. They are looked for bit by bit; what removes them, some at
        a time, looks only at what was written meanwhile.
        """
        with span("gc.mark") as trace, self._database.transactions.watch() as written:
            with contextlib.closing(self._database.transactions.snapshot()) as snapshot:
                found = await self.lane.through(_examining(snapshot))
            trace.set(records=found.size, dead=found.dead)
            known, living, spared = 0, set[Node](), set[Node]()
            for start in range(0, len(found.order), self._measures.records):
                batch = found.order[start : start + self._measures.records]
                while len(written) - known > PORTION:
                    looked = await self._database.transactions.write(
                        lambda tx, known=known, living=living: _bury(  # type: ignore[misc]
                            tx, found, [], written[known : known + PORTION], living
                        )
                    )
                    known, living = known + looked.known, looked.living
                # Not lasting by itself: nothing of a backend goes before a mark is written that is, and whatever was
                # written before lasts with it.
                buried = await self._database.transactions.write(
                    lambda tx, batch=batch, known=known, living=living: _bury(  # type: ignore[misc]
                        tx, found, batch, written[known:], living
                    ),
                    lasting=False,
                )
                fault("gc.after-records")
                known, living, spared = known + buried.known, buried.living, spared | buried.spared
                for event in buried.events:
                    self._publish(event)
            self._written[:] = written  # the look had all else
            sweeps = self._begin_sweeps(found, spared, written, every=every)
        if spared:
            self.schedule("deletion")  # they were written meanwhile, and may be dead all the same
        return found, sweeps

    async def _end(
        self,
        sweeps: dict[str, asyncio.Task[Swept]],
        waiting: list[asyncio.Future[Collected]],
        started: float,
        leases: Sequence[Node],
    ) -> None:
        """What is left to do of a collection: for those who wait first."""
        await self._watch(sweeps, waiting, started)
        await self._delete_left(leases)

    async def _delete_left(self, leases: Sequence[Node]) -> None:
        """Remove, bit by bit, what is left of the resources of ``leases`` that are no more. What fails is done by
        the next collection.
        """
        for lease in leases:
            try:
                while await self._database.transactions.write(
                    lambda tx, lease=lease: _delete_some_left(tx, lease),  # type: ignore[misc]
                    lasting=False,
                ):
                    pass
            except errors.NodeError as error:
                log.warning("what lease %s held is still listed: %s", lease.key, error)

    # -- sweeps

    def _begin_sweeps(
        self, found: _Found, spared: set[Node], written: Sequence[Key], *, every: bool
    ) -> dict[str, asyncio.Task[Swept]]:
        """Of the backends that have something which nobody names any more; or of all, of ``every``thing in them.
        What is ``spared`` is in use after all.
        """
        used = set(found.records.raws(spared)) if spared else set()
        sweeps = {}
        for backend, known in found.known.items():
            left = known.without(raw for raw in used if raw.backend == backend) if used else known
            if every or left.idle:
                if backend not in self._sweepers:
                    self._sweepers[backend] = Sweeper(
                        backend,
                        self._database,
                        self._stores,
                        self._store_id,
                        foreign=backend in self._foreign,
                        measures=self._measures,
                    )
                sweeps[backend] = self._sweepers[backend].ask(left, written, everything=every)
        return sweeps

    async def _watch(
        self, sweeps: dict[str, asyncio.Task[Swept]], waiting: list[asyncio.Future[Collected]], started: float
    ) -> None:
        """Tell those who wait what the sweeps did, and repeat the postponed ones."""
        removed: list[str] = []
        failed: list[str] = []
        try:
            for backend, sweep in sweeps.items():
                swept = await self._swept(backend, sweep, first=self._measures.retry)
                removed.extend(title(raw) for raw in swept.removed)
                failed.extend(swept.failed)
        except BaseException:
            self._fail(waiting, errors.Unavailable("the collector has ended"))
            raise
        result = Collected(removed=tuple(removed), failed=tuple(failed), seconds=time.monotonic() - started)
        for future in waiting:
            if not future.done():
                future.set_result(result)

    async def _swept(self, backend: str, sweep: asyncio.Task[Swept], *, first: float) -> Swept:
        try:
            swept = await asyncio.shield(sweep)
        except Exception as error:
            log.exception("the sweep of backend %s failed", backend)
            swept = Swept(failed=[f"backend {backend}: {error}"], postponed=True)
        if swept.postponed and backend not in self._retries:
            self._retries[backend] = loops.aside(
                f"the repeated sweep of backend {backend}", self._retry(backend, first)
            )
        return swept

    async def _retry(self, backend: str, pause: float) -> None:
        try:
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._measures.retry_limit)
                try:
                    swept = await asyncio.shield(self._sweepers[backend].ask())
                except Exception:
                    log.exception("the sweep of backend %s failed", backend)
                    continue
                if not swept.postponed:
                    return
        finally:
            self._retries.pop(backend, None)

    def _fail(self, waiting: Iterable[asyncio.Future[Collected]], error: errors.NodeError) -> None:
        for future in waiting:
            if not future.done():
                future.set_exception(error)


# ---------------------------------------------------------------------------------------------- pieces


def _examining(tx: Reader) -> Steps[_Found]:
    """What there is to do."""
    records = yield from reading(tx)
    marked = yield from marking(records, time.time_ns())
    gateway = schema.GATEWAY.get(tx)
    backends = tuple(backend for backend in gateway.backends() if backend) if gateway is not None else ()
    known = yield from plan.knowing(tx, backends, records.raws(marked.living), records.intents)
    order = yield from ordering(records, marked)
    return _Found(len(records), len(marked.dead), marked.wake, known, records, marked, order)


@dataclass(frozen=True, slots=True)
class _Buried:
    """What came of one batch of the dead."""

    events: list[Event]
    known: int
    """Keys that were looked at."""
    living: set[Node]
    spared: set[Node]


def _bury(tx: Transaction, found: _Found, batch: list[Node], written: Sequence[Key], living: set[Node]) -> _Buried:
    """Remove those of ``batch`` that were ``found`` dead and are so still: not among the ``living``, nor among what
    lives by the keys that were ``written`` besides.
    """
    if (held := guard.held(tx)) is not None and held.damaged:  # since all was read
        return _Buried([], len(written), living, set(batch))
    records, events = found.records, list[Event]()
    spared, blobs = set[Node](), list[tuple[str, str]]()
    changed = touched(tx, written)
    # not in place: a transaction may be run again
    living = living | changed | revived(tx, records, found.marking, changed)
    for node in batch:
        if node in living:
            spared.add(node)
            continue
        if node.type == "content":
            blobs.append((node.namespace, node.key))
            continue
        if not _there(tx, node):  # somebody else has removed it
            continue
        if node.type == "lease":
            schema.delete_lease(tx, node.namespace, node.key)
        elif node.type == "snapshot":
            schema.delete_snapshot(tx, node.namespace, node.snapshotter, records.snapshots[node])
        elif node.type == "ingest":
            schema.INGESTS.delete(tx, node.namespace, node.key)
        else:
            schema.IMAGES.delete(tx, node.namespace, node.key)
        events.extend(_events(node))
    schema.delete_blobs(tx, blobs)  # somebody else may have removed some: it is all the same
    return _Buried(events, len(written), living, spared)


def _delete_some_left(tx: Transaction, lease: Node) -> bool:
    """Whether there is more to do. Where the database is damaged the lease may be what it lost."""
    held = guard.held(tx)
    return (held is None or not held.damaged) and schema.delete_left(tx, lease.namespace, lease.key)


def _there(tx: Reader, node: Node) -> bool:
    if node.type == "snapshot":
        return schema.SNAPSHOTS.has(tx, node.namespace, node.snapshotter, node.key)
    return _TABLES[node.type].has(tx, node.namespace, node.key)


_TABLES: dict[str, schema.Table[Any]] = {
    "lease": schema.LEASES,
    "ingest": schema.INGESTS,
    "content": schema.BLOBS,
    "image": schema.IMAGES,
}


def _events(node: Node) -> Iterable[Event]:
    """What containerd publishes of a collection: images and snapshots."""
    if node.type == "image":
        yield Event(node.namespace, "/images/delete", {"name": node.key})
    elif node.type == "snapshot":
        yield Event(node.namespace, "/snapshot/remove", {"key": node.key, "snapshotter": node.snapshotter})


def _next_expiry(tx: Reader, written: Iterable[Key]) -> Nanoseconds | None:
    """When the next of those leases, ingests and images expires that are ``written``."""
    now, times = time.time_ns(), []
    for name, *key in set(written):
        if name == schema.INGESTS.name and (ingest := schema.INGESTS.get(tx, *key)) is not None:
            times.append(ingest.expires)
        elif name == schema.LEASES.name and (lease := schema.LEASES.get(tx, *key)) is not None:
            times.append(expires(lease.labels) or 0)
        elif name == schema.IMAGES.name and (image := schema.IMAGES.get(tx, *key)) is not None:
            times.append(expires(image.labels) or 0)
    return min((t for t in times if t >= now), default=None)
