"""Turns a blob into the bytes of a layer: compressed data is inflated, and everything is hashed. The blob may still be
growing.

Inflating (``kit/inflate.py``) and hashing run in a thread beside the unpacking; both release the GIL while they work on
a chunk. A small blob is not worth a thread.
"""

from __future__ import annotations

import _thread
import hashlib
import os
import select
import stat
import time

from services.kit.inflate import CHUNK, CompressionError, inflated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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
        self._account = account
        self.size = 0
        small = _is_small(blob)
        source = _read(blob) if isinstance(blob, int) else iter(blob)
        if detect:
            source = inflated(source)
        self._plain = self._digesting(source)
        if not small:
            self._plain = ahead(self._plain, account)

    @property
    def digest(self) -> str:
        """The diff id, once all chunks were taken."""
        return f"sha256:{self._hash.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        return self._plain

    def _digesting(self, source: Iterator[bytes]) -> Iterator[bytes]:
        update, clock = self._hash.update, time.thread_time_ns
        thread = None
        while True:
            begun = clock()
            chunk = next(source, None)
            if thread is None:  # a generator runs where its first value is asked for
                thread = self._account.here()
            made = clock()
            thread.coding += made - begun
            if chunk is None:
                return
            update(chunk)
            thread.digest += clock() - made
            self.size += len(chunk)
            yield chunk


def _is_small(blob: int | Growing) -> bool:
    if not isinstance(blob, int):
        return blob.size <= SMALL
    info = os.fstat(blob)
    return stat.S_ISREG(info.st_mode) and info.st_size <= SMALL


def ahead(source: Iterator[bytes], account: Account) -> Iterator[bytes]:
    """The same chunks, made in a thread, at most :data:`QUEUE` ahead. The thread starts with the first chunk taken.
    ``account`` learns how long the caller waits for it, and why.
    """
    import queue

    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(QUEUE)

    def work() -> None:
        last: BaseException | None = None
        try:
            thread = account.help()
            try:
                for chunk in source:
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
