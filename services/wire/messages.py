"""gRPC messages in a stream of DATA (gRPC's PROTOCOL-HTTP2: Length-Prefixed-Message): extracts them, inflates them, and
makes their prefixes.
"""

from __future__ import annotations

import struct
import zlib

from services.kit import errors
from services.wire.streams import Chunk

_MEMBERS = 64
"""gzip members of a message. After each one the rest is copied, so a message of empty ones would take quadratic
time.
"""
PREFIX = struct.Struct(">BI")
ENCODINGS = ("identity", "gzip")
"""Encodings that we read. We write no compressed messages, since our peers are on this machine."""

HIGH_WATER = 256 << 10
"""Bytes that a writer may have queued before it has to wait."""
MESSAGE_COST = 64
"""Bytes that each waiting message counts in addition to its own: an empty one is not free."""

_SMALL = 1 << 10
"""A shorter piece of a message costs more than its bytes, so the next one is joined to it."""


def prefix(message: bytes | bytearray) -> bytes:
    """The five bytes before a message."""
    return PREFIX.pack(0, len(message))


def whole(chunk: Chunk, limit: int) -> list[bytes] | None:
    """The message of a chunk that is exactly one message, as nearly all are. None if it is not, or needs a closer
    look.
    """
    size = len(chunk) - 5
    if size < 0:
        return None
    flag, length = PREFIX.unpack_from(chunk)
    return [bytes(chunk[5:])] if length == size and not flag and size <= limit else None


class Assembler:
    """Cuts one direction of a stream into messages.

    ResourceExhausted for a message over ``limit`` (as soon as its length is known, or while it is inflated). Internal
    for bytes that are not gRPC.
    """

    __slots__ = ("_encoding", "_flag", "_head", "_limit", "_need", "_parts", "held")

    def __init__(self, limit: int, encoding: str) -> None:
        self._limit = limit
        self._encoding = encoding
        self._head = b""
        self._parts: list[bytes] = []
        self._need = -1
        self._flag = 0
        self.held = 0
        """Bytes of an incomplete message that are kept."""

    def feed(self, chunk: Chunk) -> list[bytes]:
        """The messages that are complete now."""
        messages = []
        at, size = 0, len(chunk)
        while True:
            if self._need < 0:
                take = min(5 - len(self._head), size - at)
                self._head += bytes(chunk[at : at + take])
                at += take
                if len(self._head) < 5:
                    break
                self._flag, self._need = PREFIX.unpack(self._head)
                self._head = b""
                if self._flag > 1:
                    raise errors.Internal(f"grpc: received unexpected payload format {self._flag}")
                if self._need > self._limit:
                    raise errors.ResourceExhausted.verbatim(
                        f"grpc: received message larger than max ({self._need} vs. {self._limit})"
                    )
            take = min(self._need - self.held, size - at)
            if take == self._need and not self.held:
                messages.append(self._whole(bytes(chunk[at : at + take])))
            else:
                if self._parts and len(self._parts[-1]) < _SMALL:
                    self._parts[-1] += bytes(chunk[at : at + take])
                else:
                    self._parts.append(bytes(chunk[at : at + take]))
                self.held += take
                if self.held < self._need:
                    break
                parts, self._parts, self.held = self._parts, [], 0
                messages.append(self._whole(b"".join(parts)))
            at += take
            self._need = -1
        return messages

    def _whole(self, data: bytes) -> bytes:
        if not self._flag:
            return data
        if self._encoding != "gzip":
            raise errors.Internal("grpc: compressed flag set with identity or empty encoding")
        message = b""
        for _ in range(_MEMBERS):  # one gzip member or more, as grpc-go reads them
            inflate = zlib.decompressobj(31)
            try:
                message += inflate.decompress(data, self._limit + 1 - len(message))
            except zlib.error as error:
                raise errors.Internal(f"grpc: failed to decompress the received message: {error}") from None
            if len(message) > self._limit:
                raise errors.ResourceExhausted.verbatim(
                    f"grpc: received message after decompression larger than max {self._limit}"
                )
            if not inflate.eof:
                raise errors.Internal("grpc: failed to decompress the received message: it is cut off")
            data = inflate.unused_data
            if not data:
                return message
        raise errors.ResourceExhausted(f"a message of more than {_MEMBERS} gzip members")

    def finished(self) -> bool:
        """Whether the stream may end here, which is not in the middle of a message."""
        return self._need < 0 and not self._head
