"""The way to another process over the wire: a connection, which is made when needed and again when lost, and the calls
on it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from pathlib import Path

from services.kit import errors, loops, observer
from services.kit.addresses import Address, address
from services.kit.call import Metadata
from services.kit.certificates import CertificateError, Certificates
from services.kit.deadlines import Deadlines
from services.kit.transport import Pings
from services.wire import headers, outcomes
from services.wire.client_call import Unary, UnseenError, WireStream
from services.wire.events import GoingAway, Opened
from services.wire.frames import Code
from services.wire.limits import Limits, configured
from services.wire.link import Link, Owner
from services.wire.requests import request_block
from services.wire.streams import Stream

log = logging.getLogger(__name__)

_HTTP, _HTTPS = (headers.block([(b":method", b"POST"), (b":scheme", scheme)]) for scheme in (b"http", b"https"))
"""How the head of each request begins, and how it does over TLS."""
_TCP = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 10),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 5),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3),
    ((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 20_000),
)
"""The kernel notices within some 20 s that the other machine is gone. A peer that takes no pings has no other sign."""

SILENCE = 1.0
"""Seconds without a byte after which a peer is pinged."""
PATIENCE = 2
"""The connection counts as lost once it has been silent for more than this many times SILENCE. A peer whose loop is
busy for longer is as bad as a hung one.
"""


class ClientLink(Link):
    """A client's side of a connection."""

    def __init__(self, carrier: WireCarrier, limits: Limits) -> None:
        super().__init__(limits, client=True)
        self.carrier = carrier
        self.failure: Exception | None = None
        """What ended the connection, if the peer did not close it in order."""
        self.settled: asyncio.Future[None] = self.loop.create_future()
        """Done when the peer's SETTINGS have come; ConnectionError if it goes away before."""
        self.leaving = False
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._slots: deque[asyncio.Future[bool]] = deque()
        self._granted = 0
        """Streams that calls have been granted and have not opened yet."""

    def open(self, owner: Owner, block: bytes) -> Stream:
        """Open a stream. The caller has checked that :attr:`full` is false."""
        if self.carrier.secure and block.startswith(_HTTP):
            block = _HTTPS + block[len(_HTTP) :]
        stream = self.connection.open(block, owner)
        if self._timer is None and self.carrier.pings != "never":
            self._watch()
        if self.connection.exhausted:
            self._leave()
        return stream

    def finished(self, stream: Stream) -> None:
        """The peer has ended the stream, so what we have not sent yet is not wanted any more."""
        if not stream.local_closed:
            self.reset(stream, Code.CANCEL)
        else:
            self.on_idle()

    @property
    def full(self) -> bool:
        """Whether the peer allows no more streams for now."""
        return len(self.connection.streams) + self._granted >= self.connection.peer_streams

    async def slot(self) -> None:
        """Wait for room for a stream, behind earlier waiters. The room is the caller's if it opens the stream at
        once.
        """
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
            self.settled.exception()  # marked as seen: nobody may be waiting
        self._leave()
        self.carrier.link_gone(self)
        self.on_idle()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            for option, value in _TCP:
                sock.setsockopt(*option, value)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.failure = error
        super().connection_lost(error)

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
        if self.heard or now - set_at > SILENCE * 1.5:  # or we did not listen ourselves
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
    """The wire's part of a :class:`services.kit.channel.Channel`."""

    watches_streams = True

    def __init__(self, where: Path | str | Address, name: str, pings: Pings, limits: Limits | None = None) -> None:
        self.name = name
        self.pings = pings
        self._address = address(where)
        self.secure = self._address.secure
        """Whether the connection is TLS."""
        self._certificates = Certificates(self._address) if self.secure else None
        self._limits = limits or configured()
        self._loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self._loop)
        self._link: ClientLink | None = None
        self._links: set[ClientLink] = set()
        self._connecting: asyncio.Task[None] | None = None
        self.trouble = ""
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._changed: set[asyncio.Future[None]] = set()
        self._closed = False

    # -- the connection

    @property
    def link(self) -> ClientLink | None:
        """The connection, if there is one."""
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
        """Try to connect, unless an attempt is under way or was made a moment ago."""
        if self._connecting is None and self._retry is None and not self._closed:
            self._connecting = self._attempting()

    def _attempting(self) -> asyncio.Task[None]:
        return loops.aside(f"connecting to {self._address}", self._attempt())

    async def _attempt(self) -> None:
        link = ClientLink(self, self._limits)
        try:
            async with asyncio.timeout(self._address.connect_timeout):
                await self._connected(link)
                await link.settled
            if link.leaving:  # the peer connects and says goodbye at once
                raise ConnectionError("it takes no calls")
        except asyncio.CancelledError:
            link.abort("the channel is closed")
            raise
        except Exception as error:  # any failure: watchers wait for the next attempt
            if not isinstance(error, (OSError, TimeoutError, ValueError, CertificateError)):
                log.exception("connecting to %s failed unexpectedly", self._address)
            self.trouble = f"failed to connect to {self._address}: {self._words(error, link)}"
            self._failures += 1
            link.abort(self.trouble)
            if self._changed:  # somebody watches
                self._retry = self._loop.call_later(min(0.1 * self._failures, 0.5), self._again)
        else:
            self._failures, self.trouble = 0, ""
            self._link = link
            self._links.add(link)
            self._tell()
        finally:
            self._connecting = None

    async def _connected(self, link: ClientLink) -> None:
        where = self._address
        if where.path:
            await self._loop.create_unix_connection(lambda: link, where.path)
        elif self._certificates is None:
            await self._loop.create_connection(lambda: link, where.host, where.port)
        else:
            context = await asyncio.to_thread(self._certificates.context)
            transport, _ = await self._loop.create_connection(
                lambda: link, where.host, where.port, ssl=context, server_hostname=where.expected_name
            )
            if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                raise ConnectionError("it does not offer HTTP/2 over TLS (ALPN h2), which gRPC is")

    def _words(self, error: Exception, link: ClientLink) -> str:
        if self._certificates is not None:
            for each in (error, link.failure):
                if each is not None and (explained := self._certificates.explained(each)):
                    return explained
        return getattr(error, "strerror", None) or str(error) or "timed out"

    def _again(self) -> None:
        self._retry = None
        if self._changed:
            self._connect()

    def _tell(self) -> None:
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)

    def link_gone(self, link: ClientLink) -> None:
        """A link takes no new calls: it is lost, or the peer is leaving."""
        if link.lost:
            self._links.discard(link)
        if self._link is link:
            self._link = None
            self._tell()

    async def ready(self) -> ClientLink:
        """The connection. Disconnected, naming the process, if it cannot be made now."""
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
                    raise self.disconnected(self.trouble)
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
                    raise outcomes.late(path, self.name, timeout) from None
            left = None if end is None else max(end - self._loop.time(), 0.001)
            call = Unary(self, link, path, request_block(path, metadata, left), request, left)
            try:
                return await call.answer
            except UnseenError as error:  # the peer has certainly not looked at the call
                tries += 1
                if tries > 2:
                    raise self.disconnected(str(error)) from None
            except asyncio.CancelledError:
                call.cancel()
                raise
            finally:
                if call.told:
                    observer.told(call.told)
                # a failure's traceback holds this frame, which would hold the failure: a cycle, with everything that
                # the caller's frames hold
                del call

    def ask(self, path: str, block: bytes, request: bytes, timeout: float) -> Unary | None:
        """Make a unary call of ``path`` at once, with a head of :func:`request_block`. None if there is no connection,
        or no room on it.
        """
        link = self._link
        return None if link is None or link.full else Unary(self, link, path, block, request, timeout)

    def stream(self, path: str, metadata: Metadata, timeout: float | None) -> WireStream:
        return WireStream(self, path, metadata, timeout)
