"""What the fleet tells a pull, and what a pull tells the fleet.

Each node's truth stays its own. The fleet says which other nodes (*peers*) have a blob, or are fetching it, as they
said last: that can be old, and wrong. So whoever asks a peer checks what it gets, by the digest, and goes to the
registry where a peer fails.

Nothing here waits for the fleet: where it does not answer within ``PATIENCE`` seconds, nobody has the blob, and this
node is to fetch it from the registry. A namespace that is not shared has no peers, and the fleet learns nothing of it.

The nodes that want one blob at the same time agree on who fetches it from the registry, by a *claim*. The others read
from that node while it arrives there, and from each other. A claim ends with the fetch, or with its node. It saves
bytes and decides nothing: two nodes may well fetch the same blob.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.oci.digests import Digest

PATIENCE = 0.05
"""Seconds that a pull waits for the fleet."""
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
class Claim:
    """Who is to fetch a blob from the registry."""

    node: str
    """Empty: nobody can say, so it is this node."""
    ours: bool
    """Whether it is this node."""


NOBODY = Claim("", True)
"""The answer where the fleet has none."""


class Fetch(Protocol):
    """A blob that this node is fetching, from whatever source. Its claim, if it has one, ends with it."""

    async def claim(self) -> Claim:
        """Who is to fetch it from the registry: this node, if no other claims it. It may be asked again, as when the
        other node has gone: then this node may get the claim.
        """
        ...

    def arrived(self, path: str, have: int) -> None:
        """The file ``path`` has the first ``have`` bytes, without a gap, so peers may read them. Fewer than before: the
        fetch has begun again. What is told in quick succession is told as one.
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
