"""From a blob's bytes to a layer's: what is compressed is inflated, and all is hashed on the way. The blob may still be growing.

Inflating and hashing run in a thread of their own beside the unpacking: both leave the GIL to others while they work on a chunk. A small
blob is not worth a thread. ``isal`` inflates gzip at 1.5 to 2 times zlib's speed; zstandard is imported for zstd only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK = 1 << 18
"""Bytes read at once, and a quarter of what is inflated at once: with :data:`QUEUE` it bounds a worker's memory."""
QUEUE = 8
ZSTD_PIECE = 1 << 11
"""Bytes inflated at once: all that they hold comes out at once, and four of them may hold 128 KiB."""
SMALL = 1 << 20
"""Blobs up to this size are inflated as they are unpacked."""


class CompressionError(Exception):
    """The blob's compressed stream is damaged, or ends early."""


def prepare() -> None:
    """Import what may be needed: for a process that forks those who inflate."""
    import queue
    import threading

    import zstandard
    from isal import isal_zlib

    _ = queue, threading, zstandard, isal_zlib


class Growing:
    """The bytes of the file ``fd``, which will be ``size``, as they come: each number of eight bytes (little endian) on ``news`` tells how many are there. CompressionError if no more will come."""

    def __init__(self, fd: int, news: int, size: int) -> None:
        self.size = size
        self.waited = 0
        """Nanoseconds, so far, in which there was nothing to read."""
        self._fd = fd
        self._news = news

    def __iter__(self) -> Iterator[bytes]:
        at = there = 0
        while at < self.size:
            if at < there:
                data = os.pread(self._fd, min(CHUNK, there - at), at)
            else:
                begun = time.monotonic_ns()
                data = os.read(self._news, 8 * 512)
                self.waited += time.monotonic_ns() - begun
                if data:
                    there = int.from_bytes(data[-8:], "little")
                    continue
            if not data:
                raise CompressionError(f"the blob ends after {at} of {self.size} bytes")
            at += len(data)
            yield data


class Digested:
    """The uncompressed chunks of a blob, once: of all that a file descriptor has, or of one that grows. When all were taken, ``digest`` and ``size`` describe them.

    ``detect`` says whether the blob may be compressed: a layer's media type without compression promises that it is not. Which compression it is, its first bytes tell, as they
    tell containerd. Whatever must be imported for it is imported here, before the caller leaves the root directory that holds it.
    """

    def __init__(self, blob: int | Growing, *, detect: bool) -> None:
        self._hash = hashlib.sha256()
        self.size = 0
        small = _is_small(blob)
        source = _read(blob) if isinstance(blob, int) else iter(blob)
        if detect:
            head = b""
            for chunk in source:
                head += chunk
                if len(head) >= 10:
                    break
            source = _inflated(head, source)
        self._plain = self._digesting(source)
        if not small:
            self._plain = beside(self._plain)

    @property
    def digest(self) -> str:
        """The diff id, if all chunks were taken."""
        return f"sha256:{self._hash.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        return self._plain

    def _digesting(self, source: Iterable[bytes]) -> Iterator[bytes]:
        update = self._hash.update
        for chunk in source:
            update(chunk)
            self.size += len(chunk)
            yield chunk


def _is_small(blob: int | Growing) -> bool:
    if not isinstance(blob, int):
        return blob.size <= SMALL
    info = os.fstat(blob)
    return stat.S_ISREG(info.st_mode) and info.st_size <= SMALL


def beside(source: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, made in a thread up to :data:`QUEUE` ahead of whoever takes them. The thread starts with the first."""
    import queue
    import threading

    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(QUEUE)

    def work() -> None:
        last: BaseException | None = None
        try:
            for chunk in source:
                waiting.put(chunk)
        except BaseException as error:
            last = error
        waiting.put(last)

    def taken() -> Iterator[bytes]:
        threading.Thread(target=work, daemon=True).start()
        while (got := waiting.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got

    return taken()


def _read(fd: int) -> Iterator[bytes]:
    """From the beginning of a file, wherever its offset is: whoever opened it may have a second look."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        while data := os.read(fd, CHUNK):
            yield data
        return
    at = 0
    while data := os.pread(fd, CHUNK, at):
        at += len(data)
        yield data


def _inflated(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """By the first bytes: gzip, zstd (a skippable frame counts), or not compressed at all."""
    if head.startswith(b"\x1f\x8b\x08"):
        return _gunzip(head, rest)
    if head.startswith(b"\x28\xb5\x2f\xfd") or (len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return _unzstd(head, rest)
    return _chained(head, rest)


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _gunzip(data: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """Any number of members, one after the other. What follows the last and is none is ignored, as by pigz, which containerd runs where it is there."""
    from isal import isal_zlib

    def chunks(data: bytes) -> Iterator[bytes]:
        ended = False
        try:
            while True:
                member = isal_zlib.decompressobj(wbits=31)
                while not member.eof:
                    if not data and not ended:
                        data = next(rest, b"")
                        ended = not data
                    out = member.decompress(data, 4 * CHUNK)
                    data = member.unused_data if member.eof else member.unconsumed_tail
                    if out:
                        yield out
                    elif ended and not member.eof:
                        raise CompressionError("unexpected EOF")
                while len(data) < 2 and (more := next(rest, b"")):
                    data += more
                if not data.startswith(b"\x1f\x8b"):
                    return
        except isal_zlib.error as error:  # type: ignore[misc]
            raise CompressionError(f"gzip: {error}") from None

    return chunks(data)


def _unzstd(data: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """Any number of frames."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 29)

    def chunks(data: bytes) -> Iterator[bytes]:
        frame = decompressor.decompressobj()
        made: list[bytes] = []
        size = 0
        try:
            while data:
                for start in range(0, len(data), ZSTD_PIECE):
                    piece = data[start:start + ZSTD_PIECE]
                    while piece:
                        if frame.eof:
                            frame = decompressor.decompressobj()
                        out = frame.decompress(piece)
                        piece = frame.unused_data if frame.eof else b""
                        if len(out) <= 4 * CHUNK:
                            made.append(out)
                            size += len(out)
                        else:
                            if size:
                                yield b"".join(made)
                                made.clear()
                                size = 0
                            for at in range(0, len(out), 4 * CHUNK):
                                yield out[at:at + 4 * CHUNK]
                    if size >= CHUNK:
                        yield b"".join(made)
                        made.clear()
                        size = 0
                data = next(rest, b"")
            if not frame.eof:
                raise CompressionError("unexpected EOF")
            if size:
                yield b"".join(made)
        except zstandard.ZstdError as error:
            raise CompressionError(f"zstd: {error}") from None

    return chunks(data)
