"""A node of a fleet as its peers see it: a content root, and the server of its blobs."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from services.content.local import LocalFiles, LocalStore
from services.fleet.arriving import Arriving
from services.fleet.peer_server import LIMITS, PeerServer, tls
from services.fleet.upload_limit import UploadLimit
from services.kit import http_server
from services.kit.addresses import Address
from services.kit.certificates import Certificates
from services.kit.http_server import Limits
from services.oci.digests import Digest, digest_of
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
    patience: float = 0.5,
    limits: Limits = LIMITS,
    name: str = "n",
) -> AsyncIterator[PeerNode]:
    """Serve ``root``'s blobs as those of a shared namespace."""
    certificate = authority.issue(name)
    store, arriving = LocalStore(root), Arriving()
    peers = PeerServer({"default": LocalFiles(store)}, arriving, UploadLimit(rate), patience=patience)
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
