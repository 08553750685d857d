"""Compressed streams: which compression, told by the first bytes as containerd tells it, and what is inside. isal inflates gzip, zstandard is imported for zstd only."""

from __future__ import annotations

import hashlib
import io
import os
from typing import IO, Any, cast

HEAD = 10
"""So many first bytes tell."""

_PIECE = 1 << 18


def of(head: bytes) -> str | None:
    """gzip, zstd, or None for what is not compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    skippable = len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    return "zstd" if head.startswith(b"\x28\xb5\x2f\xfd") or skippable else None


class Ahead(io.RawIOBase):
    """A file whose next bytes may be looked at. Its reads are never short before its end, which readers of tars rely on."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._ahead = b""

    @property
    def file(self) -> IO[bytes]:
        """Itself, as whoever wants a file calls it."""
        return cast("IO[bytes]", self)

    def peek(self) -> bytes:
        """The next :data:`HEAD` bytes; fewer only at the end."""
        while len(self._ahead) < HEAD and (more := self._file.read(HEAD - len(self._ahead))):
            self._ahead += more
        return self._ahead

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces, self._ahead = [self._ahead], b""
        left = _PIECE if size < 0 else size
        if len(pieces[0]) > left:
            self._ahead = pieces[0][left:]
            return pieces[0][:left]
        left -= len(pieces[0])
        while left and (piece := self._file.read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))
        data = self.read(len(view))
        view[:len(data)] = data
        return len(data)


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """What is in ``file``, inflated if it is compressed."""
    ahead = Ahead(file)
    match of(ahead.peek()):
        case "gzip":
            from isal import igzip

            inflate: Any = igzip.open  # it has no types
            return Ahead(inflate(ahead.file, "rb")).file
        case "zstd":
            import zstandard

            return Ahead(zstandard.ZstdDecompressor().stream_reader(ahead.file, read_across_frames=True)).file
    return ahead.file


def gzipped(source: int, target: int) -> tuple[str, int]:
    """Compress all that the file descriptor ``source`` gives into ``target``; the digest and size of what was written."""
    import zlib

    hashing = hashlib.sha256()
    size = 0
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)

    def put(data: bytes) -> None:
        nonlocal size
        hashing.update(data)
        size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view):]

    while piece := os.read(source, _PIECE):
        put(packer.compress(piece))
    put(packer.flush())
    return f"sha256:{hashing.hexdigest()}", size
