"""``Channel.around``, on both transports: whoever stands around a channel sees each call that leaves by it, made here or
passing through, and the call is as without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.kit import errors, rpc
from tests.interop import client as cases
from tests.interop import testing_pb2 as pb
from tests.interop.server import Load
from tests.interop.server import TestServicer as Servicer
from tests.support import eventually_async

pytestmark = pytest.mark.once

SERVICE = cases.SERVICE
TRANSPORTS = ("wire", "grpcio")
NOT_PASSED = {"custom_metadata", "custom_metadata_with_a_status", "orca_per_rpc"}
"""grpcio's relay does not pass the metadata of a stream, with or without somebody around it."""
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True, params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport that carries all calls."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)
    return str(request.param)


@dataclass
class Around:
    """Stands around calls, and records them: method, whether a stream, and messages in each direction."""

    seen: list[tuple[str, bool]] = field(default_factory=list)
    headers: list[Mapping[str, str | bytes]] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    refuse: errors.NodeError | None = None
    delay: float = 0.0
    passes: str = ""
    """A method that may pass unread."""

    def unread(self, path: str) -> bool:
        return path.rpartition("/")[2] == self.passes

    async def unary(
        self, path: str, request: bytes, headers: Mapping[str, str | bytes], go: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        self._saw(path, headers, stream=False)
        if self.refuse is not None:
            raise self.refuse
        await asyncio.sleep(self.delay)
        self.sent += 1
        answer = await go()
        self.received += 1
        return answer

    def stream(self, path: str, headers: Mapping[str, str | bytes], carried: rpc.CarriedStream) -> rpc.CarriedStream:
        self._saw(path, headers, stream=True)
        return _Seen(carried, self)

    def _saw(self, path: str, headers: Mapping[str, str | bytes], *, stream: bool) -> None:
        self.seen.append((path.rpartition("/")[2], stream))
        self.headers.append(headers)


@dataclass
class _Seen:
    carried: rpc.CarriedStream
    around: Around

    async def send(self, message: bytes) -> None:
        await self.carried.send(message)
        self.around.sent += 1

    async def done_sending(self) -> None:
        await self.carried.done_sending()

    async def receive(self) -> bytes | None:
        if self.around.refuse is not None:
            self.carried.cancel()
            raise self.around.refuse
        message = await self.carried.receive()
        self.around.received += message is not None
        return message

    async def leading(self) -> rpc.Headers:
        return await self.carried.leading()

    def trailing(self) -> rpc.Headers:
        return self.carried.trailing()

    def cancel(self) -> None:
        self.carried.cancel()


@dataclass(eq=False)
class Upstream:
    """The one upstream of a relay."""

    channel: rpc.Channel
    name: str = "testing"

    def is_ready(self) -> bool:
        return self.channel.connected()

    async def ready(self, call: rpc.Call | None = None) -> rpc.Channel:
        await self.channel.reached(5)
        return self.channel


@dataclass(eq=False)
class Relay:
    """A hop, and the relay whose calls all go there."""

    upstream: Upstream
    name: str = "testing"
    stall: float | None = None
    repeats: float = 0

    def to(self, namespace: str, key: str = "") -> Upstream:
        return self.upstream

    def arity(self, method: str) -> rpc.Arity:
        found = SERVICE.methods_by_name.get(method.rpartition("/")[2])
        return rpc.STREAMS if found is None else rpc.Arity(found.client_streaming, found.server_streaming)

    def coordinated(self, call: rpc.Call) -> None:
        return None

    def route(self, call: rpc.Call) -> rpc.Route:
        return rpc.Route(self, call.passed_on(), stall=self.stall, repeats=self.repeats)


@dataclass
class Scene:
    """A server, and a way to it on which an :class:`Around` stands: ``channel``."""

    channel: rpc.Channel
    around: Around
    relay: Relay | None
    servicer: Servicer

    @property
    def peer(self) -> cases.Peer:
        return cases.Peer(self.channel)


@contextlib.asynccontextmanager
async def scene(
    place: Path, *, relayed: bool, servicer: Any = None, ours: bool = True, **route: Any
) -> AsyncIterator[Scene]:
    """Calls that are made here, or that a relay passes on. The server is taken for one of another project unless it is
    ``ours``.
    """
    load, around = Load(), Around()
    servicer = servicer or Servicer(load)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(
            rpc.serving(place / "t.sock", [servicer, load], long=frozenset({"StreamCoreMetrics"}), grace=0)
        )
        channel = await stack.enter_async_context(
            rpc.Channel(place / "t.sock", "testing", pings="calls" if ours else "never")
        )
        channel.around = around
        relay = None
        if relayed:
            relay = Relay(Upstream(channel), **route)
            await stack.enter_async_context(rpc.serving(place / "g.sock", [], relay=relay, relayed=True, grace=0))
            channel = await stack.enter_async_context(rpc.Channel(place / "g.sock", "gateway"))
        yield Scene(channel, around, relay, servicer)


SIDES = pytest.mark.parametrize("relayed", [False, True], ids=["made", "relayed"])


@SIDES
async def test_every_kind_of_call_is_as_without_it(place: Path, transport: str, relayed: bool) -> None:
    """The cases by which implementations of gRPC test each other pass, each on a channel of its own, and are seen."""
    left_out = NOT_PASSED if transport == "grpcio" and relayed else {"orca_per_rpc"} if transport == "grpcio" else set()
    async with scene(place, relayed=relayed) as here:
        for case in cases.CASES:
            if case.__name__ in left_out or case.__name__.endswith("_soak"):
                continue
            before = len(here.around.seen)
            async with asyncio.timeout(30):
                await case(here.peer)
            assert len(here.around.seen) > before, case.__name__
        kinds = set(here.around.seen)
    assert {("EmptyCall", False), ("StreamingInputCall", True), ("FullDuplexCall", True)} <= kinds
    assert ("StreamingOutputCall", True) in kinds


@SIDES
async def test_it_may_fail_a_call_and_nothing_is_sent(place: Path, relayed: bool) -> None:
    """The caller gets its error, with the trailers."""
    async with scene(place, relayed=relayed) as here:
        here.around.refuse = errors.ResourceExhausted("not today", trailers=(("why", "x"),))
        with pytest.raises(errors.ResourceExhausted, match="^not today: resource exhausted$") as caught:
            await here.peer.client.EmptyCall(pb.Empty())
        assert ("why", "x") in caught.value.trailers
        async with here.peer.duplex() as stream:
            await stream.send(cases.asking(1, 1))
            with pytest.raises(errors.ResourceExhausted, match="not today"):
                await stream.receive()
        here.around.refuse = None
        await cases.empty_unary(here.peer)
    assert here.around.sent <= 2


@SIDES
async def test_the_time_limit_is_for_it_too(place: Path, relayed: bool) -> None:
    """A call that it delays ends at its deadline."""
    async with scene(place, relayed=relayed) as here:
        here.around.delay = 60
        with pytest.raises(errors.DeadlineExceeded):
            await here.peer.client.EmptyCall(pb.Empty(), timeout=0.2)
    assert here.around.sent == 0


@SIDES
async def test_calls_that_are_made_together_are_seen_one_by_one(place: Path, relayed: bool) -> None:
    """They are sent as one all the same."""
    async with scene(place, relayed=relayed) as here:
        await asyncio.gather(*(here.peer.client.EmptyCall(pb.Empty(), together=True) for _ in range(5)))
        assert here.around.seen == [("EmptyCall", False)] * 5


@SIDES
async def test_a_client_that_leaves_cancels_the_call(place: Path, relayed: bool) -> None:
    """The handler ends soon."""
    ended = asyncio.Event()
    entered = asyncio.Event()

    class Waits(Servicer):
        async def FullDuplexCall(self, requests: Any, call: rpc.Call) -> AsyncIterator[pb.StreamingOutputCallResponse]:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            yield pb.StreamingOutputCallResponse()

    async with scene(place, relayed=relayed, servicer=Waits(Load())) as here:
        async with here.peer.duplex() as stream:
            await stream.send(cases.asking(1, 1))
            await asyncio.wait_for(entered.wait(), 10)
        await asyncio.wait_for(ended.wait(), 10)


class Counting(Servicer):
    """Counts what it was sent, and what it could send."""

    def __init__(self) -> None:
        super().__init__(Load())
        self.got = self.put = 0
        self.read = asyncio.Event()

    async def StreamingInputCall(self, requests: Any, call: rpc.Call) -> pb.StreamingInputCallResponse:
        await self.read.wait()
        async for request in requests:
            self.got += len(request.payload.body)
        return pb.StreamingInputCallResponse(aggregated_payload_size=self.got)

    async def StreamingOutputCall(
        self, request: pb.StreamingOutputCallRequest, call: rpc.Call
    ) -> AsyncIterator[pb.StreamingOutputCallResponse]:
        for _ in range(100):
            yield pb.StreamingOutputCallResponse(payload=pb.Payload(body=bytes(MEGABYTE)))
            self.put += 1


async def test_a_slow_reader_holds_up_the_writer(place: Path) -> None:
    """In both directions of a call that passes through: what waits is some messages, not all of them."""
    servicer = Counting()
    async with scene(place, relayed=True, servicer=servicer) as here:
        async with here.peer.client.StreamingInputCall() as stream:
            sending = asyncio.ensure_future(_send(stream, 100))
            await eventually_async(lambda: _still(lambda: here.around.sent), "it sends on and on")
            assert here.around.sent < 50
            assert not sending.done()
            servicer.read.set()
            assert await sending == 100 * MEGABYTE
        here.around.received = 0
        async with here.channel.stream(f"/{SERVICE.full_name}/StreamingOutputCall", {}, 60.0) as reading:
            await reading.send(b"")
            await reading.done_sending()
            assert await reading.receive()
            await eventually_async(lambda: _still(lambda: here.around.received), "it is read on and on")
            assert here.around.received < 50
            rest = 0
            while await reading.receive() is not None:
                rest += 1
            assert rest == 99
    assert servicer.put == 100


async def _send(stream: rpc.Stream, count: int) -> int:
    for _ in range(count):
        await stream.send(pb.StreamingInputCallRequest(payload=pb.Payload(body=bytes(MEGABYTE))))
    await stream.done_sending()
    answer = await stream.receive()
    assert answer is not None
    return int(answer.aggregated_payload_size)


async def _still(count: Callable[[], int]) -> bool:
    """Whether a number that is above 0 does not grow any more."""
    before = count()
    await asyncio.sleep(0.2)
    return 0 < before == count()


async def test_a_silent_upstream_of_another_project_stalls_no_call(place: Path) -> None:
    """The route's limit counts while nothing comes."""
    async with scene(place, relayed=True, ours=False, stall=0.2) as here:
        async with here.peer.duplex() as stream:
            await stream.send(cases.asking(1))
            with pytest.raises(errors.Unavailable, match=r"^service testing has been silent for 0.2 s: unavailable$"):
                await stream.receive()


async def test_an_upstream_keeps_its_stall_and_what_stands_around_has_its_own(place: Path) -> None:
    """A handler that stands still is ended where it runs; one that may take long is not, but who delays it is."""

    class Late(Servicer):
        async def EmptyCall(self, request: pb.Empty, call: rpc.Call) -> pb.Empty:
            call.waits(int(call.headers.get("works", 0)))  # as one that waits for another process
            await asyncio.sleep(1)
            return pb.Empty()

    async with scene(place, relayed=True, servicer=Late(Load()), stall=0.2) as here:
        with pytest.raises(errors.DeadlineExceeded, match=r"^service t: .*/EmptyCall made no progress for 0.2 s: "):
            await here.peer.client.EmptyCall(pb.Empty())
        await here.peer.client.EmptyCall(pb.Empty(), headers={"works": "1"})
        here.around.delay = 60
        with pytest.raises(errors.DeadlineExceeded, match="not done in time by what stands around the call"):
            await here.peer.client.EmptyCall(pb.Empty(), headers={"works": "1"})


async def test_what_passes_is_asked_for_each_call(place: Path) -> None:
    """The relay has planned calls with these headers already when somebody comes, and when nobody is there again."""
    async with scene(place, relayed=True) as here:
        assert here.relay is not None
        channel = here.relay.upstream.channel
        for count in (0, 1, 1):
            channel.around = here.around if len(here.around.seen) < count else None
            await here.peer.client.EmptyCall(pb.Empty(), headers={rpc.NAMESPACE: "n"})
            assert len(here.around.seen) == count
        assert here.around.headers[0][rpc.NAMESPACE] == "n"


@pytest.mark.parametrize("transport", ["wire"], indirect=True)
async def test_a_relay_passes_by_what_need_not_be_read(place: Path, transport: str) -> None:
    """grpcio's relay reads every message in any case."""
    async with scene(place, relayed=True) as here:
        here.around.passes = "EmptyCall"
        await here.peer.client.EmptyCall(pb.Empty())
        assert here.around.seen == []
        here.around.passes = ""
        await here.peer.client.EmptyCall(pb.Empty())
        assert here.around.seen == [("EmptyCall", False)]


async def test_a_call_is_repeated_on_the_next_process(place: Path) -> None:
    """As its route allows."""
    entered = asyncio.Event()

    class Hangs(Servicer):
        async def EmptyCall(self, request: pb.Empty, call: rpc.Call) -> pb.Empty:
            if not entered.is_set():
                entered.set()
                await asyncio.Event().wait()
            return pb.Empty()

    servicer, around = Hangs(Load()), Around()
    async with rpc.Channel(place / "t.sock", "testing") as upstream:
        upstream.around = around
        relay = Relay(Upstream(upstream), repeats=2)
        async with (
            rpc.serving(place / "g.sock", [], relay=relay, relayed=True, grace=0),
            rpc.Channel(place / "g.sock", "gateway") as channel,
        ):
            async with rpc.serving(place / "t.sock", [servicer], grace=0):
                call = asyncio.ensure_future(channel.client(SERVICE).EmptyCall(pb.Empty(), timeout=20))
                await asyncio.wait_for(entered.wait(), 10)
            async with rpc.serving(place / "t.sock", [servicer], grace=0):
                assert await call == pb.Empty()
    assert around.seen == [("EmptyCall", False)] * 2


@pytest.mark.parametrize("compression", ["Gzip", "Deflate"])
async def test_compressed_messages_are_read(place: Path, transport: str, compression: str) -> None:
    """What a client compresses is inflated here, since it is read; a way that nobody here knows is refused."""
    if transport == "grpcio":
        pytest.skip("grpcio inflates by itself")
    async with (
        scene(place, relayed=True) as here,
        grpc.aio.insecure_channel(
            f"unix:{place / 'g.sock'}", compression=getattr(grpc.Compression, compression)
        ) as channel,
    ):
        call = channel.stream_unary(
            f"/{SERVICE.full_name}/StreamingInputCall",
            pb.StreamingInputCallRequest.SerializeToString,
            pb.StreamingInputCallResponse.FromString,
        )
        requests = [pb.StreamingInputCallRequest(payload=pb.Payload(body=bytes(MEGABYTE))) for _ in range(3)]
        if compression == "Gzip":
            assert (await call(iter(requests))).aggregated_payload_size == 3 * MEGABYTE
            assert here.around.sent == 3
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(iter(requests))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert here.around.sent == 0


async def test_a_request_that_is_too_long_ends_the_call(place: Path) -> None:
    """Its error is the client's, though somebody stands between; the connection goes on."""
    async with scene(place, relayed=True) as here:
        async with here.channel.client(SERVICE).StreamingInputCall() as stream:
            with pytest.raises(errors.ResourceExhausted):
                await stream.send(pb.StreamingInputCallRequest(payload=pb.Payload(body=bytes(rpc.MESSAGE_LIMIT + 1))))
                await stream.done_sending()
                await stream.receive()
        await cases.empty_unary(here.peer)
