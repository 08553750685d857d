"""What a connection tells its owner that the peer did."""

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
    """Some bytes of a stream, which count against its window until ``Connection.consumed``."""

    stream: Stream
    chunk: Chunk
    end: bool


class Trailers(NamedTuple):
    """The peer's last word on a stream."""

    stream: Stream
    head: Head


class Reset(NamedTuple):
    """A stream ended before its time: by the peer, or by us for a fault of its own (``local``)."""

    stream: Stream
    code: int
    local: bool
    reason: str


class Drained(NamedTuple):
    """A stream's queue has come down to its ``low``."""

    stream: Stream


class Ready(NamedTuple):
    """The peer's first SETTINGS are there."""


class Roomier(NamedTuple):
    """The peer allows more streams than before."""


class Pong(NamedTuple):
    """One of our pings was answered."""

    payload: bytes


class GoingAway(NamedTuple):
    """The peer takes no streams above ``last`` any more; those it has not seen may be asked elsewhere."""

    last: int
    code: int
    reason: str


class Closed(NamedTuple):
    """The connection is over: by a fault of the peer (``code``), which has been told."""

    code: int
    reason: str


Event = Opened | Data | Trailers | Reset | Drained | Ready | Roomier | Pong | GoingAway | Closed
