"""The store with what happens around its transactions: the collector is told of changes, and who must wait for somebody else's operation does.

Work that finds a thing in somebody's hands (a mark of the collector's, an open intent on the same name) raises :class:`Busy`. It is run again when
something came to its end (:meth:`Database.wake`), and for a bounded time only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

from services.kit import errors
from services.metadata import schema
from services.metadata.store import Change, Collector, Namespace, Raw, Resource
from services.metadata.transactions import Reader, Transaction, Transactions

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds to wait for somebody else's operation: less than the gateway waits for us."""


class Busy(Exception):
    """Somebody's operation has the thing in hand; the text says which."""


class Database:
    """The store of one metadata process. Its owner sets ``collector`` before it serves."""

    def __init__(self, transactions: Transactions, *, patience: float = PATIENCE) -> None:
        self.transactions = transactions
        self.collector: Collector | None = None
        self.patience = patience
        self.started = time.time_ns()
        """When this process began: intents from before may belong to nobody."""
        self._ended = asyncio.Event()

    def view(self, work: Callable[[Reader], T]) -> T:
        """Read what is committed, now."""
        return self.transactions.view(work)

    async def write(self, work: Callable[[Transaction], T], change: Change | None = "mutation", *, lasting: bool = True, patience: float | None = None) -> T:
        """Change something, wait while it is :class:`Busy`, for ``patience`` seconds if not as long as usual, and tell the collector unless ``change`` is None. ``lasting``: see
        ``Transactions.write``.
        """
        end = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            ended = self._ended  # before the work looks: what ends from now on is not missed
            try:
                result = await self.transactions.write(work, lasting=lasting)
            except Busy as busy:
                left = end - time.monotonic()
                if left <= 0:
                    raise errors.Unavailable(str(busy)) from None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await ended.wait()
            else:
                if change is not None:
                    self.schedule(change)
                return result

    def schedule(self, change: Change) -> None:
        """Tell the collector that something was written, or became nobody's."""
        if self.collector is not None:
            self.collector.schedule(change)

    def wake(self) -> None:
        """An intent ended or a mark was taken off: whoever waits may look again."""
        ended, self._ended = self._ended, asyncio.Event()
        ended.set()

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
            await self.collector.collect()


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
    if schema.SWEEPING.has(tx, *raw):
        raise Busy(f"{raw.kind} {raw.name} is being removed by the collector")
