"""Unary calls, one at a time, over a socket that blocks: for a thread without an event loop, such as the one that
exports spans.

The connection is kept from call to call. If the peer has ended it meanwhile, it is replaced before the next call.
Nothing else is repeated.
"""

from __future__ import annotations

import contextlib
import socket
import time
import zlib
from collections.abc import Callable

from services.kit import errors
from services.kit.call import Metadata
from services.kit.version import SPLITD
from services.wire import headers, messages, outcomes
from services.wire.connection import Connection
from services.wire.events import Closed, Data, Event, GoingAway, Opened, Reset, Trailers
from services.wire.limits import configured
from services.wire.streams import Stream

Dial = Callable[[float], socket.socket]
"""Makes a connected socket, with TLS if wanted, within so many seconds; else OSError."""


class BlockingClient:
    """A client of one process. ``name`` is for error messages; ``scheme`` and ``authority`` are for proxies on the
    way.
    """

    def __init__(self, dial: Dial, name: str, *, scheme: str = "http", authority: str = "localhost") -> None:
        self._dial = dial
        self._name = name
        self._pseudo = ((b":method", b"POST"), (b":scheme", scheme.encode()), (b":authority", authority.encode()))
        self._line: _Line | None = None

    def unary(self, path: str, request: bytes, metadata: Metadata, timeout: float, *, compress: bool = False) -> bytes:
        """Make one call. Its failure is one of our errors: Disconnected if it is the transport's. ``compress`` sends
        the message as gzip.
        """
        end = time.monotonic() + timeout
        body = zlib.compress(request, wbits=31) if compress else request
        block = headers.block(
            [
                *self._pseudo,
                (b":path", path.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"grpc-accept-encoding", b"identity,gzip"),
                (b"user-agent", f"splitd/{SPLITD}".encode()),
                *([(b"grpc-encoding", b"gzip")] if compress else []),
                *headers.metadata(metadata),
            ]
        ) + headers.timeout(timeout)
        try:
            if self._line is None or not self._line.is_there():
                self.close()
                self._line = _Line(self._dial(_left(end)))
            call = _Call(self._line, self._name)
            call.run(block, messages.PREFIX.pack(compress, len(body)), body, end)
        except TimeoutError:
            self.close()
            raise errors.DeadlineExceeded(f"service {self._name} does not answer") from None
        except OSError as error:
            self.close()
            raise outcomes.disconnected(self._name, error.strerror or str(error)) from None
        if not call.clean:
            self.close()
        if call.failure is not None:
            raise call.failure
        return call.message

    def close(self) -> None:
        """Close the connection; the next call connects again."""
        if self._line is not None:
            self._line.socket.close()
            self._line = None


_GLANCE = 0.001
"""Seconds to see what has arrived already. It is not zero, since with a timeout TLS and plain sockets report "nothing"
in the same way.
"""


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Line:
    """A connection on a socket. Failures are OSErrors."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.limits = configured()
        self.connection = Connection(client=True, limits=self.limits)
        self.leaving = False
        """Whether the peer takes no more calls."""

    def write(self, end: float) -> None:
        """Send what the connection has to send. If the peer does not listen any more, :meth:`read` finds that, after it
        has read what is left.
        """
        with contextlib.suppress(ConnectionError):
            while self.connection.pending:
                self.socket.settimeout(_left(end))
                self.socket.sendall(b"".join(self.connection.take()))

    def read(self, end: float) -> list[Event]:
        """Wait for the peer, and return its events."""
        self.socket.settimeout(_left(end))
        return self._take()

    def _take(self) -> list[Event]:
        data = self.socket.recv(64 << 10)
        if not data:
            raise ConnectionError("connection closed by the peer")
        events = self.connection.receive(data)
        for event in events:
            if isinstance(event, GoingAway):
                self.leaving = True
            elif isinstance(event, Closed):
                raise ConnectionError(event.reason)
        return events

    def is_there(self) -> bool:
        """Whether another call may be made. What has arrived since the last one decides: pings, or the end."""
        try:
            while not self.leaving:
                self.socket.settimeout(_GLANCE)
                try:
                    self._take()
                except TimeoutError:
                    return True
                self.write(time.monotonic() + 1)
        except OSError:
            pass
        return False


class _Call:
    """One call. When :meth:`run` returns, it has ended with a ``message`` or a ``failure``."""

    def __init__(self, line: _Line, name: str) -> None:
        self._line = line
        self._name = name
        self._assembler = messages.Assembler(line.limits.message, "")
        self._received: list[bytes] = []
        self._over = False
        self.failure: errors.NodeError | None = None
        self.clean = False
        """Whether the connection can be used for another call."""

    def run(self, head: bytes, prefix: bytes, body: bytes, end: float) -> None:
        """Run the call. TimeoutError at ``end``, OSError if the connection is lost."""
        line = self._line
        stream = line.connection.open(head, self)
        line.connection.send(stream, prefix, body, end=True)
        while not self._over:
            line.write(end)
            for event in line.read(end):
                self._hear(event, stream)
        with contextlib.suppress(TimeoutError):
            line.write(end)
        self.clean = stream.local_closed and stream.remote_closed and not line.leaving

    @property
    def message(self) -> bytes:
        """The answer of a call that did not fail."""
        return self._received[0]

    def _hear(self, event: Event, stream: Stream) -> None:
        if isinstance(event, GoingAway):
            if stream.id > event.last and not self._over:
                raise ConnectionError(f"GOAWAY {event.reason}")
        elif self._over:
            return
        elif isinstance(event, Opened):
            failure = outcomes.of_response(event.head, self._name)
            if failure is not None or event.end:
                self._finish(failure or outcomes.of_trailers(event.head, self._name))
            else:
                self._assembler = messages.Assembler(self._line.limits.message, event.head.encoding)
        elif isinstance(event, Data):
            self._line.connection.consumed(stream, len(event.chunk))
            try:
                self._received += self._assembler.feed(event.chunk)
            except errors.NodeError as error:
                self._finish(error)
            if event.end:
                self._finish(errors.Internal("server closed the stream without sending trailers"))
        elif isinstance(event, Trailers):
            self._finish(outcomes.of_trailers(event.head, self._name))
        elif isinstance(event, Reset):
            self._finish(outcomes.of_reset(event.code, event.reason))

    def _finish(self, failure: errors.NodeError | None) -> None:
        if not self._over:
            self._over = True
            if failure is None and len(self._received) != 1:
                failure = errors.Internal(f"a unary call was answered with {len(self._received)} messages")
            self.failure = failure
