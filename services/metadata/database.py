"""The store with what happens around its transactions: the collector is told of changes, and who must wait for somebody
else's operation does.

Work that finds a thing in somebody's hands (a mark of the collector's, an open intent on the same name) raises
:class:`Busy`. It is run again when that came to its end (:meth:`Database.wake`), and for a bounded time only. Nobody is
woken by the end of what he does not wait for: thousands may wait, each for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from services.kit import errors, filters
from services.kit.slices import Lane
from services.metadata import schema
from services.metadata.store import Change, Collector, Namespace, Raw, Resource
from services.metadata.transactions import Key, Reader, Transaction, Transactions
from services.metadata.walks import Walks

log = logging.getLogger(__name__)
T = TypeVar("T")
V = TypeVar("V")

PATIENCE = 20.0
"""Seconds to wait for somebody else's operation: less than the gateway waits for us."""


def _no_field(_record: object, _path: Sequence[str]) -> tuple[str, bool]:
    return "", False


class Busy(Exception):
    """Somebody's operation has the thing in hand; the text says which. ``until`` is what ends it: an intent's id,
    or what is marked.
    """

    def __init__(self, text: str, until: str | Raw) -> None:
        super().__init__(text)
        self.until = until


class Database:
    """The store of one metadata process. Its owner sets ``collector`` before it serves."""

    def __init__(self, transactions: Transactions, *, patience: float = PATIENCE) -> None:
        self.transactions = transactions
        self.collector: Collector | None = None
        self.released: Callable[[], None] = lambda: None
        """Told when an operator says that nothing is to be held back from the collector any more."""
        self.damaged: Callable[[str], None] = log.error
        """Told of values that are not what they were, where this reads them; what the store reads it tells itself."""
        self.patience = patience
        self.started = time.time_ns()
        """When this process began: intents from before may belong to nobody."""
        self.lane = Lane()
        self._walks = Walks(transactions)
        self._waiting: dict[str | Raw, set[asyncio.Future[None]]] = {}
        """Who waits for what."""
        self._delayed: dict[object, str | Raw] = {}
        """The writes that found something in somebody's hands, and are not done yet: what it was last."""
        self._asleep: set[asyncio.Future[None]] = set()
        """Of those who wait, those who do nothing else until they are woken, and have not noticed that they were."""

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """A value that turns out not to be what it was, where this is read outside of the store, is told."""
        try:
            yield
        except errors.DataLoss as error:
            self.damaged(str(error))
            raise

    def view(self, work: Callable[[Reader], T]) -> T:
        """Read what is committed, now."""
        return self.transactions.view(work)

    async def select(
        self,
        table: schema.Table[V],
        *prefix: str,
        make: Callable[[Key, V], T | None],
        sources: Sequence[str] = (),
        field: Callable[[V, Sequence[str]], tuple[str, bool]] = _no_field,
    ) -> AsyncIterator[list[T]]:
        """What ``make`` makes of each record below ``prefix``, in order of the keys (told without the table's name);
        nothing of those of which it makes None.

        With ``sources`` only of those that one of these filters matches; ``field`` is what they look at.
        InvalidArgument for a bad filter.

        It comes in pieces as small as they must be to hold nobody up. It is the state of one instant, not before this
        call, if it is taken within some seconds; of a slower one's rest see :mod:`services.metadata.walks`.
        """
        wanted = await filters.parsed(sources, self.lane) if sources else None
        made: list[T] = []
        piece = self.lane.slice()
        with self._walks.over((table.name, *prefix)) as walk:
            for key, value in walk:
                try:  # as telling() does, which costs more
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
        """Change something, wait while it is :class:`Busy`, for ``patience`` seconds if not as long as usual, and tell
        the collector unless ``change`` is None. ``lasting``: see ``Transactions.write``.
        """
        end = time.monotonic() + (self.patience if patience is None else patience)
        with contextlib.ExitStack() as waiting, self._delay() as delayed:
            awaited: str | Raw | None = None
            while True:
                try:
                    result = await self.transactions.write(work, lasting=lasting)
                except asyncio.CancelledError:  # it may be written all the same
                    if change is not None:
                        self.schedule(change)
                    raise
                except Busy as busy:
                    left = end - time.monotonic()
                    if left <= 0:
                        raise errors.Unavailable(str(busy)) from None
                    delayed(busy.until)
                    # it may have ended since the work looked: look again, now that its end is not missed
                    if busy.until != awaited:
                        waiting.close()
                        awaited, ended = busy.until, waiting.enter_context(self._wait(busy.until))
                        continue
                    self._asleep.add(ended)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left):
                            await ended
                    self._asleep.discard(ended)  # in the same turn of the loop it is in the store's queue again
                    awaited = None
                else:
                    if change is not None:
                        self.schedule(change)
                    return result

    @contextlib.contextmanager
    def _wait(self, until: str | Raw) -> Iterator[asyncio.Future[None]]:
        """What is done when :meth:`wake` tells of ``until``."""
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
        """A write, which tells what it finds in somebody's hands."""
        write = object()
        try:
            yield partial(self._delayed.__setitem__, write)
        finally:
            self._delayed.pop(write, None)

    def awaited(self, backend: str) -> bool:
        """Whether somebody waits for marks on things of a backend to be taken off."""
        return any(isinstance(until, Raw) and until.backend == backend for until in self._delayed.values())

    async def looked_again(self) -> None:
        """Wait until all who were woken are in the store's queue, before whoever asks now."""
        while any(ended.done() for ended in self._asleep):  # noqa: ASYNC110 - a turn or two of the loop
            await asyncio.sleep(0)

    def schedule(self, change: Change) -> None:
        """Tell the collector that something was written, or became nobody's."""
        if self.collector is not None:
            self.collector.schedule(change)

    def wake(self, *ended: str | Raw) -> None:
        """Intents ended or marks were taken off: whoever waits for one of them may look again."""
        for each in ended:
            for waiter in self._waiting.pop(each, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def store_id(self) -> str:
        """The id of this store, the same for as long as it exists."""

        def work(tx: Transaction) -> str:
            found = schema.STORE.get(tx)
            if found is None:
                import uuid

                found = str(uuid.uuid4())
                schema.STORE.put(tx, value=found)
            return found

        return await self.transactions.write(work)

    async def collected(self) -> None:
        """Wait for a collection that begins now: what a synchronous delete promises."""
        if self.collector is not None:
            await self.collector.collect(everything=False)


# ---------------------------------------------------------------------------------------------- pieces of work


def ensure_namespace(tx: Transaction, namespace: str) -> None:
    """A write makes its namespace."""
    if not schema.NAMESPACES.has(tx, namespace):
        schema.NAMESPACES.put(tx, namespace, value=Namespace())


def check_lease(tx: Reader, namespace: str, lease: str) -> None:
    """NotFound if the caller named a lease that does not exist."""
    if lease and not schema.LEASES.has(tx, namespace, lease):
        raise errors.NotFound("lease does not exist")


def hold(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """The caller's lease, if it named one, holds the resource from now on."""
    check_lease(tx, namespace, lease)
    if lease:
        schema.put_resource(tx, namespace, lease, resource)


def release(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """The caller's lease, if it named one, no longer holds the resource."""
    if lease:
        schema.delete_resource(tx, namespace, lease, resource)


def check_not_sweeping(tx: Reader, raw: Raw) -> None:
    """Busy while the collector is removing it."""
    if schema.is_marked(tx, raw):
        raise Busy(f"{'content' if raw.kind == 'blob' else raw.kind} {raw.name} is being removed by the collector", raw)
