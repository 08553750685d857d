"""The fleet in memory: the fake. What would be several nodes share a :class:`Village`, and each has its own
:class:`MemoryFleet`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from services.fleet.store import NOBODY, PEERS, Claim, Container, Image, Peer, Target, agreed
from services.kit import errors
from services.oci.digests import Digest


class Village:
    """What the nodes of a fleet know together."""

    def __init__(self) -> None:
        self.has: dict[str, dict[str, Peer]] = {}
        """The peers of each digest, by node."""
        self.claims: dict[str, Peer] = {}
        """The node that fetches a digest from the registry."""
        self.images: dict[str, Sequence[Image]] = {}
        """By node."""
        self.containers: dict[str, Sequence[Container]] = {}

    def put(self, digest: Digest, peer: Peer) -> None:
        """A node says that it has a blob, or how much of it."""
        self.has.setdefault(str(digest), {})[peer.node] = peer

    def remove(self, digest: Digest, node: str) -> None:
        """A node does not have a blob any more."""
        self.has.get(str(digest), {}).pop(node, None)

    def gone(self, node: str) -> None:
        """A node has died: its lease has ended."""
        for peers in self.has.values():
            peers.pop(node, None)
        self.claims = {digest: owner for digest, owner in self.claims.items() if owner.node != node}
        self.images.pop(node, None)
        self.containers.pop(node, None)


class MemoryFetch:
    """A fetch of a node."""

    def __init__(self, village: Village, me: Peer, digest: Digest, shared: bool) -> None:
        self.path = ""
        """Where the bytes arrive, as told last."""
        self._village = village
        self._me = me
        self._digest = digest
        self._shared = shared

    async def claim(self, left: Collection[str] = ()) -> Claim:
        await asyncio.sleep(0)
        if not self._shared:
            return NOBODY
        claims, me = self._village.claims, self._me
        if claims.get(str(self._digest), me).node in (*left, me.node):
            claims[str(self._digest)] = me
        owner = claims[str(self._digest)]
        return Claim(owner.node, owner is me, owner.address)

    def arrived(self, path: str, have: int, received: int = 0) -> None:
        self.path = path
        if self._shared:
            self._village.put(self._digest, Peer(self._me.node, self._me.address, self._me.size, have))


class MemoryFleet:
    """A node's view. ``away``: as if its fleet process were down."""

    def __init__(
        self, village: Village, node: str, address: str = "", *, namespaces: Collection[str] = ("default",)
    ) -> None:
        self.away = False
        self._village = village
        self._node = node
        self._address = address
        self._namespaces = namespaces

    def _shares(self, namespace: str) -> bool:
        return namespace in self._namespaces and not self.away

    async def find(self, namespace: str, digest: Digest) -> Sequence[Peer]:
        await asyncio.sleep(0)
        if not self._shares(namespace):
            return []
        known = self._village.has.get(str(digest), {}).values()
        return [peer for peer in known if peer.node != self._node and peer.address][:PEERS]

    @contextlib.asynccontextmanager
    async def fetching(self, namespace: str, digest: Digest, size: int) -> AsyncIterator[MemoryFetch]:
        me = Peer(self._node, self._address, size, 0)
        shared = self._shares(namespace)
        if shared:
            self._village.put(digest, me)
        try:
            yield MemoryFetch(self._village, me, digest, shared)
        finally:
            if shared:
                if self._village.claims.get(str(digest)) is me:
                    del self._village.claims[str(digest)]
                kept = self._village.has.get(str(digest), {}).get(self._node)
                if kept is not None and kept.have < kept.size:
                    self._village.remove(digest, self._node)

    async def image(self, namespace: str, name: str) -> Target | None:
        await asyncio.sleep(0)
        if not self._shares(namespace):
            return None
        found = [image for node, images in self._village.images.items() if node != self._node for image in images]
        return agreed(image for image in found if (image.namespace, image.name) == (namespace, name))

    def tell_images(self, found: Sequence[Image]) -> None:
        """The images that this node has now."""
        self._village.images[self._node] = [image for image in found if image.namespace in self._namespaces]

    def tell_containers(self, found: Sequence[Container]) -> None:
        """The containers that this node has now."""
        self._village.containers[self._node] = [each for each in found if each.namespace in self._namespaces]

    async def images(self) -> AsyncIterator[Sequence[Image]]:
        self._check()
        for images in self._village.images.values():
            yield images

    async def containers(self) -> AsyncIterator[Sequence[Container]]:
        self._check()
        for containers in self._village.containers.values():
            yield containers

    def _check(self) -> None:
        if self.away:
            raise errors.Unavailable("the fleet is away")
