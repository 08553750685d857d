"""services.wire.server on a transport in memory: calls, and peers' behaviour."""

from __future__ import annotations

import asyncio
import gzip
from types import SimpleNamespace
from typing import Any

import pytest

from services.kit import errors, rpc, slices
from services.wire import server_call
from services.wire.clients import Names
from services.wire.frames import Code
from services.wire.limits import Limits
from services.wire.messages import HIGH_WATER
from services.wire.server import ServerLink, WireServer
from services.wire.server_call import ServerCall
from tests.support import eventually_async
from tests.wires import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    REQUEST,
    RST_STREAM,
    WINDOW_UPDATE,
    Frame,
    Transport,
    data,
    deliver,
    grpc,
    headers,
    literal,
    settings,
    turns,
    word,
)

SAY, TALK, TELL = "/splitd.Test/Say", "/splitd.Test/Talk", "/splitd.Test/Tell"
"""A unary method, one with streams both ways, one with a stream of answers."""


class Service:
    """Handlers that wait where a test wants them to wait."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.heard: list[bytes] = []
        self.ended: list[str] = []
        self.wait = False
        self.read = True

    async def say(self, request: bytes, call: rpc.Call) -> bytes:
        self.heard.append(request)
        try:
            if self.wait:
                await self.go.wait()
            if request == b"fail":
                raise errors.NotFound("no \udcff here")
            return request.upper()
        finally:
            self.ended.append("say")

    async def talk(self, requests: Any, call: rpc.Call) -> Any:
        if not self.read:
            await self.go.wait()
        async for request in requests:
            self.heard.append(request)
            yield request.upper()

    async def tell(self, request: bytes, call: rpc.Call) -> Any:
        while True:
            yield request * 1000


def same(message: bytes) -> bytes:
    return message


class Served:
    """A server, a link of it, and its peer."""

    def __init__(self, relay: Any = None, *, relayed: bool = False, **limits: Any) -> None:
        self.service = Service()
        methods = rpc.Methods([], relay, rpc.LONG)
        methods._methods = {
            SAY: rpc.Method(SAY, rpc.UNARY, self.service.say, same, same),
            TALK: rpc.Method(TALK, rpc.STREAMS, self.service.talk, same, same),
            TELL: rpc.Method(TELL, rpc.Arity(False, True), self.service.tell, same, same),
        }
        self.server = WireServer("test", methods, {}, Limits(**limits), relayed=relayed)
        self.link, self.transport = self.connect()

    def connect(self) -> tuple[ServerLink, Transport]:
        link = ServerLink(self.server)
        transport = Transport(link)
        link.connection_made(transport)
        link.data_received(PREFACE + settings())
        transport.frames()
        return link, transport

    def feed(self, *parts: bytes) -> None:
        deliver(self.link, b"".join(parts))

    def call(
        self, stream: int, path: str, *messages: bytes, end: bool = True, extra: tuple[tuple[str, str], ...] = ()
    ) -> None:
        fields = [(k, path if k == ":path" else v) for k, v in REQUEST] + list(extra)
        body = b"".join(map(grpc, messages))
        self.feed(headers(stream, literal(fields), end=end and not body), data(stream, body, end=end) if body else b"")

    def said(self) -> list[tuple[int, int]]:
        return [(frame.kind, frame.stream) for frame in self.transport.frames()]

    async def gone(self) -> None:
        """Let the peer hang up, and check that nothing is left of it."""
        self.link.connection_lost(None)
        await turns()
        assert not self.server.running
        assert not self.server.passages
        assert not self.server.links
        assert not self.link.incomplete
        assert (self.link.connection.lingering, self.link.assembling, len(self.link.connection.streams)) == (0, 0, 0)


def status(frame: Frame) -> int:
    """Return the grpc-status of our own literal block."""
    at = frame.payload.index(b"grpc-status") + 11
    return int(frame.payload[at + 1 : at + 1 + frame.payload[at]])


async def test_a_unary_call_that_does_not_wait_is_answered_in_the_same_read() -> None:
    """Head, message and trailers are sent; no task is left."""
    served = Served()
    served.call(1, SAY, b"hello")
    head, message, tail = served.transport.frames()
    assert (head.kind, message.payload, tail.flags & END_STREAM, status(tail)) == (
        HEADERS,
        grpc(b"HELLO"),
        END_STREAM,
        0,
    )
    await served.gone()


async def test_a_handler_is_cancelled_by_reset_by_the_deadline_and_by_a_lost_connection() -> None:
    """The call counts as a stream until its handler has ended; then nothing is left."""
    served = Served()
    served.service.wait = True
    served.call(1, SAY, b"a")
    served.call(3, SAY, b"b", extra=(("grpc-timeout", "0S"),))
    served.call(5, SAY, b"c")
    served.feed(word(RST_STREAM, 1, Code.CANCEL))
    assert served.link.connection.lingering == 1
    await turns(20)
    assert served.service.ended == ["say", "say"]
    assert served.link.connection.lingering == 0
    assert status(served.transport.frames()[0]) == 4
    await served.gone()
    assert served.service.ended == ["say"] * 3


async def test_an_owner_that_fails_costs_its_own_call_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in a handler: INTERNAL_ERROR for its stream, a line in the log, and the others of the same read are
    served.
    """
    served = Served()

    def broken(self: Any, end: bool) -> None:
        raise ZeroDivisionError

    served.call(1, TALK, end=False)
    with monkeypatch.context() as patched:
        patched.setattr(ServerCall, "begin", broken)
        served.call(3, SAY, end=False)
    served.call(5, SAY, b"hello")
    served.feed(data(1, grpc(b"hello"), end=True))
    await turns()
    assert "ZeroDivisionError" in caplog.text
    frames = served.transport.frames()
    assert [(f.stream, f.number()) for f in frames if f.kind == RST_STREAM] == [(3, Code.INTERNAL_ERROR)]
    assert {f.stream: status(f) for f in frames if f.kind == HEADERS and f.flags & END_STREAM} == {1: 0, 5: 0}
    await served.gone()


async def test_an_error_in_no_text_is_answered() -> None:
    """It is NOT_FOUND, whatever its message."""
    served = Served()
    served.call(1, SAY, b"fail")
    assert status(served.transport.frames()[0]) == 5
    await served.gone()


async def test_messages_that_hold_nothing_are_not_for_nothing() -> None:
    """A client stream of empty messages, of which its handler reads none, ends up without a window, as any other
    does.
    """
    served = Served()
    served.service.read = False
    served.call(1, TALK, end=False)
    stream = served.link.connection.streams[1]
    taken = 0
    while stream.receive_window >= 5000 and taken < 2_000_000:
        served.feed(data(1, grpc(b"") * 1000))
        taken += 1000
    assert taken < 2_000_000
    served.service.go.set()
    await turns(20)
    assert stream.receive_window > 5000
    await served.gone()


@pytest.mark.parametrize("bad", [grpc(b"", 7), b"\0\xff\xff\xff\xff", grpc(gzip.compress(b"x"), 1)])
async def test_a_stream_of_requests_that_makes_no_sense_is_not_kept(bad: bytes) -> None:
    """After the first error its later bytes are not assembled, and its window is not given back; the handler gets the
    error when it reads.
    """
    served = Served(assembling=100_000)
    served.service.read = False
    served.call(1, TALK, end=False)
    served.feed(data(1, bad))
    window = served.link.connection.streams[1].receive_window
    served.feed(data(1, b"x" * 5000), data(1, b"y" * 5000))
    assert served.link.connection.streams[1].receive_window == window - 10_000
    assert served.link.assembling == 0
    served.service.go.set()
    await turns()
    tail = next(f for f in served.transport.frames() if f.kind == HEADERS)
    assert status(tail) in {8, 13}
    await served.gone()


async def test_incomplete_messages_of_a_connection_are_bounded() -> None:
    """The call that exceeds the bound is RESOURCE_EXHAUSTED; the others, and the windows given back, are not
    affected.
    """
    served = Served(assembling=50_000)
    for number in (1, 3, 5):
        served.call(number, SAY, end=False)
        served.feed(data(number, b"\0\0\1\0\0" + bytes(15_000)))
    assert served.link.assembling == 45_000
    served.call(7, SAY, end=False)
    served.feed(data(7, b"\0\0\1\0\0" + bytes(15_000)))
    assert [(f.stream, status(f)) for f in served.transport.frames() if f.kind == HEADERS] == [(7, 8)]
    assert served.link.assembling == 45_000
    served.feed(word(RST_STREAM, 3, Code.CANCEL))
    assert served.link.assembling == 30_000
    await served.gone()


async def test_a_request_that_does_not_come_is_given_up() -> None:
    """DEADLINE_EXCEEDED for a call, RST_STREAM for a request that is no gRPC."""
    served = Served(request=10.0)
    served.call(1, SAY, end=False)
    served.feed(headers(3, literal([(":method", "GET"), (":scheme", "http"), (":path", "/")])))
    assert len(served.link.incomplete) == 2
    served.link.sweep(1e12)
    assert not served.link.incomplete
    if not (found := served.transport.frames()):
        await turns()
        found = served.transport.frames()
    assert {f.stream for f in found} == {1, 3}
    await served.gone()


async def test_a_handshake_that_does_not_come_is_given_up() -> None:
    """A half-open connection is closed."""
    served = Served()
    link = ServerLink(served.server)
    transport = Transport(link)
    link.connection_made(transport)
    link.data_received(PREFACE[:10])
    link.sweep(1e12)
    assert transport.closed
    await turns()
    assert link not in served.server.links
    await served.gone()


async def test_too_many_connections() -> None:
    """The one that has been idle longest is closed; if none is idle, the new one."""
    served = Served(connections=2)
    served.call(1, SAY, end=False)
    _, first = served.connect()
    third, second = served.connect()
    assert (served.transport.closed, first.closed, second.closed) == (False, True, False)
    await turns()
    third.data_received(headers(1, end=False))
    _, fourth = served.connect()
    assert (served.transport.closed, second.closed, fourth.closed) == (False, False, True)
    await turns()
    assert len(served.server.links) == 2
    third.connection_lost(None)
    await served.gone()


async def test_a_ping_is_answered_after_a_moment() -> None:
    """Not with each small message, since grpc-go then sends another one. Many are answered at once, and those beside
    much DATA.
    """
    served, ping = Served(), bytes(Frame(PING, 0, 0, bytes(8)))
    served.feed(ping)
    served.call(1, SAY, b"hello")
    served.feed(ping)
    assert served.said() == [(HEADERS, 1), (DATA, 1), (HEADERS, 1)]

    async def answered() -> list[tuple[int, int]]:
        return served.said()

    assert await eventually_async(answered) == [(PING, 0)] * 2
    served.feed(ping * 9)
    assert served.said() == [(PING, 0)] * 9
    served.feed(ping)
    body = grpc(b"x" * 40_000)
    parts = [data(3, body[at : at + 16_000], end=at == 32_000) for at in range(0, len(body), 16_000)]
    served.feed(headers(3, literal([*REQUEST[:2], (":path", SAY), *REQUEST[3:]])), *parts)
    assert served.said()[-1] == (PING, 0)
    await served.gone()


async def test_a_client_that_never_reads_is_not_read() -> None:
    """Its socket is full, and its requests make us answer: beyond ``unread`` its bytes stay in the kernel; once it
    reads, everything goes on.
    """
    served = Served(unread=1000, idle_frames=10_000)
    served.link.pause_writing()
    ping = bytes(Frame(PING, 0, 0, bytes(8)))
    served.feed(ping * 50)
    assert served.transport.reading
    served.feed(ping * 50)
    assert not served.transport.reading
    served.link.resume_writing()
    assert served.transport.reading
    served.call(1, SAY, b"hello")
    assert served.said()[-3:] == [(HEADERS, 1), (DATA, 1), (HEADERS, 1)]
    await served.gone()


async def test_answers_that_a_client_gives_no_window_for_are_bounded() -> None:
    """They wait, since the client may read late; calls beyond ``untaken`` begin when it has read, unless they have
    ended by then.
    """
    served = Served(untaken=15_000)
    served.feed(settings(initial_window_size=0))
    for number, path in (1, SAY), (3, SAY), (5, SAY), (7, SAY), (9, TELL), (11, SAY):
        served.call(number, path, b"x" * 10_000, extra=(("grpc-timeout", "20m"),) if number == 11 else ())
    served.feed(word(RST_STREAM, 7, Code.CANCEL))
    assert (len(served.service.heard), served.link.client.queued) == (2, 2 * 10_005)

    async def expired() -> bool:
        return not served.link.connection.streams.get(11)

    await eventually_async(expired)
    served.said()
    served.feed(word(WINDOW_UPDATE, 1, 20_000))

    async def begun() -> bool:
        return len(served.service.heard) == 3

    await eventually_async(begun)
    assert served.link.client.queued == 2 * 10_005  # of 3 and 5: the stream of answers waits still
    served.feed(*(word(WINDOW_UPDATE, number, 20_000) for number in (3, 5)))
    assert [stream for kind, stream in served.said() if kind == DATA] == [1, 3, 5]

    async def told() -> bool:
        return served.link.client.queued > 10_000_000

    await eventually_async(told)  # ten megabytes each
    assert list(served.link.connection.streams) == [9]
    await served.gone()
    assert served.link.client.queued == 0


async def test_a_gateways_clients_have_their_own_bounds_on_one_connection() -> None:
    """Answers that one client does not take delay only that client; the gateway's own calls delay none. A name in a
    client's own metadata has no effect.
    """
    served = Served(relayed=True, untaken=15_000)
    served.feed(settings(initial_window_size=0))
    for number, name in (1, "1"), (3, "1"), (5, "1"), (7, "2"), (9, ""), (11, ""), (13, ""), (15, "1"):
        served.call(number, SAY, b"%d" % (number % 10) * 10_000, extra=((rpc.CLIENT, name),) if name else ())
    assert [request[:1] for request in served.service.heard] == [b"1", b"3", b"7", b"9", b"1", b"3"]
    await served.gone()
    served = Served(untaken=15_000)
    served.feed(settings(initial_window_size=0))
    for number in (1, 3, 5):
        served.call(number, SAY, b"%d" % (number % 10) * 10_000, extra=((rpc.CLIENT, str(number)),))
    assert len(served.service.heard) == 3 - 1
    await served.gone()


def test_names_of_clients_are_few() -> None:
    names = Names()
    assert [names.take() for _ in range(4)] == [1, 2, 3, 4]
    names.give_back(3)
    names.give_back(2)
    assert [names.take() for _ in range(3)] == [2, 3, 5]


async def test_a_client_that_never_reads_holds_up_its_own_handlers_only() -> None:
    """An endless answer stops at the bounds of the socket and the queue; another connection is served."""
    served = Served()
    served.call(1, TELL, b"x" * 10)
    await turns(10)
    queued = served.link.connection.streams[1].queued
    assert HIGH_WATER < queued < HIGH_WATER + 20_000
    written = len(served.transport.written)
    await turns(10)
    assert (served.link.connection.streams[1].queued, len(served.transport.written)) == (queued, written)
    link, transport = served.connect()
    deliver(link, headers(1) + data(1, grpc(b"hello"), end=True))
    assert [f.kind for f in transport.frames()] == [HEADERS, DATA, HEADERS]
    link.connection_lost(None)
    await served.gone()


@pytest.mark.parametrize("relayed", [False, True], ids=["of a client", "of a gateway"])
async def test_senders_of_megabytes_take_turns(relayed: bool) -> None:
    """A socket may have much more data than was read: once a peer has had its slice of a turn, the others come
    first.
    """
    served = Served(relayed=relayed)
    served.link._lane = slices.Lane(0.0)
    served.call(1, TALK, end=False)
    served.link.data_received(data(1, b"\0" + (1 << 20).to_bytes(4, "big")))
    assert served.transport.reading  # it was little
    served.link.data_received(data(1, bytes(16_380)) * 4)
    assert served.transport.reading is relayed  # a gateway's connection has other clients' calls, too
    await turns()
    assert served.transport.reading
    await served.gone()


async def test_a_large_request_waits_for_a_turn_of_its_own() -> None:
    """It took time to arrive, and decoding and handling it take more: other calls come between."""
    large = b"l" * (server_call.LARGE + 1)
    *most, last = [grpc(large)[at : at + 16_000] for at in range(0, len(large) + 5, 16_000)]
    served = Served()
    served.feed(headers(1))
    for piece in most:
        served.feed(data(1, piece))
        await turns()
    served.feed(data(1, last, end=True), headers(3), data(3, grpc(b"small"), end=True))
    await turns()
    assert served.service.heard == [b"small", large]
    await served.gone()


@pytest.mark.parametrize("apart", [False, True])
async def test_only_a_very_large_message_of_a_stream_waits_for_a_turn(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Write's messages have a megabyte, which is decoded at once; a turn for each would cost more than that."""
    given = asyncio.Event()
    monkeypatch.setattr(server_call, "lane", lambda: SimpleNamespace(turn=given.wait))
    size = server_call.LARGE_PIECE + 1 if apart else server_call.LARGE + 1
    large = b"l" * size
    served = Served()
    served.call(1, TALK, end=False)
    served.feed(*(word(WINDOW_UPDATE, stream, 4 * size) for stream in (0, 1)))  # room for what it answers
    for at in range(0, size + 5, 16_000):
        served.feed(data(1, grpc(large)[at : at + 16_000]))
        await turns()
    await turns(10)
    assert served.service.heard == ([] if apart else [large])
    given.set()
    await turns(10)
    assert served.service.heard == [large]
    await served.gone()


async def test_a_fault_of_the_peer_is_told_before_the_socket_is_closed() -> None:
    """First GOAWAY, then the end of file; later bytes are read and dropped."""
    served = Served()
    served.call(1, TALK, end=False)
    served.feed(data(0, b"x"))
    assert [f.kind for f in served.transport.frames()] == [GOAWAY]
    assert served.transport.eof
    served.feed(b"more" * 1000)
    await served.gone()
    assert not served.transport.written


async def test_a_server_that_stops_drains() -> None:
    """It sends GOAWAY at once, lets running calls end, and then closes the connection."""
    served = Served()
    served.service.wait = True
    served.call(1, SAY, b"hello")
    stopping = asyncio.ensure_future(served.server.close(5.0))
    await turns()
    assert [f.kind for f in served.transport.frames()] == [GOAWAY]
    served.call(3, SAY, b"late")
    assert [(f.kind, f.number()) for f in served.transport.frames()] == [(RST_STREAM, Code.REFUSED_STREAM)]
    served.service.go.set()
    await stopping
    assert [f.kind for f in served.transport.frames()] == [HEADERS, DATA, HEADERS]
    assert served.transport.closed
    await served.gone()


async def test_a_connection_that_cannot_be_looked_at_is_ended_and_the_others_are_looked_at_again() -> None:
    """A defect of ours in one of them would otherwise end the bounds for all."""
    served = Served()
    other, _ = served.connect()
    looks = 0

    def look(now: float) -> None:
        nonlocal looks
        looks += 1

    def fails(now: float) -> None:
        raise ZeroDivisionError("unthought of")

    served.link.sweep, other.sweep = fails, look  # type: ignore[method-assign]
    for _ in range(2):
        served.server._sweep()
        assert served.server._sweeping is not None, "there is no next look"
        served.server._sweeping.cancel()
    assert looks == 2
    assert served.transport.is_closing()
    assert served.server.links == {other}
