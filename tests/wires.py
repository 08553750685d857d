"""HTTP/2 as a peer speaks it, for tests: frames are built and read without the tested code, and connections are joined
in memory.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from hpack import Encoder

from services.wire.connection import Connection
from services.wire.events import Event
from services.wire.limits import Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/splitd.Test/Say"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0")]


class Frame(NamedTuple):
    """One frame, as on the wire."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    def __bytes__(self) -> bytes:
        return (
            struct.pack(">I", len(self.payload))[1:]
            + struct.pack(">BBI", self.kind, self.flags, self.stream)
            + self.payload
        )

    def number(self, at: int = 0) -> int:
        """A 32-bit number of the payload."""
        return int.from_bytes(self.payload[at : at + 4], "big")


def parse(data: bytes) -> tuple[list[Frame], bytes]:
    """The frames of ``data``, and the rest, an incomplete frame."""
    frames, at = [], 0
    while len(data) - at >= 9:
        length = int.from_bytes(data[at : at + 3], "big")
        if len(data) - at < 9 + length:
            break
        frames.append(
            Frame(
                data[at + 3],
                data[at + 4],
                int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFF_FFFF,
                data[at + 9 : at + 9 + length],
            )
        )
        at += 9 + length
    return frames, data[at:]


def settings(**values: int) -> bytes:
    """SETTINGS, by name: header_table_size, enable_push, max_concurrent_streams, initial_window_size, max_frame_size,
    max_header_list_size.
    """
    names = (
        "header_table_size",
        "enable_push",
        "max_concurrent_streams",
        "initial_window_size",
        "max_frame_size",
        "max_header_list_size",
    )
    return bytes(
        Frame(
            SETTINGS, 0, 0, b"".join(struct.pack(">HI", names.index(name) + 1, value) for name, value in values.items())
        )
    )


def word(kind: int, stream: int, value: int) -> bytes:
    """A frame with one number: RST_STREAM, WINDOW_UPDATE."""
    return bytes(Frame(kind, 0, stream, struct.pack(">I", value)))


def data(stream: int, payload: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    """DATA, padded by ``pad`` bytes if given."""
    if pad is None:
        return bytes(Frame(DATA, END_STREAM * end, stream, payload))
    return bytes(Frame(DATA, PADDED | END_STREAM * end, stream, bytes([pad]) + payload + bytes(pad)))


def grpc(message: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its five-byte prefix."""
    return struct.pack(">BI", flag, len(message)) + message


def literal(fields: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    """A header block of literals without indexing: its meaning does not depend on earlier blocks."""

    def string(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest, out = len(raw) - 127, bytearray([127])
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        return bytes([*out, rest]) + raw

    return b"".join(b"\0" + string(name) + string(value) for name, value in fields)


def headers(stream: int, block: bytes | None = None, *, end: bool = False, whole: bool = True) -> bytes:
    """HEADERS; those of a usual request if nothing else is given."""
    return bytes(
        Frame(HEADERS, END_STREAM * end | END_HEADERS * whole, stream, literal(REQUEST) if block is None else block)
    )


class Wire:
    """A :class:`Connection` under test, and a peer made of bytes."""

    def __init__(self, *, client: bool = False, hello: bytes | None = None, **limits: Any) -> None:
        self.connection = Connection(client=client, limits=Limits(**limits))
        self._unread = b""
        self.encoder = Encoder()
        first = self.sent_bytes()
        assert first.startswith(PREFACE) == client
        self.greeting, _ = parse(first.removeprefix(PREFACE))
        self.events: list[Event] = []
        if hello is None:
            hello = settings()
        self.feed((b"" if client else PREFACE) + hello)
        self.sent()

    def feed(self, *parts: bytes) -> list[Event]:
        """The peer sends bytes; returns the events."""
        events = self.connection.receive(b"".join(parts))
        self.events += events
        return events

    def sent_bytes(self) -> bytes:
        return b"".join(map(bytes, self.connection.take()))

    def sent(self) -> list[Frame]:
        """The frames that the connection has sent since the last call."""
        frames, self._unread = parse(self._unread + self.sent_bytes())
        return frames

    def one(self, kind: type, *parts: bytes) -> Any:
        """Feed bytes; returns the only event, which must be of this kind."""
        events = self.feed(*parts)
        assert [type(event) for event in events] == [kind], events
        return events[0]

    def opened(self, stream: int, *, end: bool = False) -> Any:
        """The peer opens a stream; returns the Stream."""
        return self.feed(headers(stream, end=end))[0].stream


class Pipe:
    """A client's and a server's connection, back to back."""

    def __init__(self, client: Limits | None = None, server: Limits | None = None, piece: int = 0) -> None:
        self.client = Connection(client=True, limits=client or Limits())
        self.server = Connection(client=False, limits=server or Limits())
        self.piece = piece
        """Bytes that arrive at once; 0: all that there are."""
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.turn()

    def turn(self) -> tuple[list[Event], list[Event]]:
        """Carry bytes until neither side sends more. Returns the events of the client and of the server."""
        client: list[Event] = []
        server: list[Event] = []
        while self.client.pending or self.server.pending:
            server += self._carry(self.client, self.server)
            client += self._carry(self.server, self.client)
        self.client_events += client
        self.server_events += server
        return client, server

    def _carry(self, sender: Connection, receiver: Connection) -> list[Event]:
        out = b"".join(map(bytes, sender.take()))
        step = self.piece or len(out) or 1
        events: list[Event] = []
        for at in range(0, len(out), step):
            events += receiver.receive(out[at : at + step])
        return events


class Transport(asyncio.Transport):
    """A socket's other end, in memory: it records what a link writes and does."""

    def __init__(self, link: Any = None) -> None:
        super().__init__()
        self.link = link
        self.written = bytearray()
        self.reading = True
        self.closed = False
        self.eof = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        for part in parts:
            self.write(part)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.link is not None:
                asyncio.get_running_loop().call_soon(self.link.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def frames(self) -> list[Frame]:
        """The frames that were written since the last call."""
        frames, rest = parse(bytes(self.written).removeprefix(PREFACE))
        self.written[:] = rest
        return frames


def deliver(link: Any, payload: bytes) -> None:
    """Deliver bytes as the loop does: outside any task. The first steps of their handlers are done when this returns,
    however many slices of time they took.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    asyncio.tasks._leave_task(loop, task)
    try:
        link.data_received(payload)
        while link.connection.more and not link.lost:
            link._go_on()
    finally:
        asyncio.tasks._enter_task(loop, task)


async def turns(count: int = 5) -> None:
    """Let the loop do everything that is pending."""
    for _ in range(count):
        await asyncio.sleep(0)
