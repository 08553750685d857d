"""What the fleet tells a pull, and what a pull tells the fleet.

Each node's truth stays its own. The fleet says which other nodes (*peers*) have a blob, or are fetching it, as they
said last: that can be old, and wrong. So whoever asks a peer checks what it gets, by the digest, and goes to the
registry where a peer fails.

A question waits for the fleet as long as answers took lately suggest, at least ``PATIENCE`` seconds. Without an answer
nobody has the blob, and this node is to fetch it from the registry; further questions then wait ``IMPATIENCE``, until
one is answered. Where the fleet is known to be away, nothing waits. A namespace that is not shared has no peers, and
the fleet learns nothing of it.

The fleet knows which images and containers each node has, too. If the registry of an image is away, a pull learns from
that what the image's name stands for.

The nodes that want one blob at the same time agree on who fetches it from the registry, by a *claim*. The others read
from that node while it arrives there. A claim ends with the fetch, or with its node; and who cannot get the bytes from
that node takes its place, so that of all who are left without a source one asks the registry and the others follow it.
A claim saves bytes and decides nothing: two nodes may well fetch the same blob.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.oci.digests import Digest

PATIENCE = 2.0
"""Seconds that a pull waits for the fleet at least, where nothing says that it is away: an etcd that says nothing costs
them once. An etcd that is far away takes a tenth of a second, one on a machine whose processors are busy a whole one.
"""
LONGEST = 6.0
"""The same, at most."""
IMPATIENCE = 0.05
"""As ``PATIENCE``, from the first question that was not answered in time to the next that is answered at all."""
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
    address: str = ""
    """HOST:PORT where that node gives what has arrived of it; empty: nowhere."""


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

    async def claim(self, left: Collection[str] = ()) -> Claim:
        """Who is to fetch it from the registry: this node, if no other claims it, or one of ``left``, which give this
        node nothing. It may be asked again. A node that serves nothing gets no claim.
        """
        ...

    def arrived(self, path: str, have: int, received: int = 0) -> None:
        """The file ``path`` has the first ``have`` bytes, without a gap, so peers may read them. Fewer than before: the
        fetch has begun again. ``received`` is another number at each sign of life, such as the bytes that came in all:
        if only that changes, the fetch is alive, and peers wait on. What is told in quick succession is told as one.
        """
        ...


class Fleet(Protocol):
    """The other nodes, as a pull sees them. Its methods raise nothing where the fleet is down."""

    async def find(self, namespace: str, digest: Digest) -> Sequence[Peer]:
        """The peers that have a blob or are fetching it, without this node. The answer comes within ``LONGEST``, if
        need be without peers.
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
