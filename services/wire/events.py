"""Events that a connection reports to its owner: what the peer did."""

from __future__ import annotations

from typing import NamedTuple

from services.wire.headers import Head
from services.wire.streams import Chunk, Stream


class Opened(NamedTuple):
    """The peer opened a stream (to a server), or answered one of ours (to a client)."""

    stream: Stream
    head: Head
    end: bool


class Data(NamedTuple):
    """Some bytes of a stream. They count against its window until ``Connection.consumed``."""

    stream: Stream
    chunk: Chunk
    end: bool


class Trailers(NamedTuple):
    """The peer ended a stream with trailers."""

    stream: Stream
    head: Head


class Reset(NamedTuple):
    """A stream ended early: the peer reset it, or we did because of the peer's fault (``local``)."""

    stream: Stream
    code: int
    local: bool
    reason: str


class Drained(NamedTuple):
    """A stream's queue has shrunk to its ``low``."""

    stream: Stream


class Ready(NamedTuple):
    """The peer's first SETTINGS have come."""


class Roomier(NamedTuple):
    """The peer allows more streams than before."""


class Pong(NamedTuple):
    """The peer answered one of our pings."""

    payload: bytes


class GoingAway(NamedTuple):
    """The peer takes no streams above ``last`` any more. Calls that it has not seen may be repeated elsewhere."""

    last: int
    code: int
    reason: str


class Closed(NamedTuple):
    """The connection has ended because of the peer's fault (``code``), which the peer was told."""

    code: int
    reason: str


Event = Opened | Data | Trailers | Reset | Drained | Ready | Roomier | Pong | GoingAway | Closed
