"""kit.tracing: a trace through processes, and what is said of an operation on its way to the root. On both transports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from services.kit import errors, observer, rpc, tracing
from services.kit.call import TOLD
from services.kit.hops import Hop
from services.kit.relays import Route
from services.kit.spans import CLIENT, SERVER, Span
from tests.support import eventually_async

SERVICE = content_stubs.CONTENT
INFO = "/containerd.services.content.v1.Content/Info"


class Content:
    """Says something about the operation, and then answers, fails or streams."""

    SERVICE = SERVICE

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        with tracing.span("work"):
            tracing.operation(bytes=len(request.digest), who=request.digest)
        if request.digest == "absent":
            raise errors.NotFound("content absent")
        return pb.InfoResponse()

    async def Read(self, request: pb.ReadContentRequest, call: rpc.Call) -> AsyncIterator[pb.ReadContentResponse]:
        yield pb.ReadContentResponse(data=b"x")
        tracing.operation(who=request.digest)


class Middle:
    """Asks the process behind it, as images does: each call by itself, or all together."""

    SERVICE = SERVICE

    def __init__(self, channel: rpc.Channel) -> None:
        self._client = channel.client(SERVICE)

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        names = request.digest.split()
        await asyncio.gather(*(self._client.Info(pb.InfoRequest(digest=name), together=True) for name in names))
        return await self._client.Info(pb.InfoRequest(digest=names[-1]))

    async def Read(self, request: pb.ReadContentRequest, call: rpc.Call) -> AsyncIterator[pb.ReadContentResponse]:
        async for answer in self._client.Read(request):
            yield answer


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
        return Route(Hop("s", self), call.passed_on())


class Edge:
    """An entrance that begins a trace for each call."""

    def __init__(self) -> None:
        self.roots: list[Span] = []

    def began(
        self, connection: object, side: observer.Side, method: str, headers: Mapping[str, str | bytes], request: bytes
    ) -> observer.Observed:
        self.roots.append(tracing.root("all"))
        return observer.began(side, method, headers, self.roots[-1])

    def left(self, connection: object) -> None:
        """Nothing to do."""


@pytest.fixture(params=rpc.TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)
    return str(request.param)


@pytest.fixture
def kept() -> Iterator[list[Span]]:
    found: list[Span] = []
    tracing.setup(found.append)
    yield found
    tracing.reset()


@contextlib.asynccontextmanager
async def node(place: Path) -> AsyncIterator[tuple[Edge, rpc.Channel]]:
    """A gateway, a service behind it, which calls the gateway's inner socket, and one behind that."""
    edge = Edge()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(rpc.serving(place / "c", [Content()], relayed=True))
        content = await enter(rpc.Channel(place / "c"))
        await enter(rpc.serving(place / "i", [], relay=Passing(content), relayed=True))
        inner = await enter(rpc.Channel(place / "i"))
        await enter(rpc.serving(place / "m", [Middle(inner)], relayed=True))
        middle = await enter(rpc.Channel(place / "m"))
        await enter(rpc.serving(place / "g", [], relay=Passing(middle), entrance=edge))
        yield edge, await enter(rpc.Channel(place / "g"))


async def test_what_is_said_of_an_operation_is_on_its_root(transport: str, place: Path, kept: list[Span]) -> None:
    """It comes from two processes behind the gateway, with answers, failures and streams, and no client sees it."""
    async with node(place) as (edge, channel):
        client = channel.client(SERVICE)
        await client.Info(pb.InfoRequest(digest="abc de"))
        assert edge.roots[-1].attributes == {"bytes": 2, "who": "de"}
        with pytest.raises(errors.NotFound) as caught:
            await client.Info(pb.InfoRequest(digest="absent"))
        assert edge.roots[-1].get("who") == "absent"
        assert TOLD not in dict(caught.value.trailers)
        stream: Any = client.Read(pb.ReadContentRequest(digest="stream"))
        assert len([answer async for answer in stream]) == 1
        assert edge.roots[-1].get("who") == "stream"
    for span in kept:
        assert span.name == "all" or "who" not in span.attributes


async def test_no_client_gets_the_trailer(transport: str, place: Path, kept: list[Span]) -> None:
    """It is gone from the bytes: a client of Google's sees it neither with an answer nor with an error."""
    async with node(place) as (edge, _), grpc.aio.insecure_channel(f"unix:{place}/g") as channel:
        call: Any = channel.unary_unary(INFO)(pb.InfoRequest(digest="abc").SerializeToString())
        await call
        assert TOLD not in {key for key, _ in await call.trailing_metadata()}
        call = channel.unary_unary(INFO)(pb.InfoRequest(digest="absent").SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert TOLD not in {key for key, _ in caught.value.trailing_metadata()}
        assert [root.get("who") for root in edge.roots] == ["abc", "absent"]


async def test_a_stranger_that_traces_gets_no_trailer_either(transport: str, place: Path, kept: list[Span]) -> None:
    """Its trace continues, and the gateway's own span has the attributes."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"), ("tracestate", "rojo=1"))
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(rpc.serving(place / "c", [Content()], relayed=True))
        content = await enter(rpc.Channel(place / "c"))
        await enter(rpc.serving(place / "g", [], relay=Passing(content)))
        channel = await enter(grpc.aio.insecure_channel(f"unix:{place}/g"))
        call: Any = channel.unary_unary(INFO)(pb.InfoRequest(digest="abc").SerializeToString(), metadata=headers)
        await call
        assert TOLD not in {key for key, _ in await call.trailing_metadata()}

        async def ended() -> bool:
            return len(kept) == 4

        await eventually_async(ended)
    assert {span.trace for span in kept} == {trace}
    (first,) = (span for span in kept if span.above == "b7ad6b7169203331")
    assert first.get("who") == "abc"


async def test_a_call_whose_root_is_not_recorded_is_recorded_nowhere(
    transport: str, place: Path, kept: list[Span]
) -> None:
    """A service behind the gateway begins no trace, though it makes spans."""

    class Sampled(Edge):
        def began(
            self,
            connection: object,
            side: observer.Side,
            method: str,
            headers: Mapping[str, str | bytes],
            request: bytes,
        ) -> observer.Observed:
            return observer.began(side, method, headers, None)

    async with rpc.serving(place / "c", [Content()], relayed=True), rpc.Channel(place / "c") as content:
        async with (
            rpc.serving(place / "g", [], relay=Passing(content), entrance=Sampled()),
            rpc.Channel(place / "g") as channel,
        ):
            await channel.client(SERVICE).Info(pb.InfoRequest(digest="abc"))
    assert not kept


async def test_an_error_that_the_caller_expects_is_no_failure(place: Path, kept: list[Span]) -> None:
    """Its span has the code; that of the one who answered so, or of a call outside of the block, has failed."""

    class Ending:
        SERVICE = SERVICE

        async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
            raise errors.Unavailable("I end")

    async with rpc.serving(place / "s", [Ending()]), rpc.Channel(place / "s") as channel:
        client = channel.client(SERVICE)
        with tracing.root("x"):
            with pytest.raises(errors.Unavailable), tracing.expecting(errors.Unavailable):
                await client.Info(pb.InfoRequest())
            with pytest.raises(errors.Unavailable), tracing.expecting(errors.Aborted):
                await client.Info(pb.InfoRequest())
    assert [span.failed for span in kept if span.kind == SERVER] == [True, True]
    assert [(span.failed, span.code) for span in kept if span.kind == CLIENT] == [(False, 14), (True, 14)]


@pytest.mark.once  # the wire's limits; grpcio has its own
@pytest.mark.parametrize("name", ["tracestate", "user-agent"])
async def test_headers_that_a_relay_passes_on_close_no_connection_of_others(name: str, place: Path) -> None:
    """The relay sends headers of its own, too. A list that is nearly too long when it comes would be too long for the
    process behind, which would end the connection that all clients share.
    """
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(rpc.serving(place / "c", [Content()], relayed=True))
        content = await enter(rpc.Channel(place / "c"))
        await enter(rpc.serving(place / "g", [], relay=Passing(content)))
        client = (await enter(rpc.Channel(place / "g"))).client(SERVICE)
        told = set()
        for size in range(64_600, 65_100, 10):
            headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00", name: f"a={'x' * size}"}
            try:
                await client.Info(pb.InfoRequest(digest="abc"), headers=headers)
            except errors.NodeError as error:  # the gateway itself, or the client's own connection
                told.add(type(error))
    assert told <= {errors.ResourceExhausted, errors.Disconnected}
    assert (errors.ResourceExhausted in told) is (name == "user-agent")  # a long tracestate is left out
    assert errors.Disconnected in told, "no list was too long for the gateway"
