"""One HTTP/2 connection (RFC 9113) without a socket: fed bytes and orders, it answers events and bytes.

    connection = Connection(client=False)
    events = connection.receive(data)      # what the peer did
    connection.respond(...)                # what we do
    transport.writelines(connection.take())

It decides everything that HTTP/2 decides: frame sizes, the states of streams, both levels of flow control, SETTINGS, GOAWAY, and every bound of
:class:`Limits`. It knows no gRPC, no clock but that of the token buckets, and never waits. A fault of the peer ends its stream (RST_STREAM and a :class:`Reset`
event) or the connection (GOAWAY and a :class:`Closed` event), after which it says nothing any more.

*Receiving.* DATA comes out as it came in, in pieces of any size, not frame by frame. The connection's window is given back at once; a stream's when its owner says
:meth:`consumed`. It grows while it is consumed.

*Turns.* A peer can put thousands of frames into what is read at once. Whoever must not be held up says how many it wants dealt with, and comes back while there is
:attr:`Connection.more`. A peer that resets very many streams is :attr:`Connection.slowed`: no frame is looked at before :meth:`Connection.hasten`.

*Sending.* DATA waits in its stream's queue for the windows, and, where the owner has called :meth:`block`, for :meth:`unblock`: that is how a full socket holds
up those who write to it. Trailers wait behind it. ``stream.queued`` tells how much waits; with ``stream.low`` set, :class:`Drained` tells when it has come down to that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from services.kit.buckets import Bucket
from services.wire import frames, headers
from services.wire.frames import Code, ConnectionFault, StreamFault
from services.wire.headers import Head
from services.wire.limits import Limits

Chunk = bytes | bytearray | memoryview

_HEAD = frames.HEAD
_HEAD_SIZE = frames.HEAD_SIZE


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
        self.queue: deque[Chunk | _Tail] = deque()
        self.queued = 0
        """Bytes in the queue."""
        self.low = -1
        """Drained is told when ``queued`` comes down to this; -1 for never."""


class _Tail(NamedTuple):
    """The end of a stream, at the end of its queue: with trailers, or on the last DATA."""

    block: bytes | None


class Opened(NamedTuple):
    """The peer opened a stream (to a server), or answered one of ours (to a client)."""

    stream: Stream
    head: Head
    end: bool


class Data(NamedTuple):
    """Some bytes of a stream, which count against its window until :meth:`Connection.consumed`."""

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


class Connection:
    """See the module."""

    __slots__ = (
        "_acks", "_at", "_block", "_block_fault", "_block_flags", "_block_frames", "_block_stream", "_blocked", "_calm", "_credit", "_data", "_data_end", "_data_left",
        "_data_pad", "_decoder", "_earned", "_events", "_frame", "_greeted", "_idle", "_last_allowed", "_last_words", "_next", "_out", "_peer_frame", "_peer_window",
        "_preface", "_prefix", "_receive_window", "_reset", "_resets", "_rest", "_send_window", "_skip", "_skipped", "_starved", "account", "client", "closed", "last",
        "limits", "lingering", "more", "peer_streams", "slowed", "streams",
    )

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.account = Account()
        """That of new streams."""
        self.lingering = 0
        """Streams that are over but whose handlers still run; a server's owner counts them, and they count as streams."""
        self.peer_streams = 1 << 31
        """How many streams the peer allows at once."""
        self.closed = False
        self.last = 0
        """The highest stream that the peer opened."""
        self._next = 1
        self._decoder = headers.Decoder(limits)
        self._events: list[Event] = []
        self._out: list[Chunk] = []
        self._acks: list[Chunk] = []
        self._last_words = 0
        """How much of it may still go when the connection is over: up to its GOAWAY."""
        self.more = False
        """Whether frames that have come are still to be looked at."""
        self.slowed = False
        """Whether none is to be looked at for a moment."""
        self._rest = b""
        self._at = 0
        self._preface = not client
        self._greeted = False
        self._data: Stream | None = None
        self._data_left = 0
        self._data_pad = 0
        self._data_end = False
        self._skip = 0
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_flags = 0
        self._block_frames = 0
        self._block_fault: StreamFault | None = None
        self._reset: dict[int, int] = {}
        """Streams that we reset: the peer may not know yet; and how many bytes of each it may have under way."""
        self._skipped: list[range] = []
        """Streams that the peer passed over: they never were."""
        self._frame = frames.DEFAULT_FRAME
        self._receive_window = frames.DEFAULT_WINDOW
        self._credit = 0
        self._send_window = frames.DEFAULT_WINDOW
        self._peer_window = frames.DEFAULT_WINDOW
        self._peer_frame = frames.DEFAULT_FRAME
        self._prefix = b""
        self._blocked = False
        self._starved: dict[Stream, None] = {}
        self._last_allowed: int | None = None
        self._resets = Bucket(limits.resets, limits.resets_rate)
        self._calm = Bucket(limits.resets_slow, limits.resets_slow_rate)
        self._earned = limits.idle_frames_earned
        self._idle = Bucket(limits.idle_frames, limits.idle_frames_rate, limits.idle_frames * self._earned)
        self._greet()

    def _greet(self) -> None:
        limits = self.limits
        values = {frames.INITIAL_WINDOW_SIZE: limits.window, frames.MAX_HEADER_LIST_SIZE: limits.header_list}
        if self.client:
            self._out.append(frames.PREFACE)
            values[frames.ENABLE_PUSH] = 0
        else:
            values[frames.MAX_CONCURRENT_STREAMS] = limits.streams
        self._out.append(frames.settings(values))
        if limits.connection_window > frames.DEFAULT_WINDOW:
            self._out.append(frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW))
            self._receive_window = limits.connection_window

    # ------------------------------------------------------------------------------------------ bytes out

    def take(self) -> list[Chunk]:
        """What is to be written now."""
        out, self._out = self._out, []
        if self.closed:
            del out[self._last_words:]
            self._last_words = 0
        elif self._acks:
            out[:0], self._acks = self._acks, []
        return out

    @property
    def pending(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self._last_words if self.closed else self._out or self._acks)

    @property
    def unhurried(self) -> bool:
        """Whether all of that are answers to PING, which may wait a moment for something that goes the same way: grpc-go pings at each answer that it gets."""
        return not self._out and bool(self._acks) and not self.closed

    # ------------------------------------------------------------------------------------------ bytes in

    def receive(self, data: bytes, turn: int = 0) -> list[Event]:
        """Take what came, answer what it means; of not many more than ``turn`` frames, if it is not 0: while there is :attr:`more`, call again with ``b""``."""
        self.more = False
        if self.closed:
            self._rest = b""
            return []
        events: list[Event] = []
        self._events = events
        try:
            self._parse(data, turn or len(data) + len(self._rest))
        except ConnectionFault as fault:
            self.fail(fault.code, fault.reason)
            events.append(Closed(fault.code, fault.reason))
        self._events = []
        return events

    def _parse(self, data: bytes, turn: int) -> None:
        at = 0
        if self._rest:
            data, at = (self._rest[self._at:] + data, 0) if data else (self._rest, self._at)
            self._rest, self._at = b"", 0
        size = len(data)
        if self._preface:
            if not frames.PREFACE.startswith(data[:24]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "not an HTTP/2 preface")
            if size < 24:
                self._rest = data
                return
            self._preface = False
            at = 24
        view = memoryview(data)
        while True:
            if self._data is not None:
                at = self._on_data_bytes(view, at, size)
                if self._data_left:
                    return
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
                if self._skip:
                    return
            if size - at < _HEAD_SIZE:
                break
            if turn <= 0 or self.slowed:
                self.more, self._rest, self._at = True, data, at
                return
            turn -= 1
            word, flags, number = _HEAD.unpack_from(data, at)
            length, kind, number = word >> 8, word & 0xFF, number & 0x7FFF_FFFF
            if self._block is not None and (kind != frames.CONTINUATION or number != self._block_stream):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block is interrupted")
            if not self._greeted and kind != frames.SETTINGS:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if length > self._frame:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            if kind == frames.DATA:
                if flags & frames.PADDED and size - at < _HEAD_SIZE + 1 and length:
                    break
                at = self._on_data_head(data, at + _HEAD_SIZE, length, flags, number)
                continue
            if kind > frames.CONTINUATION:  # unknown: to be ignored (RFC 9113, section 4.1)
                self._idled()
                at += _HEAD_SIZE
                self._skip = length
                continue
            if length > self.limits.header_block:  # none of the others is that long
                raise ConnectionFault(Code.FRAME_SIZE_ERROR if kind not in _HEADERISH else Code.ENHANCE_YOUR_CALM, f"frame of {length} bytes")
            end = at + _HEAD_SIZE + length
            if end > size:
                break
            turn -= length >> _LONG
            try:
                _FRAMES[kind](self, flags, number, data[at + _HEAD_SIZE:end])
            except StreamFault as fault:
                self._stream_fault(number, fault)
            at = end
        if at < size:
            self._rest = data[at:]

    def _idled(self) -> None:
        if not self._idle.take():
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def _stream_fault(self, number: int, fault: StreamFault) -> None:
        """A fault of the peer in one stream: it is reset, and if it goes on like that, the connection is over."""
        stream = self.streams.get(number)
        self._out.append(frames.rst_stream(number, fault.code))
        if stream is not None:
            self._drop(stream, ours=True)
            self._events.append(Reset(stream, fault.code, local=True, reason=fault.reason))
        else:
            if not self.client:
                self._reach(number)
            self._remember(number)
        self._count_reset()

    def _count_reset(self) -> None:
        if self.client:
            return
        if not self._resets.take():
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many streams are reset")
        if not self._calm.take():
            self.slowed = True

    def hasten(self, seconds: float) -> None:
        """The peer has been slowed for long enough. The time is not its own: it could have had all of its resets dealt with at once."""
        self.slowed = False
        self._resets.pass_over(seconds)

    def _drop(self, stream: Stream, *, ours: bool) -> None:
        self.streams.pop(stream.id, None)
        self._starved.pop(stream, None)
        under_way = 0 if stream.remote_closed else stream.receive_window
        self.forget(stream)
        if ours:
            self._remember(stream.id, under_way)

    @staticmethod
    def forget(stream: Stream) -> None:
        """Drop what is queued: the stream is over."""
        stream.local_closed = stream.remote_closed = True
        stream.queue.clear()
        stream.account.queued -= stream.queued
        stream.queued = 0

    def _remember(self, number: int, under_way: int = 0) -> None:
        """A stream that we reset."""
        reset = self._reset
        reset[number] = under_way
        if len(reset) > min(self.limits.streams, _REMEMBERED):
            del reset[next(iter(reset))]

    def _reach(self, number: int) -> None:
        """The peer has used a stream number."""
        if number > self.last:
            following = self.last + 2 if self.last else 1
            if number > following:
                self._skipped = [*self._skipped[1 - _SKIPPED:], range(following, number, 2)]
            self.last = number

    def _late(self) -> None:
        """A frame of a stream that we reset. A client's answers may be under way in any number; it is the client that resets."""
        if not self.client:
            self._idled()

    def _is_idle(self, number: int) -> bool:
        """Whether a stream has never been."""
        if number % 2:
            return number >= self._next if self.client else number > self.last
        return True  # nobody pushes

    # -- DATA

    def _on_data_head(self, data: bytes, at: int, length: int, flags: int, number: int) -> int:
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "DATA on stream 0")
        if length > self._receive_window:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        self._receive_window -= length
        self._credit += length
        if self._credit * 2 >= self.limits.connection_window:
            self._out.append(frames.window_update(0, self._credit))
            self._receive_window += self._credit
            self._credit = 0
        pad = 0
        if flags & frames.PADDED:
            if not length:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "padded DATA without a pad length")
            pad = data[at] + 1
            if pad > length:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "padding is longer than its frame")
            at += 1
        end = bool(flags & frames.END_STREAM)
        body = length - pad
        if not body and not end:
            self._idled()
        stream = self.streams.get(number)
        try:
            if stream is None:
                if self._is_idle(number):
                    raise ConnectionFault(Code.PROTOCOL_ERROR, f"DATA on idle stream {number}")
                under_way = self._reset.get(number)
                if under_way is None:
                    raise StreamFault(Code.STREAM_CLOSED, "DATA on a closed stream")
                if 0 < length <= under_way:  # sent before it could know; in frames as small as it likes
                    self._reset[number] = under_way - length
                else:
                    self._late()
                self._skip = length - (1 if pad else 0)
                return at
            if stream.remote_closed:
                raise StreamFault(Code.STREAM_CLOSED, "DATA after the end of the stream")
            if not stream.head_seen:
                raise StreamFault(Code.PROTOCOL_ERROR, "DATA before HEADERS")
            if length > stream.receive_window:
                raise StreamFault(Code.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
            if stream.body_left is not None:
                stream.body_left -= body
                if stream.body_left < 0 or (end and stream.body_left):
                    raise StreamFault(Code.PROTOCOL_ERROR, "DATA does not add up to content-length")
        except StreamFault as fault:
            self._stream_fault(number, fault)
            self._skip = length - (1 if pad else 0)
            return at
        stream.receive_window -= length
        if pad:
            self.consumed(stream, pad)
        self._data, self._data_left, self._data_pad, self._data_end = stream, body, max(pad - 1, 0), end
        return at

    def _on_data_bytes(self, view: memoryview, at: int, size: int) -> int:
        """Bytes of a DATA frame, as far as they are there."""
        stream = self._data
        assert stream is not None
        step = min(self._data_left, size - at)
        if not step and self._data_left:
            return at
        self._data_left -= step
        done = not self._data_left
        end = done and self._data_end
        if stream.id in self.streams:  # else it was reset while its frame was still coming
            if end:
                stream.remote_closed = True
            if step or end:
                self._events.append(Data(stream, view[at:at + step], end))
            if end and stream.local_closed:
                self._drop(stream, ours=False)
        if done:
            self._data = None
            self._skip = self._data_pad
        return at + step

    def consumed(self, stream: Stream, size: int) -> None:
        """``size`` bytes of a stream have been dealt with: the peer may send as many more, and, as it is read so well, some more than that."""
        if stream.remote_closed:
            return
        stream.credit += size
        if stream.credit * 2 >= stream.window:
            credit = stream.credit
            grown = min(stream.window, self.limits.window_most - stream.window)
            stream.window += grown
            stream.receive_window += credit + grown
            stream.credit = 0
            self._out.append(frames.window_update(stream.id, credit + grown))
            if self._frame < self.limits.frame:  # this peer has much to send
                self._frame = self.limits.frame
                self._out.append(frames.settings({frames.MAX_FRAME_SIZE: self._frame}))

    # -- HEADERS, CONTINUATION

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "HEADERS on stream 0")
        start, end = 0, len(payload)
        if flags & frames.PADDED:
            if not payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "padded HEADERS without a pad length")
            start, end = 1, end - payload[0]
        fault = None
        if flags & frames.PRIORITIZED:
            if len(payload) < start + 5:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "HEADERS are too short for their priority")
            if frames.word(payload, start) & 0x7FFF_FFFF == number:
                fault = StreamFault(Code.PROTOCOL_ERROR, "the stream depends on itself")
            start += 5
        if start > end:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "padding is longer than its frame")
        if start or end != len(payload):
            payload = payload[start:end]
        if flags & frames.END_HEADERS:
            self._on_block(number, payload, bool(flags & frames.END_STREAM), fault)
        else:
            self._block, self._block_stream, self._block_flags = bytearray(payload), number, flags
            self._block_frames, self._block_fault = 0, fault

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > self.limits.header_block or self._block_frames > self.limits.continuations:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(number, block, bool(self._block_flags & frames.END_STREAM), self._block_fault)

    def _on_block(self, number: int, block: bytes, end: bool, fault: StreamFault | None) -> None:
        """A whole header block. It is decoded whatever becomes of it: the tables of both sides must stay alike."""
        stream = self.streams.get(number)
        if stream is not None and stream.remote_closed:
            self._decoder(_any, block)
            raise StreamFault(Code.STREAM_CLOSED, "HEADERS after the end of the stream")
        if stream is not None and stream.head_seen:
            head = self._decoder(headers.trailers, block)
            if fault is not None:
                raise fault
            if not end:
                raise StreamFault(Code.PROTOCOL_ERROR, "HEADERS in the middle of a stream")
            if stream.body_left:
                raise StreamFault(Code.PROTOCOL_ERROR, "DATA does not add up to content-length")
            stream.remote_closed = True
            self._events.append(Trailers(stream, head))
            if stream.local_closed:
                self._drop(stream, ours=False)
        elif self.client:
            self._on_response(stream, number, block, end, fault)
        else:
            self._on_request(number, block, end, fault)

    def _on_response(self, stream: Stream | None, number: int, block: bytes, end: bool, fault: StreamFault | None) -> None:
        if stream is None:
            if self._is_idle(number):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number}, which nobody opened")
            self._decoder(_any, block)
            self._late()
            return
        head = self._decoder(headers.response, block)
        if fault is not None:
            raise fault
        if 100 <= head.status < 200:
            if end:
                raise StreamFault(Code.PROTOCOL_ERROR, "an informational response ends the stream")
            self._idled()
            return
        stream.head_seen = True
        stream.body_left = head.content_length
        stream.remote_closed = end
        self._events.append(Opened(stream, head, end))
        if end and stream.local_closed:
            self._drop(stream, ours=False)

    def _on_request(self, number: int, block: bytes, end: bool, fault: StreamFault | None) -> None:
        if number % 2 == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"a client opened stream {number}")
        if number <= self.last:
            if any(number in numbers for numbers in self._skipped):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"stream {number} is below {self.last}")
            if number not in self._reset:
                raise ConnectionFault(Code.STREAM_CLOSED, f"HEADERS on closed stream {number}")
            self._decoder(_any, block)
            self._late()
            return
        head = self._decoder(headers.request, block)
        self._reach(number)
        if fault is not None:
            raise fault
        if self._last_allowed is not None and number > self._last_allowed:
            self._out.append(frames.rst_stream(number, Code.REFUSED_STREAM))
            self._remember(number)
            self._idled()
            return
        if len(self.streams) + self.lingering >= self.limits.streams:
            raise StreamFault(Code.REFUSED_STREAM, "too many streams")
        if end and head.content_length:
            raise StreamFault(Code.PROTOCOL_ERROR, "DATA does not add up to content-length")
        self._idle.give(self._earned)
        stream = self.streams[number] = Stream(number, self.limits.window, self._peer_window, self.account)
        stream.head_seen = True
        stream.body_left = head.content_length
        stream.remote_closed = end
        self._events.append(Opened(stream, head, end))

    # -- the others

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._idled()
        fault = StreamFault if number in self.streams else ConnectionFault  # a stream that is not there cannot be reset
        if len(payload) != 5:
            raise fault(Code.FRAME_SIZE_ERROR, "PRIORITY is five bytes long")
        if frames.word(payload) & 0x7FFF_FFFF == number:
            raise fault(Code.PROTOCOL_ERROR, "the stream depends on itself")

    def _on_rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "RST_STREAM is four bytes long")
        if not number or self._is_idle(number):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"RST_STREAM on stream {number}")
        stream = self.streams.get(number)
        if stream is None:
            self._late()
            return
        self._drop(stream, ours=False)
        self._events.append(Reset(stream, frames.word(payload), local=False, reason=""))
        self._count_reset()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a SETTINGS acknowledgement has no values")
            self._idled()
            return
        if len(payload) % 6:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS are of six bytes each")
        window = self._peer_window
        for at in range(0, len(payload), 6):
            if at:
                self._idled()
            self._on_setting(*frames.SETTING.unpack_from(payload, at))
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if self._peer_window > window:  # only now: the acknowledgement tells the peer which data knows of the new window
            for stream in list(self.streams.values()):
                self._go_on(stream)
        if self._greeted:
            self._idled()
        else:
            self._greeted = True
            self._events.append(Ready())

    def _on_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.WINDOW_LIMIT:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"initial window of {value}")
            for _ in range(len(self.streams) // 256):  # that many streams are as much work as a frame
                self._idled()
            change, self._peer_window = value - self._peer_window, value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > frames.WINDOW_LIMIT:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"the window of stream {stream.id} overflows")
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value <= frames.FRAME_LIMIT:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"frame size of {value}")
            self._peer_frame = min(value, _LARGEST_FRAME)
        elif name == frames.MAX_CONCURRENT_STREAMS:
            if value > self.peer_streams:
                self._events.append(Roomier())
            self.peer_streams = value
        elif name == frames.ENABLE_PUSH:
            if value > 1 or (value and self.client):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
        elif name == frames.HEADER_TABLE_SIZE and value < 4096:
            self._prefix = headers.TABLE_EMPTIED  # to be told at the next block (RFC 7541, section 4.2)

    def _on_push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody allowed")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "PING is eight bytes long")
        self._idled()
        if flags & frames.ACK:
            self._events.append(Pong(payload))
        else:
            self._acks.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "GOAWAY is at least eight bytes long")
        self._idled()
        self._events.append(GoingAway(frames.word(payload) & 0x7FFF_FFFF, frames.word(payload, 4), payload[8:1032].decode("utf-8", "replace")))

    def _on_window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE is four bytes long")
        increment = frames.word(payload) & 0x7FFF_FFFF
        self._idled()
        if not number:
            if not increment:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._send_window += increment
            if self._send_window > frames.WINDOW_LIMIT:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window overflows")
            self._feed_starved()
            return
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {number}")
            return
        if not increment:
            raise StreamFault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.send_window += increment
        if stream.send_window > frames.WINDOW_LIMIT:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "the stream's window overflows")
        self._go_on(stream)

    # ------------------------------------------------------------------------------------------ orders

    def open(self, block: bytes, owner: Any) -> Stream:
        """A client's new stream, with its request's head."""
        number, self._next = self._next, self._next + 2
        stream = self.streams[number] = Stream(number, self.limits.window, self._peer_window, self.account)
        stream.owner = owner
        self._put_headers(number, block, 0)
        return stream

    @property
    def exhausted(self) -> bool:
        """Whether a client has used up all stream numbers."""
        return self._next > frames.STREAM_LIMIT

    def send_head(self, stream: Stream, block: bytes) -> None:
        """A server's response head."""
        if not stream.local_closed:
            self._put_headers(stream.id, block, 0)

    def send(self, stream: Stream, *chunks: Chunk, end: bool = False) -> None:
        """DATA; nothing happens on a stream that has ended, or whose end is queued."""
        if stream.local_closed or (stream.queue and type(stream.queue[-1]) is _Tail):
            return
        for chunk in chunks:
            if chunk:
                stream.queue.append(chunk)
                stream.queued += len(chunk)
                stream.account.queued += len(chunk)
        if end:
            stream.queue.append(_Tail(None))
        self._pump(stream)
        if stream.queued and chunks and isinstance(chunks[-1], memoryview) and len(chunks[-1]) < _WORTH_KEEPING:
            self._unpin(stream, end=end)

    def room(self, stream: Stream) -> int:
        """How many bytes of DATA would go at once."""
        return 0 if self._blocked or stream.queue else min(stream.send_window, self._send_window)

    @staticmethod
    def _unpin(stream: Stream, *, end: bool) -> None:
        """A small piece that has to wait does not keep alive the buffer that it came in."""
        last = -2 if end else -1
        stream.queue[last] = bytes(stream.queue[last])  # type: ignore[arg-type]

    def answer(self, stream: Stream, head: bytes, message: bytes, tail: bytes) -> None:
        """A server's whole answer: head, one message, trailers."""
        size = len(message)
        if (stream.remote_closed and not stream.local_closed and not stream.queue and not self._blocked and not self._prefix
                and size <= stream.send_window and size <= self._send_window and size <= self._peer_frame and len(head) + len(tail) < frames.DEFAULT_FRAME):
            number = stream.id
            self._send_window -= size
            self._out.append(b"".join((
                _HEAD.pack(len(head) << 8 | frames.HEADERS, frames.END_HEADERS, number), head,
                _HEAD.pack(size << 8 | frames.DATA, 0, number), message,
                _HEAD.pack(len(tail) << 8 | frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number), tail)))
            self._idle.give(2 * self._earned)
            stream.local_closed = True
            self.streams.pop(number, None)
            return
        self.send_head(stream, head)
        self.send(stream, message)
        self.send_tail(stream, tail)

    def send_tail(self, stream: Stream, block: bytes) -> None:
        """Trailers, behind what is queued; as a response without a head, a trailers-only one."""
        if stream.local_closed or (stream.queue and type(stream.queue[-1]) is _Tail):
            return
        stream.queue.append(_Tail(block))
        self._pump(stream)

    def reset(self, stream: Stream, code: Code) -> None:
        """End a stream at once; what is queued is dropped."""
        if stream.id in self.streams:
            self._out.append(frames.rst_stream(stream.id, code))
            self._drop(stream, ours=True)

    def forsake(self, stream: Stream) -> None:
        """The peer has said that it will never look at a stream: it ends without a word."""
        self._drop(stream, ours=False)

    def ping(self, payload: bytes) -> None:
        """Eight bytes that the peer is to send back."""
        self._out.append(frames.frame(frames.PING, 0, 0, payload))

    def drain(self, reason: str = "") -> None:
        """Take no new streams; those that are open go on."""
        if self._last_allowed is None and not self.closed:
            self._last_allowed = self.last
            self._out.append(frames.goaway(self.last, Code.NO_ERROR, reason))

    def fail(self, code: Code, reason: str) -> None:
        """End the connection: GOAWAY is the last that it says."""
        if not self.closed:
            self.closed = True
            self._out += self._acks
            self._acks = []
            self._out.append(frames.goaway(self.last if self._last_allowed is None else self._last_allowed, code, reason))
            self._last_words = len(self._out)

    def block(self) -> None:
        """Send no DATA until :meth:`unblock`."""
        self._blocked = True

    def unblock(self) -> list[Event]:
        """DATA may go again; the events are :class:`Drained`."""
        self._blocked = False
        if self.closed:
            return []
        events: list[Event] = []
        self._events = events
        self._feed_starved()
        self._events = []
        return events

    # ------------------------------------------------------------------------------------------ sending

    def _put_headers(self, number: int, block: bytes, flags: int) -> None:
        if self._prefix:
            block, self._prefix = self._prefix + block, b""
        self._idle.give(self._earned)
        if len(block) <= self._peer_frame:
            self._out.append(_HEAD.pack(len(block) << 8 | frames.HEADERS, flags | frames.END_HEADERS, number) + block)
            return
        size = self._peer_frame
        self._out.append(frames.frame(frames.HEADERS, flags, number, block[:size]))
        for at in range(size, len(block), size):
            last = at + size >= len(block)
            self._out.append(frames.frame(frames.CONTINUATION, frames.END_HEADERS if last else 0, number, block[at:at + size]))

    def _go_on(self, stream: Stream) -> None:
        """A stream may have got room: send, and tell its owner."""
        if stream.queue:
            before = stream.queued
            self._pump(stream)
            if stream.queued < before and stream.queued <= stream.low:
                self._events.append(Drained(stream))

    def _pump(self, stream: Stream) -> None:
        """Send what is queued as far as windows allow."""
        queue, out, number = stream.queue, self._out, stream.id
        while queue:
            tail = queue[0]
            if type(tail) is _Tail:
                self._end(stream, tail)
                break
            size = min(stream.queued, stream.send_window, self._send_window, self._peer_frame)
            if size <= 0 or self._blocked:
                if self._blocked or stream.send_window > 0:
                    self._starved[stream] = None
                break
            if size >= _TINY or size == stream.queued:
                self._idle.give(self._earned)
            stream.queued -= size
            stream.account.queued -= size
            stream.send_window -= size
            self._send_window -= size
            last = not stream.queued and len(queue) > 1 and _ends(queue[-1])
            out.append(_HEAD.pack(size << 8 | frames.DATA, frames.END_STREAM if last else 0, number))
            while size:
                chunk = queue[0]
                assert not isinstance(chunk, _Tail)
                if len(chunk) <= size:
                    out.append(chunk)
                    size -= len(chunk)
                    queue.popleft()
                else:
                    view = chunk if isinstance(chunk, memoryview) else memoryview(chunk)
                    out.append(view[:size])
                    queue[0] = view[size:]
                    size = 0
            if last:
                queue.clear()
                self._closed_by_us(stream)

    def _end(self, stream: Stream, tail: _Tail) -> None:
        stream.queue.clear()
        if tail.block is None:
            self._out.append(_HEAD.pack(frames.DATA, frames.END_STREAM, stream.id))
        else:
            self._put_headers(stream.id, tail.block, frames.END_STREAM)
        self._closed_by_us(stream)

    def _closed_by_us(self, stream: Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._drop(stream, ours=False)
        elif not self.client:  # the answer is complete, whatever the client still wants to send (RFC 9113, section 8.1)
            self._out.append(frames.rst_stream(stream.id, Code.NO_ERROR))
            self._drop(stream, ours=True)

    def _feed_starved(self) -> None:
        """Those that waited for the connection's window or for the socket go on; whoever has to wait again is last in the queue."""
        while self._starved and self._send_window > 0 and not self._blocked:
            stream = next(iter(self._starved))
            del self._starved[stream]
            self._go_on(stream)


def _ends(item: Sequence[Any]) -> bool:
    return type(item) is _Tail and item.block is None


def _any(_: headers.Pairs) -> Head:
    """A block that is of no interest any more."""
    return Head([])


_TINY = 1 << 10
"""A frame that a window has cut to less than this does not allow for frames that bring nothing."""
_LONG = 9
"""A frame other than DATA counts as one more for each 512 bytes: header lists take their time."""
_REMEMBERED = 1 << 14
"""Streams that we reset and still know of, at most: as many as there may be at once."""
_SKIPPED = 100
"""Ranges of streams that the peer passed over."""
_WORTH_KEEPING = 16 << 10
_LARGEST_FRAME = 256 << 10
"""DATA frames that we send are no longer, whatever the peer takes: a frame cannot be interrupted by another stream."""
_HEADERISH = (frames.HEADERS, frames.CONTINUATION)
_FRAMES = {
    frames.HEADERS: Connection._on_headers,
    frames.PRIORITY: Connection._on_priority,
    frames.RST_STREAM: Connection._on_rst_stream,
    frames.SETTINGS: Connection._on_settings,
    frames.PUSH_PROMISE: Connection._on_push_promise,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
    frames.WINDOW_UPDATE: Connection._on_window_update,
    frames.CONTINUATION: Connection._on_continuation,
}
