"""The fuzzer of :mod:`services.wire`: scripts, the models that run them, and the invariants that hold after each step.

A script is a list of steps, each a tuple that JSON can write: ``["feed", "hex of bytes"]`` is the peer, all others are
the owner of the connection. So a saved input is a file of a few lines below ``corpus``, which can be read and changed
by hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from services.wire import headers as ours
from services.wire.connection import Connection
from services.wire.events import Closed, Data, Drained, GoingAway, Opened, Pong, Ready, Reset, Roomier, Trailers
from services.wire.frames import Code
from services.wire.limits import Limits
from services.wire.streams import Stream
from tests.unit.wire.test_wire_channel import Passing
from tests.wires import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Pipe,
    deliver,
    literal,
    parse,
    turns,
)

Step = tuple[Any, ...]
EVENTS = (Opened, Data, Trailers, Reset, Drained, Ready, Roomier, Pong, GoingAway, Closed)
LIMITS = Limits(
    streams=8,
    header_list=4000,
    header_count=30,
    header_block=6000,
    continuations=5,
    window_most=1 << 18,
    connection_window=1 << 17,
    resets=30,
    idle_frames=60,
)
HEAD, TAIL = ours.block([(b":status", b"200")]), ours.status(0)
MOST = (1 << 31) - 1


class Model:
    """A connection, an owner that follows a script, and a peer that knows HTTP/2 from frames alone."""

    def __init__(self, *, client: bool) -> None:
        self.connection = Connection(client=client, limits=LIMITS)
        self.client = client
        self.known: list[Stream] = []
        self.unconsumed: Counter[Stream] = Counter()
        self.ended = False
        self.goodbye = False
        self.fed = b""
        self.greeted = client
        self.said = b""
        self.first = client
        self.initial = self.initial_high = 65535
        self.updates: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.frame = 16384
        self.over: set[int] = set()
        self.block: int | None = None

    # -- steps

    def run(self, script: list[Step]) -> None:
        self.check()
        for step in script:
            self.step(*step)
            self.check()

    def step(self, action: str, *arguments: Any) -> None:
        connection = self.connection
        if action == "feed":
            self.feed(bytes.fromhex(arguments[0]))
        elif action == "block":
            connection.block()
        elif action == "unblock":
            self.take(connection.unblock())
        elif action == "drain":
            connection.drain("script")
        elif action == "ping":
            connection.ping(b"pingping")
        elif action == "open":
            if self.client and not connection.closed and len(connection.streams) < 8:
                self.known.append(connection.open(literal(REQUEST), None))
        elif self.known:
            stream = self.known[arguments[0] % len(self.known)]
            amount = arguments[1]
            if action == "answer" and not self.client:
                connection.answer(stream, HEAD, bytes(amount), TAIL)
            elif action == "send":
                connection.send(
                    stream, bytes(amount), memoryview(bytes(amount // 2)), end=self.client and amount % 3 == 0
                )
            elif action == "head" and not self.client:
                connection.send_head(stream, HEAD)
            elif action == "tail" and not self.client:
                connection.send_tail(stream, TAIL)
            elif action == "reset":
                connection.reset(stream, Code.CANCEL)
            elif action == "consume":
                size = min(amount, self.unconsumed[stream])
                self.unconsumed[stream] -= size
                connection.consumed(stream, size)
            elif action == "low":
                stream.low = amount
            elif action == "linger" and not self.client:
                connection.lingering = amount % 4

    def feed(self, data: bytes) -> None:
        if not self.connection.closed:
            self.learn(data)
        self.take(self.connection.receive(data))

    def take(self, events: list[Any]) -> None:
        for number, event in enumerate(events):
            assert isinstance(event, EVENTS), event
            assert not self.ended, "an event after Closed"
            if isinstance(event, Opened) and not self.client:
                self.known.append(event.stream)
            elif isinstance(event, Data):
                self.unconsumed[event.stream] += len(event.chunk)
                assert event.chunk or event.end
            elif isinstance(event, Closed):
                assert number == len(events) - 1
                self.ended = True

    def learn(self, data: bytes) -> None:
        """Learn from the sent frames what the peer allows, even if they are invalid."""
        self.fed += data
        self.initial_high = self.initial
        if not self.greeted:
            if len(self.fed) < 24:
                return
            self.fed = self.fed[24:]
            self.greeted = True
        frames, self.fed = parse(self.fed)
        for frame in frames:
            if frame.kind == WINDOW_UPDATE and len(frame.payload) == 4:
                self.updates[frame.stream] += frame.number() & MOST
            elif frame.kind == SETTINGS and not frame.flags & 1:
                for at in range(0, len(frame.payload) - 5, 6):
                    name, value = int.from_bytes(frame.payload[at : at + 2], "big"), frame.number(at + 2)
                    if name == 4:
                        self.initial = value
                        self.initial_high = max(self.initial_high, value)
                    elif name == 5:
                        self.frame = max(self.frame, value)

    # -- what must hold

    def check(self) -> None:
        connection = self.connection
        limits = connection.limits
        assert len(connection.streams) <= 8
        assert len(connection._reset) <= limits.streams
        assert len(connection._skipped) <= 100
        assert len(connection._decoder._cache) <= 128
        assert connection.more or len(connection._rest) <= limits.header_block + 9
        assert len(connection._block or b"") <= limits.header_block
        assert set(connection._starved) <= set(connection.streams.values())
        assert connection._send_window <= MOST or connection.closed
        if not connection.closed:
            assert connection._receive_window + connection._credit == limits.connection_window
        for stream in connection.streams.values():
            assert stream.queued == sum(len(item) for item in stream.queue if isinstance(item, bytes | memoryview))
            assert stream.send_window <= MOST or connection.closed
            if not stream.remote_closed and not connection.closed:
                coming = connection._data_left if connection._data is stream else 0
                assert stream.receive_window + stream.credit + self.unconsumed[stream] + coming == stream.window, (
                    "bytes are lost from a window"
                )
            if not connection.closed and stream.queue and not connection._blocked:
                assert stream.send_window <= 0 or connection._send_window <= 0, "it waits for nothing"
                assert stream.send_window <= 0 or stream in connection._starved, "it waits, and nobody knows"
        out = b"".join(map(bytes, connection.take()))
        assert len(connection.take()) == 0
        self.said += out
        if self.first and len(self.said) >= 24:
            assert self.said.startswith(PREFACE)
            self.said = self.said[24:]
            self.first = False
        frames, self.said = parse(self.said)
        assert not self.said, "half a frame"
        for frame in frames:
            self.read(frame)

    def read(self, frame: Frame) -> None:
        """Read one frame of ours as a strict peer does."""
        assert not self.goodbye, "something after the last GOAWAY"
        assert len(frame.payload) <= self.frame
        assert (frame.kind == CONTINUATION) == (self.block is not None)
        if self.block is not None:
            assert frame.stream == self.block
        if frame.kind in {HEADERS, CONTINUATION}:
            self.block = None if frame.flags & END_HEADERS else frame.stream
        if frame.kind in {HEADERS, DATA}:
            assert frame.stream not in self.over, "a frame on a stream that we ended"
            if frame.flags & END_STREAM:
                self.over.add(frame.stream)
        if frame.kind == DATA:
            self.sent[frame.stream] += len(frame.payload)
            self.sent[0] += len(frame.payload)
            if frame.payload:
                assert self.sent[frame.stream] <= self.initial_high + self.updates[frame.stream], (
                    "beyond the window of a stream"
                )
                assert self.sent[0] <= 65535 + self.updates[0], "beyond the window of the connection"
        elif frame.kind == RST_STREAM:
            self.over.add(frame.stream)
        elif frame.kind == WINDOW_UPDATE:
            assert 0 < frame.number() <= MOST
        elif frame.kind == GOAWAY:
            self.goodbye = self.connection.closed


def alone(script: list[Step], *, client: bool) -> None:
    """Run a script on one connection; then feed the peer's bytes once more, byte by byte."""
    Model(client=client).run(script)
    peer = b"".join(bytes.fromhex(step[1]) for step in script if step[0] == "feed")[:4000]
    seen = []
    for piece in (len(peer) or 1, 1, 7):
        connection = Connection(client=client, limits=LIMITS)
        events: list[Any] = []
        for at in range(0, len(peer), piece):
            events += connection.receive(peer[at : at + piece])
        told: list[Any] = []
        for event in events:
            if isinstance(event, Data):  # its pieces are those of the bytes
                key = ("data", event.stream.id)
                if told and told[-1][:2] == key:
                    told[-1] = (*key, told[-1][2] + bytes(event.chunk), event.end)
                else:
                    told.append((*key, bytes(event.chunk), event.end))
            else:
                told.append(
                    (
                        type(event).__name__,
                        event.stream.id if hasattr(event, "stream") else getattr(event, "code", None),
                    )
                )
        seen.append((told, b"".join(map(bytes, connection.take())), connection.closed))
    whole, single, sevens = seen
    assert _without_cut(whole) == _without_cut(single) == _without_cut(sevens), (
        "a cut of the bytes changes their meaning"
    )


def _without_cut(seen: tuple[list[Any], bytes, bool]) -> tuple[list[Any], list[Frame], bool]:
    """Return what was seen, with our output as complete frames: a frame that is too long is reported at its head, and
    its GOAWAY names the streams before it.
    """
    told, out, closed = seen
    return told, parse(out.removeprefix(PREFACE))[0], closed


def together(script: list[Step]) -> None:
    """Run two connections of ours against each other: whatever their owners do, and however the bytes are cut, neither
    reports an error of the other, and all sent data arrives.
    """
    pipe = Pipe(LIMITS, LIMITS)
    asked: dict[int, bytes] = {}
    sent: dict[tuple[str, int], bytearray] = {}
    got: dict[tuple[str, int], bytearray] = {}
    streams: dict[str, list[Stream]] = {"client": [], "server": []}
    sides = {"client": pipe.client, "server": pipe.server}
    broken: set[int] = set()

    def turn() -> None:
        for side, events in zip(("client", "server"), pipe.turn(), strict=True):
            for event in events:
                assert not isinstance(event, Closed), event
                if isinstance(event, Opened) and side == "server":
                    streams["server"].append(event.stream)
                elif isinstance(event, Data):
                    got.setdefault((side, event.stream.id), bytearray()).extend(event.chunk)
                    if event.stream.id % 3:
                        sides[side].consumed(event.stream, len(event.chunk))
                elif isinstance(event, Reset):
                    broken.add(event.stream.id)

    for action, *arguments in script:
        if action == "feed":
            pipe.piece = len(arguments[0]) % 50
            continue
        side = "client" if arguments and arguments[-1] % 2 else "server"
        connection = sides[side]
        if action == "open":
            if len(pipe.client.streams) < 8:
                stream = pipe.client.open(literal(REQUEST), None)
                asked[stream.id] = b""
                streams["client"].append(stream)
        elif action == "block":
            connection.block()
        elif action == "unblock":
            connection.unblock()
        elif action == "ping":
            turn()
        elif action in {"send", "answer", "tail", "reset", "head"} and streams[side]:
            stream = streams[side][arguments[0] % len(streams[side])]
            if action == "reset":
                connection.reset(stream, Code.CANCEL)
                broken.add(stream.id)
            elif action == "send":
                payload = bytes([arguments[0] % 256]) * arguments[1]
                if not stream.local_closed and not (
                    stream.queue and not isinstance(stream.queue[-1], bytes | memoryview)
                ):
                    if side == "server" and ("head", stream.id) not in sent:
                        connection.send_head(stream, HEAD)
                        sent["head", stream.id] = bytearray()
                    sent.setdefault((side, stream.id), bytearray()).extend(payload)
                connection.send(stream, payload, end=side == "client" and arguments[1] % 5 == 0)
            elif side == "server" and action == "tail":
                connection.send_tail(stream, TAIL if ("head", stream.id) in sent else HEAD + TAIL)
                broken.add(stream.id)  # the rest of its request is not wanted
    for connection in sides.values():
        connection.unblock()
    turn()
    while pipe.client.pending or pipe.server.pending:  # what was consumed makes room for more
        turn()
    assert not pipe.client.closed
    assert not pipe.server.closed
    for (side, number), payload in sent.items():
        if side == "head":
            continue
        other = "server" if side == "client" else "client"
        arrived = got.get((other, number), bytearray())
        assert payload.startswith(arrived)
        if number % 3 and number not in broken:
            assert payload == arrived, "something that was sent has not arrived"


class Failures(logging.Handler):
    """Log records of our own failures."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def serving(script: list[Step]) -> None:
    """Run a script on a server with handlers and a relay, all on transports in memory; when all peers have hung up,
    nothing is left.
    """
    failures = Failures()
    logging.getLogger("services").addHandler(failures)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.records.append(str(context)))
    try:
        passing = Passing(repeats=1)
        served = passing.down
        served.service.wait = True
        for action, *arguments in script:
            amount = len(arguments[0]) // 2 if action == "feed" else arguments[-1] if arguments else 0
            if action == "feed":
                data = bytes.fromhex(arguments[0])
                for link in (served.link,) if len(data) % 3 else (passing.up.link, served.link):
                    if not link.lost:
                        deliver(link, data)
            elif action == "block":
                served.link.pause_writing()
            elif action == "unblock":
                served.link.resume_writing()
            elif action == "drain":
                served.link.leave("script")
            elif action == "head":
                served.link.sweep(1e12 if amount % 2 else 0)
            elif action == "reset" and passing.up.link.connection.streams:
                number = next(iter(passing.up.link.connection.streams))
                deliver(passing.up.link, bytes(Frame(RST_STREAM, 0, number, (7).to_bytes(4, "big"))))
            elif action == "answer" and passing.up.link.connection.streams and not passing.up.link.lost:
                passing.up.answer(next(iter(passing.up.link.connection.streams)), bytes(amount))
            elif action == "low" and amount % 7 == 0:
                passing.up.link.connection_lost(None)
            elif action == "linger":
                served.service.go.set()
            elif action == "tail":
                served.service.read = not served.service.read
            if amount % 2:
                await turns(2)
        passing.up.link.connection_lost(None)
        served.link.connection_lost(None)
        served.service.go.set()
        await turns(10)
        await passing.carrier.close()
        await turns(10)
        assert not served.server.running
        assert not served.server.passages
        assert not served.server.links
        assert not served.link.incomplete
        assert not served.server.deadlines._due
        assert not served.server.deadlines._exact
        assert (served.link.connection.lingering, served.link.assembling) == (0, 0)
        assert not passing.up.link._slots
        assert passing.up.link._granted == 0
        assert not failures.records, failures.records[0]
    finally:
        logging.getLogger("services").removeHandler(failures)
