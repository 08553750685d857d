"""services.wire.channel and services.wire.relay on transports in memory: calls, and servers' behaviour."""

from __future__ import annotations

import asyncio
import errno
import struct
from functools import partial
from typing import Any

import pytest

from services.kit import errors, rpc
from services.kit.deadlines import Deadlines
from services.kit.hops import Hop
from services.wire import headers as ours
from services.wire.answers import HEAD
from services.wire.answers import OK as STATUS_OK
from services.wire.channel import ClientLink, WireCarrier
from services.wire.frames import Code
from services.wire.limits import Limits
from services.wire.messages import HIGH_WATER
from services.wire.requests import request_block
from tests import spans
from tests.support import eventually_async
from tests.unit.wire.test_wire_server import SAY, Served
from tests.wires import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK,
    RESPONSE,
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

PATH = "/splitd.Test/Pass"


class Calling:
    """A carrier, and a server at the level of bytes at its other end."""

    def __init__(self, hello: bytes | None = None) -> None:
        self.carrier = WireCarrier("unix:/nowhere", "peer", "never", Limits())
        self.link, self.transport = self.connect(settings() if hello is None else hello)

    def connect(self, hello: bytes) -> tuple[ClientLink, Transport]:
        """Connect as :meth:`WireCarrier._attempt` does it."""
        link = ClientLink(self.carrier, Limits())
        transport = Transport(link)
        link.connection_made(transport)
        link.data_received(hello)
        self.carrier._link = link
        self.carrier._links.add(link)
        transport.frames()
        return link, transport

    def feed(self, *parts: bytes) -> None:
        deliver(self.link, b"".join(parts))

    def unary(self, request: bytes = b"q", timeout: float | None = None) -> asyncio.Task[bytes]:
        return asyncio.ensure_future(self.carrier.unary(PATH, request, (), timeout))

    def answer(self, stream: int, message: bytes = b"a") -> None:
        self.feed(
            headers(stream, literal(RESPONSE)), data(stream, grpc(message)), headers(stream, literal(OK), end=True)
        )


async def test_a_unary_call() -> None:
    """It is sent in one write and answered with its message; nothing is left."""
    calling = Calling()
    call = calling.unary(b"question")
    await turns()
    head, message = calling.transport.frames()
    assert (head.kind, message.payload, message.flags) == (HEADERS, grpc(b"question"), END_STREAM)
    calling.answer(1, b"answer")
    assert await call == b"answer"
    assert not calling.link.connection.streams


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (headers(1, literal([*RESPONSE, ("grpc-status", "5"), ("grpc-message", "not here")]), end=True), 5),
        (
            headers(1, literal([(":status", "404"), ("content-type", "text/html")]))
            + data(1, b"<html>")
            + data(1, b"</html>", end=True),
            12,
        ),
        (headers(1, literal([(":status", "503")]), end=True), 14),
        (headers(1, literal(RESPONSE)) + data(1, grpc(b"a"), end=True), 13),
        (headers(1, literal(RESPONSE)) + headers(1, literal(OK), end=True), 13),
        (headers(1, literal(RESPONSE)) + data(1, grpc(b"a") + grpc(b"b")) + data(1, grpc(b"c")), 13),
        (
            headers(1, literal(RESPONSE))
            + data(1, b"\7\0\0\0\0")
            + data(1, b"more")
            + headers(1, literal(OK), end=True),
            13,
        ),
        (headers(1, literal(RESPONSE)) + headers(1, literal([("no", "status")]), end=True), 13),
        (word(RST_STREAM, 1, Code.CANCEL), 1),
        (word(RST_STREAM, 1, 12345), 13),
        (headers(1, literal([("no", "status")])), 13),
    ],
    ids=[
        "trailers only",
        "no gRPC, with a body",
        "no gRPC",
        "no trailers",
        "no message",
        "two messages",
        "a bad flag",
        "no status",
        "RST_STREAM",
        "an unknown code",
        "malformed",
    ],
)
async def test_whatever_a_server_answers_the_call_ends_and_its_stream_too(
    answer: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The call ends with gRPC's code for it, unary or stream, in one read or in many, and no stream stays behind."""
    for step in (len(answer), 1):
        calling = Calling()
        call = calling.unary()
        await turns()
        for at in range(0, len(answer), step):
            calling.feed(answer[at : at + step])
        with pytest.raises(errors.NodeError) as error:
            await call
        assert error.value.code == code
        assert not calling.link.connection.streams
        if answer.endswith(data(1, grpc(b"c"))):
            continue  # for a stream nothing is wrong with it
        calling = Calling()
        stream = calling.carrier.stream(PATH, (), None)
        await stream.send(b"q")
        for at in range(0, len(answer), step):
            calling.feed(answer[at : at + step])
        got = []
        try:
            while (message := await stream.receive()) is not None:
                got.append(message)
        except errors.NodeError as failure:
            assert failure.code == code
        else:
            assert not got
        assert not calling.link.connection.streams
        assert not calling.link.lost
    assert not caplog.text


async def test_a_stream_that_ends_in_the_middle_of_a_message() -> None:
    """A message is incomplete, whether the status is OK or not: INTERNAL."""
    calling = Calling()
    stream = calling.carrier.stream(PATH, (), None)
    await stream.send(b"q")
    calling.feed(
        headers(1, literal(RESPONSE)),
        data(1, grpc(b"whole") + grpc(b"cut off")[:-1]),
        headers(1, literal(OK), end=True),
    )
    assert await stream.receive() == b"whole"
    with pytest.raises(errors.Internal, match="middle of a message"):
        await stream.receive()


async def test_a_writer_does_not_outlive_its_connection() -> None:
    """It waits for the server's window when the connection is lost, and gets an error."""
    calling = Calling(settings(initial_window_size=0))
    stream = calling.carrier.stream(PATH, (), None)
    sending = asyncio.ensure_future(stream.send(bytes(HIGH_WATER * 2)))
    await turns()
    assert not sending.done()
    calling.link.connection_lost(None)
    with pytest.raises(errors.Disconnected):
        async with asyncio.timeout(10):
            await sending


async def test_a_cancelled_stream_is_not_opened_afterwards() -> None:
    """It was waiting for a connection when its caller was cancelled."""
    calling = Calling(settings(max_concurrent_streams=0))
    stream = calling.carrier.stream(PATH, (), None)
    sending = asyncio.ensure_future(stream.send(b"q"))
    await turns()
    stream.cancel()
    calling.feed(settings(max_concurrent_streams=1))
    with pytest.raises(errors.Cancelled):
        await sending
    assert not calling.link.connection.streams


# ---------------------------------------------------------------------------------------------- room for streams


async def test_calls_take_turns_where_the_server_allows_few_at_once() -> None:
    """They go in the order in which they came: a caller that calls again comes behind those that wait."""
    calling = Calling(settings(max_concurrent_streams=1))
    order: list[str] = []

    async def calls(name: str) -> None:
        for _ in range(3):
            await calling.carrier.unary(PATH, name.encode(), (), None)
            order.append(name)

    workers = [asyncio.ensure_future(calls(name)) for name in "abc"]
    for number in range(1, 19, 2):
        await turns()
        assert len(calling.link.connection.streams) == 1
        calling.answer(number)
    await asyncio.gather(*workers)
    assert "".join(order) == "abc" * 3


async def test_unused_room_is_passed_on() -> None:
    """A call is given a stream and is cancelled in the same moment."""
    calling = Calling(settings(max_concurrent_streams=1))
    first, second, third = calling.unary(), calling.unary(), calling.unary()
    await turns()
    calling.answer(1)
    second.cancel()
    await turns()
    calling.answer(3)
    assert await first == await third == b"a"
    assert second.cancelled()


async def test_room_that_comes_later() -> None:
    """The server allows no streams at first and then two: both calls go."""
    calling = Calling(settings(max_concurrent_streams=0))
    calls = [calling.unary(), calling.unary()]
    await turns()
    assert not calling.link.connection.streams
    calling.feed(settings(max_concurrent_streams=2))
    await turns()
    assert len(calling.link.connection.streams) == 2
    calling.answer(1)
    calling.answer(3)
    assert await asyncio.gather(*calls) == [b"a", b"a"]


async def test_a_deadline_holds_for_a_call_that_is_asked_again() -> None:
    """The call was refused, and then there is no room: it does not wait beyond its deadline."""
    calling = Calling(settings(max_concurrent_streams=1))
    call = calling.unary(timeout=0.05)
    await turns()
    calling.feed(settings(max_concurrent_streams=0), word(RST_STREAM, 1, Code.REFUSED_STREAM))
    with pytest.raises(errors.DeadlineExceeded):
        async with asyncio.timeout(5):
            await call


# ---------------------------------------------------------------------------------------------- connections that go


def goaway(last: int, code: int = 0) -> bytes:
    return bytes(Frame(GOAWAY, 0, 0, struct.pack(">II", last, code)))


async def test_a_goaway_moves_unprocessed_calls() -> None:
    """Calls with higher stream numbers are repeated on another connection. Those with lower ones end on this
    connection, which is then closed and forgotten.
    """
    calling = Calling()
    first, second = calling.unary(b"one"), calling.unary(b"two")
    await turns()
    old = calling.transport
    old_link = calling.link
    calling.feed(goaway(1))
    assert calling.carrier.link is None
    calling.link, calling.transport = calling.connect(settings())
    await turns(10)
    assert not old.closed
    assert [f.payload for f in calling.transport.frames() if f.kind == DATA] == [grpc(b"two")]
    calling.answer(1, b"2")
    deliver(old_link, headers(1, literal(RESPONSE)) + data(1, grpc(b"1")) + headers(1, literal(OK), end=True))
    assert (await first, await second) == (b"1", b"2")
    assert old.closed
    await turns()
    assert calling.carrier._links == {calling.link}


async def test_a_server_that_says_goodbye_at_once_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """SETTINGS and GOAWAY come in the same read, as from a service that stops: otherwise such a connection would be
    taken for a good one for ever.
    """
    carrier = WireCarrier("unix:/nowhere", "peer", "never", Limits())

    async def connect(make: Any, address: str) -> None:
        link = make()
        link.connection_made(Transport(link))
        link.data_received(settings() + goaway(0))

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        carrier,
        "_loop",
        type(
            "Loop",
            (),
            {
                "create_unix_connection": staticmethod(connect),
                "create_task": loop.create_task,
                "time": loop.time,
                "create_future": loop.create_future,
                "call_later": loop.call_later,
            },
        )(),
    )
    with pytest.raises(errors.Disconnected):
        await carrier.unary(PATH, b"q", (), None)
    assert carrier.link is None
    await carrier.close()


async def test_a_channel_that_is_closed_while_it_connects_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has accepted the connection and has not sent anything yet."""
    carrier = WireCarrier("unix:/nowhere", "peer", "never", Limits())
    transport = Transport()

    async def connect(make: Any, address: str) -> None:
        transport.link = make()
        transport.link.connection_made(transport)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        carrier,
        "_loop",
        type("Loop", (), {"create_unix_connection": staticmethod(connect), "create_task": loop.create_task})(),
    )
    assert not carrier.connected()
    await turns()
    await carrier.close()
    assert transport.closed


async def test_one_deadline_that_fails_is_no_end_of_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged, and later deadlines still expire."""
    expired = []

    class Item:
        def __init__(self, name: str) -> None:
            self.name = name

        def expire(self) -> None:
            expired.append(self.name)
            if self.name == "bad":
                raise ZeroDivisionError

    now = [0.0]
    ticks: list[Any] = []
    loop = type(
        "Loop",
        (),
        {
            "time": lambda self: now[0],
            "call_later": lambda self, seconds, callback, *args: ticks.append((callback, *args)) or True,  # type: ignore[func-returns-value]
        },
    )()
    deadlines = Deadlines(loop)
    for name in ("bad", "good"):
        deadlines.add(Item(name), 2.0)
    deadlines.add(Item("late"), 60.0)
    now[0] = 3.0
    (tick,) = ticks.pop()
    tick()
    assert expired == ["bad", "good"]
    assert len(ticks) == 1
    assert "ZeroDivisionError" in caplog.text


# ---------------------------------------------------------------------------------------------- the relay


class Passing:
    """A server that relays, its client, and its upstream; the latter two at the level of bytes."""

    def __init__(
        self,
        hello: bytes | None = None,
        repeats: int = 0,
        answers: list[bytes] | None = None,
        meaning: Any = None,
        remembered: Any = None,
    ) -> None:
        """``meaning``: the meaning of the answer to a question that is asked first."""
        self.meanwhile: list[bool] = []
        """For each piece of work that could be done meanwhile: whether the question had been sent."""
        self.up = Calling(hello)
        self.admitted: list[bytes] = []
        upstream = self

        async def admit(message: bytes, call: rpc.Call) -> list[bytes] | None:
            upstream.admitted.append(message)
            return answers

        def ask(message: bytes) -> Any:
            return b"may " + message, meaning, lambda: self.meanwhile.append(bool(self.up.transport.written))

        class Relay:
            def arity(self, method: str) -> rpc.Arity:
                return rpc.STREAMS

            def coordinated(self, call: rpc.Call) -> None:
                return None

            def route(self, call: rpc.Call) -> rpc.Route:
                return rpc.Route(
                    Hop("upstream", upstream),
                    {"to": "upstream"},
                    repeats=repeats,
                    admit=None if answers is None else admit,
                    question=None
                    if meaning is None
                    else rpc.Question(
                        Hop("asked", upstream), "/ask", {"who": "n"}, 30.0, lambda _: True, ask, remembered
                    ),
                    remembered=remembered,
                )

        self.name = "upstream"
        self.channel: Any = self
        self.around = None
        self.ours = True
        self.carrier = self.up.carrier
        self.down = Served(Relay())

    def is_ready(self) -> bool:
        return True

    async def ready(self, call: Any = None) -> Any:
        return self

    async def gone(self) -> None:
        await self.down.gone()
        assert not self.up.link.connection.streams


async def test_a_call_passes() -> None:
    """Head, data and end reach the upstream, and its answer the client."""
    passing = Passing()
    passing.down.call(1, PATH, b"question")
    await turns()
    head, message = passing.up.transport.frames()
    assert b"upstream" in head.payload
    assert (message.payload, message.flags) == (grpc(b"question"), END_STREAM)
    passing.up.answer(1, b"answer")
    await turns()
    assert [(f.kind, f.payload) for f in passing.down.transport.frames() if f.kind == DATA] == [(DATA, grpc(b"answer"))]
    await passing.gone()


class Remembered:
    """Remembers all answers."""

    def __init__(self) -> None:
        self.answers: dict[Any, bytes] = {}

    def find(self, upstream: Any, path: str, namespace: str, request: bytes) -> bytes | None:
        return self.answers.get((path, namespace, request))

    def asked(self, upstream: Any, path: str, namespace: str, request: bytes) -> Any:
        return partial(self.answers.__setitem__, (path, namespace, request))


async def test_an_answer_that_is_remembered() -> None:
    """It is given as the upstream gave it, in the read that brings the request; if the client gives no window for it, the
    upstream is asked.
    """
    remembered = Remembered()
    passing = Passing(remembered=remembered)
    for number, asks in ((1, True), (3, False), (5, True)):
        if number == 5:
            passing.down.feed(settings(initial_window_size=10_000))
            passing.down.transport.frames()
        passing.down.call(number, PATH, b"question")
        at_once = passing.down.transport.frames()
        await turns()
        assert [f.payload for f in passing.up.transport.frames() if f.kind == DATA] == [grpc(b"question")] * asks
        if asks:
            assert at_once == []
            passing.up.answer(number if number == 1 else 3, b"x" * 16_000)
            await turns()
            passing.down.transport.frames()
        else:
            assert b"".join(f.payload for f in at_once if f.kind == DATA) == grpc(b"x" * 16_000)
            assert [f.payload for f in at_once if f.kind == HEADERS] == [HEAD, STATUS_OK]
    assert remembered.answers == {(PATH, "", grpc(b"question")): grpc(b"x" * 16_000)}
    await passing.gone()


async def test_the_answer_to_a_question_that_is_remembered() -> None:
    """The call is answered in the read that brings it, after what is done meanwhile."""
    remembered = Remembered()
    passing = Passing(answers=[], meaning=lambda answer: [answer], remembered=remembered)
    passing.down.call(1, PATH, b"question")
    await turns()
    assert passing.meanwhile == [True]
    passing.up.answer(1, b"yes")
    await turns()
    passing.up.transport.frames()
    passing.down.transport.frames()
    passing.down.call(3, PATH, b"question")
    assert [f.payload for f in passing.down.transport.frames() if f.kind == DATA] == [grpc(b"yes")]
    assert len(passing.meanwhile) == 2
    await turns()
    assert passing.up.transport.frames() == []
    assert remembered.answers == {("/ask", "", b"may question"): b"yes"}
    await passing.gone()


async def test_an_answer_that_needs_no_upstream() -> None:
    """It is sent at once or not at all: if the client gives no window, nothing waits here, and the call is relayed as
    if there were no such answer.
    """
    for size, passes in ((1000, False), (65535 - 5, False), (65535 - 4, True)):
        passing = Passing(answers=[b"x" * size])
        passing.down.call(1, PATH, b"question")
        await turns()
        assert passing.admitted == [b"question"]
        sent = [f for f in passing.up.transport.frames() if f.kind == DATA]
        assert [f.payload for f in sent] == [grpc(b"question")] * passes
        if passes:
            passing.up.answer(1, b"answer")
            await turns()
        expected = grpc(b"answer") if passes else grpc(b"x" * size)
        assert b"".join(f.payload for f in passing.down.transport.frames() if f.kind == DATA) == expected
        await passing.gone()


async def test_a_question_whose_answer_settles_a_call() -> None:
    """The upstream gets only the question; the client has its answer in one turn of the loop."""
    heard: list[bytes] = []
    passing = Passing(answers=[], meaning=lambda answer: heard.append(answer) or [b"one", bytearray(b"two")])  # type: ignore[func-returns-value]
    for number in (1, 3):
        passing.down.call(number, PATH, b"question")
        await turns()
        head, message = passing.up.transport.frames()
        assert b"/ask" in head.payload
        assert (message.payload, message.flags) == (grpc(b"may question"), END_STREAM)
        assert passing.meanwhile.pop()
        assert not passing.meanwhile
        passing.up.answer(number, b"yes")
        await turns()
        sent = [(f.kind, f.payload) for f in passing.down.transport.frames()]
        assert [kind for kind, _ in sent] == [HEADERS, DATA, DATA, HEADERS]
        assert sent[1:3] == [(DATA, grpc(b"one")), (DATA, grpc(b"two"))]
    assert (heard, passing.admitted) == ([b"yes"] * 2, [])
    await passing.gone()


@pytest.mark.parametrize("answered", [True, False])
async def test_the_question_of_a_traced_call_is_in_its_trace(answered: bool) -> None:
    """It is a call of the relay's below the one that it is asked for, and ends with that if no answer comes."""
    with spans.recorded() as found:
        passing = Passing(answers=[], meaning=lambda _: [b"one"])
        passing.down.call(1, PATH, b"question")
        await turns()
        head, _ = passing.up.transport.frames()
        if answered:
            passing.up.answer(1, b"yes")
        else:
            passing.down.feed(word(RST_STREAM, 1, Code.CANCEL))
        await turns()
        asked = found.one("ask")
        assert asked.context is not None
        assert f"{asked.context.trace_id:032x}-{asked.context.span_id:016x}-01".encode() in head.payload
        assert found.parent(asked).kind.name == "SERVER"
        assert (asked.attributes or {}).get("rpc.grpc.status_code") == (0 if answered else None)
        await passing.gone()


@pytest.mark.parametrize(
    ("meaning", "admitted"),
    [(lambda answer: None, []), (lambda answer: [b"x" * 65535], []), (lambda answer: False, [b"question"])],
    ids=["it passes", "the client takes no such answer", "it settles nothing"],
)
async def test_a_question_whose_answer_is_not_the_calls(meaning: Any, admitted: list[bytes]) -> None:
    passing = Passing(answers=[b"admitted"], meaning=meaning)
    passing.down.call(1, PATH, b"question")
    await turns()
    assert [f.payload for f in passing.up.transport.frames() if f.kind == DATA] == [grpc(b"may question")]
    passing.up.answer(1, b"yes")
    await turns()
    assert passing.admitted == admitted
    sent = [f.payload for f in passing.up.transport.frames() if f.kind == DATA]
    assert sent == ([] if admitted else [grpc(b"question")])
    if not admitted:
        passing.up.answer(3, b"passed")
        await turns()
    assert [f.payload for f in passing.down.transport.frames() if f.kind == DATA] == [
        grpc(b"admitted" if admitted else b"passed")
    ]
    await passing.gone()


@pytest.mark.parametrize("how", ["refused", "lost", "broken", "split", "no room"])
async def test_where_a_question_comes_to_nothing_the_call_goes_the_long_way(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The relayed call reports whatever is wrong. A failure to build the question is a defect of ours, which is
    returned and logged.
    """

    def meaning(answer: bytes) -> Any:
        return [b"1" * (1 // len(answer))]

    passing = Passing(
        settings(max_concurrent_streams=0) if how == "no room" else None, answers=[b"admitted"], meaning=meaning
    )
    passing.down.call(1, PATH, b"question", end=how != "split")
    if how == "split":
        await turns()
        passing.down.feed(data(1, end=True))
    if how == "refused":
        passing.up.feed(headers(1, literal([*RESPONSE, ("grpc-status", "5")]), end=True))
    elif how == "lost":
        passing.up.link.connection_lost(None)
    elif how == "broken":
        passing.up.answer(1, b"")
    await turns()
    answers = passing.down.transport.frames()
    assert [f.payload for f in answers if f.kind == DATA] == ([] if how == "broken" else [grpc(b"admitted")])
    assert passing.admitted == ([] if how == "broken" else [b"question"])
    assert ("ZeroDivisionError" in caplog.text) == (how == "broken")
    assert not passing.down.server.passages
    await passing.gone()


@pytest.mark.parametrize("end", [word(RST_STREAM, 1, Code.CANCEL), None], ids=["reset", "expired"])
async def test_a_client_that_leaves_while_a_question_is_asked(end: bytes | None) -> None:
    passing = Passing(answers=[], meaning=lambda answer: [b"late"])
    passing.down.call(1, PATH, b"question", extra=() if end else (("grpc-timeout", "20m"),))
    await turns()
    assert len(passing.up.link.connection.streams) == 1
    passing.down.feed(end or b"")

    async def over() -> bool:
        return not passing.down.server.passages

    await eventually_async(over)
    await turns()
    assert not passing.up.link.connection.streams
    assert [f.kind for f in passing.up.transport.frames()][-1] == RST_STREAM
    passing.up.answer(1, b"yes")
    await turns()
    assert [f for f in passing.down.transport.frames() if f.kind == DATA] == []
    await passing.gone()


def test_the_head_of_a_request_that_is_made_again_is_the_same() -> None:
    """This holds also a moment later, when less of its time is left, since each different head has to be decoded anew
    by the receiver. The time is never shortened, and rounded by less than 1 %.
    """
    one, other = (request_block(PATH, (("a", "b"),), seconds) for seconds in (30.0, 29.998))
    assert one is other
    assert request_block(PATH, (("a", "c"),), 30.0) != one
    assert request_block(PATH, (("a", "b"),), None) != one
    for seconds in (0.01234, 0.05, 0.9999, 1.0, 7.301, 29.9, 123.456, 1e5):
        block = ours.Decoder(Limits())(ours.request, request_block(PATH, (), seconds))
        assert block.timeout is not None
        assert seconds <= block.timeout + 1e-9 <= seconds * 1.0101


async def test_a_passage_that_ends_makes_room_for_the_next() -> None:
    """If the upstream allows one stream, calls are relayed one after another."""
    passing = Passing(settings(max_concurrent_streams=1))
    for number in (1, 3, 5):
        passing.down.call(number, PATH, b"%d" % number)
    for number in (1, 3, 5):
        await turns(10)
        assert [f.payload for f in passing.up.transport.frames() if f.kind == DATA] == [grpc(b"%d" % number)]
        passing.up.answer(number)
    await turns()
    assert not passing.down.link.connection.streams
    await passing.gone()


async def test_a_request_that_is_sent_again_keeps_its_window() -> None:
    """Window that the first upstream had not taken is given back to the client when the second has taken the data:
    otherwise the rest would never come.
    """
    passing = Passing(settings(initial_window_size=0), repeats=1)
    passing.down.call(1, PATH, end=False)
    passing.down.feed(data(1, b"x" * 16000) * 3)
    await turns()
    stream = passing.down.link.connection.streams[1]
    assert stream.receive_window < 20_000
    passing.up.feed(word(RST_STREAM, 1, Code.REFUSED_STREAM), settings(initial_window_size=1 << 20))
    async with asyncio.timeout(5):
        while len(passing.up.link.connection.streams) == 0:
            await asyncio.sleep(0.01)
    await turns()
    assert sum(len(f.payload) for f in passing.up.transport.frames() if f.kind == DATA) == 48_000
    assert stream.receive_window + stream.credit == stream.window
    assert [f.stream for f in passing.down.transport.frames() if f.kind == WINDOW_UPDATE] == [1]
    await passing.gone()


async def test_memory_for_repeatable_calls_is_their_bytes() -> None:
    """The reads are not kept: a byte of a request may have come with a megabyte of others."""
    passing = Passing(settings(max_concurrent_streams=0))
    passing.down.call(1, PATH, end=False)
    passing.down.feed(*[data(1, b"x")] * 200)
    passage = next(iter(passing.down.server.passages))
    assert isinstance(passage._kept, bytearray)
    assert isinstance(passage._early, bytearray)
    assert (len(passage._kept), len(passage._early)) == (200, 200)
    await passing.gone()


async def test_an_upstream_that_stops_is_left_without_a_stream() -> None:
    """It reports this in trailers, in the middle of a request: the call is repeated elsewhere, and its first stream is
    reset.
    """
    passing = Passing(repeats=1)
    passing.down.call(1, PATH, b"part", end=False)
    await turns()
    passing.up.transport.frames()
    passing.up.feed(headers(1, literal([*RESPONSE, ("grpc-status", "14"), (rpc.STOPPING, "1")]), end=True))
    await turns()
    assert [(f.kind, f.stream) for f in passing.up.transport.frames()] == [(RST_STREAM, 1)]
    await passing.gone()


@pytest.mark.parametrize("where", ["before", "waiting", "passing", "answered"])
async def test_a_client_that_leaves_leaves_nothing_behind(where: str) -> None:
    """The client resets the stream or is lost, at any point of its call: no passage and no upstream stream is left."""
    for lost in (False, True):
        passing = Passing(settings(max_concurrent_streams=0 if where == "waiting" else 5))
        passing.down.call(1, PATH, b"q", end=False)
        if where != "before":
            await turns()
        if where == "answered":
            passing.up.feed(headers(1, literal(RESPONSE)), data(1, grpc(b"a")))
        if not lost:
            passing.down.feed(word(RST_STREAM, 1, Code.CANCEL))
            await turns()
            assert not passing.up.link.connection.streams
            assert not passing.down.server.passages
        await passing.gone()


async def test_a_client_that_does_not_read_holds_up_its_upstream() -> None:
    """Window for unsent data is not given back: the upstream stops at its window, and goes on when the client reads."""
    passing = Passing()
    deliver(passing.down.link, settings(initial_window_size=100))
    passing.down.call(1, PATH, b"q")
    await turns()
    passing.up.feed(headers(1, literal(RESPONSE)), data(1, b"x" * 16000) * 4)
    up = passing.up.link.connection.streams[1]
    assert up.receive_window < 2000
    passing.down.feed(word(WINDOW_UPDATE, 1, 100_000), word(WINDOW_UPDATE, 0, 100_000))
    assert up.receive_window > 60_000
    await passing.gone()


async def test_a_call_of_our_own_beside_those_that_pass() -> None:
    """The same connection carries both."""
    passing = Passing()
    passing.down.call(1, PATH, b"q")
    passing.down.call(3, SAY, b"hello")
    assert [(f.stream, f.payload) for f in passing.down.transport.frames() if f.kind == DATA] == [(3, grpc(b"HELLO"))]
    await passing.gone()


async def test_an_attempt_that_fails_unexpectedly_is_told_and_another_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that watches a connection waits for the next attempt: an attempt that ended silently would be the last."""
    attempts: list[str] = []

    async def connect(protocol: Any, address: str) -> None:
        attempts.append(address)
        raise ZeroDivisionError("unthought of")

    carrier = WireCarrier("unix:/nowhere", "peer", "never", Limits())
    monkeypatch.setattr(carrier._loop, "create_unix_connection", connect, raising=False)
    watch = asyncio.ensure_future(carrier.changed(False))
    async with asyncio.timeout(15):
        while len(attempts) < 3:
            await asyncio.sleep(0.01)
    assert "connecting to /nowhere failed unexpectedly" in caplog.text
    watch.cancel()
    await carrier.close()


async def test_a_peer_that_speaks_no_http2_and_hangs_up_is_no_bug_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """A web server answers the preface with an error and closes, so the end of our side cannot be said any more."""
    link = ClientLink(WireCarrier("unix:/nowhere", "peer", "never", Limits()), Limits())

    class HungUp(Transport):
        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    link.connection_made(HungUp(link))
    link.data_received(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    assert link.lost
    assert "could not be handled" not in caplog.text
