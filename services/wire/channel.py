"""Calls to another process over the wire: a connection that is made when it is needed and again when it is lost, unary calls, streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque

from services.kit import errors, loops
from services.kit.call import Headers, Metadata
from services.kit.transport import Pings
from services.kit.version import SPLITD
from services.wire import headers, messages, outcomes
from services.wire.deadlines import Deadlines
from services.wire.events import GoingAway, Opened
from services.wire.frames import Code
from services.wire.headers import Head
from services.wire.limits import Limits, configured
from services.wire.link import Link, Owner
from services.wire.streams import Chunk, Stream

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
SILENCE = 1.0
"""Seconds without a byte after which a peer is pinged ..."""
PATIENCE = 2
"""... and how often such a second may pass before the connection counts as lost. A loop that is busy for longer than that is as bad as a hung one."""
HIGH_WATER = 256 << 10
"""Bytes that a writer may have queued before it has to wait."""
MESSAGE_COST = 64
"""Bytes that a message which waits for its reader counts besides its own: an empty one is not for nothing."""


def request_block(path: str, metadata: Metadata, timeout: float | None) -> bytes:
    """The head of a request, the same for the same again and again: neither side then makes anything of it twice. ``timeout`` is rounded up for that, by less than 1 %."""
    key = path, tuple(metadata), timeout and _rounded(timeout)
    found = _BLOCKS.get(key)
    if found is None:
        found = _request_block(*key)
        if len(found) <= _WORTH_KEEPING:
            if len(_BLOCKS) >= _KEPT:
                _BLOCKS.clear()
            _BLOCKS[key] = found
    return found


def _rounded(seconds: float) -> float:
    """To three digits: what is left of 30 s a moment later is 30 s."""
    step: float = 10.0 ** (math.floor(math.log10(max(seconds, 1e-6))) - 2)
    return round(math.ceil(seconds / step) * step, 9)


_BLOCKS: dict[tuple[str, Metadata, float | None], bytes] = {}
_KEPT, _WORTH_KEEPING = 256, 1024


def _request_block(path: str, metadata: Metadata, timeout: float | None) -> bytes:
    """``path`` goes last of the pseudo-headers but before the others, as HTTP/2 wants."""
    parts = [_PSEUDO, headers.field(b":path", path.encode()), _REST]
    if timeout is not None:
        parts.append(headers.timeout(timeout))
    if metadata:
        parts.append(headers.block(headers.metadata(metadata)))
    return b"".join(parts)


_PSEUDO = headers.block([(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost")])
_REST = headers.block([(b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity,gzip"),
                       (b"user-agent", f"splitd/{SPLITD}".encode())])


class ClientLink(Link):
    """A client's side of a connection."""

    def __init__(self, carrier: WireCarrier, limits: Limits) -> None:
        super().__init__(limits, client=True)
        self.carrier = carrier
        self.settled: asyncio.Future[None] = self.loop.create_future()
        """Ends when the peer's SETTINGS are there; ConnectionError if it goes away before."""
        self.leaving = False
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._slots: deque[asyncio.Future[bool]] = deque()
        self._granted = 0
        """Streams that calls have been given which have not opened them yet."""

    def open(self, owner: Owner, block: bytes) -> Stream:
        """A new stream. The caller has made sure that :attr:`full` is not."""
        stream = self.connection.open(block, owner)
        if self._timer is None and self.carrier.pings != "never":
            self._watch()
        if self.connection.exhausted:
            self._leave()
        return stream

    def finished(self, stream: Stream) -> None:
        """The peer has said its last word; what we have not sent yet, nobody wants any more."""
        if not stream.local_closed:
            self.reset(stream, Code.CANCEL)
        else:
            self.on_idle()

    @property
    def full(self) -> bool:
        """Whether the peer allows no more streams for now."""
        return len(self.connection.streams) + self._granted >= self.connection.peer_streams

    async def slot(self) -> None:
        """Wait for room for a stream, behind those that wait already; it is the caller's if it opens the stream at once."""
        waiter: asyncio.Future[bool] = self.loop.create_future()
        self._slots.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.result():
                self._granted -= 1
                self.on_idle()
            raise
        if waiter.result():
            self._granted -= 1

    def opened(self, event: Opened) -> None:
        stream, head, end = event
        owner = stream.owner
        if owner is not None:
            owner.on_head(head, end)
        if end:
            self.on_idle()

    def on_ready(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)
        if self.carrier.pings == "always":
            self._watch()

    def on_idle(self) -> None:
        while self._slots and (self.leaving or not self.full):
            waiter = self._slots.popleft()
            if not waiter.done():
                self._granted += not self.leaving
                waiter.set_result(not self.leaving)
        if self.leaving and not self.lost and not self.connection.streams:
            self.close()

    def on_going_away(self, event: GoingAway) -> None:
        self._leave()
        for number, stream in list(self.connection.streams.items()):
            if number > event.last:
                self.connection.forsake(stream)
                owner = stream.owner
                if owner is not None:
                    owner.on_reset(Code.REFUSED_STREAM, f"GOAWAY {event.reason}", local=False)
        self.on_idle()

    def _leave(self) -> None:
        if not self.leaving:
            self.leaving = True
            self.carrier.link_gone(self)

    def on_end(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.settled.done():
            self.settled.set_exception(ConnectionError(reason))
            self.settled.exception()  # nobody may be waiting
        self._leave()
        self.carrier.link_gone(self)
        self.on_idle()

    # -- keepalive

    def _watch(self) -> None:
        self.heard = True
        self._silent = 0
        self._timer = self.loop.call_later(SILENCE, self._tick, self.loop.time())

    def _tick(self, set_at: float) -> None:
        self._timer = None
        now = self.loop.time()
        if self.lost or (self.carrier.pings == "calls" and not self.connection.streams):
            return
        if self.heard or now - set_at > SILENCE * 1.5:  # or we were not listening ourselves
            self._silent = 0
        else:
            self._silent += 1
            if self._silent > PATIENCE:
                self.abort("no answer to a ping")
                return
            if self._silent == 1:
                self.connection.ping(b"splitd??")
                self.flush()
        self.heard = False
        self._timer = self.loop.call_later(SILENCE, self._tick, now)


class WireCarrier:
    """What is under a :class:`services.kit.channel.Channel`."""

    def __init__(self, address: str, name: str, pings: Pings, limits: Limits | None = None) -> None:
        self.name = name
        self.pings = pings
        self._address = address.removeprefix("unix:")
        self._limits = limits or configured()
        self._loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self._loop)
        self._link: ClientLink | None = None
        self._links: set[ClientLink] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._trouble = ""
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._changed: set[asyncio.Future[None]] = set()
        self._closed = False

    # -- the connection

    @property
    def link(self) -> ClientLink | None:
        """The connection, if it is there."""
        return self._link

    def connected(self) -> bool:
        if self._link is None:
            self._connect()
        return self._link is not None

    async def changed(self, known: bool) -> bool:
        while True:
            if self._closed:
                raise errors.Cancelled(f"the channel to {self.name} is closed")
            if (self._link is not None) is not known:
                return not known
            if not known:
                self._connect()
            waiter = self._loop.create_future()
            self._changed.add(waiter)
            try:
                await waiter
            finally:
                self._changed.discard(waiter)

    def _connect(self) -> None:
        """Try to connect, unless that is being done or was tried a moment ago."""
        if self._connecting is None and self._retry is None and not self._closed:
            self._connecting = self._attempting()

    def _attempting(self) -> asyncio.Task[None]:
        return loops.aside(f"connecting to {self._address}", self._attempt())

    async def _attempt(self) -> None:
        link = ClientLink(self, self._limits)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if ":" in self._address and not self._address.startswith("/"):
                    host, _, port = self._address.removeprefix("ipv4:").rpartition(":")
                    await self._loop.create_connection(lambda: link, host.strip("[]"), int(port))
                else:
                    await self._loop.create_unix_connection(lambda: link, self._address)
                await link.settled
            if link.leaving:  # it has said goodbye in the same breath
                raise ConnectionError("it takes no calls")
        except asyncio.CancelledError:
            link.abort("the channel is closed")
            raise
        except Exception as error:  # whatever it is: those who watch wait for the next attempt
            if not isinstance(error, (OSError, TimeoutError, ValueError)):
                log.exception("connecting to %s failed unexpectedly", self._address)
            self._trouble = f"failed to connect to {self._address}: {getattr(error, 'strerror', None) or error or 'timed out'}"
            self._failures += 1
            link.abort(self._trouble)
            if self._changed:  # somebody watches
                self._retry = self._loop.call_later(min(0.1 * self._failures, 0.5), self._again)
        else:
            self._failures = 0
            self._link = link
            self._links.add(link)
            self._tell()
        finally:
            self._connecting = None

    def _again(self) -> None:
        self._retry = None
        if self._changed:
            self._connect()

    def _tell(self) -> None:
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)

    def link_gone(self, link: ClientLink) -> None:
        """A link takes no new calls: it is lost, or the peer is going."""
        if link.lost:
            self._links.discard(link)
        if self._link is link:
            self._link = None
            self._tell()

    async def ready(self) -> ClientLink:
        """The connection; Disconnected, naming the process, if it cannot be made now."""
        for _ in range(100):
            link = self._link
            if link is None:
                if self._closed:
                    raise errors.Cancelled(f"the channel to {self.name} is closed")
                if self._connecting is None:
                    self._connecting = self._attempting()
                await asyncio.wait([self._connecting])
                link = self._link
                if link is None:
                    raise self.disconnected(self._trouble)
            if not link.full:
                return link
            await link.slot()
        raise self.disconnected("its connections do not last")

    def disconnected(self, reason: str) -> errors.Disconnected:
        """The error of a call that the transport could not carry."""
        return outcomes.disconnected(self.name, reason)

    async def close(self) -> None:
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for link in list(self._links):
            link.connection.fail(Code.NO_ERROR, "")
            link.flush()
            link.close()
            link._gone("the channel is closed")
        self._links.clear()
        self._tell()

    # -- calls

    async def unary(self, path: str, request: bytes, metadata: Metadata, timeout: float | None) -> bytes:
        end = None if timeout is None else self._loop.time() + timeout
        tries = 0
        while True:
            link = self._link
            if link is None or link.full:  # rare, so that the usual call sets one timer only
                try:
                    async with asyncio.timeout_at(end):
                        link = await self.ready()
                except TimeoutError:
                    raise errors.DeadlineExceeded from None
            left = None if end is None else max(end - self._loop.time(), 0.001)
            call = Unary(self, link, request_block(path, metadata, left), request, left)
            try:
                return await call.answer
            except _UnseenError as error:  # the peer has certainly not looked at it
                tries += 1
                if tries > 2:
                    raise self.disconnected(str(error)) from None
            except asyncio.CancelledError:
                call.cancel()
                raise
            finally:
                del call  # a failure's traceback holds this frame, which would hold the failure: a cycle, with all that the caller's frames hold

    def ask(self, block: bytes, request: bytes, timeout: float) -> Unary | None:
        """A unary call that goes now, with a head of :func:`request_block`; None where there is no connection, or no room on it."""
        link = self._link
        return None if link is None or link.full else Unary(self, link, block, request, timeout)

    def stream(self, path: str, metadata: Metadata, timeout: float | None) -> WireStream:
        return WireStream(self, path, metadata, timeout)


class _UnseenError(Exception):
    """The peer refused the stream before it looked at it: it may be asked again."""


class Unary:
    """A unary call on its way: ``answer`` is what comes of it. It is not cancelled, but by :meth:`cancel`."""

    __slots__ = ("_assembler", "_carrier", "_link", "_message", "_stream", "answer")

    def __init__(self, carrier: WireCarrier, link: ClientLink, block: bytes, request: bytes, timeout: float | None) -> None:
        self._carrier = carrier
        self._link = link
        self.answer: asyncio.Future[bytes] = link.loop.create_future()
        self._message: bytes | None = None
        self._assembler: messages.Assembler | None = None
        if timeout is not None:
            carrier.deadlines.add(self, timeout)
        self._stream = link.open(self, block)
        link.connection.send(self._stream, messages.prefix(request), request, end=True)
        link.flush_soon()

    def _end(self, error: Exception | None) -> None:
        self._carrier.deadlines.discard(self)
        self._stream.owner = None  # they hold each other
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        elif self._message is None:
            self.answer.set_exception(errors.Internal("a unary call was answered without a message"))
        else:
            self.answer.set_result(self._message)

    def expire(self) -> None:
        """Its deadline has passed."""
        self._end(errors.DeadlineExceeded())
        self._link.reset(self._stream, Code.CANCEL)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._carrier.deadlines.discard(self)
        self._stream.owner = None
        self._link.reset(self._stream, Code.CANCEL)

    def on_head(self, head: Head, end: bool) -> None:
        failure = outcomes.of_response(head, self._carrier.name)
        if failure is not None:
            self._end(failure)
            self._link.reset(self._stream, Code.CANCEL)
        elif end:
            self._end(outcomes.of_trailers(head, self._carrier.name))
            self._link.finished(self._stream)
        else:
            self._assembler = messages.Assembler(self._link.limits.message, head.encoding)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self._assembler is None or self.answer.done():
            return
        if not end:
            self._link.consumed(self._stream, len(chunk))
        try:
            found = self._assembler.feed(chunk)
            if found:
                if self._message is not None or len(found) > 1:
                    raise errors.Internal("a unary call was answered with more than one message")
                self._message = found[0]
        except errors.NodeError as error:
            self._end(error)
            self._link.reset(self._stream, Code.CANCEL)
            return
        if end:
            self._end(errors.Internal("server closed the stream without sending trailers"))
            self._link.finished(self._stream)

    def on_trailers(self, head: Head) -> None:
        self._end(outcomes.of_trailers(head, self._carrier.name))
        self._link.finished(self._stream)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        self._end(_UnseenError(reason) if code == Code.REFUSED_STREAM and not local else outcomes.of_reset(code, reason))

    def on_drained(self) -> None:
        """A unary request is queued whole."""

    def on_lost(self, reason: str) -> None:
        self._end(self._carrier.disconnected(reason))


class WireStream:
    """A streaming call; it is opened by the first thing that is done with it."""

    def __init__(self, carrier: WireCarrier, path: str, metadata: Metadata, timeout: float | None) -> None:
        self._carrier = carrier
        self._path = path
        self._metadata = metadata
        self._end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._link: ClientLink | None = None
        self._stream: Stream | None = None
        self._opening = asyncio.Lock()
        self._assembler: messages.Assembler | None = None
        self._messages: deque[bytes] = deque()
        self._waiting = 0
        """Bytes of messages that nobody has received yet."""
        self._withheld = 0
        """Bytes that the peer gets no window for until they are received."""
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._leading: Headers | None = None
        self._trailing: Headers = {}
        self._status: errors.NodeError | None = None
        self._over = False

    # -- CarriedStream

    async def send(self, message: bytes) -> None:
        stream, link = await self._open()
        if self._over:
            raise self._failure()
        link.connection.send(stream, messages.prefix(message), message)
        link.flush_soon()
        while stream.queued > HIGH_WATER and not self._over:
            stream.low = HIGH_WATER // 2
            self._writer = link.loop.create_future()
            await self._writer
            self._writer = None
        if self._over and self._status is not None:
            raise self._failure()

    async def done_sending(self) -> None:
        stream, link = await self._open()
        if self._over and self._status is not None:
            raise self._failure()
        link.connection.send(stream, end=True)
        link.flush_soon()

    async def receive(self) -> bytes | None:
        _, link = await self._open()
        while not self._messages:
            if self._over:
                if self._status is not None:
                    raise self._failure()
                return None
            await self._wait(link)
        message = self._messages.popleft()
        self._waiting -= len(message) + MESSAGE_COST
        if self._withheld and self._waiting < HIGH_WATER and self._stream is not None:
            link.consumed(self._stream, self._withheld)
            self._withheld = 0
        return message

    async def leading(self) -> Headers:
        _, link = await self._open()
        while self._leading is None and not self._over:
            await self._wait(link)
        return self._leading or {}

    def trailing(self) -> Headers:
        return self._trailing

    def cancel(self) -> None:
        if not self._over:
            self._finish(errors.Cancelled())
            if self._link is not None and self._stream is not None:
                self._link.reset(self._stream, Code.CANCEL)

    # -- its life

    async def _wait(self, link: ClientLink) -> None:
        self._reader = link.loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _failure(self) -> errors.NodeError:
        return self._status or errors.Cancelled("the call has ended")

    async def _open(self) -> tuple[Stream, ClientLink]:
        if self._stream is None:
            async with self._opening:
                if self._stream is None:
                    await self._open_once()
        assert self._stream is not None
        assert self._link is not None
        return self._stream, self._link

    async def _open_once(self) -> None:
        if self._over:
            raise self._failure()
        left = None
        try:
            async with asyncio.timeout_at(self._end):
                link = await self._carrier.ready()
        except TimeoutError:
            self._finish(errors.DeadlineExceeded())
            raise self._failure() from None
        except errors.NodeError as error:
            self._finish(error)
            raise
        if self._over:
            link.on_idle()
            raise self._failure()
        if self._end is not None:
            left = max(self._end - link.loop.time(), 0.001)
            self._carrier.deadlines.add(self, left)
        self._link = link
        self._stream = link.open(self, request_block(self._path, self._metadata, left))
        link.flush_soon()

    def expire(self) -> None:
        """Its deadline has passed."""
        self._finish(errors.DeadlineExceeded())
        if self._link is not None and self._stream is not None:
            self._link.reset(self._stream, Code.CANCEL)

    def _finish(self, status: errors.NodeError | None) -> None:
        if self._over:
            return
        self._over = True
        self._status = status
        if self._stream is not None:
            self._stream.owner = None  # they hold each other
        self._carrier.deadlines.discard(self)
        _wake(self._reader)
        _wake(self._writer)

    # -- Owner

    def on_head(self, head: Head, end: bool) -> None:
        failure = outcomes.of_response(head, self._carrier.name)
        if failure is not None or end:
            self._leading = {}
            self._trailing = head.headers
            self._finish(failure if failure is not None else outcomes.of_trailers(head, self._carrier.name))
            if self._link is not None and self._stream is not None:
                if failure is not None:
                    self._link.reset(self._stream, Code.CANCEL)
                else:
                    self._link.finished(self._stream)
            return
        assert self._link is not None
        self._leading = head.headers
        self._assembler = messages.Assembler(self._link.limits.message, head.encoding)
        _wake(self._reader)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self._assembler is None or self._over:
            return
        assert self._link is not None
        assert self._stream is not None
        try:
            found = self._assembler.feed(chunk)
        except errors.NodeError as error:
            self._finish(error)
            self._link.reset(self._stream, Code.CANCEL)
            return
        if self._waiting > HIGH_WATER:
            self._withheld += len(chunk)
        else:
            self._link.consumed(self._stream, len(chunk))
        if found:
            self._messages.extend(found)
            self._waiting += sum(map(len, found)) + MESSAGE_COST * len(found)
            _wake(self._reader)
        if end:
            self._finish(errors.Internal("server closed the stream without sending trailers"))
            self._link.finished(self._stream)

    def on_trailers(self, head: Head) -> None:
        self._trailing = head.headers
        outcome = outcomes.of_trailers(head, self._carrier.name)
        if outcome is None and self._assembler is not None and not self._assembler.finished():
            outcome = errors.Internal("the server ended its stream in the middle of a message")
        self._finish(outcome)
        if self._link is not None and self._stream is not None:
            self._link.finished(self._stream)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        if code == Code.REFUSED_STREAM and not local:
            self._finish(self._carrier.disconnected(f"stream refused: {reason}"))
        elif not (code == Code.NO_ERROR and self._over):
            self._finish(outcomes.of_reset(code, reason))

    def on_drained(self) -> None:
        _wake(self._writer)

    def on_lost(self, reason: str) -> None:
        self._finish(self._carrier.disconnected(reason))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None:
        with contextlib.suppress(asyncio.InvalidStateError):
            waiter.set_result(None)
