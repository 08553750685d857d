"""The streams of a connection, as both of its halves see them."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

Chunk = bytes | bytearray | memoryview


class Account:
    """Streams that are one client's, or whose else they are; a connection's are all one's if nobody says otherwise."""

    __slots__ = ("queued",)

    def __init__(self) -> None:
        self.queued = 0
        """Bytes in their queues."""


class Stream:
    """One stream. ``owner`` is whatever the connection's owner keeps with it."""

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
        """Which counts what it has queued. Another one may be set before there is anything."""
        self.owner: Any = None
        self.head_seen = False
        """A request or a final response has come: what HEADERS follow are trailers."""
        self.remote_closed = False
        self.local_closed = False
        self.window = receive_window
        """What the peer may have under way."""
        self.receive_window = receive_window
        """What it may still send now."""
        self.credit = 0
        """Consumed, and not yet given back."""
        self.body_left: int | None = None
        """What content-length promises still."""
        self.send_window = send_window
        self.queue: deque[Chunk | Tail] = deque()
        self.queued = 0
        """Bytes in the queue."""
        self.low = -1
        """Drained is told when ``queued`` comes down to this; -1 for never."""


class Tail(NamedTuple):
    """The end of a stream, at the end of its queue: with trailers, or on the last DATA."""

    block: bytes | None
