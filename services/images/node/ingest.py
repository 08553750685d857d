"""Where a blob lands that is fetched: the file of an ingest, or, where content is served by a foreign store, its
stream.

A file is written and hashed by threads, a batch at a time, while the event loop receives the next: so neither the disk
nor the hashing holds up other transfers. Bytes come on *lanes*, each from where it begins on: several connections may
bring parts of one blob. What is there without a gap, from the first byte on, is the ingest's *offset*; it is hashed as
it grows, and whoever follows the ingest may read so far. What is in the file from an earlier attempt is hashed first. A
blob is durable when its commit has returned; the content service sees to that.

An ingest that is left before its commit keeps its offset: the file is cut there. If the process dies instead, the file
may have gaps. They are holes, in which a filesystem has no data, and the next attempt goes on before the first of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.content.store import Writer
from services.images.concurrency import threads
from services.kit import errors, loops, rpc, tracing
from services.kit.holes import without_holes
from services.oci.digests import Digest

BATCH = 1 << 20
"""Bytes that are written at once: fewer, and the threads' switching costs more than the writing."""

_PIECES = 512
"""So many pieces go into one system call; the kernel takes 1024."""

_POOL = ThreadPoolExecutor(8, "ingest")
"""Of its own, so that hashing a large ingest again does not hold up small work in the common one."""

_NEWS = 4096
"""Numbers that tell a follower about one blob, at most: a pipe holds twice as many, so telling never waits."""

Commit = Callable[[Mapping[str, str]], Awaitable[None]]


@dataclass(slots=True)
class Following:
    """A blob that still lands, as a worker reads it: the file ``blob``, the ``news`` of how many bytes are there
    (as ``snapshots/diff/apply.py`` has them), and the ``size`` in the end.
    """

    blob: int
    news: int
    size: int
    broken: bool = False
    """The ingest began anew, or was given up: there will be no more news, and what was read may be wrong."""


class FileIngest:
    """An ingest in the open and locked file ``fd``, which becomes its own. ``commit`` makes the file, which is
    closed and right, the blob.
    """

    lanes = True
    """Whether bytes may come in several places at once."""

    def __init__(self, fd: int, digest: Digest, size: int, commit: Commit) -> None:
        self.offset = 0
        self.received = 0
        """Bytes that were taken, wherever they belong."""
        self.committed = False
        self._fd = fd
        self._reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        """For followers. Not a duplicate, which would share the lock."""
        self._digest = digest
        self._size = size
        self._commit = commit
        self._hash = hashlib.new(digest.algorithm)
        self._hashing = False
        self._earlier = 0
        """Bytes of an earlier attempt."""
        self._ahead: dict[int, int] = {}
        """What is in the file beyond ``offset``: where each piece begins, and where it ends."""
        self._storing = loops.Tasks()
        self._followers: list[_Teller] = []
        self._stopped = False
        self._kept = self._over = False

    @property
    def closed(self) -> bool:
        """It cannot be followed any more."""
        return self._reading < 0

    def keep(self) -> None:
        """Once it is a blob it can be followed until somebody lets go of it, not only until it is closed."""
        self._kept = True

    def let_go(self) -> None:
        """Nobody will follow it any more, or again."""
        self._kept = False
        if self._over:
            self._close_reading()

    @property
    def resumable(self) -> int:
        """How many bytes another attempt can go on with, if this one ends now: maybe while it still hashes those of
        an earlier one.
        """
        return max(self.offset, self._earlier)

    async def resumed(self) -> None:
        """Hash what is there already; more than there can be is dropped."""
        if os.fstat(self._fd).st_size > self._size:
            await self.restart()
        elif there := without_holes(self._fd):
            self._earlier = there
            with tracing.span("images.rehash", digest=str(self._digest), bytes=there):
                await threads.run(_POOL, lambda: self._hash_file(0, there), self._stop)
            self.offset = self.received = there

    def _stop(self) -> None:
        self._stopped = True

    def _hash_file(self, start: int, end: int) -> None:
        while start < end and not self._stopped and (piece := os.pread(self._fd, min(BATCH, end - start), start)):
            self._hash.update(piece)
            start += len(piece)

    # ------------------------------------------------------------------------------------------ bytes

    @contextlib.asynccontextmanager
    async def lane(self, at: int) -> AsyncIterator[Lane]:
        """Bytes from ``at`` on. When the block has ended well, all of them are in the file. ResourceExhausted if
        the disk is full, Unknown if it fails otherwise.
        """
        lane = Lane(self._store, at)
        try:
            yield lane
        finally:
            await lane.flushed()

    def _store(self, start: int, batch: list[bytes]) -> asyncio.Task[None]:
        task = self._storing.keep(loops.task("the storing of a batch", self._stored(start, batch)))
        # seen: it is for whoever waits for the lane
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.received += sum(map(len, batch))
        return task

    async def _stored(self, start: int, batch: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        end = start + sum(map(len, batch))
        if start == self.offset and not self._hashing:
            self._hashing = True
            try:
                await loop.run_in_executor(_POOL, self._write, batch, start, True)
            finally:
                self._hashing = False
            self._grown(end)
        else:
            await loop.run_in_executor(_POOL, self._write, batch, start, False)
            self._ahead[start] = end
        while not self._hashing and self.offset in self._ahead:
            begin = end = self.offset
            while (further := self._ahead.pop(end, None)) is not None:
                end = further
            self._hashing = True
            try:
                await loop.run_in_executor(_POOL, self._hash_file, begin, end)
            finally:
                self._hashing = False
            self._grown(end)

    def _write(self, batch: list[bytes], at: int, hashed: bool) -> None:
        if hashed:
            for piece in batch:
                self._hash.update(piece)
        left: list[bytes | memoryview] = [*batch]
        try:
            while left:
                done = os.pwritev(self._fd, left[:_PIECES], at)
                at += done
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if done:
                    left[0] = memoryview(left[0])[done:]
        except OSError as error:
            raise errors.of_system(error, f"writing {self._digest}") from None

    def _grown(self, offset: int) -> None:
        self.offset = offset
        for follower in self._followers:
            follower.tell(offset)

    async def _settled(self) -> None:
        """Wait for what is being written. Failures are for those whose bytes they were."""
        while self._storing:
            await self._storing.wait()

    # ------------------------------------------------------------------------------------------ followers

    @contextlib.contextmanager
    def followed(self) -> Iterator[Following]:
        """The ingest, which is not closed, for another process to read while it grows."""
        teller = _Teller(os.dup(self._reading), self._size)
        self._followers.append(teller)
        teller.tell(self.offset)
        try:
            yield teller.following
        finally:
            if teller in self._followers:
                self._followers.remove(teller)
            teller.close()

    def _break_off(self) -> None:
        for follower in self._followers:
            follower.break_off()
        self._followers.clear()

    # ------------------------------------------------------------------------------------------ the end

    async def restart(self) -> None:
        """Back to no bytes, for followers too."""
        self._break_off()
        await self._settled()
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.new(self._digest.algorithm)
        self._ahead.clear()
        self._earlier = self.offset = self.received = 0

    async def shorten(self) -> None:
        """Back to the bytes that are there without a gap. No lane may be open."""
        await self._settled()
        os.ftruncate(self._fd, self.offset)
        self._ahead.clear()
        self.received = self.offset

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Make it a blob; FailedPrecondition if its bytes are others than the digest says, and then it can be
        restarted. AlreadyExists if somebody else made it.
        """
        await self._settled()
        found = self._hash.hexdigest()
        if self.offset != self._size:
            raise errors.FailedPrecondition(f"{self._digest}: {self.offset} bytes instead of {self._size}")
        if found != self._digest.hex:
            raise errors.FailedPrecondition(
                f"{self._digest}: its bytes have the digest {self._digest.algorithm}:{found}"
            )
        self._close()
        await self._commit(labels)
        self.committed = True

    async def close(self) -> None:
        """Let go of the file, with all :attr:`resumable` bytes. Not for long: no more than two batches of each lane
        are under way.
        """
        await rpc.shielded(self._closed())

    async def _closed(self) -> None:
        if not self.committed:
            self._break_off()
        await self._settled()
        if self._fd >= 0 and os.fstat(self._fd).st_size > self.resumable:
            os.ftruncate(self._fd, self.resumable)
        self._close()
        self._over = True
        if not (self._kept and self.committed):
            self._close_reading()

    def _close_reading(self) -> None:
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Lane:
    """Bytes on their way to an ingest, in order from ``at`` on; ``store`` writes a batch of them."""

    def __init__(self, store: Callable[[int, list[bytes]], asyncio.Task[None]], at: int) -> None:
        self.at = at
        """Where the next byte goes."""
        self._store = store
        self._batch: list[bytes] = []
        self._waiting = 0
        self._storing: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Take more bytes; earlier ones may still be on their way to the file. Errors as :meth:`FileIngest.lane`
        has them.
        """
        self._batch.append(data)
        self._waiting += len(data)
        self.at += len(data)
        if self._waiting >= BATCH:
            await self._stored()
            self._begin()

    def _begin(self) -> None:
        self._storing = self._store(self.at - self._waiting, self._batch)
        self._batch, self._waiting = [], 0

    async def _stored(self) -> None:
        """Wait for what is being written; cancelled, it goes on and is waited for when the ingest is closed."""
        if self._storing is not None:
            storing, self._storing = self._storing, None
            await asyncio.shield(storing)

    async def flushed(self) -> None:
        """Wait until all is written."""
        try:
            await self._stored()
        finally:
            if self._batch:
                self._begin()
        await self._stored()


class _Teller:
    """A follower's end of the news."""

    def __init__(self, blob: int, size: int) -> None:
        self._step = max(BATCH // 4, size // _NEWS)
        self._told = 0
        news, self._tell = os.pipe2(os.O_CLOEXEC)
        self.following = Following(blob, news, size)

    def tell(self, offset: int) -> None:
        """So many bytes are there."""
        if offset >= self._told + self._step or offset == self.following.size:
            self._told = offset
            with contextlib.suppress(BrokenPipeError):  # it has read enough, and says why
                os.write(self._tell, offset.to_bytes(8, "little"))

    def break_off(self) -> None:
        """There will be no more news."""
        self.following.broken = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._tell >= 0:
            os.close(self._tell)
            self._tell = -1

    def close(self) -> None:
        """Nobody follows any more."""
        self._hang_up()
        os.close(self.following.news)
        os.close(self.following.blob)


class StreamIngest:
    """An ingest in a store that has streams only. It hashes, and says at the commit what is wrong."""

    lanes = False

    def __init__(self, writer: Writer, digest: Digest, size: int, reopened: Callable[[], Awaitable[Writer]]) -> None:
        self.committed = False
        self._writer = writer
        self._digest = digest
        self._size = size
        self._reopened = reopened

    @property
    def offset(self) -> int:
        return self._writer.offset

    @property
    def received(self) -> int:
        return self._writer.offset

    @property
    def resumable(self) -> int:
        return self._writer.offset

    @contextlib.asynccontextmanager
    async def lane(self, at: int) -> AsyncIterator[Writer]:
        if at != self._writer.offset:
            raise errors.Internal(f"a lane from {at} in a stream of {self._writer.offset} bytes")
        yield self._writer

    async def shorten(self) -> None:
        return

    async def restart(self) -> None:
        await self._writer.close()
        self._writer = await self._reopened()
        await self._writer.truncate()

    async def commit(self, labels: Mapping[str, str]) -> None:
        await self._writer.commit(self._size, self._digest, labels)
        self.committed = True

    async def close(self) -> None:
        await self._writer.close()


class SharedIngest:
    """An ingest that needs no bytes, since another namespace has the blob; its commit is all there is to do."""

    lanes = False

    def __init__(self, size: int, commit: Commit) -> None:
        self.offset = self.received = size
        self.resumable = 0
        self.committed = False
        self._commit = commit

    @contextlib.asynccontextmanager
    async def lane(self, at: int) -> AsyncIterator[Lane]:
        raise errors.Internal("bytes for a blob that needs none")
        yield

    async def shorten(self) -> None:
        return

    async def restart(self) -> None:
        raise errors.FailedPrecondition("the blob that another namespace has is not what it should be")

    async def commit(self, labels: Mapping[str, str]) -> None:
        await self._commit(labels)
        self.committed = True

    async def close(self) -> None:
        return
