"""Receives a fetched blob: in the file of an ingest or, if a foreign store serves content, in a stream.

Threads write and hash a file, one batch at a time, while the event loop receives the next batch. So neither the disk
nor the hashing delays other transfers. Bytes come on *lanes*; each lane begins at an offset of its own, so that several
connections can bring parts of one blob. The ingest's *offset* is the number of bytes that are there without a gap, from
the first on. It is hashed as it grows, and followers may read up to it. Bytes from an earlier attempt are hashed first.
A blob is durable when its commit has returned; the content service ensures that.

An ingest that is closed before its commit keeps its offset: the file is cut there. If the process dies instead, the
file may have gaps. They are holes, in which a filesystem has no data, and the next attempt continues before the first
hole.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from services.content.store import Writer
from services.images.concurrency import threads
from services.kit import errors, loops, rpc, tracing
from services.kit.files import start_writeback
from services.kit.holes import without_holes
from services.kit.thread_times import Times, measured
from services.oci.digests import Digest

BATCH = 1 << 20
"""Bytes that are written at once: with fewer, switching threads costs more than writing."""

_BEGUN = 8 << 20
"""Bytes after which their writing to the disk is started: the commit waits for the rest only."""

_PIECES = 512
"""Pieces in one system call; the kernel takes 1024."""

_POOL = ThreadPoolExecutor(8, "ingest")
"""A pool of its own, so that hashing a large ingest again does not delay small work in the common pool."""

_NEWS = 4096
"""Numbers that tell a follower about one blob, at most. A pipe holds twice as many, so writing one never blocks."""

Commit = Callable[[Mapping[str, str]], Awaitable[None]]
Turn = Callable[[], contextlib.AbstractAsyncContextManager[None]]


@dataclass(slots=True)
class Following:
    """A blob that is still arriving, for a worker to read: the file ``blob``; the ``news`` of the number of bytes that
    are there (as in ``snapshots/diff/apply.py``); and the final ``size``.
    """

    blob: int
    news: int
    size: int
    span: str
    """The span that brings the bytes (``tracing.Span.ref``)."""
    broken: bool = False
    """The ingest was restarted or given up: no more news will come, and the bytes read may be wrong."""
    judged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when that is known: the bytes are the blob's, or it is ``broken``."""


class FileIngest:
    """An ingest in the open and locked file ``fd``, which it then owns. ``commit`` makes the closed, verified file the
    blob.
    """

    lanes = True
    """Whether bytes may come in several places at once."""

    def __init__(self, fd: int, digest: Digest, size: int, commit: Commit, turn: Turn = contextlib.nullcontext) -> None:
        """``turn`` surrounds the commit, and may let it wait; nobody else can write to the file meanwhile."""
        self.offset = 0
        self.received = 0
        """Bytes that were received, at any offset."""
        self.committed = False
        self._span = tracing.current().ref()
        self._fd = fd
        self._reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        """For followers. It is opened anew: a duplicate would share the lock."""
        self._digest = digest
        self._size = size
        self._commit = commit
        self._turn = turn
        self._hash = hashlib.new(digest.algorithm)
        self._hashing = False
        self._earlier = 0
        """Bytes of an earlier attempt."""
        self._ahead: dict[int, int] = {}
        """The pieces in the file beyond ``offset``: from the start of each to its end."""
        self._waiting = 0
        """Bytes whose writing to the disk was not started."""
        self._storing = loops.Tasks()
        self._followers: list[_NewsWriter] = []
        self._stopped = False
        self._right = False
        self._told: Callable[[bytes], None] | None = None
        self._kept = self._over = False

    @property
    def path(self) -> str:
        """The file, while it is open."""
        return os.readlink(f"/proc/self/fd/{self._fd}")

    @property
    def closed(self) -> bool:
        """Whether it can no longer be followed."""
        return self._reading < 0

    def when_right(self, told: Callable[[bytes], None]) -> None:
        """Call ``told`` with all bytes, which are few, once they are known to be the blob's. They are not yet
        durable.
        """
        self._told = told

    def keep_open(self) -> None:
        """Keep the committed blob open for followers until :meth:`release`, instead of until it is closed."""
        self._kept = True

    def release(self) -> None:
        """There will be no further followers."""
        self._kept = False
        if self._over:
            self._close_reading()

    @property
    def resumable(self) -> int:
        """Bytes from which another attempt can continue if this one ends now, perhaps while it still hashes those of an
        earlier one.
        """
        return max(self.offset, self._earlier)

    async def resumed(self) -> None:
        """Hash the bytes that are already there. If there are more than the blob has, drop all."""
        if os.fstat(self._fd).st_size > self._size:
            await self.restart()
        elif there := without_holes(self._fd):
            self._earlier = there
            with tracing.span("images.rehash", **{"splitd.size": there}):
                await threads.run(_POOL, lambda: self._hash_file(0, there), self._stop)
            self.offset = self.received = there

    def _stop(self) -> None:
        self._stopped = True

    def _hash_file(self, start: int, end: int) -> Times:
        with measured() as times:
            while start < end and not self._stopped and (piece := os.pread(self._fd, min(BATCH, end - start), start)):
                self._hash.update(piece)
                start += len(piece)
        return times

    # ------------------------------------------------------------------------------------------ bytes

    @contextlib.asynccontextmanager
    async def lane(self, at: int) -> AsyncIterator[Lane]:
        """A lane for the bytes from ``at`` on. Once the block has ended without an error, all its bytes are in the
        file. ResourceExhausted if the disk is full, Unknown if it fails otherwise.
        """
        lane = Lane(self._store, at, self._arrived)
        try:
            yield lane
        finally:
            await lane.flushed()
            tracing.current().put(lane.taken.attributes("splitd.taking"))

    def _store(self, start: int, batch: list[bytes]) -> asyncio.Task[Times]:
        task = self._storing.keep(loops.task("the storing of a batch", self._stored(start, batch)))
        # the exception counts as retrieved: it is for the caller that waits for the lane
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _arrived(self, size: int) -> None:
        self.received += size

    async def _stored(self, start: int, batch: list[bytes]) -> Times:
        """Store a batch. Returns what the threads' time went for."""
        loop, times = asyncio.get_running_loop(), Times()
        end = start + sum(map(len, batch))
        if start == self.offset and not self._hashing:
            self._hashing = True
            try:
                times.add(await loop.run_in_executor(_POOL, self._write, batch, start, True))
            finally:
                self._hashing = False
            self._grown(end)
        else:
            times.add(await loop.run_in_executor(_POOL, self._write, batch, start, False))
            self._ahead[start] = end
        while not self._hashing and self.offset in self._ahead:
            begin = end = self.offset
            while (further := self._ahead.pop(end, None)) is not None:
                end = further
            self._hashing = True
            try:
                times.add(await loop.run_in_executor(_POOL, self._hash_file, begin, end))
            finally:
                self._hashing = False
            self._grown(end)
        return times

    def _write(self, batch: list[bytes], start: int, hashed: bool) -> Times:
        with measured() as times:
            if hashed:
                for piece in batch:
                    self._hash.update(piece)
            at, left = start, list[bytes | memoryview](batch)
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
            self._waiting += at - start
            if self._waiting >= _BEGUN:
                self._waiting = 0
                start_writeback(self._fd)
        return times

    def _grown(self, offset: int) -> None:
        self.offset = offset
        for follower in self._followers:
            follower.tell(offset)

    async def _settled(self) -> None:
        """Wait for pending writes. Their failures are reported to their lanes."""
        while self._storing:
            await self._storing.wait()

    # ------------------------------------------------------------------------------------------ followers

    @contextlib.contextmanager
    def followed(self) -> Iterator[Following]:
        """The ingest, which must not be closed, for another process to read while it grows."""
        writer = _NewsWriter(os.dup(self._reading), self._size, self._span)
        self._followers.append(writer)
        writer.tell(self.offset)
        if self._right:
            writer.following.judged.set()
        try:
            yield writer.following
        finally:
            if writer in self._followers:
                self._followers.remove(writer)
            writer.close()

    def _break_off(self) -> None:
        for follower in self._followers:
            follower.break_off()
        self._followers.clear()

    # ------------------------------------------------------------------------------------------ the end

    async def restart(self) -> None:
        """Drop all bytes, for followers too."""
        self._break_off()
        await self._settled()
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.new(self._digest.algorithm)
        self._ahead.clear()
        self._earlier = self.offset = self.received = 0

    async def shorten(self) -> None:
        """Drop the bytes beyond a gap. No lane may be open."""
        await self._settled()
        os.ftruncate(self._fd, self.offset)
        self._ahead.clear()
        self.received = self.offset

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Make it a blob. FailedPrecondition if its bytes do not match the digest; it can then be restarted.
        AlreadyExists if another process made the blob.
        """
        await self._settled()
        found = self._hash.hexdigest()
        if self.offset != self._size:
            raise errors.FailedPrecondition(f"{self._digest}: {self.offset} bytes instead of {self._size}")
        if found != self._digest.hex:
            raise errors.FailedPrecondition(
                f"{self._digest}: its bytes have the digest {self._digest.algorithm}:{found}"
            )
        self._right = True
        for follower in self._followers:
            follower.following.judged.set()
        if self._told is not None:
            self._told(os.pread(self._reading, self._size, 0))
        async with self._turn():
            self._close()
            await self._commit(labels)
        self.committed = True

    async def close(self) -> None:
        """Close the file, with all :attr:`resumable` bytes. This does not take long: at most two batches of each lane
        are pending.
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
    """Bytes on their way to an ingest, in order from ``at`` on; ``store`` writes a batch of them. ``arrived`` is told
    the size of each piece at once.
    """

    def __init__(
        self, store: Callable[[int, list[bytes]], asyncio.Task[Times]], at: int, arrived: Callable[[int], None]
    ) -> None:
        self.at = at
        """The offset of the next byte."""
        self._store = store
        self._arrived = arrived
        self._batch: list[bytes] = []
        self._waiting = 0
        self._storing: asyncio.Task[Times] | None = None
        self._begun = 0.0
        """When the pending batch began."""
        self.taken = Times()
        """What bytes waited for that were there: the threads that hash and write those before them."""

    async def write(self, data: bytes) -> None:
        """Accept more bytes; earlier ones may still be on their way to the file. Errors are those of
        :meth:`FileIngest.lane`.
        """
        self._batch.append(data)
        self._waiting += len(data)
        self.at += len(data)
        self._arrived(len(data))
        if self._waiting >= BATCH:
            await self._stored()
            self._begin()

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._storing = self._store(self.at - self._waiting, self._batch)
        self._batch, self._waiting = [], 0

    async def _stored(self) -> None:
        """Wait for the pending batch. If cancelled, the batch goes on, and the ingest's close waits for it."""
        if self._storing is not None:
            storing, self._storing = self._storing, None
            since = time.monotonic()
            times = await asyncio.shield(storing)
            now = time.monotonic()
            self.taken.add(times, (now - since) / max(now - self._begun, 1e-9))

    async def flushed(self) -> None:
        """Wait until everything is written."""
        try:
            await self._stored()
        finally:
            if self._batch:
                self._begin()
        await self._stored()


class _NewsWriter:
    """A follower's end of the news."""

    def __init__(self, blob: int, size: int, span: str) -> None:
        self._step = max(BATCH // 4, size // _NEWS)
        self._told = 0
        news, self._tell = os.pipe2(os.O_CLOEXEC)
        self.following = Following(blob, news, size, span)

    def tell(self, offset: int) -> None:
        """Tell the follower that ``offset`` bytes are there."""
        if offset >= self._told + self._step or offset == self.following.size:
            self._told = offset
            with contextlib.suppress(BrokenPipeError):  # the follower has read enough, and says why
                os.write(self._tell, offset.to_bytes(8, "little"))

    def break_off(self) -> None:
        """Tell the follower that no more news will come."""
        self.following.broken = True
        self.following.judged.set()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._tell >= 0:
            os.close(self._tell)
            self._tell = -1

    def close(self) -> None:
        """There is no follower any more."""
        self._hang_up()
        os.close(self.following.news)
        os.close(self.following.blob)


class StreamIngest:
    """An ingest in a store that has only streams. The store hashes the bytes, and reports at the commit what is
    wrong.
    """

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
    """An ingest that needs no bytes, since another namespace has the blob; only the commit remains."""

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
        raise errors.FailedPrecondition("the blob that another namespace has does not match its digest")

    async def commit(self, labels: Mapping[str, str]) -> None:
        await self._commit(labels)
        self.committed = True

    async def close(self) -> None:
        return
