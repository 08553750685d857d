"""The small HTTP server on a socket, with valid, invalid, slow, unread and many clients."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import uvloop

from services.kit import http_server
from services.kit.http_server import Limits, Request, Response, Server, Stream
from tests.fake_registry import Authority
from tests.support import eventually_async, within

pytestmark = pytest.mark.once

GET = b"GET /page HTTP/1.1\r\nHost: h\r\n\r\n"
QUICK = Limits(arrival=0.3, idle=0.3, making=0.3, departure=0.3, connections=4)


async def page(request: Request) -> Response:
    if request.path == "/wrong":
        raise ZeroDivisionError
    if request.path == "/never":
        await asyncio.sleep(3600)
    if request.path == "/large":
        return Response(body=bytes(32 << 20))
    return Response(body=f"{request.path}|{request.query}|{request.headers.get('x-a', '')}".encode())


def serving(limits: Limits = Limits()) -> contextlib.AbstractAsyncContextManager[Server]:
    return http_server.serving("127.0.0.1:0", page, limits)


class Peer:
    """A client that sends any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the next answer, which has to come soon."""
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:-2])
            body = b"" if head else await self.reader.readexactly(int(headers["Content-Length"]))
        return int(lines[0].split()[1]), headers, body

    async def ended(self) -> bool:
        """Check that the server ends the connection without further bytes; ConnectionError if it resets it, which makes
        clients on other systems lose unread bytes.
        """
        async with asyncio.timeout(10):
            return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Peer]:
    host, _, port = server.address.rpartition(":")
    peer = Peer(*await asyncio.open_connection(host, int(port)))
    try:
        yield peer
    finally:
        peer.writer.transport.abort()


async def test_get_and_head_on_one_connection() -> None:
    """HEAD has the headers of GET and no body; the connection is kept."""
    async with serving() as server, connected(server) as peer:
        await peer.send(b"GET /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a:  2 \r\n\r\n")
        status, headers, body = await peer.answer()
        assert (status, body) == (200, b"/a b|c=d|1, 2")
        assert headers.pop("Date").endswith(" GMT")
        assert headers == {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": "13",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        await peer.send(b"HEAD /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-A: 1, 2\r\n\r\n")
        status, again, _ = await peer.answer(head=True)
        assert (status, again["Content-Length"]) == (200, "13")
        await peer.send(GET)
        assert (await peer.answer())[2] == b"/page||"


def test_an_ordinary_client(place: Path) -> None:
    """It is Python's own, outside of the loop."""

    async def main() -> None:
        async with serving() as server:

            def ask() -> tuple[int, bytes]:
                client = http.client.HTTPConnection(server.address, timeout=10)
                for path in ("/one", "/two"):
                    client.request("GET", path)
                    response = client.getresponse()
                    found = response.status, response.read()
                client.close()
                return found

            assert await asyncio.to_thread(ask) == (200, b"/two||")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (b"GET http://h:80/x?y HTTP/1.1\r\nHost: h\r\n\r\n", b"/x|y|"),
        (b"\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n", b"/x||"),
        (b"GET /x HTTP/1.1\nHost: h\n\n", b"/x||"),
        (b"GET /x HTTP/1.9\r\nHost: h\r\n\r\n", b"/x||"),
        (b"GET /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", b"/x||"),
    ],
    ids=["a whole URL", "an empty line before", "LF alone", "a minor version to come", "no body, said"],
)
async def test_accepted_requests(request_: bytes, path: bytes) -> None:
    """RFC 9112 requires servers to accept them."""
    async with serving() as server, connected(server) as peer:
        await peer.send(request_)
        assert (await peer.answer())[::2] == (200, path)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /\r\nHost: h\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /%ff HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / http/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nGET /", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000), 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        (b"x" * 100_000, 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + (b"X: " + b"x" * 1000 + b"\r\n") * 20 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
async def test_refused_requests(request_: bytes, status: int) -> None:
    """The client gets the reason, however much it sends, and later bytes are not taken for a request."""
    async with serving() as server, connected(server) as peer:
        await peer.send(request_ + GET)
        found, headers, body = await peer.answer()
        assert (found, headers["Connection"]) == (status, "close")
        assert headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
        assert body.startswith(f"{status} ".encode())
        assert await peer.ended()


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"]
)
async def test_a_connection_that_is_to_end_ends(request_: bytes) -> None:
    """It ends after one answer, though more requests were sent."""
    async with serving() as server, connected(server) as peer:
        await peer.send(request_ + 10_000 * GET)
        status, headers, _ = await peer.answer()
        assert (status, headers["Connection"]) == (200, "close")
        assert await peer.ended()


async def test_pipelined_requests_are_answered_in_order() -> None:
    """A client sends a thousand in one write and reads later."""
    async with serving() as server, connected(server) as peer:
        await peer.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(1000)))
        assert [(await peer.answer())[2] for _ in range(1000)] == [b"/%d||" % n for n in range(1000)]


async def test_a_request_that_drips_is_ended() -> None:
    """A byte now and then does not extend its time; an honest client is answered meanwhile."""
    async with serving(QUICK) as server, connected(server) as slow, connected(server) as honest:

        async def drip() -> None:
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
                await slow.send(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.ensure_future(drip())
        await honest.send(GET)
        with within(0.25):
            assert (await honest.answer())[0] == 200
        with within(3.0):
            status, headers, _ = await slow.answer()
        assert (status, headers["Connection"]) == (408, "close")
        dripping.cancel()
        await asyncio.wait((dripping,))


@pytest.mark.parametrize("before", [b"", GET], ids=["never asked", "has asked"])
async def test_a_silent_client_is_left(before: bytes) -> None:
    """Its connection is closed without an answer, since it is between requests."""
    async with serving(QUICK) as server, connected(server) as peer:
        if before:
            await peer.send(before)
            assert (await peer.answer())[0] == 200
        with within(3.0):
            assert await peer.ended()


async def test_a_client_that_does_not_read_is_left() -> None:
    """Meanwhile it occupies no more memory than its page."""
    async with serving(QUICK) as server, connected(server) as peer:
        await peer.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = await eventually_async(lambda: asyncio.sleep(0, server._open))
        transport, most = connection._writer.transport, 0

        async def gone() -> bool:
            nonlocal most
            most = max(most, transport.get_write_buffer_size())
            return not server._open

        await eventually_async(gone, "it is kept")
        assert 0 < most <= 64 << 10


async def test_those_that_wait_make_room() -> None:
    """However many clients connect and send nothing, one that sends a request is answered; the client that waited
    longest is dropped.
    """
    async with serving(Limits(connections=4)) as server, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(server)) for _ in range(12)]
        await peers[-1].send(GET)
        assert (await peers[-1].answer())[0] == 200
        for peer in peers[:8]:
            assert await peer.ended()
        assert len(server._open) == 4


async def test_when_all_are_busy_the_next_is_told() -> None:
    """It gets 503, and is served again once another connection has ended."""
    async with serving(Limits(connections=2)) as server, contextlib.AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connected(server)) for _ in range(2)]
        for peer in busy:
            await peer.send(b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n")
        await eventually_async(lambda: asyncio.sleep(0, len(server._open) == 2 and not server.waiting))
        async with connected(server) as late:
            status, headers, _ = await late.answer()
            assert (status, headers["Retry-After"]) == (503, "1")
            assert await late.ended()


@pytest.mark.parametrize(("path", "status"), [(b"/wrong", 500), (b"/never", 503)])
async def test_a_page_that_fails_is_an_answer(path: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the reason, the client does not, and the connection goes on."""
    async with serving(QUICK) as server, connected(server) as peer:
        await peer.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
        found, _, body = await peer.answer()
        assert found == status
        assert b"ZeroDivision" not in body
        assert path.decode() in caplog.text
        await peer.send(GET)
        assert (await peer.answer())[0] == 200


async def test_the_end_waits_for_answers_only() -> None:
    """An answer under way is completed; idle clients are disconnected at once."""
    go, begun = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        begun.set()
        await go.wait()
        return Response(body=b"done")

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(http_server.serving("127.0.0.1:0", slow, grace=20.0))
        async with connected(server) as idle, connected(server) as asking:
            await asking.send(GET)
            await begun.wait()
            ending = asyncio.ensure_future(stack.aclose())
            assert await idle.ended()
            go.set()
            status, headers, body = await asking.answer()
            assert (status, headers["Connection"], body) == (200, "close", b"done")
            with within(5.0):
                await ending


# ------------------------------------------------------------------------------------------ where it listens


async def test_a_unix_socket_is_its_owners_and_goes_with_its_server(place: Path) -> None:
    """The socket of a dead process is replaced; that of a living one, and a file that is no socket, are not touched."""
    path = place / "h.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with http_server.serving(str(path), page) as server:
        assert server.address == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        peer = Peer(*await asyncio.open_unix_connection(path))
        await peer.send(GET)
        assert (await peer.answer())[0] == 200
        peer.writer.close()
        with pytest.raises(OSError, match="another process does"):
            async with http_server.serving(str(path), page):
                pass
        assert path.is_socket()
    assert not path.exists()
    path.write_text("notes")
    with pytest.raises(OSError, match="something else than a socket"):
        async with http_server.serving(str(path), page):
            pass
    assert path.read_text() == "notes"


async def test_a_port_that_is_taken_is_an_error() -> None:
    """The code that starts the server reports it."""
    async with serving() as server:
        with pytest.raises(OSError, match="address already in use"):
            async with http_server.serving(server.address, page):
                pass


# ------------------------------------------------------------------------------------------ bodies made meanwhile, TLS


async def pieces(*sizes: int, closed: list[bool]) -> AsyncGenerator[bytes]:
    try:
        for size in sizes:
            yield bytes(size)
    finally:
        closed.append(True)


async def test_a_body_is_sent_while_it_is_made() -> None:
    """It has the stated length; the connection is kept. HEAD asks for no piece, and what they are made of is closed all
    the same.
    """
    closed: list[bool] = []
    ends: list[bool] = []

    async def handler(_: Request) -> Response:
        made = pieces(100_000, 100_000, 5, closed=closed)
        return Response(stream=Stream(length=200_005, pieces=made, close=lambda: ends.append(True)))

    async with http_server.serving("127.0.0.1:0", handler) as server, connected(server) as peer:
        await peer.send(GET)
        assert await peer.answer() == (200, ANY, bytes(200_005))
        await peer.send(GET.replace(b"GET", b"HEAD"))
        status, headers, _ = await peer.answer(head=True)
        assert (status, headers["Content-Length"]) == (200, "200005")
        await peer.send(GET)
        assert (await peer.answer())[0] == 200

        async def all_closed() -> bool:
            return len(ends) == 3

        await eventually_async(all_closed)
        assert len(closed) == 2, "the pieces of HEAD were never begun"


async def test_a_body_that_ends_early_ends_the_connection() -> None:
    """The client sees that bytes are missing; and more than the stated bytes are never sent."""
    closed: list[bool] = []

    async def handler(request: Request) -> Response:
        sizes = (10, 10) if request.path == "/short" else (10, 200)
        return Response(stream=Stream(length=100, pieces=pieces(*sizes, closed=closed)))

    async with http_server.serving("127.0.0.1:0", handler) as server:
        async with connected(server) as peer:
            await peer.send(b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await peer.answer())[2] == bytes(100)
            await peer.send(b"GET /short HTTP/1.1\r\nHost: h\r\n\r\n")
            with pytest.raises(asyncio.IncompleteReadError) as cut:
                await peer.answer()
            assert cut.value.partial == bytes(20)
        assert closed == [True, True]


@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
def test_https_with_clients_certificates(tmp_path: Path, loop: Any) -> None:
    """Each connection agrees by the context of its time. A client without a certificate, and one without TLS, get
    nothing; nobody else is disturbed. The node's processes run on uvloop.
    """
    loop.run(https_with_clients_certificates(tmp_path))


async def https_with_clients_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    contexts = [authority.server(clients=True)]

    async def context() -> ssl.SSLContext:
        await asyncio.sleep(0.02)  # as reading files takes time: the client's greeting is there before
        return contexts[-1]

    def get(client: ssl.SSLContext | None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(server.address, timeout=10, context=client)
        try:
            connection.request("GET", "/large")
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    ours = ssl.create_default_context(cafile=authority.certificate)
    without = ssl.create_default_context(cafile=authority.certificate)
    ours.load_cert_chain(*authority.issue("client"))
    async with http_server.serving("127.0.0.1:0", page, QUICK, tls=context) as server:
        assert await asyncio.to_thread(get, ours) == (200, bytes(32 << 20))
        with pytest.raises(OSError):
            await asyncio.to_thread(get, without)
        async with connected(server) as peer:
            await peer.send(GET)
            assert await peer.ended()
        async with connected(server) as silent:
            assert await silent.ended()
        contexts.append(Authority(tmp_path / "another").server(clients=True))
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(get, ours)
