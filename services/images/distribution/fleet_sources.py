"""The fleet (``services/fleet/store.py``) as the pull engine asks it, one question at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from services.fleet import store
from services.images.distribution.peers import Source
from services.oci.digests import Digest


class FleetSources:
    """:class:`~services.images.distribution.peers.Fleet` over the node's fleet."""

    def __init__(self, fleet: store.Fleet) -> None:
        self._fleet = fleet

    async def sources(self, digest: str, namespace: str) -> Sequence[Source]:
        peers = await self._fleet.find(namespace, Digest.parse(digest))
        return [Source(each.node, each.address, each.have, each.size) for each in peers]

    async def image(self, name: str, namespace: str) -> tuple[str, int] | None:
        found = await self._fleet.image(namespace, name)
        return None if found is None else (found.digest, found.size)

    @contextlib.asynccontextmanager
    async def claim(self, digest: str, namespace: str, path: str, size: int) -> AsyncIterator[_Claim]:
        async with self._fleet.fetching(namespace, Digest.parse(digest), size) as fetch:
            yield _Claim(fetch, path, size)


class _Claim:
    def __init__(self, fetch: store.Fetch, path: str, size: int) -> None:
        self._fetch = fetch
        self._path = path
        self._size = size

    async def holder(self, left: Collection[str]) -> Source | None:
        found = await self._fetch.claim(left)
        return None if found.ours else Source(found.node, found.address, 0, self._size)

    def arrived(self, have: int, received: int) -> None:
        self._fetch.arrived(self._path, have, received)

    def complete(self) -> None:
        self._fetch.arrived(self._path, self._size, self._size)
