"""A small HTTP/1.1 server on asyncio streams, for pages that a process serves to monitors and people, and for blobs
that it serves to peers. It answers GET and HEAD only, and is imported only if an address is configured.

Everything that a client sends or holds has a bound (:class:`Limits`). A request is read as strictly as RFC 9112 asks.
The answer to an invalid request ends the connection, so that no bytes behind it are taken for a request:

===  ==================================================================================================
400  a request line, a header or a target that is malformed; no Host; a body
405  another method than GET and HEAD
408  a request that does not arrive in time
414  a request line that is too long
431  headers that are too long, or too many
503  every connection is busy, or the page was not made in time
505  another major version than HTTP/1
===  ==================================================================================================

Connections are kept for the next request. Requests on one connection are answered one after the other, pipelined ones
too. At the bound of connections, the one that has waited longest for a request is closed: a client that opens many and
sends nothing blocks no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import ssl
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote_to_bytes

from services.kit import loops, sockets
from services.kit.buckets import Bucket
from services.kit.identifiers import quoted
from services.kit.page_address import parse_address

log = logging.getLogger(__name__)

_PIECE = 64 << 10
"""Bytes that are given to the kernel at once, or read from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server and its connections. Sizes are in bytes, times in seconds."""

    line: int = 8 << 10
    """A request line, for which RFC 9112 (3) requires at least 8,000, and a header line."""
    head: int = 16 << 10
    """All header lines of a request."""
    fields: int = 100
    """Header lines of a request."""
    arrival: float = 10.0
    """Time from a request's first byte, or a connection's beginning, until the request must be complete."""
    idle: float = 75.0
    """Time from an answer until the next request's first byte: monitors ask each minute, or more often."""
    making: float = 30.0
    """Time to make a page."""
    departure: float = 10.0
    """Time for the client to take 64 KiB of an answer, or a piece of a stream."""
    connections: int = 64


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose head has been checked. ``method`` is GET or HEAD, ``path`` is decoded and begins with a slash,
    ``query`` is unchanged. Names of headers are in lower case; headers with the same name are joined by commas.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A body that is made while it is sent: ``length`` bytes in ``pieces``. If fewer come, the connection ends there,
    so that the client knows it. ``close`` is called once, whatever becomes of the answer, and if no piece was asked
    for.
    """

    length: int
    pieces: AsyncGenerator[bytes | memoryview]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer. For HEAD it is sent without its body."""

    status: int = 200
    body: bytes = b""
    type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None
    """The body, instead of :attr:`body`."""


Handler = Callable[[Request], Awaitable[Response]]
"""Makes the answer to a request. An exception from it is logged, and answered 500."""

Context = Callable[[], Awaitable[ssl.SSLContext]]
"""How a connection that has just come agrees on TLS; asked for each one, so that certificates can be replaced."""


def failure(status: int, words: str = "", **headers: str) -> Response:
    """An answer that says what is wrong, in plain text."""
    phrase = HTTPStatus(status).phrase
    return Response(status=status, body=f"{status} {phrase}{f': {words}' if words else ''}\n".encode(), headers=headers)


@contextlib.asynccontextmanager
async def serving(
    address: str, handler: Handler, limits: Limits = Limits(), *, grace: float = 1.0, tls: Context | None = None
) -> AsyncIterator[Server]:
    """Serve at ``address`` (:mod:`services.kit.page_address`) until the block ends. Answers that are under way then
    have ``grace`` seconds. With ``tls`` it is HTTPS. OSError if the server cannot listen there.

    A unix socket is its owner's only (mode 0600). A socket that a dead process left is replaced. A socket at which a
    process listens, and any other file, is left alone.
    """
    server = Server(handler, limits, tls)
    where = parse_address(address)
    if isinstance(where, Path):
        listener = await asyncio.start_unix_server(server.connected, sock=await _unix(where), limit=limits.line)
        server.address, ours = str(where), sockets.identity(where)
    else:
        # reuse_address is the default; without it, a node that starts again would wait for a minute
        listener = await asyncio.start_server(server.connected, where[0] or None, where[1], limit=limits.line)
        host, port = listener.sockets[0].getsockname()[:2]
        server.address, ours = f"[{host}]:{port}" if ":" in host else f"{host}:{port}", None
    try:
        yield server
    finally:
        listener.close()
        if isinstance(where, Path) and ours is not None and sockets.identity(where) == ours:
            where.unlink(missing_ok=True)
        await server.close(grace)


async def lasting(
    setting: str, address: str, handler: Handler, limits: Limits = Limits(), tls: Context | None = None
) -> None:
    """Serve at ``address`` until cancelled; for :func:`services.kit.loops.running`. ``setting`` is the table and key
    that ``address`` is from. ``loops.Explained`` names it if the server cannot listen there.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(serving(address, handler, limits, tls=tls))
        except (OSError, UnicodeError) as error:
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise loops.Explained(f"{setting} = {address!r} is not served: {words}") from error
        log.info("%s: served at %s", setting, server.address)
        await asyncio.get_running_loop().create_future()


async def _unix(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, f"cannot listen at {path}: something else than a socket is there")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), 1.0)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except TimeoutError:
            raise OSError(
                errno.EADDRINUSE, (f"cannot listen at {path}: another process does, and accepts no connections")
            ) from None
        else:
            writer.close()
            raise OSError(errno.EADDRINUSE, f"cannot listen at {path}: another process does")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen at {path}: {error.strerror}") from None
    finally:
        os.umask(mask)
    return listening


class Server:
    """A running server. ``address`` is where it listens, in the form of :mod:`services.kit.page_address`."""

    def __init__(self, handler: Handler, limits: Limits, tls: Context | None = None) -> None:
        self.handler = handler
        self.limits = limits
        self.tls = tls
        self.address = ""
        self.closing = False
        self.waiting: dict[_Connection, None] = {}
        """Connections that may be closed at any time, those first that have waited longest."""
        self.refusals = Bucket(10, 1 / 60)
        """The lines that may be logged about TLS that failed: a scanner of ports shall fill no log."""
        self._open: set[_Connection] = set()
        self._tasks = loops.Tasks()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        if len(self._open) >= self.limits.connections:
            if (longest := next(iter(self.waiting), None)) is None:
                self._tasks.start("an HTTP connection too many", connection.refuse())
                return
            self.waiting.pop(longest)
            self._open.discard(longest)
            longest.abort()
        self._open.add(connection)
        self._tasks.start("an HTTP connection", connection.run()).add_done_callback(
            lambda _: self._open.discard(connection)
        )

    async def close(self, grace: float) -> None:
        """End all connections: waiting ones at once, the others after at most ``grace`` seconds."""
        self.closing = True
        for connection in list(self.waiting):
            connection.abort()
        await self._tasks.wait(grace)
        await self._tasks.cancel()


class _Refused(Exception):
    """A request that is answered with an error instead of a page."""

    def __init__(self, status: int, words: str, **headers: str) -> None:
        super().__init__(words)
        self.response = failure(status, words, **headers)


class _Connection:
    """One client's connection."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._limits = server.limits
        self._reader = reader
        self._writer = writer
        self._patience = self._limits.arrival
        self._bare: socket.socket | None = None
        """The connection until TLS is agreed on."""
        if server.tls is None:
            self._unbuffered()
        else:
            # Not start_tls: uvloop reads before it, so that the client's first bytes are lost. Nothing is read yet.
            self._bare = writer.get_extra_info("socket").dup()
            writer.transport.abort()

    def _unbuffered(self) -> None:
        """Let drain() wait for the client."""
        # with TLS, CPython 3.11 takes an empty buffer for a full one if the limit is 0
        self._writer.transport.set_write_buffer_limits(high=1, low=0)

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()
        if self._bare is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                self._bare.shutdown(socket.SHUT_RDWR)

    async def run(self) -> None:
        """Answer requests until one side ends the connection."""
        try:
            if self._server.tls is not None:
                await self._agree(self._server.tls)
                self._unbuffered()
            while await self._answer_one():
                self._patience = self._limits.idle
        except OSError:
            pass  # the client has gone, or does not read
        finally:
            self.abort()

    async def _agree(self, tls: Context) -> None:
        """Agree on TLS; until then the connection waits as one without a request."""
        assert self._bare is not None
        self._server.waiting[self] = None
        host = self._writer.get_extra_info("peername", ("?",))[0]
        loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader(self._limits.line, loop)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, self._bare, ssl=await tls(), ssl_handshake_timeout=self._limits.arrival
            )
            self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        except BaseException as error:
            self._bare.close()
            if isinstance(error, ssl.SSLError) and self._server.refusals.take():
                log.warning("%s: no TLS with %s: %s", self._server.address, host, error.reason or error)
            raise
        finally:
            self._bare = None
            self._server.waiting.pop(self, None)

    async def refuse(self) -> None:
        """Answer that there are too many connections. With TLS the connection just ends: agreeing on it is work."""
        try:
            if self._server.tls is None:
                await self._send(_BUSY, ends=True)
        except OSError:
            pass  # the client has gone
        finally:
            self.abort()

    async def _answer_one(self) -> bool:
        """Answer one request. The result is whether another may follow."""
        self._server.waiting[self] = None
        try:
            arrived = await self._request()
            if arrived is None:
                return False
        except _Refused as refused:
            await self._send(refused.response, ends=True)
            await self._part()
            return False
        finally:
            self._server.waiting.pop(self, None)
        request, keeps = arrived
        response = await self._made(request)
        ends = not keeps or self._server.closing
        await self._send(response, ends=ends, body=request.method != "HEAD")
        if ends:
            await self._part()
        return not ends

    async def _made(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._limits.making):
                return await self._server.handler(request)
        except TimeoutError:
            log.error("%s: not made within %g s", quoted(request.path[:200]), self._limits.making)
            return _BUSY
        except Exception:
            log.exception("%s cannot be answered", quoted(request.path[:200]))
            return failure(500)

    # ---------------------------------------------------------------- reading

    async def _request(self) -> tuple[Request, bool] | None:
        """The next request, and whether the connection is kept after it. None if the client has gone, or is silent."""
        try:
            async with asyncio.timeout(self._patience):
                first = await self._reader.read(1)
        except TimeoutError:
            return None  # no 408: the client has done nothing wrong
        if not first:
            return None
        try:
            async with asyncio.timeout(self._limits.arrival):
                return await self._head(first)
        except TimeoutError:
            raise _Refused(408, f"the request did not arrive within {self._limits.arrival:g} s") from None
        except asyncio.IncompleteReadError:
            return None

    async def _head(self, first: bytes) -> tuple[Request, bool]:
        words = f"the request line has more than {self._limits.line} bytes"
        line = await self._line(first, 414, words)
        if not line:  # RFC 9112, 2.2: one empty line before a request is ignored
            line = await self._line(b"", 414, words)
        match = _REQUEST.fullmatch(line)
        if match is None:
            raise _Refused(400, "the request line is malformed")
        method, target, major, minor = match.groups()
        if major != b"1":
            raise _Refused(505, "this server speaks HTTP/1.1")
        headers = await self._fields()
        self._check(method.decode(), headers, hosted=minor != b"0")
        path, query = _target(target)
        said = {word.strip().lower() for word in headers.get("connection", "").split(",")}
        keeps = "close" not in said and (minor != b"0" or "keep-alive" in said)
        return Request(method.decode(), path, query, headers), keeps

    async def _fields(self) -> dict[str, str]:
        limits, headers, size, count = self._limits, dict[str, str](), 0, 0
        words = f"more than {limits.head} bytes of headers, or one of more than {limits.line}"
        while line := await self._line(b"", 431, words):
            size, count = size + len(line), count + 1
            if size > limits.head:
                raise _Refused(431, words)
            if count > limits.fields:
                raise _Refused(431, f"more than {limits.fields} headers")
            name, colon, value = line.partition(b":")
            value = value.strip(b" \t")
            # a line that continues the one before it (RFC 9112, 5.2) has no name either
            if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
                raise _Refused(400, "a header is malformed")
            key, text = name.decode().lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return headers

    def _check(self, method: str, headers: Mapping[str, str], *, hosted: bool) -> None:
        if hosted and ("host" not in headers or "," in headers["host"]):
            raise _Refused(400, "there must be one Host header")
        if method not in ("GET", "HEAD"):
            raise _Refused(405, "only GET and HEAD", Allow="GET, HEAD")
        if "transfer-encoding" in headers or headers.get("content-length", "0").strip("0"):
            raise _Refused(400, "a request with a body")

    async def _line(self, first: bytes, status: int, words: str) -> bytes:
        """A line without its end, which may be LF alone (RFC 9112, 2.2). ``first`` is the part that was read
        already.
        """
        try:
            line = first if first == b"\n" else first + await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise _Refused(status, words) from None
        return line.removesuffix(b"\n").removesuffix(b"\r")

    # ---------------------------------------------------------------- writing

    async def _send(self, response: Response, *, ends: bool, body: bool = True) -> None:
        stream = response.stream
        headers = {
            "Date": formatdate(usegmt=True),
            "Content-Type": response.type,
            "Content-Length": str(len(response.body) if stream is None else stream.length),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **response.headers,
            **({"Connection": "close"} if ends else {}),
        }
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n{fields}\r\n".encode("latin-1")
        if stream is None:
            await self._put(head + response.body if body else head)
            return
        try:
            await self._put(head)
            left = stream.length if body else 0
            while left:
                piece = (await anext(stream.pieces, b""))[:left]
                if not piece:
                    raise ConnectionAbortedError
                await self._put(piece, len(piece))
                left -= len(piece)
        finally:
            await stream.pieces.aclose()
            stream.close()

    async def _put(self, data: bytes | memoryview, most: int = _PIECE) -> None:
        whole = memoryview(data)
        for start in range(0, len(whole), most):
            if self._writer.is_closing():
                raise ConnectionResetError
            self._writer.write(whole[start : start + most])
            async with asyncio.timeout(self._limits.departure):
                await self._writer.drain()

    async def _part(self) -> None:
        """End a connection on which more may arrive. If it were closed with unread bytes, the kernel would reset it,
        and the client would lose the answer (RFC 9112, 9.6).
        """
        if self._server.closing:
            return
        self._server.waiting[self] = None
        try:
            if self._writer.can_write_eof():
                self._writer.write_eof()
            else:
                self._writer.close()  # TLS says so to the client, and has no half of a connection
            async with asyncio.timeout(_PARTING):
                for _ in range(_UNREAD // _PIECE):
                    if not await self._reader.read(_PIECE):
                        break
        finally:
            self._server.waiting.pop(self, None)


_PARTING = 1.0
"""Seconds for which the bytes after a refused request are read and dropped, at most."""
_UNREAD = 1 << 20
"""The number of those bytes, at most."""

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_BUSY = failure(503, **{"Retry-After": "1"})


def _target(target: bytes) -> tuple[str, str]:
    """Path and query of a request's target, which may be a whole URL (RFC 9112, 3.2.2)."""
    if not target.startswith(b"/"):
        scheme, found, rest = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            raise _Refused(400, "the target is neither a path nor a URL")
        target = b"/" + rest.partition(b"/")[2]
    path, _, query = target.partition(b"?")
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise _Refused(400, "the path is not UTF-8") from None
    if "\0" in text:
        raise _Refused(400, "the path has a NUL")
    return text, query.decode("latin-1")
