"""HTTP/2 frames as numbers and bytes (RFC 9113, sections 4, 6 and 7): their names, their heads, and their errors."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
WINDOW_LIMIT = (1 << 31) - 1
FRAME_LIMIT = (1 << 24) - 1
STREAM_LIMIT = (1 << 31) - 1

HEAD = struct.Struct(">IBI")
"""A frame's nine bytes: length (24 bits) and type (8) as one number, flags, stream."""
HEAD_SIZE = HEAD.size
SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")


class Code(IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The peer broke the protocol or passed a limit. The connection ends with GOAWAY ``code`` and ``reason``."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The same for one stream, which ends with RST_STREAM ``code``."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(k, v) for k, v in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, _WORD.pack(increment))


def rst_stream(stream: int, code: Code) -> bytes:
    return frame(RST_STREAM, 0, stream, _WORD.pack(code))


def goaway(last: int, code: Code, reason: str) -> bytes:
    """A GOAWAY frame; its debug data is ``reason``."""
    return frame(GOAWAY, 0, 0, _WORD.pack(last) + _WORD.pack(code) + reason.encode()[:1024])


def word(payload: bytes, at: int = 0) -> int:
    """A 32-bit number."""
    return int(_WORD.unpack_from(payload, at)[0])
