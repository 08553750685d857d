"""A server's answers apart from messages: heads and trailers as encoded header lists."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit import errors
from services.kit.call import ERROR_LIMIT
from services.wire import headers

HEAD = headers.block([(b":status", b"200"), (b"content-type", b"application/grpc")])
OK = headers.status(0)


def refusal(error: errors.NodeError, trailing: Sequence[tuple[str, str | bytes]] = ()) -> bytes:
    """An error as trailers."""
    return headers.status(error.code, str(error)[:ERROR_LIMIT], (*error.trailers, *trailing))
