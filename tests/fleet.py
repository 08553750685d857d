"""A node of a fleet as its peers see it: a content root, the server of its blobs, and what fetches blobs to it."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.content.blobs_remote import open_locked
from services.content.local import LocalFiles, LocalStore
from services.fleet.arriving import SILENCE, Arriving, Part
from services.fleet.peer_server import LIMITS, WAIT, PeerServer, tls
from services.fleet.upload_limit import UploadLimit
from services.images.concurrency.budget import CONNECTIONS, Budget
from services.images.distribution.claims import Claims
from services.images.distribution.fetcher import Fetched, Fetcher
from services.images.distribution.peers import TIMEOUTS, Peers, Source
from services.images.node.ingest import FileIngest
from services.images.registry.client import Client, Registry
from services.images.registry.host import TLS
from services.images.registry_timeouts import Retry, Timeouts
from services.kit import errors, http_server
from services.kit.addresses import Address
from services.kit.certificates import Certificates
from services.kit.http_server import Limits
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest, digest_of
from services.oci.references import Reference
from tests.fake_registry import Authority


@dataclass
class PeerNode:
    """A node that serves what ``store`` has, and what arrives at it."""

    store: LocalStore
    arriving: Arriving
    peers: PeerServer
    server: http_server.Server
    certificate: tuple[Path, Path]

    @property
    def address(self) -> str:
        return self.server.address

    async def put(self, data: bytes) -> Digest:
        """Make a blob."""
        writer = await self.store.writer("put")
        await writer.write(data)
        return await writer.commit(len(data), Digest.parse(digest_of(data)))


@contextlib.asynccontextmanager
async def peer_node(
    root: Path,
    authority: Authority,
    *,
    rate: float = 0.0,
    silence: float = 0.5,
    wait: float = WAIT,
    limits: Limits = LIMITS,
    name: str = "n",
) -> AsyncIterator[PeerNode]:
    """Serve ``root``'s blobs as those of a shared namespace."""
    certificate = authority.issue(name)
    store, arriving = LocalStore(root), Arriving(silence)
    peers = PeerServer({"default": LocalFiles(store)}, arriving, UploadLimit(rate), wait=wait)
    files = Address(
        address="127.0.0.1:1", ca=str(authority.certificate), cert=str(certificate[0]), key=str(certificate[1])
    )
    context = tls(Certificates(files))
    try:
        async with http_server.serving("127.0.0.1:0", peers.answer, limits, tls=context, grace=0.1) as server:
            yield PeerNode(store, arriving, peers, server, certificate)
    finally:
        store.close()


def client(authority: Authority, certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """How a peer connects that has this certificate."""
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(*certificate)
    return context


# ------------------------------------------------------------------------------------------ nodes that pull


class Book:
    """What the fleet's etcd would say, to all nodes of a test: addresses, blobs, claims."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.complete: dict[str, dict[str, int]] = {}
        """By digest and node: the size of a blob."""
        self.claims: dict[str, tuple[str, int]] = {}
        """By digest: the node that fetches it, and its size."""
        self.asked: list[tuple[str, str]] = []
        """What was asked for, and of which digest."""
        self.images: dict[str, tuple[str, int]] = {}
        """What the nodes have as an image."""


@dataclass
class BookClaim:
    fleet: BookFleet
    digest: str
    path: str
    size: int
    part: Part | None = None

    async def holder(self, left: Collection[str]) -> Source | None:
        book, me = self.fleet.book, self.fleet.name
        book.asked.append(("claim", self.digest))
        holder, known = book.claims.get(self.digest, (me, self.size))
        if holder != me and holder not in left:
            return Source(holder, book.addresses[holder], 0, known)
        book.claims[self.digest] = me, self.size
        self.part = self.part or self.fleet.node.arriving.begin(Digest.parse(self.digest), self.path, self.size)
        return None

    def arrived(self, have: int, received: int) -> None:
        assert self.part is not None
        self.part.grown(have, received)

    def complete(self) -> None:
        self.fleet.book.complete.setdefault(self.digest, {})[self.fleet.name] = self.size

    def end(self) -> None:
        if self.part is not None:
            self.fleet.node.arriving.end(Digest.parse(self.digest))
        if self.fleet.book.claims.get(self.digest, ("", 0))[0] == self.fleet.name:
            del self.fleet.book.claims[self.digest]


class BookFleet:
    """The ``Fleet`` of one node by the book. It is to the engine what the process ``fleet`` is."""

    def __init__(self, book: Book, node: PeerNode, name: str) -> None:
        self.book = book
        self.node = node
        self.name = name
        book.addresses[name] = node.address

    async def sources(self, digest: str, namespace: str) -> Sequence[Source]:
        self.book.asked.append(("sources", digest))
        found = [(each, size, size) for each, size in self.book.complete.get(digest, {}).items()]
        if digest in self.book.claims:
            holder, size = self.book.claims[digest]
            found.append((holder, 0, size))
        return [Source(each, self.book.addresses[each], have, size) for each, have, size in found if each != self.name]

    async def image(self, name: str, namespace: str) -> tuple[str, int] | None:
        return self.book.images.get(name)

    @contextlib.asynccontextmanager
    async def claim(self, digest: str, namespace: str, path: str, size: int) -> AsyncIterator[BookClaim]:
        claim = BookClaim(self, digest, path, size)
        try:
            yield claim
        finally:
            claim.end()


class RootNode:
    """A transfer's node as far as blobs are fetched to it: its content root is the one that peers see."""

    namespace = "default"

    def __init__(self, store: LocalStore, namespace: str = "default") -> None:
        self.namespace = namespace
        self._store = store
        self._files = LocalFiles(store)

    @contextlib.asynccontextmanager
    async def ingest(self, descriptor: Descriptor) -> AsyncIterator[FileIngest]:
        digest, ref, size = descriptor.checked(), descriptor.ref, descriptor.size

        async def commit(labels: Mapping[str, str]) -> None:
            await self._files.commit(ref, size, digest, labels, computed=True)

        begun = await self._files.begin(ref, size, digest)
        ingest = FileIngest(open_locked(begun.path, ref), digest, size, commit)
        try:
            await ingest.resumed()
            yield ingest
        finally:
            await ingest.close()

    async def read(self, digest: str) -> bytes:
        """A blob's bytes."""
        return b"".join([piece async for piece in self._store.read(Digest.parse(digest))])


@dataclass
class Puller:
    """A node that fetches blobs from a registry and its peers."""

    name: str
    peer: PeerNode
    node: RootNode
    client: Client
    peers: Peers
    fetcher: Fetcher
    registry: Registry

    async def fetch(self, reference: str, descriptor: Descriptor, namespace: str = "default") -> Fetched:
        node: Any = RootNode(self.peer.store, namespace)
        return await self.fetcher.fetch(node, self.client, Reference.parse(reference), descriptor, {}, 0)

    async def has(self, data: bytes) -> bool:
        """Whether it has a blob, with the right bytes."""
        try:
            return await self.node.read(digest_of(data)) == data
        except errors.NotFound:
            return False


QUICK = Timeouts(connect=2.0, stall=1.0, mirror_stall=3.0, slow_window=0.3)
"""For what is slow or stands still; the others have a peer's usual patience, however busy the machine is."""
HASTY = Retry(rounds=2, first=0.05, longest=0.1)


@contextlib.asynccontextmanager
async def puller(
    book: Book,
    root: Path,
    authority: Authority,
    name: str,
    *,
    rate: float = 0.0,
    silence: float = SILENCE,
    wait: float = WAIT,
    limits: Limits = LIMITS,
    timeouts: Timeouts = TIMEOUTS,
    connections: int = CONNECTIONS,
    claims: Claims | None = None,
) -> AsyncIterator[Puller]:
    """A node with its content below ``root``, that pulls and serves its peers."""
    async with (
        peer_node(root, authority, rate=rate, silence=silence, wait=wait, limits=limits, name=name) as peer,
        Registry(retry=HASTY) as registry,
    ):
        trusted = TLS(
            (str(authority.certificate),), ((str(peer.certificate[0]), str(peer.certificate[1])),), alone=True
        )
        fleet = BookFleet(book, peer, name)
        # on a machine that is busy, too, a slow peer is one
        peers = Peers(fleet, registry, trusted, ["default"], timeouts=timeouts, starved=1.0, claims=claims)
        fetcher = Fetcher(Budget(connections), peers=peers)
        yield Puller(name, peer, RootNode(peer.store), registry.client(default_scheme="http"), peers, fetcher, registry)
