"""What the fleet tells a pull, and what a pull tells the fleet.

Each node's truth stays its own. The fleet says which other nodes (*peers*) have a blob, or are fetching it, as they
said last: that can be old, and wrong. So whoever asks a peer checks what it gets, by the digest, and goes to the
registry where a peer fails.

Nothing here waits for the fleet: where it does not answer within ``PATIENCE`` seconds, nobody has the blob, and this
node is to fetch it from the registry. A namespace that is not shared has no peers, and the fleet learns nothing of it.

The fleet knows which images and containers each node has, too. If the registry of an image is away, a pull learns from
that what the image's name stands for.

The nodes that want one blob at the same time agree on who fetches it from the registry, by a *claim*. The others read
from that node while it arrives there, and from each other. A claim ends with the fetch, or with its node. It saves
bytes and decides nothing: two nodes may well fetch the same blob.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.oci.digests import Digest

PATIENCE = 0.5
"""Seconds that a pull waits for the fleet. An etcd that is far away, or busy, takes a tenth of that."""
IMPATIENCE = 0.05
"""As ``PATIENCE``, from the first question that was not answered in time to the next that is."""
SAYING = 2.0
"""Seconds that a pull waits for what the fleet has as an image, if its registry is away."""
PEERS = 64
"""Peers of one blob that are told, at most."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that has a blob, or is fetching it."""

    node: str
    address: str
    """HOST:PORT of its peer server. Empty: it serves nothing; :meth:`Fleet.find` leaves such nodes out."""
    size: int
    """Bytes of the whole blob, as the peer says."""
    have: int
    """Bytes that it had when it last said so; ``size``: all."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a node stands in its fleet, as it sees that itself."""

    node: str
    address: str
    """HOST:PORT where peers get its blobs; empty: they get none."""
    troubles: tuple[str, ...] = ()
    """Why it is not in the fleet, serves nothing, or does not know its blobs."""
    blobs: int = 0
    """Blobs that the others are told of."""
    left_out: int = 0
    """Further ones, of which they are not."""
    arriving: int = 0
    """Blobs that peers may read while they arrive."""
    sent: int = 0
    """Bytes of blobs that were sent to peers since the process started."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who is to fetch a blob from the registry."""

    node: str
    """Empty: nobody can say, so it is this node."""
    ours: bool
    """Whether it is this node."""


NOBODY = Claim("", True)
"""The answer where the fleet has none."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the name of an image stands for: its manifest or index."""

    digest: str
    size: int
    """Bytes of the manifest or index."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a node."""

    node: str
    namespace: str
    name: str
    target: Target
    updated: int
    """When its record was changed last, in nanoseconds since the epoch, by the node's clock."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a node."""

    node: str
    namespace: str
    id: str
    image: str
    created: int
    """As ``Image.updated``."""


def agreed(images: Iterable[Image]) -> Target | None:
    """What most nodes have as an image; if several targets are as frequent, the one that was changed last."""
    nodes: Counter[Target] = Counter()
    latest: dict[Target, int] = {}
    for each in images:
        nodes[each.target] += 1
        latest[each.target] = max(each.updated, latest.get(each.target, 0))
    return max(nodes, key=lambda target: (nodes[target], latest[target], target.digest), default=None)


class Fetch(Protocol):
    """A blob that this node is fetching, from whatever source. Its claim, if it has one, ends with it."""

    async def claim(self) -> Claim:
        """Who is to fetch it from the registry: this node, if no other claims it. It may be asked again, as when the
        other node has gone: then this node may get the claim.
        """
        ...

    def arrived(self, path: str, have: int, received: int = 0) -> None:
        """The file ``path`` has the first ``have`` bytes, without a gap, so peers may read them. Fewer than before: the
        fetch has begun again. ``received`` bytes came in all: if only that grows, the fetch is alive, and peers wait on
        for what they need. What is told in quick succession is told as one.
        """
        ...


class Fleet(Protocol):
    """The other nodes, as a pull sees them. Its methods raise nothing where the fleet is down."""

    def find(self, namespace: str, digest: Digest) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Peer]]]:
        """The peers that have a blob or are fetching it, without this node; and all of them again whenever they change.
        The first answer comes within ``PATIENCE``, if need be without peers. It ends when the fleet is away.
        """
        ...

    def fetching(self, namespace: str, digest: Digest, size: int) -> AbstractAsyncContextManager[Fetch]:
        """While the block lasts, this node fetches a blob of ``size`` bytes."""
        ...

    async def image(self, namespace: str, name: str) -> Target | None:
        """What the other nodes have as the image ``name`` (:func:`agreed`). None if none has it, if the namespace is
        not shared, or if the fleet does not say it within ``SAYING``.
        """
        ...


class Overview(Protocol):
    """The whole fleet, as an operator sees it, with this node. Unavailable if etcd is away."""

    def images(self) -> AsyncIterator[Sequence[Image]]:
        """The images of all nodes, in some order, page by page."""
        ...

    def containers(self) -> AsyncIterator[Sequence[Container]]:
        """The same for containers."""
        ...
