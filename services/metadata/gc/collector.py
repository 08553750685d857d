"""The collector's loop: it collects when :mod:`.pace` says so, when a caller waits for a collection, and when the next
lease, image or ingest expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit import errors, loops, metrics
from services.kit.faults import fault
from services.kit.slices import Lane, Steps, others
from services.kit.tracing import Span, current, root, span, wait
from services.metadata import schema
from services.metadata.database import Database, Pauses
from services.metadata.gc import guard, plan
from services.metadata.gc.changes import changed_nodes, removal_order, revived
from services.metadata.gc.config import Config
from services.metadata.gc.mark import STEP, Marking, Node, Records, expires, marking, reading
from services.metadata.gc.pace import Pace
from services.metadata.gc.raw import RawStores
from services.metadata.gc.sweep import Sweeper, Swept, title
from services.metadata.gc.tuning import Tuning
from services.metadata.store import Change, Collected, Event, Nanoseconds, Raw, is_candidate
from services.metadata.transactions import Key, Reader, Transaction

log = logging.getLogger(__name__)

_COLLECTIONS = metrics.Counter("containerd_gc_collections_total", "Collections of garbage, by status.", "status")
_SECONDS = metrics.Histogram("containerd_gc_gc_seconds", "Seconds of a collection with its sweeps.")
_MARKED = metrics.Histogram("splitd_gc_mark_seconds", "Seconds until a collection's dead records are removed.")
_PAUSES = metrics.Histogram("splitd_gc_pause_seconds", "The longest wait of a call for a collection, of each.")
_REMOVED = metrics.Counter("splitd_gc_removed_total", "Blobs and snapshots that sweeps removed.")


@dataclass(slots=True)
class _Caller:
    """Waits for a collection. ``namespace`` is that of the deletion; empty: it waits for all of the collection."""

    namespace: str
    future: asyncio.Future[Collected]

    def waits(self, owners: Iterable[Collection[str]]) -> bool:
        """Whether something of its own is among what is to be removed; ``owners`` are those of each backend."""
        return any(not self.namespace or "" in each or self.namespace in each for each in owners)


@dataclass(frozen=True, slots=True)
class _Found:
    """The result of reading and marking all records."""

    size: int
    dead: int
    wake: Nanoseconds | None
    known: dict[str, plan.Known]
    """By backend of the gateway, as it is once the dead records are removed."""
    records: Records
    marking: Marking
    order: list[Node]
    """The dead nodes, in the order of their removal."""


class Collector:
    """Collects the garbage of one metadata store. ``publish`` gets the events of what it removed. It runs during
    :meth:`running`.
    """

    def __init__(
        self,
        database: Database,
        stores: RawStores,
        config: Config,
        publish: Callable[[Event], None],
        ready: Callable[[], Awaitable[None]] | None = None,
        foreign: Collection[str] = (),
        tuning: Tuning = Tuning(),
    ) -> None:
        """``ready`` is awaited before the first collection. ``foreign`` are the backends that are third parties'
        services.
        """
        self._tuning = tuning
        self._foreign = frozenset(foreign)
        self._ready = ready
        self._database = database
        self._stores = stores
        self._publish = publish
        self._config = config
        self.lane = Lane(apart=tuning.apart)
        """A lane of its own: the collector gets on however many lists are being read."""
        self._pace = Pace(config, time.monotonic())
        self._changed = asyncio.Event()
        self._waiting: list[_Caller] = []
        self._store_id = ""
        self._sweepers: dict[str, Sweeper] = {}
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._watchers = loops.Tasks()
        self._all = True
        """The next collection sweeps all raw things, not only those that were once named."""
        self._expiry: float | None = None
        self._wake: Nanoseconds | None = None
        """The same time by the clock of the records."""
        self._written: MutableSequence[Key] = []
        """The keys that were set since the last look."""
        self._look_at: float | None = None
        self._closed = False
        self._late: set[str] = set()
        """Backends for whose sweeps nobody waits any more."""
        self._ended = ""
        """The span of the collection that ended last."""

    # -- what others call

    def schedule(self, change: Change) -> None:
        """Note that something was written or removed, so that a collection runs when it is due."""
        now = time.monotonic()
        before = (self._pace.due(), self._look_at)
        if self._look_at is None:
            self._look_at = now + self._tuning.look
        self._pace.changed(now, deletion=change == "deletion")
        if before != (self._pace.due(), self._look_at):
            self._changed.set()

    def connected(self) -> None:
        """Note that a gateway has connected, perhaps with other backends: sweep all of them, unknown things included.

        The collection runs at once, not at the next turn. A raw store gets our id when it is first swept. Until then
        another metadata store would take it for its own.
        """
        self._all = True
        self._pace.asked(time.monotonic())
        self._changed.set()

    async def collect(self, *, everything: bool = True, namespace: str = "") -> Collected:
        """Run a collection that begins after this call, and wait for its sweeps: of the backends that are third
        parties' services, only for those where something of ``namespace`` goes, if that is given. Without
        ``everything``, raw things in our own stores that no record ever named may stay.
        """
        if self._closed:
            raise errors.Unavailable("the collector has ended")
        if (standing := self._database.transactions.standing).away is not None:
            raise errors.Unavailable(f"nothing is collected while {standing.store} is away ({standing.why})")
        self._all = self._all or everything
        future: asyncio.Future[Collected] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Caller(namespace, future))
        self._pace.asked(time.monotonic())
        self._changed.set()
        with wait("lock", **{"splitd.wait.for": "a collection"}) as waiting:
            collected = await future
            waiting.link(self._ended)
            return collected

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Collector]:
        """Collect in the background during the block."""
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
            await self._watchers.cancel()  # first, since a watcher may begin a retry
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
                await self._database.transactions.writable()
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
        """Look whether a record that was written since the last look expires before all others."""
        self._look_at = None
        keys = list(self._written)
        with self._database.transactions.watch() as later:
            unseen = list(later)  # their commit is under way: the state that is read may lack them
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
        # At the latest in an hour, since the clock may be set.
        self._expiry = (
            None if wake is None else time.monotonic() + min(max(wake - time.time_ns(), 0) / 1e9 + 0.001, 3600.0)
        )

    async def _collect(self) -> None:
        """Run one collection: remove dead records, then begin the sweeps. Only the callers that asked for the
        collection wait for the sweeps.
        """
        waiting, self._waiting = self._waiting, []
        trace = root("metadata.collect")
        trace.put({"splitd.operation": "collect"})
        if not waiting:
            trace.yields()  # most collections find next to nothing
        begun = False
        with trace.inside():
            try:
                begun = await self._begin(waiting, trace)
            finally:
                if not begun:
                    trace.end()

    async def _begin(self, waiting: list[_Caller], trace: Span) -> bool:
        """Remove dead records and begin the sweeps, at whose end ``trace`` ends. False if that was not possible."""
        every, self._all = self._all, False
        self._pace.begun()
        started = time.monotonic()
        self._database.collection = trace.ref()
        try:
            if (held := self._database.view(guard.held)) is not None and held.damaged:
                self._held(waiting, held.reason, started)
                return False
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
            _COLLECTIONS.add(1, "fail")
            self._all = self._all or every
            self._pace.failed(time.monotonic())
            self._fail(
                waiting,
                error
                if isinstance(error, errors.NodeError)
                else errors.Internal("garbage collection failed, see the log of metadata"),
            )
            trace.failure(errors.Internal.code, str(error))
            return False
        self._pace.collected(time.monotonic(), time.monotonic() - started)
        _MARKED.observe(time.monotonic() - started)
        self._look_at = time.monotonic() + self._tuning.look if self._written else None
        self._expect(found.wake)
        self._watchers.start(
            "the end of a collection",
            self._end(
                sweeps,
                {
                    backend: found.known[backend].owners if waiting else frozenset()
                    for backend in sweeps
                    if self._is_of_others(backend)
                },
                waiting,
                started,
                [*found.records.orphaned, *(node for node in found.order if node.type == "lease")],
                trace,
            ),
        )
        return True

    def _held(self, waiting: Iterable[_Caller], reason: str, started: float) -> None:
        """Collect nothing, and tell the waiting callers why."""
        self._pace.collected(time.monotonic(), time.monotonic() - started)
        self._look_at = self._expiry = self._wake = None
        self._written.clear()
        _answer(waiting, Collected(failed=(reason,), seconds=time.monotonic() - started))

    async def _collect_records(self, *, every: bool) -> tuple[_Found, dict[str, asyncio.Task[Swept]]]:
        """Find the dead records, in steps, remove them, some at a time, and begin the sweeps. Each removal looks only
        at what was written since the records were read.
        """
        with span("gc.mark"), self._database.transactions.watch() as written:
            with contextlib.closing(self._database.transactions.snapshot()) as snapshot:
                found = await self.lane.through(_examine(snapshot, self._tuning.step))
            current().top().put({"splitd.gc.marked": found.size, "splitd.gc.dead": found.dead})
            known, living, spared = 0, set[Node](), set[Node]()
            for start in range(0, len(found.order), self._tuning.records):
                batch = found.order[start : start + self._tuning.records]
                while len(written) - known > self._tuning.written:
                    looked = await self._database.transactions.write(
                        lambda tx, known=known, living=living: _remove_batch(  # type: ignore[misc]
                            tx, found, [], written[known : known + self._tuning.written], living
                        )
                    )
                    known, living = known + looked.known, looked.living
                # Not lasting by itself: a backend removes nothing before a lasting mark is written, and that makes
                # everything written before it lasting too.
                removed = await self._database.transactions.write(
                    lambda tx, batch=batch, known=known, living=living: _remove_batch(  # type: ignore[misc]
                        tx, found, batch, written[known:], living
                    ),
                    lasting=False,
                )
                fault("gc.after-records")
                known, living, spared = known + removed.known, removed.living, spared | removed.spared
                for event in removed.events:
                    self._publish(event)
                await others()
            self._written[:] = written  # the look covered everything earlier
            with current().top().inside():
                sweeps = self._begin_sweeps(found, spared, written, every=every)
        if spared:
            self.schedule("deletion")  # they were written meanwhile, and may be dead all the same
        return found, sweeps

    async def _end(
        self,
        sweeps: dict[str, asyncio.Task[Swept]],
        owners: dict[str, frozenset[str]],
        waiting: list[_Caller],
        started: float,
        leases: Sequence[Node],
        trace: Span,
    ) -> None:
        """Finish a collection: first answer the waiting callers, then remove what is left of the leases' resources."""
        try:
            await self._watch(sweeps, owners, waiting, started, trace)
        finally:
            trace.end()
        await self._delete_orphaned(leases)

    async def _delete_orphaned(self, leases: Sequence[Node]) -> None:
        """Remove, some at a time, the resources that are left of ``leases`` that no longer exist. The next collection
        repeats what fails.
        """
        for lease in leases:
            try:
                while await self._database.transactions.write(
                    lambda tx, lease=lease: _delete_some_orphaned(tx, lease),  # type: ignore[misc]
                    lasting=False,
                ):
                    await others()
            except errors.NodeError as error:
                log.warning("resources of lease %s are still listed: %s", lease.key, error)

    # -- sweeps

    def _begin_sweeps(
        self, found: _Found, spared: set[Node], written: Sequence[Key], *, every: bool
    ) -> dict[str, asyncio.Task[Swept]]:
        """Begin to sweep the backends that have something which is no longer named, or all backends completely if
        ``every``. The nodes ``spared`` are in use after all.
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
                        tuning=self._tuning,
                    )
                sweeps[backend] = self._sweepers[backend].ask(left, written, everything=every)
        return sweeps

    async def _watch(
        self,
        sweeps: dict[str, asyncio.Task[Swept]],
        owners: dict[str, frozenset[str]],
        waiting: list[_Caller],
        started: float,
        trace: Span,
    ) -> None:
        """Report the results of the sweeps to the waiting callers, and repeat postponed sweeps. ``owners`` has the
        backends of others, with the namespaces of what goes there.
        """
        removed: list[str] = []
        failed: list[str] = []
        left = dict(owners)

        async def take(swept: Swept) -> None:
            removed.extend(await self.lane.through(_titles(swept.removed, self._tuning.step)))
            failed.extend(swept.failed)

        def result() -> Collected:
            return Collected(removed=tuple(removed), failed=tuple(failed), seconds=time.monotonic() - started)

        try:
            for backend, sweep in sweeps.items():
                if backend not in owners:
                    await take(await self._swept(backend, sweep, first=self._tuning.retry))
            of_others = {
                self._watchers.start(
                    f"the wait for {backend}", self._swept(backend, sweeps[backend], first=self._tuning.retry)
                ): backend
                for backend in owners
            }
            while of_others:
                self._ended = trace.ref()
                _answer((caller for caller in waiting if not caller.waits(left.values())), result())
                for done in (await asyncio.wait(of_others, return_when=asyncio.FIRST_COMPLETED))[0]:
                    del left[of_others.pop(done)]
                    await take(done.result())
        except BaseException:
            self._fail(waiting, errors.Unavailable("the collector has ended"))
            raise
        _COLLECTIONS.add(1, "fail" if failed else "success")
        _SECONDS.observe(time.monotonic() - started)
        _REMOVED.add(len(removed))
        pauses, self._database.pauses = self._database.pauses, Pauses()
        _PAUSES.observe(pauses.longest)
        trace.put(
            {
                "splitd.outcome": "failed" if failed else "ok",
                "splitd.gc.swept": len(removed),
                "splitd.gc.blocked": pauses.count,
                "splitd.gc.pause_ms": pauses.longest * 1000,
            }
        )
        if pauses.count:
            trace.keep()
        self._ended = trace.ref()
        _answer(waiting, result())

    async def _swept(self, backend: str, sweep: asyncio.Task[Swept], *, first: float) -> Swept:
        """The result of a sweep. If a backend of others is silent for too long, the result is that, and the sweep goes
        on: ours are watched by their supervisor, which ends one that hangs.
        """
        while not sweep.done():
            silence = self._tuning.silence if self._is_of_others(backend) else None
            since = self._sweepers[backend].moved or time.monotonic()
            left = None if silence is None else since + silence - time.monotonic()
            if left is not None and left <= 0:
                if backend not in self._late:
                    log.warning("backend %s is silent: nobody waits for its sweep any more", backend)
                    self._late.add(backend)
                    self._watchers.start(f"the sweep of {backend}", self._ended_late(backend, sweep, first))
                return Swept(failed=[f"backend {backend}: it has been silent for {silence:g} s"])
            await asyncio.wait([sweep], timeout=left)
        try:
            swept = sweep.result()
        except Exception as error:  # which the log has
            swept = Swept(failed=[f"backend {backend}: {error}"], postponed=True)
        self._repeat(backend, swept, first)
        return swept

    def _is_of_others(self, backend: str) -> bool:
        return backend in self._foreign or is_candidate(backend)

    async def _ended_late(self, backend: str, sweep: asyncio.Task[Swept], first: float) -> None:
        await asyncio.wait([sweep])
        self._late.discard(backend)
        if sweep.cancelled():
            return
        error = sweep.exception()
        self._repeat(backend, Swept(postponed=True) if error is not None else sweep.result(), first)

    def _repeat(self, backend: str, swept: Swept, first: float) -> None:
        if swept.postponed and backend not in self._retries and not self._closed:
            self._retries[backend] = loops.aside(
                f"the repeated sweep of backend {backend}", self._retry(backend, first)
            )

    async def _retry(self, backend: str, pause: float) -> None:
        try:
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._tuning.retry_limit)
                gateway = self._database.view(schema.GATEWAY.get)
                if gateway is not None and backend not in gateway.backends():
                    return  # a candidate that is gone
                try:
                    swept = await asyncio.shield(self._sweepers[backend].ask())
                except Exception:
                    log.exception("the sweep of backend %s failed", backend)
                    continue
                if not swept.postponed:
                    return
        finally:
            self._retries.pop(backend, None)

    def _fail(self, waiting: Iterable[_Caller], error: errors.NodeError) -> None:
        for caller in waiting:
            if not caller.future.done():
                caller.future.set_exception(error)


# ---------------------------------------------------------------------------------------------- pieces


def _answer(waiting: Iterable[_Caller], collected: Collected) -> None:
    for caller in waiting:
        if not caller.future.done():
            caller.future.set_result(collected)


def _examine(tx: Reader, step: int = STEP) -> Steps[_Found]:
    """Find out what there is to remove."""
    records = yield from reading(tx, step)
    marked = yield from marking(records, time.time_ns(), step)
    gateway = schema.GATEWAY.get(tx)
    backends = tuple(backend for backend in gateway.backends() if backend) if gateway is not None else ()
    created: dict[str, Nanoseconds] = {}
    for start in range(0, len(marked.dead), step):
        some = marked.dead[start : start + step]
        created.update({node.key: records.blobs[node].created for node in some if node.type == "content"})
        yield
    known = yield from plan.known_in_steps(tx, backends, records.raws(marked.living), records.intents, created, step)
    order = yield from removal_order(records, marked, step)
    return _Found(len(records), len(marked.dead), marked.wake, known, records, marked, order)


def _titles(removed: Sequence[Raw], step: int) -> Steps[list[str]]:
    found: list[str] = []
    for start in range(0, len(removed), step):
        found.extend(title(raw) for raw in removed[start : start + step])
        yield
    return found


@dataclass(frozen=True, slots=True)
class _Removed:
    """The result of removing one batch of dead records."""

    events: list[Event]
    known: int
    """The number of keys that were looked at."""
    living: set[Node]
    spared: set[Node]


def _remove_batch(
    tx: Transaction, found: _Found, batch: list[Node], written: Sequence[Key], living: set[Node]
) -> _Removed:
    """Remove those nodes of ``batch`` that are still dead: neither among ``living``, nor revived by the keys that were
    ``written`` since.
    """
    if (held := guard.held(tx)) is not None and held.damaged:  # since the records were read
        return _Removed([], len(written), living, set(batch))
    records, events = found.records, list[Event]()
    spared, blobs = set[Node](), list[tuple[str, str]]()
    changed = changed_nodes(tx, written)
    # not in place: a transaction may run again
    living = living | changed | revived(tx, records, found.marking, changed)
    for node in batch:
        if node in living:
            spared.add(node)
            continue
        if node.type == "content":
            blobs.append((node.namespace, node.key))
            continue
        if not _there(tx, node):  # another call has removed it
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
    schema.delete_blobs(tx, blobs)  # another call may have removed some, which makes no difference
    return _Removed(events, len(written), living, spared)


def _delete_some_orphaned(tx: Transaction, lease: Node) -> bool:
    """Remove some resources of a lease that no longer exists. Returns whether there are more. In a damaged database the
    lease itself may be what was lost, so nothing is removed.
    """
    held = guard.held(tx)
    return (held is None or not held.damaged) and schema.delete_orphaned(tx, lease.namespace, lease.key)


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
    """The events that containerd publishes for a collection: of images and snapshots."""
    if node.type == "image":
        yield Event(node.namespace, "/images/delete", {"name": node.key})
    elif node.type == "snapshot":
        yield Event(node.namespace, "/snapshot/remove", {"key": node.key, "snapshotter": node.snapshotter})


def _next_expiry(tx: Reader, written: Iterable[Key]) -> Nanoseconds | None:
    """When the next of the leases, ingests and images among the keys ``written`` expires."""
    now, times = time.time_ns(), []
    for name, *key in set(written):
        if name == schema.INGESTS.name and (ingest := schema.INGESTS.get(tx, *key)) is not None:
            times.append(ingest.expires)
        elif name == schema.LEASES.name and (lease := schema.LEASES.get(tx, *key)) is not None:
            times.append(expires(lease.labels) or 0)
        elif name == schema.IMAGES.name and (image := schema.IMAGES.get(tx, *key)) is not None:
            times.append(expires(image.labels) or 0)
    return min((t for t in times if t >= now), default=None)
