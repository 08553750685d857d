"""The transactions, and what happens around them: the collector is told of changes, and writes wait for operations that
are under way.

Work that needs a thing that another operation is using (the collector has marked it, or an open intent claims its name)
raises :class:`Busy`. It runs again when that operation has ended (:meth:`Database.wake`), for a bounded time. A wait is
woken only by the end of the operation that it waits for: thousands may wait, each for another one. In a trace it is a
span ``wait.lock``, linked to the collection, or to the caller of the intent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from services.kit import errors, filters, progress, tracing
from services.kit.slices import Lane
from services.metadata import schema
from services.metadata.store import Change, Collector, Namespace, Raw, Resource
from services.metadata.transactions import Key, Reader, Transaction, Transactions
from services.metadata.walks import Walks

log = logging.getLogger(__name__)
T = TypeVar("T")
V = TypeVar("V")

PATIENCE = 300.0
"""Seconds for which a write waits for another operation: as long as a call to a raw store may stand still. A slow disk
needs minutes for the fsync of a large blob, or for the removal of a large snapshot.
"""


def _no_field(_record: object, _path: Sequence[str]) -> tuple[str, bool]:
    return "", False


class Busy(Exception):
    """Another operation is using the thing that the text names. The end of ``until`` ends the wait: the id of an
    intent, or a marked raw thing.
    """

    def __init__(self, text: str, until: str | Raw) -> None:
        super().__init__(text)
        self.until = until

    def anew(self) -> Busy:
        """The same without the frames that it came through, of which the one that keeps it is one."""
        return Busy(str(self), self.until)


class Pauses:
    """How many calls waited, and for how long at most."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        """Seconds."""

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.longest = max(self.longest, seconds)


class Database:
    """The store of one metadata process. Its owner sets ``collector`` before it serves."""

    def __init__(self, transactions: Transactions, *, patience: float = PATIENCE, lane: Lane | None = None) -> None:
        self.transactions = transactions
        self.collector: Collector | None = None
        self.released: Callable[[], None] = lambda: None
        """Called when an operator releases the collector."""
        self.damaged: Callable[[str], None] = log.error
        """Called with a message when a value read here turns out to be damaged. The store reports what it finds
        itself.
        """
        self.patience = patience
        self.started = time.time_ns()
        """The start of this process: the caller of an intent that is older may no longer exist."""
        self.lane = lane or Lane()
        self._walks = Walks(transactions)
        self.collection = ""
        """The span of the collection that has marked things last (``tracing.Span.ref``)."""
        self.pauses = Pauses()
        """The waits for marked things since a collection took them out."""
        self.claimants: dict[str, str] = {}
        """From an open intent to the span for which it was opened (``tracing.caller``), until :meth:`wake` ends it."""
        self._waiting: dict[str | Raw, set[asyncio.Future[None]]] = {}
        """The waiting writes, by what they wait for."""
        self._delayed: dict[object, str | Raw] = {}
        """The writes that have met Busy and are not done yet, with what they met last."""
        self._asleep: set[asyncio.Future[None]] = set()
        """The waits of those that only wait, and have not run since they were woken."""

    @contextlib.contextmanager
    def reporting_damage(self) -> Iterator[None]:
        """Report a damaged value (DataLoss) that the block reads outside of the store."""
        try:
            yield
        except errors.DataLoss as error:
            self.damaged(str(error))
            raise

    def view(self, work: Callable[[Reader], T]) -> T:
        """Read the committed state, now."""
        return self.transactions.view(work)

    async def select(
        self,
        table: schema.Table[V],
        *prefix: str,
        make: Callable[[Key, V], T | None],
        sources: Sequence[str] = (),
        field: Callable[[V, Sequence[str]], tuple[str, bool]] = _no_field,
    ) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each record below ``prefix``, in order of the keys. ``make`` gets the key without
        the table's name; records for which it returns None are left out.

        ``sources`` are filters: a record is listed if one of them matches; ``field`` gives the fields that filters look
        at. InvalidArgument for a malformed filter.

        Results come in pieces small enough that other calls come between. They show the state of one instant, not
        before this call, if they are consumed within some seconds; :mod:`services.metadata.walks` says what a slower
        reader sees.
        """
        wanted = await filters.parsed(sources, self.lane) if sources else None
        made: list[T] = []
        piece = self.lane.slice()
        with self._walks.over((table.name, *prefix)) as walk:
            for key, value in walk:
                try:  # as reporting_damage() does, at less cost
                    if table.steps is not None and len(value) > schema.LARGE:
                        record = await self.lane.through(table.steps(key[1:], value))
                    else:
                        record = table.decode(key[1:], value)
                except errors.DataLoss as error:
                    self.damaged(str(error))
                    raise
                if (wanted is None or wanted.match(partial(field, record))) and (
                    one := make(key[1:], record)
                ) is not None:
                    made.append(one)
                if piece.over():
                    if made:
                        yield made
                        made = []
                    await piece.next()
        if made:
            yield made

    async def write(
        self,
        work: Callable[[Transaction], T],
        change: Change | None = "mutation",
        *,
        lasting: bool = True,
        patience: float | None = None,
    ) -> T:
        """Run ``work`` in a transaction, and tell the collector unless ``change`` is None. While the work is
        :class:`Busy`, wait and run it again, for ``patience`` seconds or the usual time; then Unavailable. For
        ``lasting`` see ``Transactions.write``.
        """
        end = time.monotonic() + (self.patience if patience is None else patience)
        try:
            result = await self._written(work, end, lasting=lasting)
        except asyncio.CancelledError:  # it may be written all the same
            if change is not None:
                self.schedule(change)
            raise
        if change is not None:
            self.schedule(change)
        return result

    async def write_all(
        self, works: Sequence[Callable[[Transaction], T]], change: Change | None = "mutation", *, lasting: bool = True
    ) -> list[T | Exception]:
        """As :meth:`write` of each, in this order, at less cost. Returns results and exceptions: :class:`Busy` work has
        not waited, and is not done.
        """
        try:
            return await self.transactions.write_all(works, lasting=lasting)
        finally:
            if change is not None:
                self.schedule(change)

    async def _written(self, work: Callable[[Transaction], T], end: float, *, lasting: bool) -> T:
        """Run ``work``, again while it is :class:`Busy`; Unavailable at ``end``."""
        try:
            return await self.transactions.write(work, lasting=lasting)
        except Busy as met:
            busy = met.anew()
        with contextlib.ExitStack() as waiting, self._delay() as delayed:
            awaited: str | Raw | None = None
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise errors.Unavailable(str(busy)) from None
                delayed(busy.until)
                # The operation may have ended since the work looked: look again, now that its end cannot be missed.
                if busy.until != awaited:
                    waiting.close()
                    awaited, ended = busy.until, waiting.enter_context(self._wait(busy.until))
                else:
                    self._asleep.add(ended)
                    with contextlib.suppress(TimeoutError), self._told(busy):
                        async with asyncio.timeout(left):
                            await ended
                    self._asleep.discard(ended)  # the write queues again in this turn of the loop
                    awaited = None
                try:
                    return await self.transactions.write(work, lasting=lasting)
                except Busy as met:
                    busy = met.anew()

    @contextlib.contextmanager
    def _told(self, busy: Busy) -> Iterator[None]:
        """Trace the wait of the block."""
        swept = isinstance(busy.until, Raw)
        holder = self.collection if isinstance(busy.until, Raw) else self.claimants.get(busy.until, "")
        begun = time.monotonic()
        with tracing.wait("lock", holder, **{"splitd.wait.for": str(busy)}), progress.elsewhere():
            try:
                yield
            finally:
                if swept:
                    self.pauses.add(time.monotonic() - begun)

    @contextlib.contextmanager
    def _wait(self, until: str | Raw) -> Iterator[asyncio.Future[None]]:
        """A future that is done when :meth:`wake` is called with ``until``."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        everybody = self._waiting.setdefault(until, set())
        everybody.add(ended)
        try:
            yield ended
        finally:
            everybody.discard(ended)
            self._asleep.discard(ended)
            if not everybody and self._waiting.get(until) is everybody:
                del self._waiting[until]

    @contextlib.contextmanager
    def _delay(self) -> Iterator[Callable[[str | Raw], None]]:
        """Register a write, which reports through the result what it has met."""
        write = object()
        try:
            yield partial(self._delayed.__setitem__, write)
        finally:
            self._delayed.pop(write, None)

    def has_waiters(self, backend: str) -> bool:
        """Whether a write waits for the marks of raw things of this backend to be cleared."""
        return any(isinstance(until, Raw) and until.backend == backend for until in self._delayed.values())

    async def woken_have_queued(self) -> None:
        """Wait until all writes that were woken have queued again, ahead of the caller's next write."""
        while any(ended.done() for ended in self._asleep):  # noqa: ASYNC110 - a turn or two of the loop
            await asyncio.sleep(0)

    def schedule(self, change: Change) -> None:
        """Tell the collector that something was written or became garbage."""
        if self.collector is not None:
            self.collector.schedule(change)

    def wake(self, *ended: str | Raw) -> None:
        """Intents have ended or marks were cleared: run the writes that wait for one of them."""
        for each in ended:
            if isinstance(each, str):
                self.claimants.pop(each, None)
            for waiter in self._waiting.pop(each, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def store_id(self) -> str:
        """The id of this store, the same for as long as the store exists."""

        def work(tx: Transaction) -> str:
            found = schema.STORE.get(tx)
            if found is None:
                import uuid

                found = str(uuid.uuid4())
                schema.STORE.put(tx, value=found)
            return found

        return await self.transactions.write(work)

    async def collect_now(self, namespace: str) -> None:
        """Run a collection that begins now, and wait for it: a synchronous delete in ``namespace`` promises that. All
        that was written before is durable then; the collection does not wait for it.
        """
        if self.collector is None:
            await self.transactions.settle()
        else:
            collected = self.collector.collect(everything=False, namespace=namespace)
            await asyncio.gather(self.transactions.settle(), collected)


# ---------------------------------------------------------------------------------------------- pieces of work


def ensure_namespace(tx: Transaction, namespace: str) -> None:
    """Create the namespace if it does not exist, as every write in it does."""
    if not schema.NAMESPACES.has(tx, namespace):
        schema.NAMESPACES.put(tx, namespace, value=Namespace())


def check_lease(tx: Reader, namespace: str, lease: str) -> None:
    """NotFound if the caller named a lease that does not exist."""
    if lease and not schema.LEASES.has(tx, namespace, lease):
        raise errors.NotFound("lease does not exist")


def hold(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """Let the caller's lease, if any, hold the resource."""
    check_lease(tx, namespace, lease)
    if lease:
        schema.put_resource(tx, namespace, lease, resource)


def release(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """Let the caller's lease, if any, hold the resource no longer."""
    if lease:
        schema.delete_resource(tx, namespace, lease, resource)


def check_not_sweeping(tx: Reader, raw: Raw) -> None:
    """Busy while the collector is removing the raw thing."""
    if schema.is_marked(tx, raw):
        raise Busy(f"{'content' if raw.kind == 'blob' else raw.kind} {raw.name} is being removed by the collector", raw)
