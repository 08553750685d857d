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
    from isal import igzip_lib

    _ = queue, threading, zstandard, igzip_lib


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

    ``igzip_lib`` makes room for all of a chunk, and gives the interpreter back once for it. ``isal_zlib`` begins with
    16 KiB, which it doubles and copies, and gives the interpreter back each time.
    """
    from isal import igzip_lib

    def chunks(data: bytes) -> Iterator[bytes]:
        ended = False
        try:
            while True:
                member = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
                while not member.eof:
                    if not data and member.needs_input and not ended:
                        data = next(rest, b"")
                        ended = not data
                    out = member.decompress(data, 4 * CHUNK)
                    data = b""
                    if out:
                        yield out
                    elif ended and not member.eof:
                        raise CompressionError("unexpected EOF")
                data = member.unused_data
                while len(data) < 2 and (more := next(rest, b"")):
                    data += more
                if not data.startswith(b"\x1f\x8b"):
                    return
        except igzip_lib.error as error:  # type: ignore[misc]
            raise CompressionError(f"gzip: {error}") from None

    return chunks(data)


def _unzstd(data: bytes, rest: Iterator[bytes], window: int) -> Iterator[bytes]:
    """Inflate any number of frames."""
    import zstandard

    source = _Frames(data, rest)
    reader = zstandard.ZstdDecompressor(max_window_size=window).stream_reader(
        source,  # type: ignore[arg-type]  # it calls read() and no more
        read_across_frames=True,
    )

    def chunks() -> Iterator[bytes]:
        try:
            while out := reader.read(4 * CHUNK):
                yield out
        except zstandard.ZstdError as error:
            raise CompressionError(f"zstd: {error}") from None
        if not source.complete:
            raise CompressionError("unexpected EOF")

    return chunks()


class _Frames:
    """The bytes of a zstd stream, as its decompressor reads them. That does not say whether the last frame has ended,
    so this class follows frames and blocks (RFC 8878, 3.1). What it does not know, the decompressor refuses.
    """

    __slots__ = ("_checksum", "_data", "_head", "_rest", "_skip", "_step", "_wanted")

    def __init__(self, data: bytes, rest: Iterator[bytes]) -> None:
        self._data = data
        self._rest = rest
        self._head = b""
        self._skip = 0
        """Bytes that come before the next header."""
        self._wanted = 4
        self._step = self._magic
        self._checksum = 0

    def read(self, _count: int) -> bytes:
        """The next chunk, of any size."""
        data = self._data or next(self._rest, b"")
        self._data = b""
        at = 0
        while at < len(data):
            if self._skip:
                skip = min(self._skip, len(data) - at)
                at += skip
                self._skip -= skip
                continue
            more = data[at : at + self._wanted - len(self._head)]
            at += len(more)
            self._head += more
            if len(self._head) == self._wanted:
                head, self._head = self._head, b""
                self._step(head)
        return data

    @property
    def complete(self) -> bool:
        """Whether what was read ends with a frame."""
        return not self._skip and not self._head and self._step == self._magic

    def _magic(self, head: bytes) -> None:
        skippable = head[1:] == b"\x2a\x4d\x18"
        self._wanted, self._step = (4, self._size) if skippable else (1, self._descriptor)

    def _size(self, head: bytes) -> None:
        self._skip = int.from_bytes(head, "little")
        self._wanted, self._step = 4, self._magic

    def _descriptor(self, head: bytes) -> None:
        flags = head[0]
        single = flags >> 5 & 1
        self._skip = (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        self._checksum = flags & 4
        self._wanted, self._step = 3, self._block

    def _block(self, head: bytes) -> None:
        header = int.from_bytes(head, "little")
        self._skip = 1 if header >> 1 & 3 == 1 else header >> 3
        if header & 1:
            self._skip += self._checksum
            self._wanted, self._step = 4, self._magic
