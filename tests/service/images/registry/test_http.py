"""HTTP as servers really send it: answers that Go accepts are accepted; answers that it refuses are refused with the
host and words of ours (tests/answers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, StreamReader

from services.images.registry import response_parser, transport
from services.images.registry.client import Registry
from services.images.registry.failure import Failure
from services.images.registry.host import TLS
from services.images.registry.hosts import Hosts
from services.images.registry.transport import Answer
from services.kit import errors
from tests.answers import BEYOND, BODY, CASES, OK, Case
from tests.fake_registry import Authority, FakeRegistry
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import certs, small_image
from tests.support import within

pytestmark = pytest.mark.once

FOREIGN_WORDS = re.compile(r"Error|Expecting|codec|0x|<|aiohttp|message=|bytearray|(?<!\w)b'|Traceback|Data after")
"""Words that would come from Python or aiohttp."""


@contextlib.asynccontextmanager
async def answering(*answers: bytes, piece: int = 0, end: bool = True) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that gives these answers in turn, one to each request, and then hangs up if ``end`` is set; and the
    number of its connections.
    """
    left, connections = list(answers), list[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                raw = left.pop(0) if left else b""
                for at in range(0, len(raw), piece or len(raw)):
                    writer.write(raw[at : at + (piece or len(raw))])
                    await writer.drain()
                    if piece:
                        await asyncio.sleep(0)
                if end:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connections


async def asked(registry: Registry, host: str, method: str) -> tuple[Answer, bytes]:
    session = await registry.sessions.of(TLS())
    answer = await session.exchange(method, f"http://{host}/v2/", headers=[], body=None, connect=2, stall=2)
    try:
        return answer, await answer.read(1 << 20) if method != "HEAD" else b""
    finally:
        answer.release()


async def test_certificates_are_read_while_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the machine's certificates takes 25 ms. Two callers that want the same TLS settings at once get the same
    connections.
    """
    where, context = list[int](), transport.context

    def noted(tls: TLS) -> Any:
        where.append(threading.get_ident())
        return context(tls)

    monkeypatch.setattr(transport, "context", noted)
    async with Registry(Hosts(())) as registry:
        one, other = await asyncio.gather(registry.sessions.of(TLS()), registry.sessions.of(TLS()))
        assert one is other is await registry.sessions.of(TLS())
    assert len(where) == 1 and where[0] != threading.get_ident()


async def outcome(registry: Registry, case: Case, piece: int) -> tuple[int, bytes] | str:
    """Return status and body of a case's answer, or the reason of the refusal without the host, which comes first."""
    async with answering(*[case.raw] * 3, piece=max(piece, len(case.raw) // 100) if piece else 0) as (host, _):
        try:
            async with asyncio.timeout(10):
                answer, body = await asked(registry, host, case.method)
                return answer.status, body
        except Failure as failure:
            assert str(failure).startswith(f"{host}: ")
            return str(failure).removeprefix(f"{host}: ")


@pytest.mark.parametrize("piece", [0, 7], ids=["at once", "in pieces"])
async def test_answers_that_go_accepts_are_accepted(quick: Registry, piece: int) -> None:
    """This holds however the bytes arrive."""
    found = {case.name: await outcome(quick, case, piece) for case in CASES if case.body is not None}
    assert found == {case.name: (case.status, case.body) for case in CASES if case.body is not None}


@pytest.mark.parametrize("piece", [0, 7], ids=["at once", "in pieces"])
async def test_answers_that_go_refuses_are_refused(quick: Registry, piece: int) -> None:
    """The error has words of ours and names the host."""
    found = {case.name: await outcome(quick, case, piece) for case in CASES if case.body is None}
    assert not [name for name, said in found.items() if not isinstance(said, str)]
    assert not [said for said in found.values() if FOREIGN_WORDS.search(str(said))]


@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case.name)
async def test_answers_beyond_the_limits_are_refused(quick: Registry, case: Case) -> None:
    """The error comes soon, and names the host and the limit."""
    async with answering(case.raw) as (host, _):
        with (
            within(5),
            pytest.raises(
                Failure,
                match=(
                    f"^{host}: not HTTP: (its headers have more than 1048576 bytes|it has more than 10000 lines of "
                    "headers|more than 100 answers with a status of 1xx)"
                ),
            ),
        ):
            await asked(quick, host, "GET")


async def test_values_of_headers(quick: Registry) -> None:
    """Values are as in Go: without surrounding blanks, those of several lines joined. Invalid UTF-8 is replaced, and a
    header with a blank in its name is not found.
    """
    async with answering(OK + b"One:  a \t\r\nTwo: a\r\n  b\r\nThree: \xff\r\nFour : 1\r\nFive:\r\n" + BODY) as (
        host,
        _,
    ):
        answer, _ = await asked(quick, host, "GET")
    assert [answer.headers.get(name) for name in ("One", "Two", "Three", "Four", "Five")] == [
        "a",
        "a b",
        "\ufffd",
        None,
        "",
    ]


async def test_a_connection_is_used_again(quick: Registry) -> None:
    """This is so only if nothing is left on it: not after more bytes than announced, nor after a HEAD with a body."""
    long = OK + b"Content-Length: 4\r\n\r\n"
    for answers, methods, most in (
        ((OK + BODY,) * 3, ("GET",) * 3, 1),
        ((long, OK + BODY, OK + BODY), ("HEAD", "GET", "GET"), 1),
        ((OK + BODY + b"more", OK + BODY), ("GET", "GET"), 2),
        ((OK + BODY, OK + BODY), ("HEAD", "GET"), 2),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BODY, OK + BODY), ("GET", "GET"), 1),
    ):
        async with answering(*answers, end=False) as (host, connections):
            for method in methods:
                answer, body = await asked(quick, host, method)
                assert (answer.status, body) == (200, b"body" if method == "GET" else b"")
            assert len(connections) == most, (answers, methods)


async def test_the_rest_of_an_answer_that_comes_late_is_no_answer(quick: Registry) -> None:
    """The body of a HEAD arrives when its connection is used again: the request is repeated on another connection."""
    sent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.readuntil(b"\r\n\r\n")
            if first.startswith(b"HEAD"):
                writer.write(OK + b"Content-Length: 6\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"<html>")
                sent.set()
                await reader.read()
            else:
                writer.write(OK + BODY)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asked(quick, host, "HEAD")
        assert (await asked(quick, host, "GET"))[1] == b"body"
        assert sent.is_set()


class BrokenParser:
    """A parser that fails on all bytes."""

    def feed_data(self, data: bytes) -> None:
        raise ValueError

    def feed_eof(self) -> None:
        return


class Line(asyncio.Transport):
    """A transport without a peer."""

    def close(self) -> None:
        return


async def test_the_reader_of_a_broken_body_gets_an_error() -> None:
    """This holds for bytes that cannot be parsed, and for a connection that is gone, whatever the parser's exception
    is.
    """
    for event in (lambda protocol: protocol.data_received(b"x"), lambda protocol: protocol.connection_lost(None)):
        protocol = response_parser.answers()(asyncio.get_running_loop())
        protocol.connection_made(Line())
        body = StreamReader(protocol, 1 << 16, loop=asyncio.get_running_loop())
        protocol._passing, protocol._parser, protocol._payload = True, BrokenParser(), body  # type: ignore[assignment]
        reading = asyncio.ensure_future(body.readchunk())
        await asyncio.sleep(0)
        event(protocol)
        with pytest.raises(ClientPayloadError):
            await reading
        protocol._exception = None  # nobody asks the connection


async def test_a_body_of_known_length_is_not_copied() -> None:
    """Its reader gets the very pieces that arrived, and the end with the last of them."""
    protocol = response_parser.answers()(asyncio.get_running_loop())
    protocol.connection_made(Line())
    protocol.set_response_params(read_bufsize=1 << 20)
    protocol.data_received(OK + b"Content-Length: 200000\r\n\r\n")
    _, body = await protocol.read()
    pieces = [bytes(100_000), bytes(100_000)]
    for piece in pieces:
        protocol.data_received(piece)
    assert [(await body.readchunk())[0] is piece for piece in pieces] == [True, True]
    assert body.at_eof() and not protocol.should_close
    protocol.data_received(b"more")
    assert protocol.should_close


async def test_an_image_from_such_a_server(quick: Registry, fake: FakeRegistry) -> None:
    """The registry's HEAD has a body, and its manifests have two lengths."""
    image = small_image()
    fake.add(image, "box:1")
    manifest = image.blobs[image.digest]
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type : text/html\r\nContent-Type: %b\r\nDocker-Content-Digest: "
        b"%b\r\nContent-Length: %d\r\nContent-Length: %d\r\nX-Large: %b\r\n\r\n"
    ) % (image.media_type.encode(), image.digest.encode(), len(manifest), len(manifest), b"x" * 50_000)
    async with answering(head + manifest, head + manifest) as (host, _):
        client = quick.client(plain_http=True)
        root = await client.resolve(f"{host}/box:1")
        assert (str(root.digest), root.size) == (image.digest, len(manifest))
        assert await client.manifest(f"{host}/box:1", root) == manifest


ADDRESSES = [
    "http://[::1",
    "http://a:99999/x",
    "http://a:b/x",
    "http://\u2028/x",
    "http://" + "a" * 300 + ".test/x",
    "http://a..b/x",
    "http:///x",
    "ftp://a/x",
    "http://a\\b/x",
]


@pytest.mark.parametrize("to", ADDRESSES)
async def test_a_redirect_to_no_address(quick: Registry, fake: FakeRegistry, to: str) -> None:
    """The error names the host in words of ours."""
    from aiohttp import web

    fake.add(small_image(), "box:1")

    async def redirected(request: web.Request, serve: Any) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": to})

    fake.inject("manifest", redirected, times=100)
    with within(10), pytest.raises(errors.NodeError) as raised:
        await quick.client().resolve(f"{fake.host}/box:1")
    assert fake.host in str(raised.value)
    assert not FOREIGN_WORDS.search(str(raised.value)), raised.value


@pytest.mark.parametrize(
    "established", [b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.0 200 OK\r\nProxy-Agent: x\r\n\r\n"]
)
async def test_tls_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, established: bytes) -> None:
    """The proxy's answer to CONNECT is parsed as an answer too; later bytes are the registry's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readuntil(b"\r\n\r\n")
        there, here = await asyncio.open_connection(*first.split()[1].decode().rsplit(":", 1))
        writer.write(established)

        async def passed(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    to.write(data)
                    await to.drain()
                to.close()

        await asyncio.gather(passed(reader, here), passed(there, writer))

    image = small_image()
    authority = Authority(tmp_path / "ca")
    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setattr(
        "services.images.registry.transport.proxy_for",
        lambda url: f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
    )
    async with proxy, FakeRegistry(tls=authority.server()) as fake:
        fake.add(image, "box:1")
        hosts = Hosts((certs(tmp_path, "images.test", f'server = "{fake.url}"\nca = "{authority.certificate}"\n'),))
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
            root = await registry.client().resolve("images.test/box:1")
            assert await registry.client().manifest("images.test/box:1", root) == image.blobs[image.digest]
