"""Turns a blob into the bytes of a layer: compressed data is inflated, and everything is hashed. The blob may still be
growing.

Inflating (``kit/inflate.py``) runs in a thread beside the unpacking. Chunks are hashed by the one of the two threads
that would wait for the other: a layer of many small files keeps the unpacking busy, one of few large files the
inflating. Inflating and hashing release the GIL while they work on a chunk. A small blob is not worth a thread.
"""

from __future__ import annotations

import _thread
import hashlib
import os
import select
import stat
import time
from collections import deque

from services.kit.inflate import CHUNK, CompressionError, inflated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.snapshots.diff.spent import Account

QUEUE = 8
"""Chunks that are inflated ahead: together with their size this bounds a worker's memory."""
SMALL = 1 << 20
"""Bytes up to which a blob is inflated in the thread that unpacks it."""
AWAKE = 0.5
"""Seconds after which a thread that waits for bytes wakes up, only to show that it is alive (``standstill.py``)."""


class Growing:
    """The bytes of the file ``fd``, as they arrive; in the end there are ``size``. Each number of eight bytes (little
    endian) on ``news`` says how many are there. CompressionError if no more will come.
    """

    def __init__(self, fd: int, news: int, size: int, account: Account) -> None:
        self.size = size
        self._account = account
        self._fd = fd
        self._news = news

    def __iter__(self) -> Iterator[bytes]:
        at = there = 0
        while at < self.size:
            if at < there:
                data = os.pread(self._fd, min(CHUNK, there - at), at)
            else:
                thread = self._account.here()
                thread.begin_to_wait()
                data = _next(self._news, 8 * 512)
                thread.end_to_wait()
                if data:
                    there = int.from_bytes(data[-8:], "little")
                    continue
            if not data:
                raise CompressionError(f"the blob ends after {at} of {self.size} bytes")
            at += len(data)
            yield data


class Digested:
    """The uncompressed chunks of a blob, once. The blob is everything in a file descriptor, or one that grows. After
    the last chunk, ``digest`` and ``size`` describe it.

    ``detect`` says whether the blob may be compressed: a media type without compression promises that the layer is not.
    The first bytes show which compression it is, as for containerd. Everything that must be imported is imported here,
    before the caller leaves the root directory with the libraries.
    """

    def __init__(self, blob: int | Growing, account: Account, *, detect: bool) -> None:
        self._hash = hashlib.sha256()
        self._hashing = _thread.allocate_lock()
        self._unhashed: deque[bytes] = deque()
        """The chunks that are to be hashed, in their order."""
        self._account = account
        self.size = 0
        small = _is_small(blob)
        source = _read(blob) if isinstance(blob, int) else iter(blob)
        if detect:
            source = inflated(source)
        self._behind = 0 if small else QUEUE
        """How many of them may wait while further ones are made."""
        made = self._made(source)
        self._plain = self._digested(made if small else ahead(made, account, self._hash_next))

    @property
    def digest(self) -> str:
        """The diff id, once all chunks were taken."""
        return f"sha256:{self._hash.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        return self._plain

    def _made(self, source: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks of ``source``."""
        clock = time.thread_time_ns
        thread = None
        while True:
            begun = clock()
            chunk = next(source, None)
            if thread is None:  # a generator runs where its first value is asked for
                thread = self._account.here()
            thread.coding += clock() - begun
            if chunk is None:
                return
            self.size += len(chunk)
            self._unhashed.append(chunk)
            yield chunk
            while len(self._unhashed) > self._behind:
                self._hash_next(wait=True)

    def _digested(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks; all of them are hashed at the end."""
        yield from chunks
        while self._hash_next(wait=True):
            continue

    def _hash_next(self, *, wait: bool = False) -> bool:
        """Hash the next chunk. False if there is none, or, unless ``wait``, while the other thread hashes one."""
        if not self._hashing.acquire(wait):
            return False
        try:
            if not self._unhashed:
                return False
            begun = time.thread_time_ns()
            self._hash.update(self._unhashed.popleft())
            self._account.here().digest += time.thread_time_ns() - begun
            return True
        finally:
            self._hashing.release()


def _is_small(blob: int | Growing) -> bool:
    if not isinstance(blob, int):
        return blob.size <= SMALL
    info = os.fstat(blob)
    return stat.S_ISREG(info.st_mode) and info.st_size <= SMALL


def _nothing() -> bool:
    return False


def ahead(source: Iterator[bytes], account: Account, spare: Callable[[], bool] = _nothing) -> Iterator[bytes]:
    """The same chunks, made in a thread, at most :data:`QUEUE` ahead. The thread starts with the first chunk taken.
    ``account`` learns how long the caller waits for it, and why. ``spare`` does a piece of work that is as well done by
    the one thread as by the other, and that comes before a wait; False if there is none.
    """
    import queue

    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(QUEUE)

    def work() -> None:
        last: BaseException | None = None
        try:
            thread = account.help()
            try:
                for chunk in source:
                    while waiting.full() and spare():
                        continue
                    waiting.put(chunk)
            finally:
                thread.end()
        except BaseException as error:  # whatever it is: the caller waits
            last = error
        waiting.put(last)

    def taken() -> Iterator[bytes]:
        _thread.start_new_thread(work, ())  # threading's would wait for its start, and nobody could say why
        while True:
            try:
                got = waiting.get_nowait()
            except queue.Empty:
                if spare():
                    continue
                got = account.waited(waiting.get)
            if got is None:
                return
            if isinstance(got, BaseException):
                raise got
            yield got

    return taken()


def _read(fd: int) -> Iterator[bytes]:
    """Read a file from its beginning, wherever its offset is, so that its opener can read it again."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        while data := _next(fd, CHUNK):
            yield data
        return
    at = 0
    while data := os.pread(fd, CHUNK, at):
        at += len(data)
        yield data


def _next(fd: int, count: int) -> bytes:
    """As os.read, for a pipe."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not poll.poll(AWAKE * 1000):
        continue
    return os.read(fd, count)
