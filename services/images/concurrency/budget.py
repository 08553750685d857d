"""The limits that all pulls and pushes of the process share: connections, layers, and workers that unpack, at once.

The longest wait is not served first. Documents go before layers, and a lower layer of an image goes before a higher
one, whichever pull wants it. So the layers of one image are unpacked while those above them arrive, and a small image
does not wait for all of a large one.

A wait for a place is a span ``wait.budget``. It links to a span that held a place when the wait began, and, at its end,
to the span that gave its place up.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
from collections.abc import AsyncIterator

from services.images import waits
from services.images.concurrency.fair_queue import Observing
from services.kit import metrics, tracing

CONNECTIONS = 16
"""Twice the layers: documents, a few KiB each, pass beside them. Registries do not yet refuse so many connections from
one address.
"""

LAYERS = 8
"""containerd's default is 3, from a time when one layer filled a link. Registries' object stores give one connection
some 50 MB/s, so that a link of 2.5 Gbit/s takes six. Each further layer costs 2 MiB of memory and shares the disk.
"""

UPLOADS = 5
"""Docker's number: registries accept pushes more slowly than they serve pulls."""

STREAMS = 4
"""Parts of one large layer at once: four connections to an object store fill as much as eight layers of middle size."""

WORKERS = min(8, len(os.sched_getaffinity(0)) + 1)
"""Layers that are unpacked at once. A worker keeps slightly less than a core busy; the rest of the time it waits for
the network and the disk. Each takes up to 25 MB.
"""

_DOCUMENT = -1


_HELD = metrics.Gauge("splitd_queue_held", "Places in use that all transfers share, by kind.", "queue")
_WAITING = metrics.Gauge("splitd_queue_waiting", "Waiting for a place that all transfers share, by kind.", "queue")


READINGS = Observing(
    here=lambda: tracing.current().ref(),
    waiting=lambda holder: waits.waiting(waits.BUDGET, "the reading of another large document", ref=holder),
)
"""Of large documents, which are read one at a time."""


class Budget:
    """The connections, layers and workers that may be active at once in this process."""

    def __init__(
        self, connections: int = CONNECTIONS, layers: int = LAYERS, uploads: int = UPLOADS, workers: int = WORKERS
    ) -> None:
        self._connections = Gate(connections, "connections")
        self._layers = Gate(layers, "layers")
        self._uploads = Gate(uploads, "uploads")
        self._workers = Gate(workers, "workers")
        for gate in (self._connections, self._layers, self._uploads, self._workers):
            gate.shown()

    @contextlib.asynccontextmanager
    async def document(self) -> AsyncIterator[None]:
        """A connection for something small."""
        async with self._connections.entered(_DOCUMENT, "a document waits for a connection"):
            yield

    @contextlib.asynccontextmanager
    async def layer(self, number: int) -> AsyncIterator[None]:
        """A place to fetch a layer, the ``number``-th from the bottom of its image."""
        async with self._layers.entered(number, f"layer {number + 1} waits until others have been fetched"):
            yield

    @contextlib.asynccontextmanager
    async def connection(self, number: int) -> AsyncIterator[None]:
        """A connection for such a layer."""
        async with self._connections.entered(number, f"layer {number + 1} waits for a connection"):
            yield

    @contextlib.asynccontextmanager
    async def unpacking(self, number: int) -> AsyncIterator[None]:
        """A worker for such a layer."""
        async with self._workers.entered(number, f"layer {number + 1} waits for a worker"):
            yield

    @contextlib.asynccontextmanager
    async def upload(self, number: int) -> AsyncIterator[None]:
        """A place to send a layer, and a connection for it."""
        async with (
            self._uploads.entered(number, f"layer {number + 1} waits until others have been sent"),
            self._connections.entered(number, f"layer {number + 1} waits for a connection"),
        ):
            yield


class Gate:
    """A semaphore that admits the lowest rank first, and among equals the first that came. ``what`` names its places in
    traces.
    """

    def __init__(self, places: int, what: str) -> None:
        self._free = places
        self._what = what
        self._holders: list[tracing.Span] = []
        """The spans that have a place, in the order in which they got it."""
        self._waiting: list[tuple[int, int, asyncio.Future[str]]] = []
        """The futures get the reference of the span that gave its place up."""
        self._order = itertools.count()

    def shown(self) -> None:
        """Show its places and who waits for them as metrics."""
        _HELD.set(lambda: len(self._holders), self._what)
        _WAITING.set(lambda: len(self._waiting), self._what)

    @contextlib.asynccontextmanager
    async def entered(self, rank: int, words: str = "") -> AsyncIterator[None]:
        """A place during the block. ``words`` say who waits for it, for the client of the transfer."""
        await self._enter(rank, words)
        holder = tracing.current()
        self._holders.append(holder)
        try:
            yield
        finally:
            self._holders.remove(holder)
            self._leave(holder)

    def widen(self, places: int) -> None:
        """Add so many places."""
        for _ in range(places):
            self._leave(None)

    async def _enter(self, rank: int, words: str) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), place))
        said = words or f"waiting for one of the {self._what}"
        with (
            waits.noted(waits.BUDGET, said),
            tracing.wait("budget", self._oldest(), **{"splitd.wait.for": self._what}) as waiting,
        ):
            try:
                waiting.link(await place)
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # the place was given to a caller that no longer wants it
                    self._leave(None)
                raise

    def _oldest(self) -> str:
        """The span that has had its place for the longest time."""
        return self._holders[0].ref() if self._holders else ""

    def _leave(self, holder: tracing.Span | None) -> None:
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(holder.ref() if holder is not None else "")
                return
        self._free += 1
