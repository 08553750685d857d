"""The other nodes of the fleet as sources of blobs, beside the registry.

A blob is asked of the peers first. Who has all of it is asked for it. If nobody has, a *claim* in the fleet decides who
fetches it from the registry: its holder does, and the other nodes follow that node's arriving bytes, as long as its
fetch is alive. No node claims all blobs that it wants at once (:mod:`.claims`). Whatever a peer does wrong, another
source is asked at once, for the bytes that are still missing: a peer that has all of it, or the registry, by who takes
the place of the holder that is left:

- it ends, stalls, refuses, or cannot be reached;
- it is slower than the registry would be (:class:`Throughput`);
- its bytes turn out wrong. The digest of the whole blob decides, before anything uses it. The blob is then fetched from
  the registry alone. If that has the right bytes, the peer that gave the others is not asked for anything for a while
  (:mod:`.blamed`).

If the registry fails as well, each peer is tried once more, however slow. Bytes that come from a peer are not offered
to others before the blob is complete and verified: so who gives wrong bytes is who made them.

What the fleet knows comes from the node's own process ``fleet``. If it is away, or its etcd is, it knows nobody, and
the registry is asked as on a node without a fleet.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.images.distribution.blamed import Blamed
from services.images.distribution.claims import Claims
from services.images.documents.manifests import media_type_in
from services.images.documents.parser_program import read
from services.images.node.ingest import FileIngest
from services.images.registry.client import Registry
from services.images.registry.download import Download
from services.images.registry.host import TLS
from services.images.registry.host_memory import DEAD
from services.images.registry.limits import MANIFEST_LIMIT
from services.images.registry.peer import PeerPlace, peer_key
from services.images.registry_timeouts import Retry, Timeouts
from services.images.transfer import Ingest
from services.kit import errors, gojson, loops, tracing
from services.kit.thread_times import Starved
from services.oci.descriptors import Descriptor
from services.oci.media_types import is_root
from services.oci.references import Reference

log = logging.getLogger(__name__)

CLAIMED = 1 << 20
"""Bytes from which a blob is claimed: a claim is a transaction in etcd, and the registry sends less in that time."""

ASKED = 4
"""Peers that are asked for one blob, at most, before the registry is."""

NODES = 1000
"""Nodes and registries that are remembered."""

STRIKES = 3
"""Blobs with wrong bytes in which a node had a part, of others or unverified ones: after so many it is not asked."""

LOOK = 0.2
"""Seconds from one look at who has a blob to the next, while this node leaves the claim to others."""

TELLING = 0.1
"""Seconds from one look at how much has arrived to the next, for those who follow."""

HEARD = 10.0
"""Seconds for which bytes from a peer show that it can be reached, although a connection to it was not made in time."""

TIMEOUTS = Timeouts(connect=5.0, stall=5.0, mirror_stall=15.0, slow_window=3.0)
"""Of peers: they are near, and the registry can be asked instead. ``connect`` is for the network and the peer's kernel;
the peer's process has as long as for an answer. ``mirror_stall`` is that of a peer which fetches the blob itself: its
bytes come in pieces of a MiB, and it says within ten seconds whether its own fetch is alive.
"""

SHARE, ARRIVING_SHARE = 0.5, 0.125
"""Parts of what the registry gave lately, to the node as a whole. If less comes from all sources together, a peer is
left: one that has the blob, or one that gets it from the registry itself. Of the latter, the bytes without a gap grow
in steps, and if it is left the registry sends the blob twice.
"""

STARVED = 0.1
"""The share of the time without a processor from which a rate says more of this machine than of a peer."""

_ONCE = Retry(rounds=1)
"""The registry is the second attempt."""
_AGAIN = Retry(rounds=2, first=0.1, longest=0.1, hopeless=1.0)
"""Of a peer that fetches the blob itself: the end of its bytes does not say whether more will come. Its next answer
does, and if another source is better, that asks to wait.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A node that has ``have`` of the ``size`` bytes of a blob: all, or the first ones, and more of them come."""

    node: str
    address: str
    """``HOST:PORT``, where it serves its peers."""
    have: int
    size: int

    @property
    def complete(self) -> bool:
        return self.have >= self.size


class Claim(Protocol):
    """A claim, which lasts until its block ends."""

    async def holder(self, left: Collection[str]) -> Source | None:
        """The node that fetches the blob from the registry; None: this one, as nobody does, or one of ``left``. It is
        asked again when that node is left.
        """
        ...

    def arrived(self, have: int, received: int) -> None:
        """Tell those who follow this node how many bytes are there without a gap, and another number at each sign of
        life.
        """
        ...

    def complete(self) -> None:
        """The blob is verified, and a blob of the node."""
        ...


class Fleet(Protocol):
    """What is known of the fleet. Nothing of it waits longer than some hundredths of a second for etcd, or fails
    because etcd or the process is away: then nobody has anything, and each claim is this node's.
    """

    async def sources(self, digest: str, namespace: str) -> Sequence[Source]:
        """The nodes that have a blob, or get it from a registry; not this one."""
        ...

    async def image(self, name: str, namespace: str) -> tuple[str, int] | None:
        """The digest and size of what most of the other nodes have as an image; None if none has it."""
        ...

    def claim(self, digest: str, namespace: str, path: str, size: int) -> contextlib.AbstractAsyncContextManager[Claim]:
        """A claim to a blob. It arrives in the file ``path``, from which others may read it if this node is the
        claim's holder.
        """
        ...


@contextlib.asynccontextmanager
async def telling(
    ingest: Ingest, claim: Claim, signs: Callable[[], int], interval: float = TELLING
) -> AsyncIterator[None]:
    """During the block, tell those who follow how much of the ingest has arrived; ``signs`` is another number at each
    sign of life.
    """

    async def tell() -> None:
        while True:
            claim.arrived(ingest.offset, signs())
            await asyncio.sleep(interval)

    async with loops.running("the telling of what has arrived", tell):
        yield


class Throughput:
    """What passes, from registries and from all sources together, in bytes a second of the node as a whole: a peer that
    serves ten blobs at once is slow on each connection, and still better than a registry that would be asked for ten.
    """

    LEAST = 1.0
    """Seconds that are measured at least."""
    KEPT = 600.0
    """Seconds for which what a registry gave says what it would give."""
    WINDOW = 3
    """Seconds that :meth:`now` looks back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        """Bytes that came, from anywhere."""
        self._clock = clock
        self._active = 0
        self._since = 0.0
        self._came = 0
        """Bytes that came from registries since then."""
        self._registries: dict[str, tuple[float, float]] = {}
        """By host: bytes a second, and when that was measured."""
        self._seconds: deque[list[int]] = deque(maxlen=self.WINDOW + 1)
        """The last seconds in which anything came, each with its bytes."""

    @contextlib.contextmanager
    def registry(self, host: str) -> Iterator[None]:
        """A connection to a registry brings bytes during the block."""
        if not self._active:
            self._since, self._came = self._clock(), 0
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._measure(host)

    def _measure(self, host: str) -> None:
        now = self._clock()
        seconds, size = now - self._since, self._came
        if seconds < self.LEAST or not size:
            return
        before, rate = self.of_registry(host), size / seconds
        self._registries.pop(host, None)
        if len(self._registries) >= NODES:
            del self._registries[next(iter(self._registries))]
        self._registries[host] = (rate + before) / 2 if before else rate, now
        self._since, self._came = now, 0

    def came(self, size: int, *, registry: bool) -> None:
        """Bytes came from a registry, or from a peer."""
        self.total += size
        if registry:
            self._came += size
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0])
        self._seconds[-1][1] += size

    def of_registry(self, host: str) -> float:
        """What a registry gave lately; 0 if that is not known."""
        rate, at = self._registries.get(host, (0.0, float("-inf")))
        return rate if self._clock() - at < self.KEPT else 0.0

    def now(self) -> float:
        """What came within the last seconds, from all together."""
        now = self._clock()
        first = int(now) - self.WINDOW + 1
        return sum(size for second, size in self._seconds if second >= first) / (now - first)


class Peers:
    """The peers, for a process: how to reach them, and what is remembered of them. ``shared`` are the namespaces whose
    blobs nodes give to each other; a pull of another one knows nothing of the fleet, and the fleet nothing of it.
    """

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        tls: TLS,
        shared: Collection[str],
        *,
        timeouts: Timeouts = TIMEOUTS,
        throughput: Throughput | None = None,
        liars: Blamed | None = None,
        starved: float = STARVED,
        claims: Claims | None = None,
    ) -> None:
        self.fleet = fleet
        self.claims = claims or Claims()
        self.tls = tls
        self.timeouts = timeouts
        self.throughput = throughput or Throughput()
        self.starved = starved
        self.registry = registry
        self.heard: dict[str, float] = {}
        """When bytes came from a node last."""
        self.liars = Blamed() if liars is None else liars
        """The nodes that gave wrong bytes: they are not asked."""
        self._strikes: dict[str, int] = {}
        self._shared = frozenset(shared)

    def sharing(self, reference: Reference, descriptor: Descriptor, namespace: str) -> Sharing | None:
        """The sources of one blob, for a pull in ``namespace``; None if that is not shared."""
        return Sharing(self, reference, descriptor, namespace) if namespace in self._shared else None

    def shares(self, namespace: str) -> bool:
        """Whether the blobs of a namespace are shared."""
        return namespace in self._shared

    async def known(self, reference: Reference, name: str, namespace: str) -> tuple[str, int] | None:
        """The digest and size of the manifest or index that the fleet has as the image ``name``; None if none has it.
        ``reference`` is its reference: if it has a digest, any node with that counts.
        """
        if reference.digest is None:
            return await self.fleet.image(name, namespace)
        digest = str(reference.digest)
        return next(
            ((digest, each.size) for each in await self.fleet.sources(digest, namespace) if each.complete), None
        )

    async def root(self, reference: Reference, digest: str, size: int, namespace: str) -> Descriptor | None:
        """The descriptor of a manifest or index that peers have; None if none gives it."""
        described = Descriptor("", digest, size)
        if not 0 < size <= MANIFEST_LIMIT or (sharing := self.sharing(reference, described, namespace)) is None:
            return None
        data = await sharing.document()
        try:
            media_type = "" if data is None else await read(data, media_type_in)
        except gojson.Malformed:
            return None
        return replace(described, media_type=media_type) if is_root(media_type) else None

    def hear(self, node: str) -> None:
        """Bytes have come from a node."""
        self.heard.pop(node, None)
        if len(self.heard) >= NODES:
            del self.heard[next(iter(self.heard))]
        self.heard[node] = time.monotonic()

    def blame(self, node: str, why: str) -> None:
        """The node gave wrong bytes: it is not asked for a while."""
        seconds = self.liars.add(node, why)
        log.error("peer %s is not asked for blobs for %.0f minutes: %s", node, seconds / 60, why)

    def strike(self, nodes: Collection[str], why: str) -> None:
        """One of the nodes gave wrong bytes, or passed on those of a registry."""
        for node in nodes:
            strikes = self._strikes.pop(node, 0) + 1
            if len(self._strikes) >= NODES:
                del self._strikes[next(iter(self._strikes))]
            self._strikes[node] = strikes
            log.warning("peer %s may have given wrong bytes (%d of %d times): %s", node, strikes, STRIKES, why)
            if strikes >= STRIKES:
                self.blame(node, f"wrong bytes in {strikes} blobs, the last being: {why}")


class Sharing:
    """The sources of one blob beside the registry, for the attempts of one fetch."""

    def __init__(self, peers: Peers, reference: Reference, descriptor: Descriptor, namespace: str) -> None:
        self.throughput = peers.throughput
        self.came = 0
        """Bytes that came from peers."""
        self._peers = peers
        self._reference = reference
        self._descriptor = descriptor
        self._namespace = namespace
        self._claiming = contextlib.AsyncExitStack()
        self._claim: Claim | None = None
        self._ours = False
        """Whether the claim is this node's."""
        self._connections = 0
        """Places among the node's connections that this blob has, for the registry."""
        self._asked: set[str] = set()
        self._asked_last: set[str] = set()
        self._gave: dict[str, bool] = {}
        """The nodes that gave bytes in this attempt, and whether they had verified these."""
        self._suspects: dict[str, str] = {}
        self._alone = False

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """One attempt at the blob, from its fetch to its commit. A claim ends with it."""
        self._gave.clear()
        try:
            yield
        finally:
            await self._release()

    async def _release(self) -> None:
        claiming, self._claiming = self._claiming, contextlib.AsyncExitStack()
        self._claim, self._ours = None, False
        await claiming.aclose()

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """During the block, the blob has a place among the node's connections."""
        self._connections += 1
        try:
            yield
        finally:
            self._connections -= 1

    def signs(self, ingest: Ingest) -> int:
        """Another number at each sign of life: bytes of this blob or, while others have its turn, of any."""
        return ingest.received if self._connections else ingest.received + self.throughput.total

    async def next(self, ingest: Ingest, *, last: bool = False) -> Source | None:
        """The peer to ask now; None: the registry. ``last``: the registry has failed, too, so even peers that were
        left or avoided are asked again.
        """
        if self._alone or (not last and len(self._asked) >= ASKED):
            return None
        asked = self._asked_last if last else self._asked
        source = await self._complete(asked, last=last)
        if source is None and not self._ours and isinstance(ingest, FileIngest):
            source = await self._claimed(ingest, asked, last=last)
        if source is not None:
            asked.add(source.node)
        return source

    async def elsewhere(self) -> bool:
        """Whether a peer has all of it that was not asked as the last resort."""
        if self._alone:
            return False
        source = await self._complete(self._asked_last, last=True)
        return source is not None and source.complete

    async def _complete(self, asked: set[str], *, last: bool) -> Source | None:
        """A peer that has all of it; if it is the ``last`` resort, at least the one that has most."""
        found = await self._peers.fleet.sources(self._descriptor.digest, self._namespace)
        return self._best(found, asked, last=last)

    def _best(self, found: Sequence[Source], asked: set[str], *, last: bool) -> Source | None:
        usable = [each for each in found if (each.complete or last) and self._usable(each, asked, last=last)]
        random.shuffle(usable)  # so that not all ask the same
        return max(usable, key=lambda each: each.have, default=None)

    def _usable(self, source: Source, asked: set[str], *, last: bool) -> bool:
        if not source.address or source.node in asked or source.node in self._peers.liars:
            return False
        if source.size != self._descriptor.size:
            return False
        if last:
            return True
        memory, key = self._peers.registry.memory, peer_key(source.node)
        # where processors are busy, a connection may take its time, and the next one works
        if memory.state(key) == DEAD and time.monotonic() < self._peers.heard.get(source.node, 0.0) + HEARD:
            return True
        return not memory.is_avoided(key)

    async def _claimed(self, ingest: FileIngest, asked: set[str], *, last: bool) -> Source | None:
        """Claim the blob, if it is worth it, in the place of peers that cannot be used. The peer that has the claim, if
        it is not this node.
        """
        digest, size, host = self._descriptor.digest, self._descriptor.size, self._reference.host
        left, claims = set(asked), self._peers.claims
        if size < CLAIMED or last:
            return None
        if not left and (source := await self._turn(ingest)) is not None:
            return source
        with tracing.span("fleet.claim", **{"oci.layer.digest": digest}) as traced:
            if (claim := self._claim) is None:
                claim = self._claim = await self._claiming.enter_async_context(
                    self._peers.fleet.claim(digest, self._namespace, ingest.path, size)
                )
            while (holder := await claim.holder(left)) is not None and not self._usable(holder, asked, last=last):
                if len(left) >= 2 * ASKED:
                    return None
                left.add(holder.node)
            traced.set(**{"splitd.peer": "" if holder is None else holder.node})
        if holder is not None:
            claims.drop(host, self, others=True)
            return holder
        # it may have been completed between the question and the claim
        if (source := await self._complete(asked, last=last)) is not None:
            await self._release()
            return source
        self._ours = True
        claims.take(host, self, lambda: size - ingest.received, must=True)
        self._claiming.callback(claims.drop, host, self)
        await self._claiming.enter_async_context(telling(ingest, claim, lambda: self.signs(ingest)))
        return None

    async def _turn(self, ingest: FileIngest) -> Source | None:
        """Wait until this node may claim the blob, or another fetches it. The peer that has all of it by then."""
        claims, host, size = self._peers.claims, self._reference.host, self._descriptor.size
        self._claiming.callback(claims.drop, host, self)

        def taken() -> bool:
            return claims.take(host, self, lambda: size - ingest.received)

        if taken():
            return None
        with tracing.wait("budget", **{"splitd.wait.for": "claims"}):
            while True:
                end = time.monotonic() + LOOK
                while (seconds := end - time.monotonic()) > 0:
                    await claims.changed(host, seconds)
                    if taken():
                        return None
                found = await self._peers.fleet.sources(self._descriptor.digest, self._namespace)
                if (source := self._best(found, set(), last=False)) is not None:
                    await self._release()
                    return source
                if any(self._usable(each, set(), last=False) for each in found):
                    return None

    def fetch(self, source: Source, offset: int) -> Download:
        """``async with`` gives the body of the blob from ``offset`` on, from this peer alone."""
        peers, node = self._peers, source.node
        about = {} if source.complete else {"splitd.peer.arriving": True}
        timeouts = peers.timeouts if source.complete else replace(peers.timeouts, stall=peers.timeouts.mirror_stall)
        starved = Starved()

        async def places() -> Sequence[PeerPlace]:
            session = await peers.registry.sessions.of(peers.tls)
            tracing.current().set(**{"splitd.peer": node}, **about)
            return [PeerPlace(node, source.address, session, timeouts)]

        def too_slow(rate: float) -> str:
            return self._too_slow(source, rate, starved=starved.share() > peers.starved)

        return Download(
            self._reference,
            self._descriptor,
            offset,
            None,
            places,
            peers.registry.memory,
            timeouts,
            _ONCE if source.complete else _AGAIN,
            optional=True,
            breaks=not source.complete,
            too_slow=None if node in self._asked_last else too_slow,
        )

    def _too_slow(self, source: Source, rate: float, *, starved: bool) -> str:
        """Why the registry is better than a peer that gives ``rate`` bytes a second on this connection. A peer that
        fetches the blob itself gives nothing while that has not its turn. ``starved``: this process had no processor.
        """
        host = self._reference.host
        would, comes = self.throughput.of_registry(host), self.throughput.now()
        if (rate if source.complete else max(rate, comes)) < self._peers.timeouts.slow_floor:
            return f"only {rate / 1024:.1f} KiB/s"
        if starved or comes >= would * (SHARE if source.complete else ARRIVING_SHARE):
            return ""
        return (
            f"{rate / 1e6:.2f} MB/s, and {comes / 1e6:.2f} MB/s from all sources together; {host} gave "
            f"{would / 1e6:.2f} MB/s"
        )

    def gave(self, source: Source, size: int) -> None:
        """The peer gave so many bytes."""
        self.came += size
        self._peers.hear(source.node)
        self._gave[source.node] = self._gave.get(source.node, True) and source.complete
        self.throughput.came(size, registry=False)

    def left(self, source: Source, error: errors.NodeError) -> None:
        """The peer did not give what was asked for, or not all of it."""
        log.info("blob %s: peer %s is left: %s", self._descriptor.digest, source.node, error)

    def committed(self) -> None:
        """The blob is verified. If its bytes were wrong before, and came from the registry alone this time, somebody
        gave the wrong ones.
        """
        if self._claim is not None and self._ours:
            self._claim.arrived(self._descriptor.size, self._descriptor.size)
            self._claim.complete()
        if len(self._suspects) == 1:
            for node, why in self._suspects.items():
                self._peers.blame(node, why)
        elif self._suspects:
            self._peers.strike(self._suspects, f"{self._descriptor.digest} of one of them had other bytes")
        self._suspects.clear()

    def distrust(self, why: str, *, whole: bool) -> bool:
        """The digest of what came is wrong. Whether peers gave any of it: then the registry alone is asked next.
        ``whole``: nothing of it is from an earlier attempt or from the registry.
        """
        if not self._gave:
            return False
        self._alone = True
        verified = [node for node, had in self._gave.items() if had]
        if whole and len(self._gave) == len(verified) == 1:
            self._peers.blame(verified[0], why)
        elif len(verified) == len(self._gave):
            self._suspects = dict.fromkeys(verified, why)
        else:
            # who still fetched it had not verified it: the registry may have sent it that
            self._peers.strike(self._gave, why)
        return True

    async def document(self) -> bytes | None:
        """The bytes of a manifest or index from a peer, verified; None if none has it."""
        descriptor = self._descriptor
        asked: set[str] = set()
        while len(asked) < ASKED and (source := await self._complete(asked, last=False)) is not None:
            asked.add(source.node)
            data = bytearray()
            try:
                async with self.fetch(source, 0) as body:
                    async for chunk in body:
                        data += chunk
            except errors.NodeError as error:
                self.left(source, error)
                continue
            digest = descriptor.checked()
            found = hashlib.new(digest.algorithm, data).hexdigest()
            if found == digest.hex:
                self.gave(source, len(data))
                return bytes(data)
            self._peers.blame(source.node, f"{digest}: its bytes have the digest {digest.algorithm}:{found}")
        return None
