"""kit.observer: each call is reported once at each side, at its beginning and at its end, however it ends and whatever
carries it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from api.containerd.runtime.task.v2 import shim_pb2, shim_stubs
from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from bench.hostile import Raw
from services.kit import errors, observer, rpc, tracing, ttrpc
from services.kit.hops import Hop
from services.kit.relays import Route
from services.wire import messages
from services.wire.server import WireServer
from tests.spans import Recorder
from tests.support import eventually_async

SERVICE = content_stubs.CONTENT
TASK = shim_stubs.TASK
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WIRE = rpc.transport() == "wire"
"""Whether the server has its messages as bytes, and relays calls without parsing them."""


@dataclass
class Heard:
    """One call, as a listener sees it."""

    side: str
    name: str
    along: bool
    """Whether the listener sends a header."""
    end: tuple[int, str, int, str] | None = None
    inside: bool = False

    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("x-heard", self.side),) if self.along else ()

    def enter(self) -> None:
        """Enter a context without effect."""

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        assert self.end is None, "it has ended before"
        self.end = code, message, size, type(defect).__name__ if defect else ""

    def left(self, size: int = 0) -> None:
        self.ended(1, "left", size)


class Calls(list[Heard]):
    """All calls of this process."""

    along = True


@pytest.fixture
def heard() -> Iterator[Calls]:
    calls = Calls()

    def listener(side: observer.Side, method: str, headers: Mapping[str, str | bytes]) -> Heard:
        calls.append(Heard(side, method.rpartition("/")[2], calls.along))
        return calls[-1]

    observer.listen(listener)
    yield calls
    observer.unlisten(listener)


class Content:
    """A method for each way to end."""

    SERVICE = SERVICE

    def __init__(self) -> None:
        self.calls: list[rpc.Call] = []

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        self.calls.append(call)
        match request.digest:
            case "absent":
                raise errors.NotFound("content absent")
            case "bug":
                raise ZeroDivisionError("secret")
            case "slow":
                await asyncio.sleep(60)
        return pb.InfoResponse(info=pb.Info(digest=request.digest))

    async def Read(self, request: pb.ReadContentRequest, call: rpc.Call) -> AsyncIterator[pb.ReadContentResponse]:
        for i in range(request.size):
            yield pb.ReadContentResponse(offset=i, data=b"x" * 100)

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], call: rpc.Call
    ) -> AsyncIterator[pb.WriteContentResponse]:
        async for request in requests:
            yield pb.WriteContentResponse(action=request.action)


def size(
    *messages: pb.InfoRequest
    | pb.InfoResponse
    | pb.ReadContentRequest
    | pb.ReadContentResponse
    | pb.WriteContentRequest
    | pb.WriteContentResponse,
) -> int:
    return sum(len(message.SerializeToString()) for message in messages)


async def ends(heard: Calls, *wanted: tuple[str, int, str, int | None, str]) -> None:
    """Wait until all calls have ended in this way: by side, code, message, size (None: however far it got), and the
    kind of defect.
    """

    async def ended() -> bool:
        return len(heard) == len(wanted) and all(call.end is not None for call in heard)

    await eventually_async(ended)
    found = {call.side: call.end for call in heard if call.end is not None}
    assert len(found) == len(wanted), "a call is heard of twice"
    for side, code, message, bytes_, defect in wanted:
        end = found[side]
        assert (end[0], end[1], end[3]) == (code, message, defect), side
        if bytes_ is not None and (WIRE or side == "client"):
            assert end[2] == bytes_, side


async def test_a_unary_call(heard: Calls, place: Path) -> None:
    """Both sides report its end, with the bytes of request and answer; a listener's header arrives."""
    content = Content()
    async with rpc.serving(place / "s", [content]), rpc.Channel(place / "s") as channel:
        request = pb.InfoRequest(digest="x" * 1000)
        both = size(request, await channel.client(SERVICE).Info(request))
        await ends(heard, ("client", 0, "", both, ""), ("server", 0, "", both, ""))
    assert content.calls[0].headers["x-heard"] == "client"


@pytest.mark.parametrize(
    ("digest", "code", "message", "there", "defect"),
    [
        ("absent", 5, "content absent: not found", "content absent: not found", ""),
        ("bug", 13, None, "secret", "ZeroDivisionError"),
    ],
)
async def test_an_error(
    digest: str, code: int, message: str | None, there: str, defect: str, heard: Calls, place: Path
) -> None:
    """The client's side reports the error that the client gets, the server's side the original one."""
    async with rpc.serving(place / "s", [Content()]), rpc.Channel(place / "s") as channel:
        request = pb.InfoRequest(digest=digest)
        with pytest.raises(errors.NodeError) as caught:
            await channel.client(SERVICE).Info(request)
        await ends(
            heard,
            ("client", code, message or str(caught.value), size(request), ""),
            ("server", code, there, size(request), defect),
        )


async def test_a_call_that_is_given_up(heard: Calls, place: Path) -> None:
    """The client cancels it; the server's handler is cancelled."""
    async with rpc.serving(place / "s", [content := Content()]), rpc.Channel(place / "s") as channel:
        asking = asyncio.ensure_future(channel.client(SERVICE).Info(pb.InfoRequest(digest="slow")))

        async def asked() -> bool:
            return bool(content.calls)

        await eventually_async(asked)
        asking.cancel()
        await ends(heard, ("client", 1, "left", None, ""), ("server", 1, "cancelled", None, ""))


async def test_streams(heard: Calls, place: Path) -> None:
    """All messages count, in both directions; a stream that the client leaves early is reported as left."""
    async with rpc.serving(place / "s", [Content()]), rpc.Channel(place / "s") as channel:
        client = channel.client(SERVICE)
        request = pb.ReadContentRequest(size=3)
        both = size(request, *[response async for response in client.Read(request)])
        await ends(heard, ("client", 0, "", both, ""), ("server", 0, "", both, ""))
        heard.clear()
        async with client.Write() as stream:
            message = pb.WriteContentRequest(data=b"x" * 1000)
            await stream.send(message)
            answer = await stream.receive()
            assert answer is not None
        # grpcio tells a handler that waits for requests that there are no more, when the client is gone.
        await ends(
            heard,
            ("client", 1, "left", size(message, answer), ""),
            ("server", *((1, "cancelled") if WIRE else (0, "")), size(message, answer), ""),
        )


async def test_calls_that_are_made_together(heard: Calls, place: Path) -> None:
    """Each is reported by itself, beside the call that carries them."""
    heard.along = False  # they have room for trace context only
    async with rpc.serving(place / "s", [Content()], relayed=True), rpc.Channel(place / "s") as channel:
        client = channel.client(SERVICE)
        request = pb.InfoRequest(digest="y")
        answers = await asyncio.gather(*(client.Info(request, together=True) for _ in range(3)))

        async def ended() -> bool:
            return len(heard) == 7 and all(call.end is not None for call in heard)

        await eventually_async(ended)
    assert [call.end for call in heard if call.name == "Info"] == [(0, "", size(request, answers[0]), "")] * 6
    assert [(call.side, call.name) for call in heard if call.name != "Info"] == [("server", "Make")]


class Passing:
    """A relay of all calls to one process."""

    name = "s"

    def __init__(self, channel: rpc.Channel) -> None:
        self.channel = channel

    def is_ready(self) -> bool:
        return self.channel.connected()

    async def ready(self, call: rpc.Call | None = None) -> rpc.Channel:
        return self.channel

    def arity(self, method: str) -> rpc.Arity:
        return rpc.UNARY if method.endswith("/Info") else rpc.STREAMS

    def coordinated(self, call: rpc.Call) -> None:
        return None

    def route(self, call: rpc.Call) -> Route:
        return Route(Hop("s", self), {"x-own": "1"})


@pytest.mark.parametrize(("digest", "code"), [("x", 0), ("absent", 5)])
async def test_a_call_that_passes_through(digest: str, code: int, heard: Calls, place: Path) -> None:
    """It is one call of the relay's, with the status that the client gets and the relayed bytes. Under grpcio, whose
    relay parses the messages, it is a server's call and a client's.
    """
    content = Content()
    request = pb.InfoRequest(digest=digest)
    async with (
        rpc.serving(place / "s", [content]),
        rpc.Channel(place / "s") as back,
        rpc.serving(place / "g", [], relay=Passing(back)),
        rpc.Channel(place / "g") as front,
    ):
        try:
            answered = size(await front.client(SERVICE).Info(request, headers={"traceparent": TRACEPARENT})) + 5
        except errors.NotFound:
            answered = 0

        async def ended() -> bool:
            return all(call.end is not None for call in heard)

        await eventually_async(ended)
    sides = sorted(call.side for call in heard)
    assert sides == (["client", "relay", "server"] if WIRE else ["client", "client", "server", "server"])
    assert {call.end[0] for call in heard if call.end is not None} == {code}
    if WIRE:
        (relayed,) = [call.end for call in heard if call.side == "relay" and call.end is not None]
        assert relayed[2] == size(request) + 5 + answered  # a message on the wire has five bytes more
        assert content.calls[0].headers["x-heard"] == "relay"
    assert content.calls[0].headers["traceparent"] == TRACEPARENT


async def test_a_call_that_passes_through_is_of_one_trace(place: Path) -> None:
    """The relay's two spans are between the client's and the server's, and have the status that the client gets."""
    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    try:
        async with (
            rpc.serving(place / "s", [Content()]),
            rpc.Channel(place / "s") as back,
            rpc.serving(place / "g", [], relay=Passing(back)),
            rpc.Channel(place / "g") as front,
        ):
            with tracing.span("outer"), pytest.raises(errors.NotFound):
                await front.client(SERVICE).Info(pb.InfoRequest(digest="absent"))

            async def ended() -> bool:
                return len(exporter.get_finished_spans()) == 5

            await eventually_async(ended)
    finally:
        tracing.reset()
    spans = exporter.get_finished_spans()
    by_parent = {span.parent.span_id if span.parent else 0: span for span in spans}
    chain, at = [], 0
    while at in by_parent:
        span = by_parent[at]
        chain.append((span.kind.name, (span.attributes or {}).get("rpc.grpc.status_code")))
        at = span.context.span_id
    assert chain == [("INTERNAL", None), ("CLIENT", 5), ("SERVER", 5), ("CLIENT", 5), ("SERVER", 5)]


class Edge:
    """An entrance that has a root for each connection."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bytes]] = []
        self.roots: dict[object, tracing.Span] = {}

    def began(
        self, connection: object, side: observer.Side, method: str, headers: Mapping[str, str | bytes], request: bytes
    ) -> observer.Observed:
        self.calls.append((side, method.rpartition("/")[2], request))
        if connection not in self.roots:
            self.roots[connection] = tracing.root("all")
        return observer.began(side, method, headers, self.roots[connection])

    def left(self, connection: object) -> None:
        self.roots.pop(connection).end()


@pytest.mark.skipif(not WIRE, reason="grpcio does not tell connections apart")
async def test_an_entrance_joins_calls_of_one_connection(place: Path) -> None:
    """It sees the connection, the request of relayed calls, and the connection's end; its root is above the calls."""
    exporter, edge = Recorder(), Edge()
    tracing.setup(exporter.export, loose=True)
    try:
        async with (
            rpc.serving(place / "s", [Content()]),
            rpc.Channel(place / "s") as back,
            rpc.serving(place / "g", [], relay=Passing(back), entrance=edge),
        ):
            for digest in ("a", "b"):
                async with rpc.Channel(place / "g") as front:
                    for _ in range(2):
                        await front.client(SERVICE).Info(pb.InfoRequest(digest=digest))

            async def ended() -> bool:
                return sum(span.name == "all" for span in exporter.get_finished_spans()) == 2

            await eventually_async(ended)
    finally:
        tracing.reset()
    roots = [span for span in exporter.get_finished_spans() if span.name == "all"]
    for root in roots:
        below = [span for span in exporter.get_finished_spans() if span.parent == root.context]
        assert [span.kind.name for span in below] == ["SERVER", "SERVER"]
    assert len({root.context.trace_id for root in roots}) == 2
    request = pb.InfoRequest(digest="a").SerializeToString()
    assert edge.calls[:2] == [("relay", "Info", request)] * 2


@pytest.mark.skipif(not WIRE, reason="grpcio does not tell connections apart")
async def test_an_entrance_sees_a_request_that_comes_after_its_head(place: Path) -> None:
    """grpc-go writes both at once, or one after the other."""
    edge, request = Edge(), pb.InfoRequest(digest="a").SerializeToString()
    async with (
        rpc.serving(place / "s", [Content()]),
        rpc.Channel(place / "s") as back,
        rpc.serving(place / "g", [], relay=Passing(back), entrance=edge) as server,
    ):
        await back.client(SERVICE).Info(pb.InfoRequest(digest="warm"))  # else the call waits for the connection
        assert isinstance(server, WireServer)
        with Raw(place / "g") as raw:
            stream = raw.open(f"/{SERVICE.full_name}/Info")
            raw.flush()

            async def opened() -> bool:
                return bool(server.passages)

            await eventually_async(opened)
            raw.connection.send(stream, messages.prefix(request), request, end=True)
            raw.flush()
            (head,) = await asyncio.to_thread(raw.until, Raw.statuses)
    assert head.code == 0
    assert edge.calls == [("relay", "Info", request)]


class Task:
    """Two ways to end."""

    SERVICE = TASK

    async def State(self, request: shim_pb2.StateRequest, call: rpc.Call) -> shim_pb2.StateResponse:
        return shim_pb2.StateResponse(id=request.id)

    async def Kill(self, request: shim_pb2.KillRequest, call: rpc.Call) -> shim_pb2.StateResponse:
        raise errors.NotFound("process")


async def test_ttrpc(heard: Calls, place: Path) -> None:
    """Calls of shims too."""
    async with ttrpc.serving(place / "t", [Task()]), ttrpc.Channel(place / "t") as channel:
        client = channel.client(TASK)
        request = shim_pb2.StateRequest(id="x" * 100)
        both = len(request.SerializeToString()) + len((await client.State(request)).SerializeToString())
        assert {call.side: call.end for call in heard} == {"client": (0, "", both, ""), "server": (0, "", both, "")}
        heard.clear()
        with pytest.raises(errors.NotFound):
            await client.Kill(shim_pb2.KillRequest())
        assert {call.side: call.end for call in heard} == dict.fromkeys(
            ("client", "server"), (5, "process: not found", 0, "")
        )


async def test_a_removed_listener_gets_no_calls(place: Path) -> None:
    """The first listener, tracing, is the only one again: it costs no more than one call."""
    alone = observer.began

    def listener(side: observer.Side, method: str, headers: Mapping[str, str | bytes]) -> Heard:
        raise AssertionError(method)

    observer.listen(listener)
    assert observer.began is not alone
    observer.unlisten(listener)
    assert observer.began is alone
    async with rpc.serving(place / "s", [Content()]), rpc.Channel(place / "s") as channel:
        await channel.client(SERVICE).Info(pb.InfoRequest())
