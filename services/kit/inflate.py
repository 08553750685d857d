"""Compressed streams: finds the compression by the first bytes, as containerd does, and inflates. A stream that stops
before its format ends is an error.

``isal`` inflates gzip at 1.5 to 2 times zlib's speed. zstandard is imported for zstd only. No module is used that takes
long to import, since a layer's worker starts for each layer.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = 10
"""First bytes that are needed to recognize a compression."""
CHUNK = 1 << 18
"""Bytes that are read at once, and a quarter of those that are inflated at once. It bounds the memory of a caller that
takes one chunk after the other.
"""
ZSTD_PIECE = 1 << 9
"""Compressed bytes that are inflated at once. All that they contain comes out at once, and four of them may contain 128
KiB.
"""

WINDOW = 1 << 29
"""Bytes of a zstd frame's window, which is the memory that it takes, however small the frame is. This is more than
anybody uses, for a process that inflates one layer and ends.
"""


class CompressionError(Exception):
    """The compressed stream is damaged, or ends early."""


def prepare() -> None:
    """Import what may be needed, in a process that forks workers."""
    import queue
    import threading

    import zstandard
    from isal import isal_zlib

    _ = queue, threading, zstandard, isal_zlib


def compression_of(head: bytes) -> str | None:
    """The compression by the first :data:`HEAD` bytes: gzip, zstd (a skippable frame counts), or None if it is not
    compressed.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    ):
        return "zstd"
    return None


def inflated(source: Iterator[bytes], window: int = WINDOW) -> Iterator[bytes]:
    """The content of a stream of chunks, inflated if it is compressed. Raises CompressionError. Before this returns,
    the first chunks are read, and the needed modules are imported.

    ``window`` bounds the window of a zstd frame, in bytes.
    """
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= HEAD:
            break
    match compression_of(head):
        case "gzip":
            return _gunzip(head, source)
        case "zstd":
            return _unzstd(head, source, window)
    return _chained(head, source)


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _gunzip(data: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate any number of members, one after the other. Bytes after the last member that begin no member are ignored,
    as by pigz, which containerd runs if it is installed.
    """
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


def _unzstd(data: bytes, rest: Iterator[bytes], window: int) -> Iterator[bytes]:
    """Inflate any number of frames."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=window)

    def chunks(data: bytes) -> Iterator[bytes]:
        frame = decompressor.decompressobj()
        made: list[bytes] = []
        size = 0
        try:
            while data:
                for start in range(0, len(data), ZSTD_PIECE):
                    piece = data[start : start + ZSTD_PIECE]
                    while piece:
                        if frame.eof:
                            frame = decompressor.decompressobj()
                        out = frame.decompress(piece)
                        piece = frame.unused_data if frame.eof else b""
                        made.append(out)
                        size += len(out)
                        if size >= CHUNK:
                            if len(made) > 1:
                                out = b"".join(made)
                            made.clear()
                            size = 0
                            for at in range(0, len(out), 4 * CHUNK):
                                yield out[at : at + 4 * CHUNK]
                data = next(rest, b"")
            if not frame.eof:
                raise CompressionError("unexpected EOF")
            if size:
                yield b"".join(made)
        except zstandard.ZstdError as error:
            raise CompressionError(f"zstd: {error}") from None

    return chunks(data)
