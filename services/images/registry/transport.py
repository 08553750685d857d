"""HTTP with one host: sessions, connections, TLS, and the meaning of errors. Beside it only ``trace.py`` and
``response_parser.py`` see aiohttp.

A :class:`Session` is one aiohttp session for one way to connect (certificates and dial timeout). All hosts and pulls
with that configuration share it, and connections are reused. :meth:`Session.exchange` makes one request, without
redirects or retries, and returns an :class:`Answer` whose body has not been read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from services.images import figures, waits
from services.images.registry import content_encoding
from services.images.registry.failure import Blame, Failure
from services.images.registry.host import TLS, public
from services.images.registry.http_debug import NO_DEBUG, Exchange, HttpDebug
from services.images.registry.limits import HEAD_LIMIT, HEADERS
from services.images.registry.proxy import proxy_for
from services.images.registry.request_ids import request_id
from services.images.registry.response_parser import answers
from services.images.registry.trace import TimedContext, Timings, attempt, note_peer, trace_config
from services.images.registry_timeouts import Timeouts
from services.kit import errors, later, memory, tracing
from services.kit.version import SPLITD

if TYPE_CHECKING:
    import aiohttp
    import aiohttp.http_exceptions as http
    import yarl
else:  # 9 MB, and 0.15 s of a processor, which a node takes at its first pull
    aiohttp, http, yarl = (later.Library(name) for name in ("aiohttp", "aiohttp.http_exceptions", "yarl"))

USER_AGENT = f"splitd/{SPLITD}"

CONNECTIONS = 100
"""Connections of one session: more than the layers that a node pulls at once; pulls have smaller limits of their
own.
"""
CONNECTIONS_A_HOST = 32
"""Registries and their CDNs begin to refuse above such numbers."""
READ = 1 << 20
"""Bytes that may be read ahead of the consumer: the kernel is read in large pieces, and a slow disk stops the
sender.
"""
ERROR_BODY = 16 * 1024
"""Bytes of an error's explanation that are read."""
SESSIONS = 64
"""Sessions that are kept; a certificate that is replaced makes a new one."""

_CONTEXT = frozenset({"traceparent", "tracestate"})

_HTTP_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
"""OpenSSL's errors if the other side answers a TLS greeting with something else."""

memory.forget_of("urllib.parse", "yarl", "aiohttp.helpers")  # addresses from outside


@dataclass(frozen=True, slots=True)
class Role:
    """What a request's host is for its pull or push: for the trace, and for what a user is told."""

    mirror: bool = False
    """Another host can be asked after it."""
    then: str = ""
    """That host."""
    via: str = ""
    """The configured host, if it sent us to another one."""
    traceparent: bool = False
    """The host gets our trace context."""
    perhaps_plain: bool = False
    """It may speak plain http, so TLS that fails for this reason is no failure."""
    peer: str = ""
    """It is this node of the fleet, and is called so: its address says less. No proxy is on the way to it."""


def peer_name(node: str) -> str:
    """What a node of the fleet is called as a host, in traces and messages."""
    return f"peer {node}"


class Answer:
    """A server's answer. Its body is read with :meth:`read` or :meth:`read_some`; :meth:`release` or :meth:`close` ends
    it, and the request's span.

    A body with a Content-Encoding is decoded by :meth:`read`, and by :meth:`read_some` after :meth:`decode`; its
    ``length`` is then unknown.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, host: str, stall: float, exchange: Exchange, traced: tracing.Span
    ) -> None:
        self._response = response
        self._exchange = exchange
        self._stall = stall
        self._traced: tracing.Span | None = traced
        self._board = waits.board()
        self.host = host
        self.method = response.method
        """The request's method."""
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: Mapping[str, str] = response.headers
        self.url = str(response.url)
        length = response.headers.get("Content-Length", "")
        self.length: int | None = int(length) if length.isdigit() else None
        self.codings = content_encoding.codings(response.headers.get("Content-Encoding", ""))
        """The codings from which the body is decoded."""
        self.waited = 0.0
        """Seconds without a byte of the body, while one was wanted."""
        self._received = 0
        self._began = 0
        """When the body was first read, as spans count."""
        self._last = 0.0
        """When something of it last came."""
        self._decoder: content_encoding.Decoder | None = None

    @property
    def request_id(self) -> str:
        """The registry's own name for the request; "" if it has none."""
        return request_id(self.headers)

    def decode(self, most: int) -> None:
        """Decode the body, of which at most ``most`` bytes are wanted; a Failure for an unknown coding."""
        try:
            self._decoder = content_encoding.Decoder(self.codings, most)
        except content_encoding.Undecodable as error:
            raise self.failure(error) from None
        self.length = None

    async def read_some(self) -> bytes:
        """The next bytes, as they arrived; empty at the end. Pass its errors to :meth:`failure`."""
        if self._decoder is None:
            return await self._arrived()
        while not (piece := self._decoder.piece()):
            if not (data := await self._arrived()):
                self._decoder.end()
                return b""
            self._decoder.feed(data)
        await asyncio.sleep(0)  # let others run: the arrived bytes may decode to many
        return piece

    async def _arrived(self) -> bytes:
        content, board, clock = self._response.content, self._board, time.monotonic
        self._began = self._began or tracing.now()
        # for an answer without a body (204, 304), readchunk() would report the end of an empty chunk for ever
        while not content.at_eof():
            begun = clock()
            if board is not None:
                board.asked(self.host, head=False)
            came = False
            try:
                # readany() would copy everything that has arrived into one piece
                data, ends = await content.readchunk()
                came = True
            finally:
                self._last = clock()
                self.waited += self._last - begun
                if board is not None:
                    board.over(self.host, came=came, head=False)
            self._received += len(data)
            if data or not ends:
                return data
        return b""

    def challenges(self) -> list[str]:
        """All WWW-Authenticate headers."""
        return self._response.headers.getall("WWW-Authenticate", [])

    async def read(self, limit: int) -> bytes:
        """The rest of the body, decoded, at most ``limit`` bytes of it."""
        parts, size = [], 0
        if self.codings and self._decoder is None:
            self.decode(limit)
        try:
            while size < limit and (part := await self.read_some()):
                parts.append(part)
                size += len(part)
        except Exception as error:
            raise self.failure(error) from None
        data = b"".join(parts)[:limit]
        self._exchange.body(data, self.headers.get("Content-Type", ""))
        return data

    def failure(self, error: Exception, where: str = "") -> Failure:
        """The failure that an error in the middle of the body means; ``where``: after how many bytes."""
        found = self._failure(error)
        found.args = (f"{found}{where}",)
        found.add_request_id(self.request_id)
        self.blame(found)
        return found

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, TimeoutError):
            return Failure(
                self.host, f"no byte for {self._stall:g} s", transient=True, blame=Blame.TROUBLE, named="stall"
            )
        if isinstance(error, content_encoding.Undecodable):
            return Failure(
                self.host,
                f"its body is {error}",
                kind=errors.Unavailable if error.early else errors.FailedPrecondition,
                transient=error.early,
                blame=Blame.TROUBLE,
                status=self.status,
                named="encoding",
            )
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
            return Failure(
                self.host, f"connection lost ({_words(error)})", transient=True, blame=Blame.TROUBLE, named="lost"
            )
        if isinstance(error, aiohttp.ClientError | ValueError):
            return Failure(self.host, f"not HTTP: {_words(error)}", transient=True, blame=Blame.TROUBLE, named="http")
        raise error

    def blame(self, failure: Failure) -> None:
        """Say in the trace that the request has failed in the end."""
        if self._traced is not None:
            self._traced.set(**failure.attributes)
            self._traced.keep()  # however short it was

    def release(self) -> None:
        """Release the answer: its connection is reused if the body was read to its end, and closed otherwise."""
        self._response.release()
        self._end()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._end()

    def _end(self) -> None:
        """End the request's span. The transfer ended with the last bytes, whatever was done with them since."""
        traced, self._traced = self._traced, None
        if traced is None:
            return
        if self._began:
            end = tracing.now() - round((time.monotonic() - self._last) * 1e9) if self._last else self._began
            seconds = max(0, end - self._began) / 1e9
            found: dict[str, str | float | bool] = {
                "server.address": self.host,
                "splitd.bytes": self._received,
                "splitd.bytes_ms": round(self.waited * 1000, 3),
            }
            if seconds and self._received:
                found["splitd.rate"] = round(self._received / seconds, 1)
            figures.received(self.host, self._received, self.waited)
            traced.set(**found)
            with traced.inside():
                tracing.recorded("registry.transfer", self._began, max(end, self._began), "", parent=None, **found)
        traced.end()


def _taken(body: Any, host: str) -> Any:
    """A request's body that notes each read as a sign of life."""

    async def taken() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(body):
            async for chunk in body:
                waits.heard(host)
                yield chunk

    return taken() if isinstance(body, AsyncGenerator) else body


class Session:
    """One way to connect."""

    def __init__(self, tls: TLS, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._own = context(tls)
        self._foreign = self._own if not tls.client else context(TLS(tls.ca, (), tls.skip_verify))
        self._http: aiohttp.ClientSession | None = None
        importlib.import_module("aiohttp")  # this is a thread, so the loop goes on meanwhile

    async def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]],
        body: Any = None,
        connect: float,
        stall: float,
        handshake: float | None = None,
        foreign: bool = False,
        watch: HttpDebug = NO_DEBUG,
        private: bool = False,
        role: Role = Role(),
    ) -> Answer:
        """Send a request and await the head of its answer, whatever its status; a :class:`Failure` if there is none.

        ``connect`` and ``stall`` are in seconds, as in :class:`Timeouts`; so is ``handshake``, for TLS alone, which
        else shares the limit of ``connect``. ``foreign``: without our client certificate.
        ``private``: the answer's body is not shown to ``watch``.
        """
        if self._http is None:
            self._http = _session(self._timeouts)
        parts = urlsplit(url)
        host = peer_name(role.peer) if role.peer else public(parts.netloc)
        about: dict[str, str | float | bool] = {
            "http.request.method": method,
            "server.address": host,
            "url.path": parts.path,
            "splitd.registry.attempt": attempt.get(),
            "splitd.registry.mirror": role.mirror,
        }
        if role.via:
            about["splitd.registry.via"] = role.via
        if role.peer:
            about["splitd.peer"] = role.peer
        traced = tracing.span("registry.request", **about)
        timings = Timings(host, connect, uploads=body is not None, handshake=handshake)
        proxy = None if role.peer else proxy_for(url)
        exchange, headers = Exchange(watch, private=private), list(headers)
        if role.traceparent:
            traced.keep()  # the registry's spans will be below it
            headers = [each for each in headers if each[0].lower() not in _CONTEXT] + list(traced.headers())
        exchange.request(method, url, headers, body=body is not None)
        answer = None
        with traced.inside():
            token = timings.attach()
            try:
                with waits.asking(host, role.then):
                    async with timings.deadline:
                        response = await self._http.request(
                            method,
                            yarl.URL(url, encoded=True),
                            headers=headers,
                            data=_taken(body, host),
                            allow_redirects=False,
                            ssl=self._foreign if foreign else self._own,
                            timeout=aiohttp.ClientTimeout(total=None, sock_read=stall),
                            trace_request_ctx=timings,
                            **({} if proxy is None else _proxy(proxy)),
                        )
                exchange.answer(response.status, response.reason or "", response.headers)
                answer = Answer(response, host, stall, exchange, traced)
                traced.set(**{"http.response.status_code": response.status})
                if named := answer.request_id:
                    traced.set(**{"splitd.registry.request_id": named})
                return answer
            except (aiohttp.ClientError, OSError, ValueError) as error:
                failure = _failure(host, timings, error, stall, proxy)
                if failure.plain and role.perhaps_plain:
                    traced.set(**{"splitd.registry.plain_http": True})
                else:
                    traced.set(**failure.attributes)
                    traced.keep()  # however short it was
                exchange.failed(failure.cause)
                raise failure from None
            finally:
                timings.close(traced)
                timings.detach(token)
                if answer is None:
                    traced.end()
                figures.answered(host, 0 if answer is None else answer.status, timings.took)
                exchange.connection(host, timings.peer, timings.took, reused=timings.reused)

    async def close(self) -> None:
        """Close its connections."""
        if self._http is not None:
            await self._http.close()


class Sessions:
    """The sessions, by configuration."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._sessions: dict[tuple[Any, ...], Session] = {}
        self._making = asyncio.Lock()

    async def of(self, tls: TLS) -> Session:
        """The session for these certificates as they are now; FailedPrecondition names an unusable file."""
        key = (tls, *(_signature(path) for path in (*tls.ca, *(path for pair in tls.client for path in pair if path))))
        async with self._making:  # once, for all callers that ask meanwhile
            session = self._sessions.pop(key, None)
            if session is None:
                # reading the machine's certificate authorities takes 25 ms
                session = await asyncio.to_thread(Session, tls, self._timeouts)
            self._sessions[key] = session
        if len(self._sessions) > SESSIONS:
            await self._sessions.pop(next(iter(self._sessions))).close()
        return session

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()


def context(tls: TLS) -> ssl.SSLContext:
    """The TLS context for ``tls``; FailedPrecondition names an unusable file."""
    made = TimedContext(ssl.PROTOCOL_TLS_CLIENT)
    if not tls.alone:
        made.load_default_certs()
    for path in tls.ca:
        try:
            made.load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is an OSError
            raise errors.FailedPrecondition(f"certificate authority {path}: {_words(error)}") from None
    for certificate, key in tls.client:
        try:
            made.load_cert_chain(certificate, key or None)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"client certificate {certificate}{f' with key {key}' if key else ''}: {_words(error)}"
            ) from None
    if tls.skip_verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def _session(timeouts: Timeouts) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=CONNECTIONS, limit_per_host=CONNECTIONS_A_HOST, keepalive_timeout=timeouts.idle, socket_factory=_socket
    )
    connector._factory = functools.partial(answers(), loop=asyncio.get_running_loop())  # type: ignore[assignment]  # aiohttp has no other way in; test_http.py fails if this one is gone
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        read_bufsize=READ,
        trace_configs=[trace_config()],
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
        # response_head.py sets the limits; a few headers are its own
        max_line_size=HEAD_LIMIT,
        max_field_size=HEAD_LIMIT,
        max_headers=HEADERS + 8,
    )


def _socket(address: Any) -> socket.socket:
    """A TCP socket that notices when the other side, or a firewall's memory of the connection, is gone."""
    family, kind, protocol, _, where = address
    note_peer(f"[{where[0]}]:{where[1]}" if family == socket.AF_INET6 else f"{where[0]}:{where[1]}")
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    return made


def _proxy(url: str) -> dict[str, Any]:
    parsed = yarl.URL(url)
    auth = aiohttp.BasicAuth(parsed.user, parsed.password or "") if parsed.user else None
    return {"proxy": parsed.with_user(None), "proxy_auth": auth}


def _signature(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


def _failure(host: str, timings: Timings, error: Exception, stall: float, proxy: str | None) -> Failure:
    """The failure that a missing answer means."""
    via = f" through the proxy {yarl.URL(proxy).with_user(None)}" if proxy else ""
    if isinstance(error, TimeoutError):
        if timings.deadline.expired():
            return Failure(
                host,
                f"{timings.phase}{via} took longer than {timings.allowed:g} s",
                transient=True,
                blame=Blame.DEAD,
                named=timings.failed_in,
            )
        return Failure(host, f"no answer{via} within {stall:g} s", transient=True, blame=Blame.DEAD, named="timeout")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or _words(error.certificate_error)
        return Failure(
            host,
            f"its certificate is not trusted: {reason} (`ca` in hosts.toml names an authority to trust)",
            kind=errors.FailedPrecondition,
            blame=Blame.DEAD,
            named="tls",
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = getattr(error.os_error, "reason", "") or ""
        if reason in _HTTP_NOT_TLS:
            return Failure(
                host,
                "it does not speak TLS: plain http on the other side?",
                kind=errors.FailedPrecondition,
                blame=Blame.DEAD,
                plain=True,
                named="tls",
            )
        return Failure(
            host,
            f"TLS failed: {reason or _words(error.os_error)}",
            kind=errors.FailedPrecondition,
            blame=Blame.DEAD,
            named="tls",
        )
    for kinds, type_, blame, cause in (
        (aiohttp.ClientConnectorDNSError, "dns", Blame.DEAD, "its name is not known{via}: {words}"),
        (aiohttp.ClientConnectorError, "connect", Blame.DEAD, "no connection{via}: {words}"),
        (aiohttp.ClientHttpProxyError, "proxy", Blame.DEAD, "no connection{via}: {words}"),
        ((aiohttp.ClientConnectionError, OSError), "lost", Blame.TROUBLE, "connection lost before an answer ({words})"),
    ):
        if isinstance(error, kinds):
            words = _connection_words(error)
            return Failure(host, cause.format(via=via, words=words), transient=True, blame=blame, named=type_)
    return Failure(host, f"not HTTP: {_words(error)}", kind=errors.FailedPrecondition, blame=Blame.DEAD, named="http")


def _connection_words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"{error.status} {error.message}"
    return _words(error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error)


@functools.cache
def _texts() -> tuple[tuple[type[BaseException], str], ...]:
    """Texts for errors of aiohttp and Python whose own texts are for programmers."""
    return (
        (aiohttp.ServerDisconnectedError, "closed by the other side"),
        (aiohttp.ClientConnectionResetError, "closed by the other side"),
        (http.ContentLengthError, "closed by the other side before its Content-Length"),
        (http.TransferEncodingError, "closed by the other side in the middle of a chunk, or a chunk is malformed"),
        (aiohttp.ClientPayloadError, "closed by the other side in the middle of its body"),
        (aiohttp.InvalidURL, "its address is malformed"),
        (UnicodeError, "its name is malformed"),
        (ValueError, "its address is malformed"),
        (aiohttp.ClientConnectionError, "the connection is gone"),
        (ConnectionError, "the connection is gone"),
    )


def _words(error: BaseException) -> str:
    """An error in words, without Python's and aiohttp's own."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "the connection is broken").lower().replace("_", " ")
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, aiohttp.ClientResponseError):
        return error.message if not error.status else "what follows its headers is malformed"
    if error.__cause__ is not None and (
        isinstance(error.__cause__, OSError | http.ContentLengthError | http.TransferEncodingError)
        or not isinstance(error, tuple(kind for kind, _ in _texts()))
    ):
        return _words(error.__cause__)
    return next((words for kind, words in _texts() if isinstance(error, kind)), "it cannot be understood")
