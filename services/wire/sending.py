"""The half of a connection that sends: what is sent, when windows and the socket allow it, and on which streams.

DATA waits in its stream's queue for the windows. If the owner has called :meth:`Sender.block`, it waits for
:meth:`Sender.unblock`: this is how a full socket slows its writers. Trailers wait behind DATA. ``stream.queued`` is the
number of waiting bytes; with ``stream.low`` set, :class:`Drained` reports when it has shrunk to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.kit.buckets import Bucket
from services.wire import frames
from services.wire.events import Drained, Event
from services.wire.frames import Code
from services.wire.limits import Limits
from services.wire.streams import Account, Chunk, Stream, Tail

_HEAD = frames.HEAD
_TINY = 1 << 10
"""A frame that a window has cut to less than this earns the peer no frames without content."""
_ONE = 16 << 10
"""Bytes of a larger frame that count as a frame: a reader acknowledges them, not the frame."""
_REMEMBERED = 1 << 14
"""Streams that we reset and still remember, at most: as many as may be open at once."""
_WORTH_KEEPING = 16 << 10
LARGEST_FRAME = 256 << 10
"""DATA frames that we send are no longer than this, whatever the peer accepts, since no other stream can interrupt a
frame.
"""


class Sender:
    __slots__ = (
        "_acks",
        "_blocked",
        "_earned",
        "_events",
        "_idle",
        "_last_allowed",
        "_last_words",
        "_next",
        "_out",
        "_peer_frame",
        "_peer_window",
        "_prefix",
        "_reset",
        "_send_window",
        "_starved",
        "account",
        "client",
        "closed",
        "last",
        "limits",
        "patient",
        "peer_streams",
        "streams",
    )

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.account = Account()
        """The account of new streams."""
        self.peer_streams = 1 << 31
        """Streams that the peer allows at once."""
        self.closed = False
        self.last = 0
        """The highest stream that the peer opened."""
        self._next = 1
        self._events: list[Event] = []
        self._out: list[Chunk] = []
        self._acks: list[Chunk] = []
        self.patient = False
        """Whether answers to PING are held back."""
        self._last_words = 0
        """The number of pieces that may still be sent when the connection is over: up to its GOAWAY."""
        self._reset: dict[int, int] = {}
        """Streams that we reset, which the peer may not know yet, with the bytes that it may have under way for
        each.
        """
        self._send_window = frames.DEFAULT_WINDOW
        self._peer_window = frames.DEFAULT_WINDOW
        self._peer_frame = frames.DEFAULT_FRAME
        self._prefix = b""
        self._blocked = False
        self._starved: dict[Stream, None] = {}
        self._last_allowed: int | None = None
        self._earned = limits.idle_frames_earned
        self._idle = Bucket(limits.idle_frames, limits.idle_frames_rate, limits.idle_frames * self._earned)

    # ------------------------------------------------------------------------------------------ bytes out

    def take(self) -> list[Chunk]:
        """The bytes to write now."""
        out, self._out = self._out, []
        if self.closed:
            del out[self._last_words :]
            self._last_words = 0
        elif self._acks and not self.patient:
            out[:0], self._acks = self._acks, []
        return out

    @property
    def pending(self) -> bool:
        """Whether :meth:`take` has something."""
        if self.closed:
            return bool(self._last_words)
        return bool(self._out) or (bool(self._acks) and not self.patient)

    @property
    def pinged(self) -> int:
        """The number of PINGs whose answers have not been taken."""
        return len(self._acks)

    # ------------------------------------------------------------------------------------------ orders

    def open(self, block: bytes, owner: Any) -> Stream:
        """Open a client's stream, with the head of its request."""
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
        """Send the head of a server's response."""
        if not stream.local_closed:
            self._put_headers(stream.id, block, 0)

    def send(self, stream: Stream, *chunks: Chunk, end: bool = False) -> None:
        """Send DATA. This does nothing on a stream that has ended, or whose end is queued."""
        if stream.local_closed or (stream.queue and type(stream.queue[-1]) is Tail):
            return
        for chunk in chunks:
            if chunk:
                stream.queue.append(chunk)
                stream.queued += len(chunk)
                stream.account.queued += len(chunk)
        if end:
            stream.queue.append(Tail(None))
        self._pump(stream)
        if stream.queued and chunks and isinstance(chunks[-1], memoryview) and len(chunks[-1]) < _WORTH_KEEPING:
            self._unpin(stream, end=end)

    def room(self, stream: Stream) -> int:
        """The number of bytes of DATA that would be sent at once."""
        return 0 if self._blocked or stream.queue else min(stream.send_window, self._send_window)

    @staticmethod
    def _unpin(stream: Stream, *, end: bool) -> None:
        """Copy a small piece that has to wait, so that it does not keep alive the buffer that it came in."""
        last = -2 if end else -1
        stream.queue[last] = bytes(stream.queue[last])  # type: ignore[arg-type]

    def answer(self, stream: Stream, head: bytes, message: bytes, tail: bytes) -> None:
        """Send a server's whole answer: head, one message, trailers."""
        size = len(message)
        if (
            stream.remote_closed
            and not stream.local_closed
            and not stream.queue
            and not self._blocked
            and not self._prefix
            and size <= stream.send_window
            and size <= self._send_window
            and size <= self._peer_frame
            and len(head) + len(tail) < frames.DEFAULT_FRAME
        ):
            number = stream.id
            self._send_window -= size
            self._out.append(
                b"".join(
                    (
                        _HEAD.pack(len(head) << 8 | frames.HEADERS, frames.END_HEADERS, number),
                        head,
                        _HEAD.pack(size << 8 | frames.DATA, 0, number),
                        message,
                        _HEAD.pack(len(tail) << 8 | frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number),
                        tail,
                    )
                )
            )
            self._idle.give(2 * self._earned)
            stream.local_closed = True
            self.streams.pop(number, None)
            return
        self.send_head(stream, head)
        self.send(stream, message)
        self.send_tail(stream, tail)

    def send_tail(self, stream: Stream, block: bytes) -> None:
        """Send trailers, behind what is queued. In a response without a head they are the only headers."""
        if stream.local_closed or (stream.queue and type(stream.queue[-1]) is Tail):
            return
        stream.queue.append(Tail(block))
        self._pump(stream)

    def reset(self, stream: Stream, code: Code) -> None:
        """End a stream at once; what is queued is dropped."""
        if stream.id in self.streams:
            self._out.append(frames.rst_stream(stream.id, code))
            self._drop(stream, ours=True)

    def forsake(self, stream: Stream) -> None:
        """The peer has said that it will never look at a stream: end it without sending anything."""
        self._drop(stream, ours=False)

    def ping(self, payload: bytes) -> None:
        """Send eight bytes that the peer must send back."""
        self._out.append(frames.frame(frames.PING, 0, 0, payload))

    def drain(self, reason: str = "") -> None:
        """Accept no new streams; open ones continue."""
        if self._last_allowed is None and not self.closed:
            self._last_allowed = self.last
            self._out.append(frames.goaway(self.last, Code.NO_ERROR, reason))

    def fail(self, code: Code, reason: str) -> None:
        """End the connection; GOAWAY is the last frame."""
        if not self.closed:
            self.closed = True
            self._out += self._acks
            self._acks = []
            self._out.append(
                frames.goaway(self.last if self._last_allowed is None else self._last_allowed, code, reason)
            )
            self._last_words = len(self._out)

    def block(self) -> None:
        """Send no DATA until :meth:`unblock`."""
        self._blocked = True

    def unblock(self) -> list[Event]:
        """DATA may be sent again; the events are :class:`Drained`."""
        self._blocked = False
        if self.closed:
            return []
        events: list[Event] = []
        self._events = events
        self._feed_starved()
        self._events = []
        return events

    # ------------------------------------------------------------------------------------------ streams

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
        reset = self._reset
        reset[number] = under_way
        if len(reset) > min(self.limits.streams, _REMEMBERED):
            del reset[next(iter(reset))]

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
            self._out.append(
                frames.frame(frames.CONTINUATION, frames.END_HEADERS if last else 0, number, block[at : at + size])
            )

    def _go_on(self, stream: Stream) -> None:
        """A stream may have got room: send, and tell its owner."""
        if stream.queue:
            before = stream.queued
            self._pump(stream)
            if stream.queued < before and stream.queued <= stream.low:
                self._events.append(Drained(stream))

    def _pump(self, stream: Stream) -> None:
        """Send what is queued, as far as the windows allow."""
        queue, out, number = stream.queue, self._out, stream.id
        while queue:
            tail = queue[0]
            if type(tail) is Tail:
                self._end(stream, tail)
                break
            size = min(stream.queued, stream.send_window, self._send_window, self._peer_frame)
            if size <= 0 or self._blocked:
                if self._blocked or stream.send_window > 0:
                    self._starved[stream] = None
                break
            if size >= _TINY or size == stream.queued:
                self._idle.give(self._earned * (1 + size // _ONE))
            stream.queued -= size
            stream.account.queued -= size
            stream.send_window -= size
            self._send_window -= size
            last = not stream.queued and len(queue) > 1 and _ends(queue[-1])
            out.append(_HEAD.pack(size << 8 | frames.DATA, frames.END_STREAM if last else 0, number))
            while size:
                chunk = queue[0]
                assert not isinstance(chunk, Tail)
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

    def _end(self, stream: Stream, tail: Tail) -> None:
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
        """Streams that waited for the connection's window or for the socket continue. A stream that has to wait again
        is put at the end of the queue.
        """
        while self._starved and self._send_window > 0 and not self._blocked:
            stream = next(iter(self._starved))
            del self._starved[stream]
            self._go_on(stream)


def _ends(item: Sequence[Any]) -> bool:
    return type(item) is Tail and item.block is None
