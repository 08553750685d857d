"""One HTTP/2 connection (RFC 9113) without a socket: it takes bytes and orders, and returns events and bytes.

    connection = Connection(client=False)
    events = connection.receive(data)      # what the peer did
    connection.respond(...)                # what we do
    transport.writelines(connection.take())

It decides everything that HTTP/2 decides: frame sizes, the states of streams, both levels of flow control, SETTINGS,
GOAWAY, and every bound of :class:`Limits`. It knows no gRPC, and no clock except that of the token buckets; it never
waits. A fault of the peer ends its stream (RST_STREAM and a :class:`Reset` event) or the connection (GOAWAY and a
:class:`Closed` event). After that the connection sends nothing any more.

*Receiving.* DATA is returned as it arrived, in pieces of any size, not frame by frame. The connection's window is given
back at once. A stream's window is given back when its owner calls :meth:`consumed`, and grows while it is consumed.

*Turns.* A peer can put thousands of frames into one read. A caller that serves others too says how many frames it wants
handled, and calls again while there is :attr:`Connection.more`. A peer that resets very many streams is
:attr:`Connection.slowed`: no frame is looked at before :meth:`Connection.hasten`.

*Sending* is the other half, in :mod:`~services.wire.sending`, on which this class is built.
"""

from __future__ import annotations

from services.kit.buckets import Bucket
from services.wire import frames, headers
from services.wire.events import Closed, Data, Event, GoingAway, Opened, Pong, Ready, Reset, Roomier, Trailers
from services.wire.frames import Code, ConnectionFault, StreamFault
from services.wire.headers import Head
from services.wire.limits import Limits
from services.wire.sending import LARGEST_FRAME, Sender
from services.wire.streams import Stream

_HEAD = frames.HEAD
_HEAD_SIZE = frames.HEAD_SIZE


class Connection(Sender):
    __slots__ = (
        "_at",
        "_block",
        "_block_fault",
        "_block_flags",
        "_block_frames",
        "_block_stream",
        "_calm",
        "_credit",
        "_data",
        "_data_end",
        "_data_left",
        "_data_pad",
        "_decoder",
        "_frame",
        "_greeted",
        "_preface",
        "_receive_window",
        "_resets",
        "_rest",
        "_skip",
        "_skipped",
        "lingering",
        "more",
        "slowed",
    )

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self.lingering = 0
        """Streams that are over, but whose handlers still run. A server's owner counts them, and they count as
        streams.
        """
        self.more = False
        """Whether frames that have arrived are still to be handled."""
        self.slowed = False
        """Whether no frame is to be handled for a moment."""
        self._decoder = headers.Decoder(limits)
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
        self._skipped: list[range] = []
        """Streams that the peer skipped; they were never used."""
        self._frame = frames.DEFAULT_FRAME
        self._receive_window = frames.DEFAULT_WINDOW
        self._credit = 0
        self._resets = Bucket(limits.resets, limits.resets_rate)
        self._calm = Bucket(limits.resets_slow, limits.resets_slow_rate)
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

    # ------------------------------------------------------------------------------------------ bytes in

    def receive(self, data: bytes, turn: int = 0) -> list[Event]:
        """Take bytes, and return the events. At most about ``turn`` frames are handled, unless it is 0. While there is
        :attr:`more`, call again with ``b""``.
        """
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
            data, at = (self._rest[self._at :] + data, 0) if data else (self._rest, self._at)
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
                if not flags and length <= _ONE and (count := self._on_equal_data(data, view, at, length, turn)):
                    at += count * (_HEAD_SIZE + length)
                    turn -= count - 1
                    continue
                at = self._on_data_head(data, at + _HEAD_SIZE, length, flags, number)
                continue
            if kind > frames.CONTINUATION:  # unknown: to be ignored (RFC 9113, section 4.1)
                self._idled()
                at += _HEAD_SIZE
                self._skip = length
                continue
            if length > self.limits.header_block:  # no other frame is that long
                raise ConnectionFault(
                    Code.FRAME_SIZE_ERROR if kind not in _HEADERISH else Code.ENHANCE_YOUR_CALM,
                    f"frame of {length} bytes",
                )
            end = at + _HEAD_SIZE + length
            if end > size:
                break
            turn -= (length >> _LONG) + (_CALL if kind == frames.HEADERS else 0)
            try:
                _FRAMES[kind](self, flags, number, data[at + _HEAD_SIZE : end])
            except StreamFault as fault:
                self._stream_fault(number, fault)
            at = end
        if at < size:
            self._rest = data[at:]

    def _idled(self) -> None:
        if not self._idle.take():
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames without content")

    def _stream_fault(self, number: int, fault: StreamFault) -> None:
        """The peer's fault in one stream resets it. Too many of them end the connection."""
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
        """The peer has been slowed for long enough. This time does not earn it tokens, since otherwise it could have
        had all of its resets handled at once.
        """
        self.slowed = False
        self._resets.pass_over(seconds)

    def _reach(self, number: int) -> None:
        """Note that the peer has used the number of a stream, and skipped those before it."""
        if number > self.last:
            following = self.last + 2 if self.last else 1
            if number > following:
                self._skipped = [*self._skipped[1 - _SKIPPED :], range(following, number, 2)]
            self.last = number

    def _late(self) -> None:
        """A frame for a stream that we reset. A client accepts any number of them, since answers may be under way when
        it resets.
        """
        if not self.client:
            self._idled()

    def _is_idle(self, number: int) -> bool:
        """Whether a stream was never used."""
        if number % 2:
            return number >= self._next if self.client else number > self.last
        return True  # no peer may push

    # -- DATA

    def _on_data_head(self, data: bytes, at: int, length: int, flags: int, number: int) -> int:
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "DATA on stream 0")
        if length > self._receive_window:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        self._received(length)
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
                if 0 < length <= under_way:  # sent before the peer could know, in frames of any size
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

    def _on_equal_data(self, data: bytes, view: memoryview, at: int, length: int, turn: int) -> int:
        """Take whole DATA frames whose heads are the same, as one piece. The result is their number. 0 if there are not
        several, or they need a closer look. grpc-go sends a message in frames of 16 KiB, of which one at a time takes
        as long as the copy of all of them.
        """
        step, first = _HEAD_SIZE + length, at + _HEAD_SIZE
        head = data[at:first]
        stream = self.streams.get(_HEAD.unpack(head)[2])
        if not length or stream is None or stream.remote_closed or not stream.head_seen or stream.body_left is not None:
            return 0
        most = min(turn + 1, (len(data) - at) // step, min(stream.receive_window, self._receive_window) // length)
        count = 1
        while count < most and data[at + count * step : first + count * step] == head:
            count += 1
        if count < 2:
            return 0
        self._received(count * length)
        stream.receive_window -= count * length
        pieces = [view[first + each * step : first + each * step + length] for each in range(count)]
        self._events.append(Data(stream, b"".join(pieces), end=False))
        return count

    def _received(self, length: int) -> None:
        """Note bytes of DATA in the connection's window, and give that back."""
        self._receive_window -= length
        self._credit += length
        if self._credit * 2 >= self.limits.connection_window:
            self._out.append(frames.window_update(0, self._credit))
            self._receive_window += self._credit
            self._credit = 0

    def _on_data_bytes(self, view: memoryview, at: int, size: int) -> int:
        """The part of a DATA frame that has arrived."""
        stream = self._data
        assert stream is not None
        step = min(self._data_left, size - at)
        if not step and self._data_left:
            return at
        self._data_left -= step
        done = not self._data_left
        end = done and self._data_end
        if stream.id in self.streams:  # else it was reset while its frame was still arriving
            if end:
                stream.remote_closed = True
            if step or end:
                self._events.append(Data(stream, view[at : at + step], end))
            if end and stream.local_closed:
                self._drop(stream, ours=False)
        if done:
            self._data = None
            self._skip = self._data_pad
        return at + step

    def consumed(self, stream: Stream, size: int) -> None:
        """``size`` bytes of a stream are consumed. The peer may send as many more, and some beyond that, since its
        reader keeps up.
        """
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
        """A whole header block. It is decoded in every case, since the tables of both sides must stay the same."""
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

    def _on_response(
        self, stream: Stream | None, number: int, block: bytes, end: bool, fault: StreamFault | None
    ) -> None:
        if stream is None:
            if self._is_idle(number):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number}, which was not opened")
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
        # a stream that does not exist cannot be reset
        fault = StreamFault if number in self.streams else ConnectionFault
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
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS are six bytes each")
        window = self._peer_window
        for at in range(0, len(payload), 6):
            if at:
                self._idled()
            self._on_setting(*frames.SETTING.unpack_from(payload, at))
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        # only now: the acknowledgement tells the peer which data knows of the new window
        if self._peer_window > window:
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
            self._peer_frame = min(value, LARGEST_FRAME)
        elif name == frames.MAX_CONCURRENT_STREAMS:
            if value > self.peer_streams:
                self._events.append(Roomier())
            self.peer_streams = value
        elif name == frames.ENABLE_PUSH:
            if value > 1 or (value and self.client):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
        elif name == frames.HEADER_TABLE_SIZE and value < 4096:
            self._prefix = headers.TABLE_EMPTIED  # to be sent with the next block (RFC 7541, section 4.2)

    def _on_push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "PUSH_PROMISE, which is not enabled")

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
        self._events.append(
            GoingAway(
                frames.word(payload) & 0x7FFF_FFFF, frames.word(payload, 4), payload[8:1032].decode("utf-8", "replace")
            )
        )

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


def _any(_: headers.Pairs) -> Head:
    """Ignores the fields of a block."""
    return Head([])


_ONE = 16 << 10
"""The longest frames of which several are taken as one piece. Longer ones are worth their while."""
_LONG = 9
"""Each 512 bytes of a frame other than DATA count as one more frame, since header lists take time."""
_CALL = 4  # HEADERS count as so many more: they begin a call, and its handler runs at once
_SKIPPED = 100
"""Ranges of skipped streams that are remembered."""
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
