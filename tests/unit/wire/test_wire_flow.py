"""services.wire.connection: both levels of flow control, in both directions."""

from __future__ import annotations

from services.wire import headers as ours
from services.wire.events import Data, Drained
from services.wire.frames import Code
from services.wire.limits import Limits
from tests.wires import DATA, END_STREAM, HEADERS, REQUEST, WINDOW_UPDATE, Pipe, Wire, data, literal, settings, word

HEAD, TAIL = ours.block([(b":status", b"200")]), ours.status(0)


def sizes(wire: Wire) -> list[tuple[int, int]]:
    """Return stream and length of each DATA frame sent since the last call."""
    return [(f.stream, len(f.payload)) for f in wire.sent() if f.kind == DATA]


# ---------------------------------------------------------------------------------------------- sending


def test_nothing_goes_beyond_either_window() -> None:
    """Neither the stream's nor the connection's; each WINDOW_UPDATE allows the bytes that it names, and no more."""
    wire = Wire(hello=settings(initial_window_size=50_000))
    first, second = wire.opened(1, end=True), wire.opened(3, end=True)
    wire.connection.send(first, bytes(60_000))
    assert sizes(wire) == [(1, 16384)] * 3 + [(1, 848)]
    wire.connection.send(second, bytes(60_000))
    assert sizes(wire) == [(3, 15535)]
    wire.feed(word(WINDOW_UPDATE, 1, 5))
    assert sizes(wire) == []
    wire.feed(word(WINDOW_UPDATE, 0, 7))
    assert sum(size for _, size in sizes(wire)) == 7
    assert wire.connection._send_window == 0


def test_frames_are_as_large_as_the_peer_takes_and_not_beyond_ours() -> None:
    """16 KiB without SETTINGS, more if they say so, 256 KiB at most, since other streams wait for a frame's end."""
    for said, size in ((16384, 16384), (100_000, 100_000), ((1 << 24) - 1, 256 << 10)):
        wire = Wire(hello=settings(initial_window_size=1 << 30, max_frame_size=said) + word(WINDOW_UPDATE, 0, 1 << 30))
        wire.connection.send(wire.opened(1, end=True), bytes(1 << 20))
        assert sizes(wire)[0] == (1, size)


def test_a_window_that_settings_make_negative() -> None:
    """The sent bytes are owed: nothing is sent until updates have brought the window above zero (RFC 9113, section
    6.9.2).
    """
    wire = Wire(hello=settings(initial_window_size=100))
    stream = wire.opened(1, end=True)
    wire.connection.send(stream, bytes(300))
    assert sizes(wire) == [(1, 100)]
    wire.feed(settings(initial_window_size=40))
    assert stream.send_window == -60
    wire.feed(word(WINDOW_UPDATE, 1, 60))
    assert sizes(wire) == []
    wire.feed(word(WINDOW_UPDATE, 1, 1))
    assert sizes(wire) == [(1, 1)]
    wire.feed(settings(initial_window_size=50))
    assert sizes(wire) == [(1, 10)]
    assert wire.opened(3, end=True).send_window == 50


def test_an_empty_window_holds_no_head_and_no_trailers_up() -> None:
    """Only DATA is counted."""
    wire = Wire(hello=settings(initial_window_size=0))
    stream = wire.opened(1, end=True)
    wire.connection.send_head(stream, HEAD)
    wire.connection.send_tail(stream, TAIL)
    assert [f.kind for f in wire.sent()] == [HEADERS, HEADERS]


def test_streams_that_wait_for_the_connection_take_turns() -> None:
    """A stream that has to wait again goes to the end of the queue: with a window for one frame at a time, each stream
    gets its part.
    """
    wire = Wire(hello=settings(initial_window_size=1 << 20))
    streams = [wire.opened(number, end=True) for number in (1, 3, 5)]
    wire.connection._send_window = 0
    for stream in streams:
        wire.connection.send(stream, bytes(100_000))
    served = []
    for _ in range(6):
        wire.feed(word(WINDOW_UPDATE, 0, 1000))
        served += sizes(wire)
    assert served == [(1, 1000), (3, 1000), (5, 1000)] * 2


def test_a_stream_without_a_window_delays_no_other() -> None:
    """Its own window is empty: the others get the connection's."""
    wire = Wire(hello=settings(initial_window_size=10))
    stuck, good = wire.opened(1, end=True), wire.opened(3, end=True)
    wire.connection._send_window = 10
    wire.connection.send(stuck, bytes(50))
    wire.connection.send(good, bytes(10))
    assert sizes(wire) == [(1, 10)]
    wire.feed(word(WINDOW_UPDATE, 0, 100))
    assert sizes(wire) == [(3, 10)]


def test_a_full_socket_holds_data_up_and_nothing_else() -> None:
    """From block() to unblock() DATA waits, and is sent in turns afterwards; heads, resets and pings are sent at
    once.
    """
    wire = Wire()
    first, second = wire.opened(1, end=True), wire.opened(3, end=True)
    wire.connection.block()
    wire.connection.send_head(first, HEAD)
    wire.connection.send(first, b"one")
    first.low = second.low = 0
    wire.connection.send(second, b"two", end=True)
    wire.feed(word(WINDOW_UPDATE, 1, 10), word(WINDOW_UPDATE, 0, 10))
    assert [f.kind for f in wire.sent()] == [HEADERS]
    events = wire.connection.unblock()
    assert [(type(e), e.stream) for e in events] == [(Drained, first), (Drained, second)]
    assert sizes(wire) == [(1, 3), (3, 3)]
    assert list(wire.connection.streams) == [1]


def test_a_stream_that_was_reset_waits_for_nothing() -> None:
    """It was blocked and without a window: it is removed from every list, and the next stream gets its turn."""
    wire = Wire(hello=settings(initial_window_size=1000))
    first, second = wire.opened(1, end=True), wire.opened(3, end=True)
    wire.connection.block()
    wire.connection.send(first, b"one")
    wire.connection.send(second, b"two")
    wire.connection.reset(first, Code.CANCEL)
    wire.connection.unblock()
    assert sizes(wire) == [(3, 3)]
    assert not wire.connection._starved


def test_pieces_are_joined_and_cut_by_windows_only() -> None:
    """Many small chunks go in one frame, in order, both views and bytes; small views do not keep the buffers that they
    are a part of.
    """
    wire = Wire(hello=settings(initial_window_size=0))
    stream = wire.opened(1, end=True)
    whole = bytes(range(256)) * 100
    for at in range(0, len(whole), 100):
        wire.connection.send(stream, memoryview(whole)[at : at + 100] if at % 200 else whole[at : at + 100])
    assert not any(isinstance(piece, memoryview) for piece in stream.queue)
    got = b""
    for _ in range(30):
        wire.feed(word(WINDOW_UPDATE, 1, 999))
        if not (sent := wire.sent()):
            break
        (frame,) = sent
        got += frame.payload
    assert got == whole[: len(got)]
    assert len(got) == len(whole)


def test_the_end_with_nothing_before_it() -> None:
    """It is an empty DATA with END_STREAM, which needs no window."""
    wire = Wire(client=True, hello=settings(initial_window_size=0))
    wire.connection.send(wire.connection.open(literal(REQUEST), None), b"", end=True)
    frame = wire.sent()[-1]
    assert (frame.kind, frame.flags, frame.payload) == (DATA, END_STREAM, b"")


# ---------------------------------------------------------------------------------------------- receiving


def test_a_window_is_given_back_when_it_is_consumed() -> None:
    """It is not given back before, and in portions of half of it. The connection's is given back at once, so that a
    reader that does not read delays no other.
    """
    wire = Wire()
    stream = wire.opened(1)
    wire.feed(data(1, bytes(16384)), data(1, bytes(16384)))
    assert [f for f in wire.sent() if f.kind == WINDOW_UPDATE and f.stream == 1] == []
    wire.connection.consumed(stream, 16384)
    assert wire.sent() == []
    wire.connection.consumed(stream, 16384)
    assert [f.stream for f in wire.sent() if f.kind == WINDOW_UPDATE] == [1]
    for _ in range(1000):
        wire.feed(data(1, bytes(16384)))
        wire.connection.consumed(stream, 16384)
    assert not wire.connection.closed
    assert 0 in {f.stream for f in wire.sent() if f.kind == WINDOW_UPDATE}


def test_a_window_grows_while_it_is_read_up_to_its_bound() -> None:
    """It doubles each time that it is given back, and the updates sent to the peer add up to it."""
    wire = Wire(window_most=300_000)
    stream = wire.opened(1)
    seen, told, used = [stream.window], stream.window, 0
    for _ in range(100):
        wire.feed(data(1, bytes(16384)))
        wire.connection.consumed(stream, 16384)
        used += 16384
        told += sum(f.number() for f in wire.sent() if f.kind == WINDOW_UPDATE and f.stream == 1)
        assert told - used == stream.receive_window
        if stream.window != seen[-1]:
            seen.append(stream.window)
    assert seen == [65536, 131072, 262144, 300_000]


def test_a_stream_that_has_ended_is_given_no_window() -> None:
    wire = Wire()
    stream = wire.opened(1)
    wire.feed(data(1, bytes(16384)), data(1, bytes(16384)), data(1, bytes(16384), end=True))
    wire.connection.consumed(stream, 3 * 16384)
    assert [f for f in wire.sent() if f.kind == WINDOW_UPDATE] == []


def test_data_of_streams_that_are_over_costs_the_connection_no_window() -> None:
    """The stream may have ended by our reset, by the peer's, by an error, or in the middle of a frame: gigabytes of its
    data may pass.
    """
    wire = Wire(idle_frames=100_000, resets=100_000)
    for number in range(1, 4001, 2):
        stream = wire.opened(number)
        frame = data(number, bytes(16000))
        wire.feed(frame[:5000])
        wire.connection.reset(stream, Code.CANCEL)
        wire.feed(frame[5000:], frame)
    assert not wire.connection.closed
    assert wire.connection._receive_window + wire.connection._credit == Limits().connection_window


def test_a_reader_that_sleeps_holds_up_its_own_stream_only() -> None:
    """Of two uploads the first is not read: the second goes on to its end, over many windows."""
    pipe = Pipe()
    slow, fast = (pipe.client.open(literal(REQUEST), None) for _ in range(2))
    pipe.client.send(slow, bytes(1 << 20), end=True)
    pipe.client.send(fast, bytes(32 << 20), end=True)
    got = {1: 0, 3: 0}
    while pipe.client.pending or pipe.server.pending:
        for event in pipe.turn()[1]:
            if type(event) is Data:
                got[event.stream.id] += len(event.chunk)
                if event.stream.id == 3:
                    pipe.server.consumed(event.stream, len(event.chunk))
    assert got == {1: 65536, 3: 32 << 20}
    assert not pipe.client.closed
    assert not pipe.server.closed
    assert not [f for f in pipe.client_events if type(f).__name__ == "Reset"]
