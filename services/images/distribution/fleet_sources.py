"""The fleet (``services/fleet/store.py``) as the pull engine asks it, one question at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from services.fleet import store
from services.images.distribution.peers import Source
from services.oci.digests import Digest

SAYING = 1.0
"""Seconds within which a node says where it can be asked for a blob that it has claimed."""


class FleetSources:
    """:class:`~services.images.distribution.peers.Fleet` over the node's fleet."""

    def __init__(self, fleet: store.Fleet) -> None:
        self._fleet = fleet

    async def sources(self, digest: str, namespace: str) -> Sequence[Source]:
        async with self._fleet.find(namespace, Digest.parse(digest)) as found:
            peers: Sequence[store.Peer] = await anext(found, ())
            return [Source(each.node, each.address, each.have, each.size) for each in peers]

    async def image(self, name: str, namespace: str) -> tuple[str, int] | None:
        found = await self._fleet.image(namespace, name)
        return None if found is None else (found.digest, found.size)

    @contextlib.asynccontextmanager
    async def claim(self, digest: str, namespace: str, path: str, size: int) -> AsyncIterator[_Claim]:
        async with self._fleet.fetching(namespace, Digest.parse(digest), size) as fetch:
            found = await fetch.claim()
            if found.ours:
                yield _Claim(None, fetch, path, size)
                return
            yield _Claim(await self._holder(digest, namespace, found.node, size), fetch, path, size)

    async def _holder(self, digest: str, namespace: str, node: str, size: int) -> Source:
        """Who holds a claim, once it has said where it can be asked: that comes a little later than the claim."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAYING), self._fleet.find(namespace, Digest.parse(digest)) as found:
                async for peers in found:
                    for each in peers:
                        if each.node == node and each.address:
                            return Source(each.node, each.address, each.have, each.size)
        return Source(node, "", 0, size)


class _Claim:
    def __init__(self, holder: Source | None, fetch: store.Fetch, path: str, size: int) -> None:
        self.holder = holder
        self._fetch = fetch
        self._path = path
        self._size = size

    def arrived(self, have: int, received: int) -> None:
        self._fetch.arrived(self._path, have, received)

    def complete(self) -> None:
        self._fetch.arrived(self._path, self._size, self._size)
