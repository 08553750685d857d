"""Where a blob lands that is fetched: the file of an ingest, or, where content is served by a foreign store, its stream.

A file is written and hashed by threads, a batch at a time, while the event loop receives the next: so neither the disk nor the hashing holds up other transfers. What is in the file from
an earlier attempt is hashed first. A blob is durable when its commit has returned; the content service sees to that.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from services.content.store import Digest, Writer
from services.images import threads
from services.kit import errors, rpc, tracing

BATCH = 1 << 20
"""Bytes that are written at once: fewer, and the threads' switching costs more than the writing."""

_POOL = ThreadPoolExecutor(8, "landing")
"""Of its own, so that hashing a large ingest again does not hold up small work in the common one."""

Commit = Callable[[Mapping[str, str]], Awaitable[None]]


class FileLanding:
    """A landing in the open and locked file ``fd``, which becomes its own. ``commit`` makes the file, which is closed and right, the blob."""

    def __init__(self, fd: int, digest: Digest, size: int, commit: Commit) -> None:
        self.offset = 0
        self.committed = False
        self._fd = fd
        self._digest = digest
        self._size = size
        self._commit = commit
        self._hash = hashlib.new(digest.algorithm)
        self._batch: list[bytes] = []
        self._waiting = 0
        self._writing: asyncio.Future[None] | None = None
        self._stopped = False

    async def resumed(self) -> None:
        """Hash what is there already; more than there can be is dropped."""
        there = os.fstat(self._fd).st_size
        if there > self._size:
            await self.restart()
        elif there:
            with tracing.span("images.rehash", digest=str(self._digest), bytes=there):
                await threads.run(_POOL, self._hash_file, self._stop)
            self.offset = there

    def _stop(self) -> None:
        self._stopped = True

    def _hash_file(self) -> None:
        while not self._stopped and (piece := os.read(self._fd, BATCH)):
            self._hash.update(piece)

    async def write(self, data: bytes) -> None:
        """Take more bytes; earlier ones may still be on their way to the file. ResourceExhausted if the disk is full."""
        self._batch.append(data)
        self._waiting += len(data)
        self.offset += len(data)
        if self._waiting >= BATCH:
            await self._written()
            self._begin()

    def _begin(self) -> None:
        batch, self._batch, self._waiting = self._batch, [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(_POOL, self._store, batch)

    def _store(self, batch: list[bytes]) -> None:
        data = batch[0] if len(batch) == 1 else b"".join(batch)
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view):]
        except OSError as error:
            raise errors.ResourceExhausted(f"writing {self._digest}: {error.strerror}") from None

    async def _written(self) -> None:
        """Wait for what is being written; cancelled, it goes on and is waited for by :meth:`close`."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None

    async def _flushed(self) -> None:
        await self._written()
        if self._batch:
            self._begin()
            await self._written()

    async def restart(self) -> None:
        """Back to no bytes."""
        await self._written()
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._digest.algorithm)
        self._batch, self._waiting, self.offset = [], 0, 0

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Make it a blob; FailedPrecondition if its bytes are others than the digest says, and then it can be restarted. AlreadyExists if somebody else made it."""
        await self._flushed()
        found = self._hash.hexdigest()
        if self.offset != self._size:
            raise errors.FailedPrecondition(f"{self._digest}: {self.offset} bytes instead of {self._size}")
        if found != self._digest.hex:
            raise errors.FailedPrecondition(f"{self._digest}: its bytes have the digest {self._digest.algorithm}:{found}")
        self._close()
        await self._commit(labels)
        self.committed = True

    async def close(self) -> None:
        """Let go of the file, with all bytes that were taken; what was not committed can be resumed. Not for long: no more than two batches are under way."""
        await rpc.shielded(self._closed())

    async def _closed(self) -> None:
        try:
            await self._flushed()
        except errors.NodeError:
            pass  # the disk is full; whoever wrote was told
        finally:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class StreamLanding:
    """A landing in a store that has streams only. It hashes, and says at the commit what is wrong."""

    def __init__(self, writer: Writer, digest: Digest, size: int, reopened: Callable[[], Awaitable[Writer]]) -> None:
        self.committed = False
        self._writer = writer
        self._digest = digest
        self._size = size
        self._reopened = reopened

    @property
    def offset(self) -> int:
        return self._writer.offset

    async def write(self, data: bytes) -> None:
        await self._writer.write(data)

    async def restart(self) -> None:
        await self._writer.close()
        self._writer = await self._reopened()
        await self._writer.truncate()

    async def commit(self, labels: Mapping[str, str]) -> None:
        await self._writer.commit(self._size, self._digest, labels)
        self.committed = True

    async def close(self) -> None:
        await self._writer.close()


class SharedLanding:
    """A landing that needs no bytes, since another namespace has the blob; its commit is all there is to do."""

    def __init__(self, size: int, commit: Commit) -> None:
        self.offset = size
        self.committed = False
        self._commit = commit

    async def write(self, data: bytes) -> None:
        raise errors.Internal("bytes for a blob that needs none")

    async def restart(self) -> None:
        raise errors.FailedPrecondition("the blob that another namespace has is not what it should be")

    async def commit(self, labels: Mapping[str, str]) -> None:
        await self._commit(labels)
        self.committed = True

    async def close(self) -> None:
        return
