"""services.wire.connection: HTTP/2's rules, with one peer at a time and no socket."""

from __future__ import annotations

import struct

import pytest

from services.wire import headers as ours
from services.wire.events import Closed, Data, Drained, GoingAway, Opened, Pong, Ready, Reset, Trailers
from services.wire.frames import Code
from services.wire.limits import Limits
from tests.wires import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    REQUEST,
    RESPONSE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Pipe,
    Wire,
    data,
    grpc,
    headers,
    literal,
    settings,
    word,
)

HEAD, TAIL = ours.block([(b":status", b"200")]), ours.status(0)


def closed(wire: Wire, *parts: bytes) -> int:
    """Feed bytes that end the connection; return its code, and check that GOAWAY is the last frame."""
    events = wire.feed(*parts)
    assert type(events[-1]) is Closed
    last = wire.sent()[-1]
    assert (last.kind, last.number(4)) == (GOAWAY, events[-1].code)
    assert wire.feed(bytes(Frame(PING, 0, 0, b"12345678"))) == []
    assert wire.sent() == []
    return int(events[-1].code)


def reset(wire: Wire, *parts: bytes) -> int:
    """Feed bytes that end a stream only; return its code."""
    wire.feed(*parts)
    found = [frame for frame in wire.sent() if frame.kind == RST_STREAM]
    assert len(found) == 1
    assert type(wire.one(Pong, bytes(Frame(PING, ACK, 0, b"are you?")))) is Pong
    return found[0].number()


# ---------------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("client", [False, True])
def test_each_side_begins_with_settings_and_the_connection_window(client: bool) -> None:
    """Preface (a client), SETTINGS with our limits, WINDOW_UPDATE up to the connection's window."""
    wire = Wire(client=client)
    first, second = wire.greeting
    values = dict(struct.iter_unpack(">HI", first.payload))
    assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
    limits = Limits()
    assert values == {4: limits.window, 6: limits.header_list} | ({2: 0} if client else {3: limits.streams})
    assert (second.kind, second.stream, second.number()) == (WINDOW_UPDATE, 0, limits.connection_window - 65535)


def test_settings_are_acknowledged_and_the_first_are_told() -> None:
    """Ready is reported once; each SETTINGS is acknowledged."""
    wire = Wire(hello=b"")
    wire.one(Ready, settings())
    assert wire.feed(settings(max_frame_size=16384)) == []
    assert [frame for frame in wire.sent() if frame.kind == SETTINGS] == [Frame(SETTINGS, ACK, 0, b"")] * 2


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"P", b"PRI * HTTP/2.0\r\n\r\nSX"])
def test_a_wrong_preface_is_refused(first: bytes) -> None:
    """The connection ends as soon as a byte differs from the preface; an incomplete preface is waited for."""
    wire = Wire(hello=b"")
    wire.connection._preface = True
    events = wire.feed(first)
    assert [type(event) for event in events] == ([] if PREFACE.startswith(first) else [Closed])


def test_the_first_frame_is_settings() -> None:
    """Anything else before them is a PROTOCOL_ERROR."""
    assert closed(Wire(hello=b""), bytes(Frame(PING, 0, 0, bytes(8)))) == Code.PROTOCOL_ERROR


def test_any_cut_of_the_bytes_means_the_same() -> None:
    """A whole conversation in pieces of every size from one byte up gives the same calls."""

    def conversation(piece: int) -> tuple[list[str], bytes, bytes]:
        pipe = Pipe(piece=piece)
        stream = pipe.client.open(ours.block([(k.encode(), v.encode()) for k, v in REQUEST]), None)
        pipe.client.send(stream, b"question" * 40, end=True)
        _, told = pipe.turn()
        served = told[0].stream
        asked = b"".join(bytes(e.chunk) for e in told if type(e) is Data)
        pipe.server.answer(served, HEAD, b"answer" * 50, TAIL)
        told, _ = pipe.turn()
        answered = b"".join(bytes(e.chunk) for e in told if type(e) is Data)
        return [type(e).__name__ for e in pipe.client_events if type(e) is not Data], asked, answered

    whole = conversation(0)
    assert whole == (["Ready", "Opened", "Trailers"], b"question" * 40, b"answer" * 50)
    for piece in range(1, 40):
        assert conversation(piece) == whole


def test_equal_frames_that_came_together_are_one_piece() -> None:
    """As of a message of grpc-go, which comes in frames of 16 KiB. Each counts against the windows, and against the
    frames of a turn; the last, and one that is cut, come alone.
    """
    wire = Wire()
    wire.feed(headers(1))
    connection = wire.connection
    stream = connection.streams[1]
    frame, rest = data(1, b"x" * 1000), data(1, b"y" * 10, end=True)
    whole = frame * 7 + rest
    events = wire.feed(whole[: 5 * len(frame) + 100])
    assert [(len(e.chunk), e.end) for e in events if type(e) is Data] == [(5000, False), (91, False)]
    assert stream.receive_window == Limits().window - 6000
    events = wire.feed(whole[5 * len(frame) + 100 :])
    assert [(len(e.chunk), e.end) for e in events if type(e) is Data] == [(909, False), (1000, False), (10, True)]

    wire.feed(headers(3))
    told = connection.receive(data(3, b"z" * 100) * 10, 4)
    assert [len(e.chunk) for e in told if type(e) is Data] == [400]
    assert connection.more
    told = connection.receive(b"", 4)
    assert [len(e.chunk) for e in told if type(e) is Data] == [400]


def test_a_turn_begins_few_calls() -> None:
    """A call is as much work as many frames, and its handler runs at once. The rest come in the next turns, in order."""
    connection = Wire().connection
    told = connection.receive(
        b"".join(headers(number) + data(number, b"x", end=True) for number in range(1, 41, 2)), 16
    )
    begun = [event.stream.id for event in told if type(event) is Opened]
    assert 1 <= len(begun) <= 4
    while connection.more:
        told = connection.receive(b"", 16)
        begun += [event.stream.id for event in told if type(event) is Opened]
    assert begun == [*range(1, 41, 2)]


def test_equal_frames_beyond_a_window_are_a_fault() -> None:
    """Those within it come first."""
    wire = Wire()
    wire.feed(headers(1))
    wire.connection.streams[1].receive_window = 2500
    events = wire.feed(data(1, b"x" * 1000) * 4)
    assert [len(e.chunk) for e in events if type(e) is Data] == [2000]
    assert [frame.number() for frame in wire.sent() if frame.kind == RST_STREAM] == [Code.FLOW_CONTROL_ERROR]


# ---------------------------------------------------------------------------------------------- a call


def test_a_call_from_end_to_end() -> None:
    """Head, data both ways, trailers; afterwards neither side holds the stream."""
    pipe = Pipe()
    stream = pipe.client.open(ours.block([(k.encode(), v.encode()) for k, v in REQUEST]), "caller")
    pipe.client.send(stream, grpc(b"one"), end=False)
    _, served = pipe.turn()
    assert [type(e) for e in served] == [Opened, Data]
    assert served[0].head.path == "/splitd.Test/Say"
    assert not served[0].end
    pipe.client.send(stream, end=True)
    _, heard = pipe.turn()
    assert [(type(e), e.end) for e in heard] == [(Data, True)]
    pipe.server.send_head(served[0].stream, HEAD)
    pipe.server.send(served[0].stream, grpc(b"two"))
    pipe.server.send_tail(served[0].stream, TAIL)
    told, _ = pipe.turn()
    assert [type(e) for e in told] == [Opened, Data, Trailers]
    assert told[0].stream.owner == "caller"
    assert told[2].head.code == 0
    assert not pipe.client.streams
    assert not pipe.server.streams


@pytest.mark.parametrize("obstacle", ["none", "blocked", "window", "connection window", "prefix", "half open"])
def test_an_answer_in_one_go_means_what_its_parts_mean(obstacle: str) -> None:
    """answer() writes head, message and trailers at once if possible; if it is not, the client still reads the same."""
    seen = []
    for parts in (False, True):
        wire = Wire(
            hello=settings(initial_window_size=10)
            if obstacle == "window"
            else settings(header_table_size=0)
            if obstacle == "prefix"
            else None
        )
        stream = wire.opened(1, end=obstacle != "half open")
        if obstacle == "blocked":
            wire.connection.block()
        if obstacle == "connection window":
            wire.connection._send_window = 7
        if parts:
            wire.connection.send_head(stream, HEAD)
            wire.connection.send(stream, b"x" * 100)
            wire.connection.send_tail(stream, TAIL)
        else:
            wire.connection.answer(stream, HEAD, b"x" * 100, TAIL)
        got = wire.sent()
        if obstacle == "blocked":
            wire.connection.unblock()
        wire.feed(word(WINDOW_UPDATE, 0, 1000), b"" if obstacle == "half open" else word(WINDOW_UPDATE, 1, 1000))
        got += wire.sent()
        assert not wire.connection.streams
        seen.append([(f.kind, f.flags, f.stream, f.payload if f.kind != DATA else len(f.payload)) for f in got])
    assert seen[0] == seen[1]
    kinds = [kind for kind, *_ in seen[0] if kind != DATA]
    assert kinds == [HEADERS, HEADERS] + [RST_STREAM] * (obstacle == "half open")


def test_trailers_wait_behind_the_data_that_is_queued() -> None:
    """With a window of 3, ten bytes go out in four pieces, and the trailers after them."""
    wire = Wire(hello=settings(initial_window_size=3))
    stream = wire.opened(1, end=True)
    wire.connection.send_head(stream, HEAD)
    wire.connection.send(stream, b"0123456789")
    wire.connection.send_tail(stream, TAIL)
    got = wire.sent()
    assert [f.payload for f in got if f.kind == DATA] == [b"012"]
    for want in (b"345", b"678", b"9"):
        wire.feed(word(WINDOW_UPDATE, 1, 3))
        got = wire.sent()
        assert got[0].payload == want
    assert (got[1].kind, got[1].flags) == (HEADERS, END_STREAM | END_HEADERS)
    assert not wire.connection.streams


def test_settings_are_acknowledged_before_the_data_that_they_let_go() -> None:
    """A peer that counts its window from the acknowledgement on must not see that data before it; of two values in one
    frame the last counts.
    """
    wire = Wire(hello=settings(initial_window_size=0))
    streams = [wire.opened(number, end=True) for number in (1, 3)]
    for stream in streams:
        wire.connection.send_head(stream, HEAD)
        wire.connection.send(stream, b"0123456789")
    wire.sent()
    wire.feed(bytes(Frame(SETTINGS, 0, 0, struct.pack(">HIHI", 4, 5, 4, 3))))
    assert [(f.kind, f.stream, f.payload) for f in wire.sent()] == [
        (SETTINGS, 0, b""),
        (DATA, 1, b"012"),
        (DATA, 3, b"012"),
    ]


def test_the_end_goes_on_the_last_data() -> None:
    """END_STREAM needs no frame of its own if there is data to carry it."""
    pipe = Pipe()
    stream = pipe.client.open(literal(REQUEST), None)
    pipe.client.send(stream, b"a", b"bc", end=True)
    _, served = pipe.turn()
    assert [(bytes(e.chunk), e.end) for e in served[1:]] == [(b"abc", True)]


def test_nothing_goes_after_the_end_that_is_queued() -> None:
    """Data that is sent after the end of its stream is dropped, even while the end still waits for a window."""
    wire = Wire(hello=settings(initial_window_size=2))
    stream = wire.opened(1, end=True)
    wire.connection.send_head(stream, HEAD)
    wire.connection.send(stream, b"1234")
    wire.connection.send_tail(stream, TAIL)
    wire.connection.send(stream, b"late", end=True)
    wire.connection.send_tail(stream, TAIL)
    wire.feed(word(WINDOW_UPDATE, 1, 100))
    assert [(f.kind, f.payload) for f in wire.sent()[1:]] == [(DATA, b"12"), (DATA, b"34"), (HEADERS, TAIL)]


def test_a_response_before_the_end_of_the_request_ends_the_stream() -> None:
    """The answer is complete, so the rest of the request is not needed: RST_STREAM NO_ERROR, and later frames of it are
    ignored.
    """
    wire = Wire()
    stream = wire.opened(1)
    wire.connection.send_tail(stream, HEAD + TAIL)
    assert [(f.kind, f.number() if f.kind == RST_STREAM else 0) for f in wire.sent()] == [
        (HEADERS, 0),
        (RST_STREAM, Code.NO_ERROR),
    ]
    assert wire.feed(data(1, b"late"), data(1, b"later", end=True)) == []
    assert wire.sent() == []


def test_informational_responses_are_passed_over() -> None:
    """100 Continue is no answer; with END_STREAM it is a protocol error."""
    wire = Wire(client=True)
    wire.connection.open(literal(REQUEST), None)
    assert wire.feed(headers(1, literal([(":status", "100")]))) == []
    assert wire.one(Opened, headers(1, literal(RESPONSE))).head.status == 200
    wire.connection.open(literal(REQUEST), None)
    wire.sent()
    assert reset(wire, headers(3, literal([(":status", "103")]), end=True)) == Code.PROTOCOL_ERROR


# ---------------------------------------------------------------------------------------------- padding, priorities,
# CONTINUATION


def test_padding_is_dropped_wherever_the_bytes_are_cut() -> None:
    """Padded DATA is between other frames: the padding is no content, and the next frame is read from the right
    place.
    """
    sequence = (
        headers(1)
        + data(1, b"one", pad=40)
        + data(1, b"", pad=12)
        + data(1, b"two")
        + data(1, b"three", pad=0)
        + data(1, b"", pad=9, end=True)
    )
    for cut in range(len(sequence)):
        wire = Wire()
        events = wire.feed(sequence[:cut]) + wire.feed(sequence[cut:])
        assert b"".join(bytes(e.chunk) for e in events if type(e) is Data) == b"onetwothree"
        assert events[-1].end
        assert type(wire.one(Pong, bytes(Frame(PING, ACK, 0, bytes(8))))) is Pong


def test_padding_counts_against_the_windows_and_is_given_back() -> None:
    """A stream that carries only padding never runs out of its window."""
    wire = Wire()
    stream = wire.opened(1)
    for _ in range(600):
        wire.feed(data(1, b"x", pad=255))
        wire.connection.consumed(stream, 1)
    assert stream.receive_window > 0
    assert not wire.connection.closed
    assert wire.connection.streams


@pytest.mark.parametrize("payload", [b"\x05abcd", b"\x01"])
def test_padding_longer_than_its_frame_ends_the_connection(payload: bytes) -> None:
    """For DATA and for HEADERS: PROTOCOL_ERROR."""
    assert closed(Wire(), headers(1), bytes(Frame(DATA, PADDED, 1, payload))) == Code.PROTOCOL_ERROR
    assert closed(Wire(), bytes(Frame(HEADERS, PADDED | END_HEADERS, 1, payload))) == Code.PROTOCOL_ERROR


@pytest.mark.parametrize("kind", [DATA, HEADERS])
def test_padding_without_its_length_is_a_frame_size_error(kind: int) -> None:
    """A padded frame has at least one byte."""
    assert (
        closed(Wire(), headers(1), bytes(Frame(kind, PADDED | END_HEADERS, 3 if kind == HEADERS else 1, b"")))
        == Code.FRAME_SIZE_ERROR
    )


def test_headers_with_padding_and_priority() -> None:
    """Both are skipped, and the request is read."""
    wire = Wire()
    block = literal(REQUEST)
    event = wire.one(
        Opened,
        bytes(
            Frame(
                HEADERS, PADDED | PRIORITIZED | END_HEADERS, 1, b"\x03" + struct.pack(">IB", 0, 16) + block + bytes(3)
            )
        ),
    )
    assert event.head.path == "/splitd.Test/Say"
    assert closed(wire, bytes(Frame(HEADERS, PRIORITIZED | END_HEADERS, 3, b"\0\0\0"))) == Code.FRAME_SIZE_ERROR


def test_a_block_in_pieces_is_read_as_one() -> None:
    """HEADERS and CONTINUATIONs, cut anywhere; END_STREAM is that of the HEADERS."""
    block = literal(REQUEST)
    for cut in range(len(block) + 1):
        wire = Wire()
        event = wire.one(
            Opened,
            headers(1, block[:cut], end=True, whole=False),
            bytes(Frame(CONTINUATION, 0, 1, block[cut:])),
            bytes(Frame(CONTINUATION, END_HEADERS, 1, b"")),
        )
        assert event.end
        assert event.head.path == "/splitd.Test/Say"


@pytest.mark.parametrize(
    "between",
    [
        bytes(Frame(PING, 0, 0, bytes(8))),
        data(1, b""),
        headers(3),
        bytes(Frame(CONTINUATION, END_HEADERS, 3, b"")),
        bytes(Frame(77, 0, 0, b"unknown")),
    ],
)
def test_a_block_is_not_interrupted(between: bytes) -> None:
    """Not even by an unknown frame: PROTOCOL_ERROR for the connection."""
    assert closed(Wire(), headers(1, literal(REQUEST), whole=False), between) == Code.PROTOCOL_ERROR


def test_continuation_of_nothing() -> None:
    """PROTOCOL_ERROR, also right after a complete block."""
    assert closed(Wire(), headers(1), bytes(Frame(CONTINUATION, END_HEADERS, 1, b""))) == Code.PROTOCOL_ERROR


def test_our_own_long_blocks_are_continued() -> None:
    """A block above the peer's frame size goes out in CONTINUATIONs, and another Connection reads it."""
    pipe = Pipe(server=Limits(header_list=64 << 10))
    value = b"v" * 40_000
    pipe.client.open(ours.block([(k.encode(), v.encode()) for k, v in REQUEST] + [(b"long", value)]), None)
    _, served = pipe.turn()
    assert served[0].head.headers["long"] == value.decode()


# ---------------------------------------------------------------------------------------------- frames out of place


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (data(0, b"x"), Code.PROTOCOL_ERROR),
        (headers(0), Code.PROTOCOL_ERROR),
        (headers(2), Code.PROTOCOL_ERROR),
        (bytes(Frame(PRIORITY, 0, 0, bytes(5))), Code.PROTOCOL_ERROR),
        (bytes(Frame(PRIORITY, 0, 9, bytes(4))), Code.FRAME_SIZE_ERROR),
        (word(RST_STREAM, 0, 0), Code.PROTOCOL_ERROR),
        (word(RST_STREAM, 5, 0), Code.PROTOCOL_ERROR),
        (word(RST_STREAM, 2, 0), Code.PROTOCOL_ERROR),
        (bytes(Frame(RST_STREAM, 0, 1, bytes(3))), Code.FRAME_SIZE_ERROR),
        (bytes(Frame(SETTINGS, 0, 1, b"")), Code.PROTOCOL_ERROR),
        (bytes(Frame(SETTINGS, 0, 0, bytes(5))), Code.FRAME_SIZE_ERROR),
        (bytes(Frame(SETTINGS, ACK, 0, bytes(6))), Code.FRAME_SIZE_ERROR),
        (settings(initial_window_size=1 << 31), Code.FLOW_CONTROL_ERROR),
        (settings(max_frame_size=16383), Code.PROTOCOL_ERROR),
        (settings(max_frame_size=1 << 24), Code.PROTOCOL_ERROR),
        (settings(enable_push=2), Code.PROTOCOL_ERROR),
        (bytes(Frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4))), Code.PROTOCOL_ERROR),
        (bytes(Frame(PING, 0, 1, bytes(8))), Code.PROTOCOL_ERROR),
        (bytes(Frame(PING, 0, 0, bytes(7))), Code.FRAME_SIZE_ERROR),
        (bytes(Frame(GOAWAY, 0, 1, bytes(8))), Code.PROTOCOL_ERROR),
        (bytes(Frame(GOAWAY, 0, 0, bytes(7))), Code.FRAME_SIZE_ERROR),
        (word(WINDOW_UPDATE, 0, 0), Code.PROTOCOL_ERROR),
        (word(WINDOW_UPDATE, 7, 1), Code.PROTOCOL_ERROR),
        (word(WINDOW_UPDATE, 0, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
        (bytes(Frame(WINDOW_UPDATE, 0, 0, bytes(3))), Code.FRAME_SIZE_ERROR),
        (data(9, b"idle"), Code.PROTOCOL_ERROR),
        (bytes(Frame(PING, 0, 0, bytes(16385))), Code.FRAME_SIZE_ERROR),
    ],
    ids=str,
)
def test_faults_that_end_the_connection(frame: bytes, code: Code) -> None:
    """Each has RFC 9113's code, while a call is open."""
    assert closed(Wire(), headers(1), frame) == code


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (word(WINDOW_UPDATE, 1, 0), Code.PROTOCOL_ERROR),
        (word(WINDOW_UPDATE, 1, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
        (bytes(Frame(PRIORITY, 0, 1, bytes(4))), Code.FRAME_SIZE_ERROR),
        (bytes(Frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 0))), Code.PROTOCOL_ERROR),
        (headers(1), Code.PROTOCOL_ERROR),
        (headers(1, literal([(":path", "/")]), end=True), Code.PROTOCOL_ERROR),
        (data(1, b"", end=True) + data(1, b"x"), Code.STREAM_CLOSED),
        (data(1, b"", end=True) + headers(1, literal(OK), end=True), Code.STREAM_CLOSED),
        (headers(3, literal([(":method", "POST")])), Code.PROTOCOL_ERROR),
        (headers(3, literal([*REQUEST, ("connection", "close")])), Code.PROTOCOL_ERROR),
        (headers(3, literal([*REQUEST, ("content-length", "5")]), end=True), Code.PROTOCOL_ERROR),
        (headers(3, literal([*REQUEST, ("content-length", "5")])) + data(3, b"123456"), Code.PROTOCOL_ERROR),
        (headers(3, literal([*REQUEST, ("content-length", "5")])) + data(3, b"1234", end=True), Code.PROTOCOL_ERROR),
        (
            headers(3, literal([*REQUEST, ("content-length", "5")]))
            + data(3, b"1234")
            + headers(3, literal(OK), end=True),
            Code.PROTOCOL_ERROR,
        ),
        (headers(3, literal([*REQUEST, ("content-length", "-5")])), Code.PROTOCOL_ERROR),
    ],
    ids=str,
)
def test_faults_that_end_a_stream_only(frame: bytes, code: Code) -> None:
    """Each with its code, and the connection goes on."""
    wire = Wire()
    wire.feed(headers(1))
    wire.sent()
    assert reset(wire, frame) == code


def test_a_stream_below_the_highest_is_not_idle_and_was_never_open() -> None:
    """A client that opens stream 5 has closed 3: HEADERS on it end the connection."""
    assert closed(Wire(), headers(5), headers(3)) == Code.PROTOCOL_ERROR


def test_headers_on_a_stream_that_is_closed() -> None:
    """Both sides have ended it: STREAM_CLOSED, for the connection."""
    wire = Wire()
    wire.connection.send_tail(wire.opened(1, end=True), HEAD + TAIL)
    assert closed(wire, headers(1)) == Code.STREAM_CLOSED


def test_data_on_a_stream_that_is_closed_is_answered_once() -> None:
    """RST_STREAM STREAM_CLOSED; later frames of the stream are ignored."""
    for client in (False, True):
        wire = Wire(client=client)
        if client:
            wire.connection.send(wire.connection.open(literal(REQUEST), None), end=True)
            wire.feed(headers(1, literal(RESPONSE), end=True))
        else:
            wire.connection.send_tail(wire.opened(1, end=True), HEAD + TAIL)
        wire.sent()
        assert wire.feed(*[data(1, b"x")] * 20) == []
        assert [(f.kind, f.number()) for f in wire.sent()] == [(RST_STREAM, Code.STREAM_CLOSED)]


def test_frames_in_flight_for_streams_that_we_reset_are_ignored() -> None:
    """DATA, trailers, WINDOW_UPDATE, RST_STREAM and PRIORITY are ignored, for as many streams as may be open at
    once.
    """
    wire = Wire(streams=2000, resets=100, idle_frames=100_000)
    for number in range(1, 4001, 2):
        wire.connection.reset(wire.opened(number), Code.CANCEL)
    wire.sent()
    for number in range(1, 4001, 2):
        assert (
            wire.feed(
                data(number, b"late"),
                word(WINDOW_UPDATE, number, 5),
                headers(number, literal(OK), end=True),
                word(RST_STREAM, number, 8),
                bytes(Frame(PRIORITY, 0, number, bytes(5))),
            )
            == []
        )
    assert wire.sent() == []


def test_the_bytes_of_a_frame_whose_stream_is_reset_meanwhile_are_dropped() -> None:
    """The reset comes between two parts of one DATA frame: the rest of it is dropped, and the next frame is found."""
    wire = Wire()
    stream = wire.opened(1)
    frame = data(1, b"x" * 100, pad=7)
    assert len(wire.feed(frame[:50])) == 1
    wire.connection.reset(stream, Code.CANCEL)
    assert wire.feed(frame[50:]) == []
    wire.one(Opened, headers(3))


def test_a_header_block_of_a_dead_stream_still_changes_the_tables() -> None:
    """Its fields go to the dynamic table, and a later block may refer to them."""
    wire = Wire()
    wire.connection.reset(wire.opened(1), Code.CANCEL)
    wire.feed(headers(1, wire.encoder.encode([("grpc-status", "0"), ("kept", "in the table")]), end=True))
    event = wire.one(Opened, headers(3, wire.encoder.encode([*REQUEST, ("kept", "in the table")])))
    assert event.head.headers["kept"] == "in the table"


def test_unknown_frames_are_skipped() -> None:
    """They may have any length, be on any stream, and be cut anywhere."""
    sequence = bytes(Frame(200, 255, 99, b"?" * 3000)) + headers(1) + bytes(Frame(11, 0, 1, b"")) + data(1, b"x")
    for step in (1, 10, len(sequence)):
        wire = Wire()
        events = [event for at in range(0, len(sequence), step) for event in wire.feed(sequence[at : at + step])]
        assert [type(event) for event in events] == [Opened, Data]


def test_pings_are_answered_and_answers_told() -> None:
    """With the same eight bytes."""
    wire = Wire()
    wire.feed(bytes(Frame(PING, 0, 0, b"12345678")))
    assert wire.sent() == [Frame(PING, ACK, 0, b"12345678")]
    wire.connection.ping(b"87654321")
    assert wire.sent() == [Frame(PING, 0, 0, b"87654321")]
    assert wire.one(Pong, bytes(Frame(PING, ACK, 0, b"87654321"))).payload == b"87654321"


# ---------------------------------------------------------------------------------------------- resets and the end


def test_a_reset_drops_queued_data_and_is_reported() -> None:
    """The peer's RST_STREAM: the event has its code, and nothing more is sent on the stream."""
    wire = Wire(hello=settings(initial_window_size=0))
    stream = wire.opened(1, end=True)
    wire.connection.send_head(stream, HEAD)
    wire.connection.send(stream, b"x" * 50)
    wire.sent()
    event = wire.one(Reset, word(RST_STREAM, 1, Code.CANCEL))
    assert (event.code, event.local, stream.queued) == (Code.CANCEL, False, 0)
    wire.connection.send(stream, b"more")
    wire.connection.send_tail(stream, TAIL)
    wire.connection.answer(stream, HEAD, b"x", TAIL)
    wire.connection.consumed(stream, 5)
    wire.connection.reset(stream, Code.CANCEL)
    assert wire.sent() == []
    assert not wire.connection.streams


def test_orders_for_a_stream_that_died_in_the_same_read_say_nothing() -> None:
    """The owner is told of a request after its reset was read: its answer is not sent."""
    wire = Wire()
    opened, gone = wire.feed(headers(1, end=True), word(RST_STREAM, 1, Code.CANCEL))
    assert (type(opened), type(gone)) == (Opened, Reset)
    wire.connection.answer(opened.stream, HEAD, b"x", TAIL)
    wire.connection.send_head(opened.stream, HEAD)
    assert wire.sent() == []


def test_a_connection_that_drains_refuses_new_streams_and_ends_the_old_ones() -> None:
    """GOAWAY names the last stream; later ones are REFUSED_STREAM, which does not count against the peer."""
    wire = Wire(resets=5)
    stream = wire.opened(1, end=True)
    wire.connection.drain("bye")
    wire.connection.drain("bye")
    (frame,) = wire.sent()
    assert (frame.kind, frame.number(), frame.number(4), frame.payload[8:]) == (GOAWAY, 1, Code.NO_ERROR, b"bye")
    for number in range(3, 43, 2):
        assert wire.feed(headers(number)) == []
    assert [(f.kind, f.number()) for f in wire.sent()] == [(RST_STREAM, Code.REFUSED_STREAM)] * 20
    wire.connection.answer(stream, HEAD, b"x", TAIL)
    assert [f.kind for f in wire.sent()] == [HEADERS, DATA, HEADERS]


def test_the_last_stream_of_a_goaway_never_rises() -> None:
    """A connection that drained and then fails names the same stream again (RFC 9113, section 6.8)."""
    wire = Wire()
    wire.opened(1)
    wire.connection.drain()
    wire.feed(headers(3))
    wire.connection.fail(Code.INTERNAL_ERROR, "")
    assert [f.number() for f in wire.sent() if f.kind == GOAWAY] == [1, 1]


def test_a_goaway_of_the_peer_is_told() -> None:
    """With its code and reason; calls go on."""
    wire = Wire(client=True)
    wire.connection.open(literal(REQUEST), None)
    event = wire.one(GoingAway, bytes(Frame(GOAWAY, 0, 0, struct.pack(">II", 0x8000_0001, 11) + b"too many \xff")))
    assert (event.last, event.code, event.reason) == (1, 11, "too many �")
    wire.one(Opened, headers(1, literal(RESPONSE)))


def test_a_stream_that_the_peer_never_looks_at_takes_no_window() -> None:
    """A stream above GOAWAY's last one: its queued data is not sent, and other streams get the connection's window."""
    wire = Wire(client=True)
    connection = wire.connection
    connection._send_window = 0
    lost, kept = connection.open(literal(REQUEST), "lost"), connection.open(literal(REQUEST), "kept")
    connection.send(lost, b"lost" * 10)
    connection.send(kept, b"kept")
    connection.forsake(lost)
    wire.sent()
    wire.feed(word(WINDOW_UPDATE, 0, 4))
    assert [(f.stream, f.payload) for f in wire.sent()] == [(3, b"kept")]
    assert list(connection.streams) == [3]


def test_a_closed_connection_says_nothing_any_more() -> None:
    """GOAWAY is its last frame, whatever its owners send afterwards, and nothing accumulates."""
    wire = Wire()
    events = wire.feed(headers(1, end=True), headers(3), bytes(Frame(PING, 0, 0, b"")))
    first, second, over = events
    assert type(over) is Closed
    connection = wire.connection
    connection.answer(first.stream, HEAD, b"answer", TAIL)
    connection.send_head(second.stream, HEAD)
    connection.block()
    second.stream.low = 100
    connection.send(second.stream, b"more")
    assert connection.unblock() == []
    connection.reset(second.stream, Code.CANCEL)
    connection.ping(bytes(8))
    connection.drain()
    connection.fail(Code.NO_ERROR, "again")
    assert [f.kind for f in wire.sent()] == [GOAWAY]
    connection.ping(bytes(8))
    assert not connection.pending
    assert wire.sent() == []


def test_answers_of_the_same_read_go_out_before_the_goaway() -> None:
    wire = Wire()
    wire.feed(bytes(Frame(PING, 0, 0, b"12345678")), bytes(Frame(PING, 0, 0, b"")))
    assert [f.kind for f in wire.sent()] == [PING, GOAWAY]


def test_a_client_counts_its_streams_up() -> None:
    """They have odd numbers, and the connection knows when there are no more."""
    wire = Wire(client=True)
    assert [wire.connection.open(literal(REQUEST), None).id for _ in range(3)] == [1, 3, 5]
    wire.connection._next = (1 << 31) - 1
    assert not wire.connection.exhausted
    assert wire.connection.open(literal(REQUEST), None).id == (1 << 31) - 1
    assert wire.connection.exhausted


def test_a_server_may_allow_more_streams_later() -> None:
    """A higher MAX_CONCURRENT_STREAMS is reported, since calls may be waiting for it."""
    wire = Wire(client=True, hello=settings(max_concurrent_streams=0))
    assert wire.connection.peer_streams == 0
    assert [type(e).__name__ for e in wire.feed(settings(max_concurrent_streams=5))] == ["Roomier"]
    assert wire.feed(settings(max_concurrent_streams=3)) == []
    assert wire.connection.peer_streams == 3


def test_a_shrunk_table_is_said_once() -> None:
    """A peer with a smaller HPACK table is told with the next block that we use none (RFC 7541, section 4.2); others
    are told nothing.
    """
    wire = Wire(hello=settings(header_table_size=100))
    wire.connection.send_head(wire.opened(1), HEAD)
    wire.connection.send_head(wire.opened(3), HEAD)
    assert [f.payload for f in wire.sent()] == [b"\x20" + HEAD, HEAD]
    wire = Wire(hello=settings(header_table_size=8192))
    wire.connection.send_head(wire.opened(1), HEAD)
    assert wire.sent()[0].payload == HEAD


def test_drained_is_told_at_the_mark_and_not_before() -> None:
    """It is reported each time that a window brings ``queued`` down to ``low`` or below."""
    wire = Wire(hello=settings(initial_window_size=0))
    stream = wire.opened(1, end=True)
    wire.connection.send_head(stream, HEAD)
    wire.connection.send(stream, b"x" * 100)
    assert wire.feed(word(WINDOW_UPDATE, 1, 10)) == []
    stream.low = 50
    assert wire.feed(word(WINDOW_UPDATE, 1, 39)) == []
    assert type(wire.one(Drained, word(WINDOW_UPDATE, 1, 1))) is Drained
    assert stream.queued == 50
    wire.one(Drained, word(WINDOW_UPDATE, 1, 1000))
    assert wire.feed(word(WINDOW_UPDATE, 1, 1000)) == []
