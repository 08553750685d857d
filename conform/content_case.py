"""The content store under test, as the rules of content_*.py see it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from conform.rules import Case, equal
from services.content.store import Files, Status, Store, Writer
from services.kit import errors
from services.oci.digests import Digest

CLEAN = "a clean start after a wrong commit"
PIECES = "pieces of 1 MiB"
SHA512 = "blobs named by sha512"
LOCAL_FILES = "LocalFiles"

# Where promises come from. Paths are those of containerd 2's repository.
STORE = "core/content/content.go"
TESTS = "core/content/testsuite/testsuite.go"
SERVER = "plugins/services/content/contentserver/contentserver.go"
LOCAL = "plugins/content/local"
OURS = "services/content/store.py of splitd"


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def bytes_of(size: int) -> bytes:
    """Bytes that no other call returns: no other namespace has them."""
    return os.urandom(size)


async def put(store: Store, data: bytes, *, ref: str = "", labels: Mapping[str, str] | None = None) -> Digest:
    """Make ``data`` a blob."""
    digest = digest_of(data)
    writer = await store.writer(ref or f"put {digest}", len(data), digest)
    await writer.write(data[writer.offset :])  # another namespace may have all of it already
    equal(await writer.commit(len(data), digest, labels), digest, "the digest of the commit")
    return digest


async def get(store: Store, digest: Digest, offset: int = 0, size: int = 0) -> bytes:
    return b"".join([piece async for piece in store.read(digest, offset, size)])


@contextlib.asynccontextmanager
async def opened(store: Store, ref: str, total: int = 0, expected: Digest | None = None) -> AsyncIterator[Writer]:
    writer = await store.writer(ref, total, expected)
    try:
        yield writer
    finally:
        await writer.close()


@dataclass(kw_only=True)
class ContentCase(Case):
    """A store under test. It remembers every ref and digest of its own, so that they can be removed, and looks at no
    others: the store may have blobs and ingests of somebody else.
    """

    store: Store
    files: Files | None = None
    """The store's private interface for processes of the same node, if it has one."""
    refs: set[str] = field(default_factory=set)
    digests: set[Digest] = field(default_factory=set)

    def ref(self, name: str) -> str:
        """A ref of this case."""
        ref = f"{self.prefix}-{name}"
        self.refs.add(ref)
        return ref

    def digest(self, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of bytes that only this case has."""
        digest = digest_of(data, algorithm)
        self.digests.add(digest)
        return digest

    def fresh(self, size: int) -> bytes:
        """Bytes that only this case has."""
        data = bytes_of(size)
        self.digest(data)
        return data

    def text(self, text: str) -> bytes:
        """The same, which people can read."""
        data = f"{text} of {self.prefix}".encode()
        self.digest(data)
        return data

    async def writer(self, name: str, total: int = 0, expected: Digest | None = None) -> Writer:
        return await self.store.writer(self.ref(name), total, expected)

    @contextlib.asynccontextmanager
    async def opened(self, name: str, total: int = 0, expected: Digest | None = None) -> AsyncIterator[Writer]:
        async with opened(self.store, self.ref(name), total, expected) as writer:
            yield writer

    async def put(self, data: bytes, labels: Mapping[str, str] | None = None) -> Digest:
        digest = self.digest(data)
        return await put(self.store, data, ref=self.ref(f"put-{digest.hex[:16]}"), labels=labels)

    async def get(self, digest: Digest, offset: int = 0, size: int = 0) -> bytes:
        return await get(self.store, digest, offset, size)

    async def status(self, name: str) -> Status:
        status = await self.store.status(self.ref(name))
        equal(status.ref, self.ref(name), "the ref of the status")
        return replace(status, ref=name)

    async def statuses(self, sources: Sequence[str] = ()) -> list[Status]:
        """The ingests of this case, under the names that it gave them."""
        start = f"{self.prefix}-"
        return [
            replace(status, ref=status.ref.removeprefix(start))
            for status in await self.store.list_statuses(sources)
            if status.ref.startswith(start)
        ]

    async def abort(self, name: str) -> None:
        await self.store.abort(self.ref(name))

    async def listed(self, *sources: str) -> list[Digest]:
        """The blobs of this case, as they are listed."""
        return [info.digest async for info in self.store.list(sources) if info.digest in self.digests]

    async def no_blob(self, *digests: Digest) -> None:
        for digest in digests:
            with self.refused(errors.NotFound):
                await self.store.info(digest)

    async def has_blob(self, digest: Digest, data: bytes) -> None:
        equal(await self.get(digest), data, "the bytes that are read")


def about(moment: int) -> int:
    """File times come from a clock that ticks every few milliseconds, and have the time of its last tick."""
    return moment - 20_000_000
