"""A connection on a socket: an asyncio protocol that moves bytes between the transport and a :class:`Connection`, and
events to the streams' owners.

Everything that it writes in one turn of the loop leaves in one call. While a transport is full (``pause_writing``),
DATA waits in the streams' queues. A peer that makes us answer and reads nothing is not read from either, until it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from services.kit.certificates import CLOSED
from services.kit.slices import lane
from services.wire.connection import Connection
from services.wire.events import Closed, Data, Drained, Event, GoingAway, Opened, Pong, Ready, Reset, Roomier, Trailers
from services.wire.frames import Code
from services.wire.headers import Head
from services.wire.limits import Limits
from services.wire.streams import Chunk, Stream

log = logging.getLogger(__name__)

_JOIN = 32 << 10
"""Pieces that together are no longer than this are copied into one, which is cheaper than a vector of them."""
_TURN = 16
"""Frames that are handled before the clock is looked at."""
_MUCH = 64 << 10
"""Bytes that arrive at once from a peer that has more. Such peers share a slice of each turn."""
_SLOW = 0.02
"""Seconds for which a peer that resets very many streams is not read from, before the next of them."""
_MOMENT, _PINGS = 0.02, 8
"""Seconds for which the answers to PINGs are held back, and how many at most."""
_HANG_UP = 1.0


class Owner(Protocol):
    """The owner of a stream, which is told of its events."""

    def on_data(self, chunk: Chunk, end: bool) -> None:
        """Bytes have come. The owner calls ``Connection.consumed`` when it can take more."""
        ...

    def on_trailers(self, head: Head) -> None:
        """The peer has ended the stream."""
        ...

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        """The stream ended early."""
        ...

    def on_drained(self) -> None:
        """Queued bytes have been sent, down to the stream's ``low``."""
        ...

    def on_lost(self, reason: str) -> None:
        """The connection is lost."""
        ...


class Link(asyncio.Protocol):
    """One side of one connection. A server's and a client's differ in :meth:`opened`."""

    def __init__(self, limits: Limits, *, client: bool, one_client: bool = False) -> None:
        self.limits = limits
        self.one_client = one_client
        """Only one client's calls are on it, so it may wait while others are served."""
        self.connection = Connection(client=client, limits=limits)
        self.loop = asyncio.get_running_loop()
        self._lane = lane()
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.ready = False
        self.heard = False
        """Whether anything has come since this was last set to False; for keepalive."""
        self._inside = False
        self._scheduled = False
        self._later: asyncio.TimerHandle | None = None
        self._full = False
        self._unread = 0
        self.deaf_since: float | None = None
        """Since when we do not read, because the peer does not read."""
        self._held = False
        self._slowed_at: float | None = None
        """Since when we do not read, because the peer resets too much."""

    # -- overridden by each side

    def opened(self, event: Opened) -> None:
        """A request has come, or the head of a response."""
        raise NotImplementedError

    def on_ready(self) -> None:
        """The peer's SETTINGS have come."""

    def on_going_away(self, event: GoingAway) -> None:
        """The peer takes no more streams."""

    def on_pong(self) -> None:
        """A ping was answered."""

    def on_idle(self) -> None:
        """A stream has ended: there is room for another, and perhaps no other is open."""

    def on_turn(self) -> None:
        """All events of one read have been reported."""

    def on_end(self, reason: str) -> None:
        """The connection is lost, and all owners have been told."""

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=256 << 10)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """What arrives in one turn may be megabytes, since a transport reads until the socket is empty."""
        self.heard = True
        if len(data) < _MUCH:
            self._take(data)
            return
        end = self._lane.end()
        self._take(data)
        if self.one_client and time.perf_counter() >= end and not (self._held or self.lost):
            self._hold()

    def _take(self, data: bytes) -> None:
        connection = self.connection
        self._inside = True
        try:
            self._tell(connection.receive(data, _TURN))
            if connection.more:
                self._take_more()
            self.on_turn()
        finally:
            self._inside = False
        if connection.slowed:
            self._slow_down()
        elif connection.more:
            self._hold()
        elif self._held:
            self._held = False
            self._listen()
        if connection.pinged:
            self._answer_pings_later()
        self.flush()

    def _take_more(self) -> None:
        """A peer that has sent very much at once gets a slice of time. All such peers of the process share one slice
        and take turns.
        """
        end = self._lane.end()
        while self.connection.more and not self.connection.slowed and time.perf_counter() < end:
            self._tell(self.connection.receive(b"", _TURN))

    def _hold(self) -> None:
        assert self.transport is not None
        self._held = True
        self.transport.pause_reading()
        self._lane.later(self._go_on)

    def _slow_down(self) -> None:
        """Read nothing for a moment: what the peer sends meanwhile stays in the socket, and others are served."""
        assert self.transport is not None
        if self._slowed_at is None:
            self._held = True
            self._slowed_at = time.monotonic()
            self.transport.pause_reading()
            self.loop.call_later(_SLOW, self._hasten)

    def _hasten(self) -> None:
        assert self._slowed_at is not None
        self.connection.hasten(time.monotonic() - self._slowed_at)
        self._slowed_at = None
        self._go_on()

    def _go_on(self) -> None:
        if not self.lost:
            self._take(b"")

    def _listen(self) -> None:
        if self.transport is not None and not self._held and self.deaf_since is None:
            self.transport.resume_reading()

    def eof_received(self) -> None:
        self._gone(CLOSED)
        self._linger()  # a peer that has sent its last bytes may still not read ours

    def connection_lost(self, error: Exception | None) -> None:
        self._gone(f"{CLOSED}: {error}" if error else CLOSED)

    def pause_writing(self) -> None:
        self._full = True
        self.connection.block()

    def resume_writing(self) -> None:
        self._full = False
        self._unread = 0
        if self.deaf_since is not None:
            self.deaf_since = None
            self._listen()
        self._tell(self.connection.unblock())
        self.flush()

    # -- events

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            try:
                _TELL[type(event)](self, event)
            except Exception:
                log.exception("%s could not be handled", type(event).__name__)
                self._give_up(getattr(event, "stream", None))

    def _give_up(self, stream: Stream | None) -> None:
        """A bug of ours ends the call that met it. It ends the connection only if it concerns no call."""
        if stream is None:
            self.abort("internal error")
            return
        self.connection.reset(stream, Code.INTERNAL_ERROR)
        try:
            if stream.owner is not None:
                stream.owner.on_reset(Code.INTERNAL_ERROR, "internal error", local=True)
        except Exception:
            log.exception("and its owner could not be told")
        self.on_idle()

    def _on_opened(self, event: Opened) -> None:
        self.opened(event)

    def _on_data(self, event: Data) -> None:
        stream = event.stream
        owner: Owner | None = stream.owner
        if owner is None:
            self.connection.consumed(stream, len(event.chunk))
        else:
            owner.on_data(event.chunk, event.end)
        if event.end:
            self.on_idle()

    def _on_trailers(self, event: Trailers) -> None:
        owner: Owner | None = event.stream.owner
        if owner is not None:
            owner.on_trailers(event.head)
        self.on_idle()

    def _on_reset(self, event: Reset) -> None:
        owner: Owner | None = event.stream.owner
        if owner is not None:
            owner.on_reset(event.code, event.reason, local=event.local)
        self.on_idle()

    def _on_drained(self, event: Drained) -> None:
        owner: Owner | None = event.stream.owner
        if owner is not None:
            owner.on_drained()

    def _on_ready(self, event: Ready) -> None:
        self.ready = True
        self.on_ready()

    def _on_roomier(self, event: Roomier) -> None:
        self.on_idle()

    def _on_pong(self, event: Pong) -> None:
        self.on_pong()

    def _on_going_away(self, event: GoingAway) -> None:
        self.on_going_away(event)

    def _on_closed(self, event: Closed) -> None:
        log.info("closing a connection: %s (%s)", event.reason, Code(event.code).name)
        self._inside = False
        self.flush()
        self._gone(event.reason)
        # If the socket were closed with unread bytes, the kernel would reset the connection, and the peer might never
        # see the GOAWAY. So read on and drop the bytes, until the peer closes.
        assert self.transport is not None
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # the peer has closed the connection already
                self.transport.write_eof()
        self.loop.call_later(_HANG_UP, self.transport.abort)

    def _gone(self, reason: str) -> None:
        if self.lost:
            return
        self.lost = True
        self.connection.closed = True
        streams, self.connection.streams = self.connection.streams, {}
        for stream in streams.values():
            self.connection.forget(stream)
            owner: Owner | None = stream.owner
            try:
                if owner is not None:
                    owner.on_lost(reason)
            except Exception:
                log.exception("the owner of a stream could not be told that it is lost")
        self.on_end(reason)

    # -- orders

    def flush(self) -> None:
        """Write what the connection has to send. While events are being reported, this waits for their end."""
        if self._inside or self.transport is None or self.lost:
            return
        # a transport that fills up makes the connection hold back, so what follows is little
        while self.connection.pending:
            parts = self.connection.take()
            size = sum(map(len, parts))
            if size > _JOIN:  # a reader that measures how fast it gets this must not be misled
                self.connection.patient = False
            # a client's requests are not what its peer makes it send; and if neither side read, both would wait for
            # ever
            if self._full and not self.connection.client:
                self._unread += size
                if self._unread > self.limits.unread and self.deaf_since is None:
                    self.deaf_since = time.monotonic()
                    self.transport.pause_reading()
            if len(parts) == 1:
                self.transport.write(parts[0])
            elif size <= _JOIN:
                self.transport.write(b"".join(parts))
            else:
                self.transport.writelines(parts)

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop, together with the others' bytes."""
        if not self._inside and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush_scheduled)

    def _answer_pings_later(self) -> None:
        """grpc-go pings with each answer that it gets, until its ping is answered. So while small messages go to and
        fro, one ping in a moment comes instead of one for each call.
        """
        connection = self.connection
        if connection.pinged > _PINGS:
            connection.patient = False
        elif self._later is None:
            connection.patient = True
            self._later = self.loop.call_later(_MOMENT, self._answer_pings)

    def _answer_pings(self) -> None:
        self._later = None
        self.connection.patient = False
        self.flush()

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def reset(self, stream: Stream, code: Code) -> None:
        self.connection.reset(stream, code)
        self.flush_soon()
        self.on_idle()

    def consumed(self, stream: Stream, size: int) -> None:
        """Let the peer send more."""
        self.connection.consumed(stream, size)
        if self.connection.pending:
            self.flush_soon()

    def close(self) -> None:
        """Close the socket when everything written has been sent, or could not be sent for some seconds."""
        if self.transport is not None:
            self.transport.close()
            self._linger()

    def _linger(self) -> None:
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.loop.call_later(self.limits.linger, self.transport.abort)

    def abort(self, reason: str) -> None:
        """Close the socket at once."""
        if self.transport is not None:
            self.transport.abort()
        self._gone(reason)


_TELL: dict[type[Event], Callable[[Any, Any], None]] = {
    Opened: Link._on_opened,
    Data: Link._on_data,
    Trailers: Link._on_trailers,
    Reset: Link._on_reset,
    Drained: Link._on_drained,
    Ready: Link._on_ready,
    Roomier: Link._on_roomier,
    Pong: Link._on_pong,
    GoingAway: Link._on_going_away,
    Closed: Link._on_closed,
}
