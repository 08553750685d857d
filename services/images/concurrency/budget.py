"""What all pulls and pushes of the process share: so many connections at once, so many layers, so many workers that
unpack.

Who waits longest is not served first: documents go before layers, and a layer that is low in its image before those
above it, whichever pull wants it. So the layers of one image are unpacked while those above them arrive, and a small
image does not wait for all of a large one.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
from collections.abc import AsyncIterator

CONNECTIONS = 16
"""Twice the layers: documents, a few KiB each, pass beside them, and registries do not yet refuse so many from one
address.
"""

LAYERS = 8
"""containerd's default is 3, from when a layer filled a link. Registries' object stores give one connection some 50
MB/s, so that a link of 2.5 Gbit/s takes six; each more costs 2 MiB of memory and shares the disk with the others.
"""

UPLOADS = 5
"""Docker's number: registries take what is pushed more slowly than they give."""

STREAMS = 4
"""Parts of one large layer at once: four connections to an object store fill what eight layers of middle size do."""

WORKERS = min(8, len(os.sched_getaffinity(0)) + 1)
"""Layers that are unpacked at once: a worker keeps somewhat less than a core busy, and waits for the network and
the disk besides. Each takes up to 25 MB.
"""

_DOCUMENT = -1


class Budget:
    """Connections, layers and workers that may be under way at once in this process."""

    def __init__(
        self, connections: int = CONNECTIONS, layers: int = LAYERS, uploads: int = UPLOADS, workers: int = WORKERS
    ) -> None:
        self._connections = Gate(connections)
        self._layers = Gate(layers)
        self._uploads = Gate(uploads)
        self._workers = Gate(workers)

    @contextlib.asynccontextmanager
    async def document(self) -> AsyncIterator[None]:
        """One connection, for something small."""
        async with self._connections.entered(_DOCUMENT):
            yield

    @contextlib.asynccontextmanager
    async def layer(self, number: int) -> AsyncIterator[None]:
        """A layer to fetch, which is the ``number``-th from the bottom of its image."""
        async with self._layers.entered(number):
            yield

    @contextlib.asynccontextmanager
    async def connection(self, number: int) -> AsyncIterator[None]:
        """One connection for such a layer."""
        async with self._connections.entered(number):
            yield

    @contextlib.asynccontextmanager
    async def unpacking(self, number: int) -> AsyncIterator[None]:
        """A worker for such a layer."""
        async with self._workers.entered(number):
            yield

    @contextlib.asynccontextmanager
    async def upload(self, number: int) -> AsyncIterator[None]:
        """A layer to send, and a connection for it."""
        async with self._uploads.entered(number), self._connections.entered(number):
            yield


class Gate:
    """A semaphore that lets the lowest rank in first; of equals the one that came first."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @contextlib.asynccontextmanager
    async def entered(self, rank: int) -> AsyncIterator[None]:
        """A place as long as the block lasts."""
        await self._enter(rank)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, rank: int) -> None:
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given to us, and we do not want it any more
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
