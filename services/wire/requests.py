"""The heads of requests, encoded."""

from __future__ import annotations

import math

from services.kit import memory
from services.kit.call import Metadata
from services.kit.version import SPLITD
from services.wire import headers


def request_block(path: str, metadata: Metadata, timeout: float | None) -> bytes:
    """The head of a request. The same request has the same bytes each time, so neither side encodes or decodes it
    twice. For this ``timeout`` is rounded up, by less than 1 %. Trace context, which differs, is at the end of both.
    """
    along = b""
    for at in (-2, -1):
        if len(metadata) >= -at and metadata[at][0] == "traceparent":
            along = headers.plain([(name, str(value)) for name, value in metadata[at:]])
            metadata = metadata[:at]
            break
    key = path, tuple(metadata), timeout and _rounded(timeout)
    found = _BLOCKS.get(key)
    if found is None:
        found = _request_block(*key)
        if len(found) <= _WORTH_KEEPING:
            if len(_BLOCKS) >= _KEPT:
                _BLOCKS.clear()
            _BLOCKS[key] = found
    return found + along if along else found


def _rounded(seconds: float) -> float:
    """Round to three digits: of 30 s, what is left a moment later is 30 s."""
    step: float = 10.0 ** (math.floor(math.log10(max(seconds, 1e-6))) - 2)
    return round(math.ceil(seconds / step) * step, 9)


_BLOCKS: dict[tuple[str, Metadata, float | None], bytes] = {}
_KEPT, _WORTH_KEEPING = 256, 1024
memory.when_idle(_BLOCKS.clear)


def _request_block(path: str, metadata: Metadata, timeout: float | None) -> bytes:
    """``path`` is the last pseudo-header, before the other fields, as HTTP/2 requires."""
    parts = [_PSEUDO, headers.field(b":path", path.encode()), _REST]
    if timeout is not None:
        parts.append(headers.timeout(timeout))
    if metadata:
        parts.append(headers.block(headers.metadata(metadata)))
    return b"".join(parts)


_PSEUDO = headers.block([(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost")])
_REST = headers.block(
    [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity,gzip"),
        (b"user-agent", f"splitd/{SPLITD}".encode()),
    ]
)
