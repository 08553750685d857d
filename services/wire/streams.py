"""The streams of a connection, as both of its halves see them."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

Chunk = bytes | bytearray | memoryview


class Account:
    """The streams of one client. Unless named otherwise, all streams of a connection are one client's."""

    __slots__ = ("queued",)

    def __init__(self) -> None:
        self.queued = 0
        """Bytes in their queues."""


class Stream:
    """One stream. ``owner`` is for the connection's owner."""

    __slots__ = (
        "account",
        "body_left",
        "credit",
        "head_seen",
        "id",
        "local_closed",
        "low",
        "owner",
        "queue",
        "queued",
        "receive_window",
        "received",
        "remote_closed",
        "send_window",
        "window",
    )

    def __init__(self, number: int, receive_window: int, send_window: int, account: Account) -> None:
        self.id = number
        self.account = account
        """Counts the queued bytes. It may be replaced while there are none."""
        self.owner: Any = None
        self.head_seen = False
        """Whether a request or a final response has come. HEADERS after it are trailers."""
        self.remote_closed = False
        self.local_closed = False
        self.window = receive_window
        """Bytes that the peer may have under way."""
        self.receive_window = receive_window
        """Bytes that the peer may still send now."""
        self.credit = 0
        """Bytes that are consumed and not yet given back."""
        self.body_left: int | None = None
        """Bytes that content-length still promises; None without one."""
        self.send_window = send_window
        self.queue: deque[Chunk | Tail] = deque()
        self.queued = 0
        """Bytes in the queue."""
        self.low = -1
        """Drained is reported when ``queued`` shrinks to this; -1 for never."""


class Tail(NamedTuple):
    """The end of a stream, at the end of its queue: with trailers, or on the last DATA."""

    block: bytes | None
