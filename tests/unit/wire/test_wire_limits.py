"""services.wire.limits, exactly: at each bound nothing happens, and one beyond it the right error with the right
code.
"""

from __future__ import annotations

import dataclasses
import struct

import pytest

from services.kit import buckets as module
from services.wire import headers as ours
from services.wire.events import Closed, Opened, Pong, Reset
from services.wire.frames import Code
from services.wire.limits import Limits
from tests.wires import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    REQUEST,
    RESPONSE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Wire,
    data,
    headers,
    literal,
    settings,
    word,
)

HEAD, TAIL = ours.block([(b":status", b"200")]), ours.status(0)
PINGS = bytes(Frame(PING, ACK, 0, bytes(8)))


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def over(wire: Wire, *parts: bytes) -> int:
    """Feed one too many; return the code of the GOAWAY."""
    events = wire.feed(*parts)
    assert type(events[-1]) is Closed
    last = wire.sent()[-1]
    assert last.kind == GOAWAY
    return last.number(4)


# ---------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(Limits) if isinstance(field.default, int)]
)
def test_a_limit_of_zero_is_refused(field: str) -> None:
    """The error names the limit."""
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})


def test_windows_and_frames_are_those_of_http2() -> None:
    """They are not smaller than the values that a peer assumes before it has read our SETTINGS, nor larger than can be
    expressed.
    """
    for name in ("window", "window_most", "connection_window"):
        for value in (65534, 1 << 31):
            with pytest.raises(ValueError, match=name):
                Limits(**{name: value})
    for value in (16383, 1 << 24):
        with pytest.raises(ValueError, match="frame"):
            Limits(frame=value)
    with pytest.raises(ValueError, match="window_most"):
        Limits(window=1 << 20, window_most=1 << 19)


# ---------------------------------------------------------------------------------------------- streams


def test_streams_at_once() -> None:
    """One more than allowed is REFUSED_STREAM; the others are served, and so is the next when one has ended."""
    wire = Wire(streams=3)
    streams = [wire.opened(number) for number in (1, 3, 5)]
    assert wire.feed(headers(7)) == []
    assert [(f.kind, f.stream, f.number()) for f in wire.sent()] == [(RST_STREAM, 7, Code.REFUSED_STREAM)]
    wire.connection.send_tail(streams[1], HEAD + TAIL)
    assert type(wire.one(Opened, headers(9))) is Opened


def test_streams_that_are_reset_count_while_their_handlers_run() -> None:
    """Rapid reset (CVE-2023-44487): a stream that is reset takes a place while its handler runs."""
    wire = Wire(streams=2)
    wire.opened(1)
    wire.one(Reset, word(RST_STREAM, 1, 8))
    wire.connection.lingering = 2
    assert wire.feed(headers(3)) == []
    assert wire.sent()[-1].number() == Code.REFUSED_STREAM
    wire.connection.lingering = 1
    wire.one(Opened, headers(5))


def test_rapid_resets(clock: Clock) -> None:
    """A burst is allowed, and a rate per second; then ENHANCE_YOUR_CALM."""
    wire = Wire(resets=10, resets_rate=5)
    number = 1
    for burst in (10, 5):
        for _ in range(burst):
            wire.feed(headers(number), word(RST_STREAM, number, 8))
            number += 2
        assert not wire.connection.closed
        clock.now += 1
    for _ in range(5):
        wire.feed(headers(number), word(RST_STREAM, number, 8))
        number += 2
    assert over(wire, headers(number), word(RST_STREAM, number, 8)) == Code.ENHANCE_YOUR_CALM


def test_a_peer_that_resets_much_is_slowed_before_it_is_ended(clock: Clock) -> None:
    """Later bytes wait in a piece, unread; the time of waiting does not earn the peer more resets."""
    wire = Wire(resets=30, resets_rate=10, resets_slow=10, resets_slow_rate=5)
    flood = b"".join(headers(number) + word(RST_STREAM, number, 8) for number in range(1, 81, 2))
    dealt = [len(wire.feed(flood)) // 2]
    while not wire.connection.closed:
        assert (wire.connection.slowed, wire.connection.more) == (True, True)
        assert wire.feed() == []
        clock.now += 1
        wire.connection.hasten(1)
        dealt.append(len(wire.feed()) // 2)
    assert dealt[:-1] == [11, 6, 6, 6]
    assert wire.sent()[-1].number(4) == Code.ENHANCE_YOUR_CALM
    assert sum(dealt) <= 31


@pytest.mark.parametrize(
    "provocation",
    [
        lambda n: headers(n) + word(WINDOW_UPDATE, n, 0),
        lambda n: headers(n, literal([(":method", "POST")])),
        lambda n: headers(n) + headers(n),
        lambda n: headers(n, end=True) + data(n, b"x"),
    ],
    ids=["window update of 0", "malformed request", "HEADERS twice", "DATA after the end"],
)
def test_resets_that_the_peer_makes_us_send(provocation) -> None:
    """ "MadeYouReset" (CVE-2025-8671): they count as the peer's own."""
    wire = Wire(resets=10)
    for number in range(1, 21, 2):
        wire.feed(provocation(number))
        assert wire.sent()[-1].kind == RST_STREAM
    assert over(wire, provocation(21)) == Code.ENHANCE_YOUR_CALM


def test_a_client_does_not_count_the_resets_of_its_server() -> None:
    """A server may end any number of calls."""
    wire = Wire(client=True, resets=1)
    for _ in range(20):
        stream = wire.connection.open(literal(REQUEST), None)
        wire.one(Reset, word(RST_STREAM, stream.id, 8))


# ---------------------------------------------------------------------------------------------- headers


def test_a_block_of_continuations() -> None:
    """A number of frames is allowed, including empty ones, then ENHANCE_YOUR_CALM, before any decoding
    (CVE-2024-27316).
    """
    block = literal(REQUEST)
    empty = bytes(Frame(CONTINUATION, 0, 1, b""))
    wire = Wire(continuations=5)
    wire.one(Opened, headers(1, block, whole=False), empty * 4, bytes(Frame(CONTINUATION, END_HEADERS, 1, b"")))
    wire.feed(headers(3, block, whole=False), empty.replace(b"\0\0\0\1", b"\0\0\0\3") * 5)
    assert not wire.connection.closed
    assert over(wire, empty.replace(b"\0\0\0\1", b"\0\0\0\3")) == Code.ENHANCE_YOUR_CALM


def test_a_block_of_bytes() -> None:
    """A block at the bound is read; a byte more, in one frame or in many, is ENHANCE_YOUR_CALM."""
    block = literal([*REQUEST, ("x", "v" * 5000)])
    for cut in (100, len(block)):
        for limit in (len(block), len(block) - 1):
            wire = Wire(header_block=limit)
            events = wire.feed(
                headers(1, block[:cut], whole=False), bytes(Frame(CONTINUATION, END_HEADERS, 1, block[cut:]))
            )
            assert [type(event) for event in events] == [Opened if limit == len(block) else Closed]
            if limit < len(block):
                assert wire.sent()[-1].number(4) == Code.ENHANCE_YOUR_CALM


def test_a_frame_of_headers_beyond_the_block_is_not_even_waited_for() -> None:
    """Its length alone decides."""
    wire = Wire(header_block=1000)
    assert over(wire, headers(1, bytes(2000))[:9]) == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("fields", [[("x", "v" * 3000)], [("a", "b")] * 60])
def test_a_header_list_over_its_bounds(fields: list[tuple[str, str]]) -> None:
    """Too many bytes or fields are ENHANCE_YOUR_CALM for the connection, since the two tables would differ from then
    on.
    """
    wire = Wire(header_list=3000, header_count=60)
    assert over(wire, headers(1, literal([*REQUEST, *fields]))) == Code.ENHANCE_YOUR_CALM


def test_endless_headers_keep_no_more_than_a_block() -> None:
    """A peer never sends END_HEADERS: the memory is bounded until the connection is ended."""
    wire = Wire()
    wire.feed(headers(1, bytes(16384), whole=False))
    most = 0
    while not wire.connection.closed:
        most = max(most, len(wire.connection._block or b""))
        wire.feed(bytes(Frame(CONTINUATION, 0, 1, bytes(16384))))
    assert most <= Limits().header_block


# ---------------------------------------------------------------------------------------------- frames that bring
# nothing


@pytest.mark.parametrize(
    "frame",
    [
        bytes(Frame(PING, 0, 0, bytes(8))),
        PINGS,
        settings(),
        bytes(Frame(SETTINGS, ACK, 0, b"")),
        bytes(Frame(PRIORITY, 0, 1, bytes(5))),
        word(WINDOW_UPDATE, 1, 1),
        word(WINDOW_UPDATE, 0, 1),
        data(1),
        data(1, b"", pad=3),
        bytes(Frame(99, 0, 0, b"x")),
        bytes(Frame(GOAWAY, 0, 0, bytes(8))),
        word(RST_STREAM, 3, 8),
        data(3, b"x"),
        settings(max_frame_size=16384),
    ],
    ids=[
        "PING",
        "PING ACK",
        "SETTINGS",
        "SETTINGS ACK",
        "PRIORITY",
        "WINDOW_UPDATE",
        "WINDOW_UPDATE of the connection",
        "empty DATA",
        "only padding",
        "unknown",
        "GOAWAY",
        "RST_STREAM of a dead stream",
        "DATA after the end of a dead stream",
        "SETTINGS of no news",
    ],
)
def test_frames_that_bring_nothing(frame: bytes, clock: Clock) -> None:
    """A burst is allowed, and a rate per second; then ENHANCE_YOUR_CALM."""
    wire = Wire(idle_frames=50, idle_frames_rate=10, idle_frames_earned=1)
    wire.opened(1)
    wire.connection.reset(wire.opened(3, end=True), Code.CANCEL)
    wire.feed(frame * 50)
    clock.now += 1
    wire.feed(frame * 10)
    assert not wire.connection.closed
    assert over(wire, frame) == Code.ENHANCE_YOUR_CALM


def test_many_settings_in_one_frame_count_each() -> None:
    """Each causes work, however they are packed."""
    wire = Wire(idle_frames=50)
    many = bytes(Frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 70000) * 50))
    wire.feed(many)
    assert not wire.connection.closed
    assert over(wire, many) == Code.ENHANCE_YOUR_CALM


def test_the_work_for_a_new_initial_window_is_limited() -> None:
    """It changes each stream's window: with many streams, a few a second are as much work as hundreds of pings."""
    wire = Wire(idle_frames=100, idle_frames_rate=1, idle_frames_earned=1, streams=2000)
    for number in range(1, 4001, 2):
        wire.opened(number)
    changed = 0
    while not wire.connection.closed:
        wire.feed(settings(initial_window_size=100_000 + changed))
        changed += 1
    assert 5 <= changed < 20
    assert wire.sent()[-1].number(4) == Code.ENHANCE_YOUR_CALM


def test_data_that_was_under_way_when_its_stream_was_reset() -> None:
    """As many bytes as the stream's window had left are free, in frames as small as the sender makes them; later frames
    count as useless.
    """
    wire = Wire(idle_frames=5, idle_frames_rate=1, idle_frames_earned=1, window=65535)
    stream = wire.opened(1)
    wire.feed(data(1, b"x" * 15535))
    wire.connection.reset(stream, Code.CANCEL)
    wire.feed(*[data(1, b"x" * 50)] * 1000)
    assert not wire.connection.closed
    wire.feed(*[data(1, b"x")] * 5)
    assert over(wire, data(1, b"x")) == Code.ENHANCE_YOUR_CALM


def test_a_frame_of_an_answer_allows_for_some_that_bring_nothing() -> None:
    """grpc-go sends two for each small one, a window update and a ping; grpcio sends two window updates. Peers that
    send much more than that are ended.
    """
    wire = Wire(idle_frames=5, idle_frames_rate=1, idle_frames_earned=4)
    stream = wire.opened(1, end=True)
    for _ in range(500):
        wire.connection.send(stream, b"small")
        wire.feed(word(WINDOW_UPDATE, 0, 5), bytes(Frame(PING, 0, 0, bytes(8))))
    assert not wire.connection.closed
    rounds = 0
    while not wire.connection.closed:
        rounds += 1
        wire.connection.send(stream, b"small")
        wire.feed(bytes(Frame(PING, 0, 0, bytes(8))) * 5)
    assert 10 <= rounds <= 25
    assert wire.sent()[-1].number(4) == Code.ENHANCE_YOUR_CALM


def test_a_call_allows_for_some_frames_that_bring_nothing() -> None:
    """grpcio sends two window updates with each call, and a reset if the call has been answered meanwhile."""
    wire = Wire(idle_frames=5, idle_frames_rate=1, idle_frames_earned=4)
    for number in range(1, 1001, 2):
        wire.feed(
            headers(number),
            word(WINDOW_UPDATE, number, 5),
            word(WINDOW_UPDATE, 0, 5),
            word(RST_STREAM, number, 8),
            word(RST_STREAM, number, 8),
        )
    assert not wire.connection.closed


def test_a_frame_of_an_answer_allows_for_one_that_brings_nothing() -> None:
    """A reader that acknowledges all that it reads is not ended, however small the allowance is."""
    wire = Wire(
        idle_frames=5,
        idle_frames_rate=1,
        idle_frames_earned=1,
        hello=settings(initial_window_size=8000) + word(WINDOW_UPDATE, 0, 1 << 30),
    )
    stream = wire.opened(1, end=True)
    for _ in range(500):
        wire.connection.send(stream, b"x" * 8000)
        wire.feed(word(WINDOW_UPDATE, 1, 8000))
        wire.connection.send(stream, b"small")
        wire.feed(word(WINDOW_UPDATE, 1, 5))
    assert not wire.connection.closed


def test_a_large_frame_allows_for_more_that_bring_nothing() -> None:
    """grpc-go behind Go's net/http, as etcd is with TLS, takes frames of 256 KiB, and sends two window updates for each
    16 KiB that it has read: 148 for a request of 1 MB.
    """
    wire = Wire(
        idle_frames=100,
        idle_frames_rate=1,
        idle_frames_earned=4,
        hello=settings(max_frame_size=1 << 20, initial_window_size=1 << 20) + word(WINDOW_UPDATE, 0, 1 << 30),
    )
    stream = wire.opened(1, end=True)
    for _ in range(50):
        wire.connection.send(stream, bytes(1_000_000))
        wire.feed(*[word(WINDOW_UPDATE, 1, 13_500), word(WINDOW_UPDATE, 0, 13_500)] * 74, word(WINDOW_UPDATE, 1, 1000))
    assert not wire.connection.closed
    wire.feed(*[word(WINDOW_UPDATE, 0, 1)] * 2000)
    assert wire.sent()[-1].number(4) == Code.ENHANCE_YOUR_CALM


def test_tiny_windows() -> None:
    """A peer that takes an answer byte by byte (CVE-2019-9511) makes us write a frame for each byte: those frames add
    no allowance.
    """
    wire = Wire(idle_frames=50, idle_frames_rate=1, idle_frames_earned=1, hello=settings(initial_window_size=0))
    stream = wire.opened(1, end=True)
    wire.connection.send(stream, b"x" * 100_000)
    wire.feed(word(WINDOW_UPDATE, 1, 1) * 50)
    assert not wire.connection.closed
    assert [len(f.payload) for f in wire.sent() if f.kind == DATA] == [1] * 50
    assert over(wire, word(WINDOW_UPDATE, 1, 1)) == Code.ENHANCE_YOUR_CALM


# ---------------------------------------------------------------------------------------------- windows and frames of
# the peer


def test_the_window_of_a_stream() -> None:
    """It can be used to its last byte; one more is FLOW_CONTROL_ERROR for the stream, and padding counts."""
    for last, good in ((data(1, b"x"), True), (data(1, b"xx"), False), (data(1, b"x", pad=0), False)):
        wire = Wire(window=65535)
        wire.opened(1)
        wire.feed(*[data(1, b"x" * 16000)] * 4, data(1, b"x" * 1534))
        wire.sent()
        wire.feed(last)
        assert [f.number() for f in wire.sent() if f.kind == RST_STREAM] == ([] if good else [Code.FLOW_CONTROL_ERROR])
        assert not wire.connection.closed


def test_the_window_of_the_connection() -> None:
    """Bytes beyond it end the connection."""
    wire = Wire()
    wire.opened(1)
    wire.connection._receive_window = 10
    # not given back meanwhile
    wire.connection.limits = dataclasses.replace(wire.connection.limits, connection_window=1 << 30)
    wire.feed(data(1, b"0123456789"))
    assert over(wire, data(1, b"x")) == Code.FLOW_CONTROL_ERROR


def test_the_size_of_a_frame() -> None:
    """It is HTTP/2's 16 KiB until a peer has sent more than half a window; then it is the limit's, to the byte."""
    assert over(Wire(), data(1, bytes(16385))[:9]) == Code.FRAME_SIZE_ERROR
    for more, good in ((0, True), (1, False)):
        wire = Wire(frame=20_000)
        stream = wire.opened(1)
        for _ in range(4):
            wire.feed(data(1, bytes(16384)))
            wire.connection.consumed(stream, 16384)
        assert struct.pack(">HI", 5, 20_000) in [f.payload for f in wire.sent() if f.kind == SETTINGS]
        wire.feed(data(1, bytes(20_000 + more)))
        assert wire.connection.closed is not good


# ---------------------------------------------------------------------------------------------- nobody else notices


def test_a_stream_at_fault_is_no_other_streams_business() -> None:
    """The other streams go on, with all of their windows and the connection's."""
    wire = Wire(resets=1000)
    good = wire.opened(1)
    for number in range(3, 1003, 2):
        wire.feed(headers(number), data(number, b"x" * 10_000), word(WINDOW_UPDATE, number, 0))
    assert wire.connection._receive_window >= Limits().connection_window // 2
    wire.sent()
    wire.feed(data(1, b"still here", end=True))
    wire.connection.answer(good, HEAD, b"so am I", TAIL)
    assert [f.kind for f in wire.sent()] == [HEADERS, DATA, HEADERS]
    assert type(wire.one(Pong, PINGS)) is Pong
    assert list(wire.connection.streams) == []


def test_a_client_reads_what_a_server_may_say() -> None:
    """The same bounds hold for a server's answers: its header lists, its blocks, its windows."""
    wire = Wire(client=True, header_list=3000)
    wire.connection.open(literal(REQUEST), None)
    assert over(wire, headers(1, literal([*RESPONSE, ("x", "v" * 3000)]))) == Code.ENHANCE_YOUR_CALM
