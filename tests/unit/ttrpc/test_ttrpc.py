"""kit.ttrpc with itself and with peers that break the protocol."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import empty_pb2

from api.containerd.runtime.task.v2 import shim_pb2, shim_stubs
from api.containerd.services.ttrpc.events.v1 import events_pb2, events_stubs
from api.ttrpc import ttrpc_pb2
from services.kit import errors, rpc, ttrpc
from tests.spans import recorded

EVENTS = events_stubs.EVENTS
TASK = shim_stubs.TASK


class Task:
    """A fake shim: each method shows one possible behaviour of a call."""

    SERVICE = TASK

    def __init__(self) -> None:
        self.calls: list[rpc.Call] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def State(self, request, call):
        self.calls.append(call)
        return shim_pb2.StateResponse(id=request.id)

    async def Kill(self, request, call):
        raise errors.NotFound.verbatim("process already finished: not found")

    async def Start(self, request, call):
        raise ValueError("a secret")

    async def Wait(self, request, call):
        self.started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Stats(self, request, call):
        response = shim_pb2.StatsResponse()
        response.stats.value = b"x" * (5 << 20)
        return response


@pytest.fixture
async def served(place: Path) -> AsyncIterator[tuple[Task, Path]]:
    task = Task()
    async with ttrpc.serving(place / "t.sock", [task], grace=0.2):
        yield task, place / "t.sock"


async def raw(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path))


async def answer(reader: asyncio.StreamReader) -> tuple[int, ttrpc_pb2.Response]:
    length, stream, kind, _ = struct.unpack(">IIBB", await asyncio.wait_for(reader.readexactly(10), 5))
    assert kind == 2
    return stream, ttrpc_pb2.Response.FromString(await reader.readexactly(length))


def request(
    method: str = "State", service: str = "containerd.task.v2.Task", payload: bytes = b"", **fields: Any
) -> bytes:
    return ttrpc_pb2.Request(service=service, method=method, payload=payload, **fields).SerializeToString()


async def test_namespace_and_headers_arrive_as_in_kit_rpc(served: tuple[Task, Path]) -> None:
    """The namespace header is sent as in ttrpc and is the Call's namespace; a timeout is the Call's deadline."""
    task, path = served
    async with ttrpc.Channel(path) as channel:
        response = await channel.client(TASK).State(
            shim_pb2.StateRequest(id="a"), headers={rpc.NAMESPACE: "ns1", "x-own": "7"}, timeout=5.0
        )
    assert response.id == "a"
    call = task.calls[0]
    assert (call.namespace, call.headers["x-own"], call.method) == ("ns1", "7", "/containerd.task.v2.Task/State")
    assert 4.0 < (call.remaining() or 0) <= 5.0


async def test_trace_headers_pass_through(served: tuple[Task, Path]) -> None:
    """A traceparent given by the caller reaches the handler."""
    task, path = served
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with ttrpc.Channel(path) as channel:
        await channel.client(TASK).State(shim_pb2.StateRequest(), headers={"traceparent": parent})
    assert task.calls[0].headers["traceparent"] == parent


async def test_spans_say_that_it_is_ttrpc(served: tuple[Task, Path]) -> None:
    """By the names of containerd's otelttrpc, on both sides."""
    with recorded() as spans:
        async with ttrpc.Channel(served[1]) as channel:
            with pytest.raises(errors.NotFound):
                await channel.client(TASK).Kill(shim_pb2.KillRequest())
        found = spans.named("containerd.task.v2.Task/Kill")
    assert [each.kind.name for each in found] == ["SERVER", "CLIENT"]
    for each in found:
        assert {key: value for key, value in each.attributes.items() if key.startswith("rpc.")} == {
            "rpc.system": "ttrpc",
            "rpc.service": "containerd.task.v2.Task",
            "rpc.method": "Kill",
            "rpc.ttrpc.status_code": 5,
        }


async def test_errors_keep_code_and_words(served: tuple[Task, Path]) -> None:
    """An error raised by the handler is raised by the client, its class and message unchanged."""
    async with ttrpc.Channel(served[1]) as channel:
        with pytest.raises(errors.NotFound, match=r"^process already finished: not found$"):
            await channel.client(TASK).Kill(shim_pb2.KillRequest())


async def test_a_bug_is_internal_without_its_text(served: tuple[Task, Path]) -> None:
    """An exception of a handler that is not one of our errors is INTERNAL, and the client does not see its text."""
    async with ttrpc.Channel(served[1]) as channel:
        with pytest.raises(errors.Internal) as caught:
            await channel.client(TASK).Start(shim_pb2.StartRequest())
    assert "secret" not in str(caught.value)


async def test_unknown_service_and_method_are_unimplemented(served: tuple[Task, Path]) -> None:
    """The answers are those of ttrpc's own server."""
    async with ttrpc.Channel(served[1]) as channel:
        with pytest.raises(errors.Unimplemented, match=r"^service containerd.services.events.ttrpc.v1.Events$"):
            await channel.client(EVENTS).Forward(events_pb2.ForwardRequest())
        with pytest.raises(errors.Unimplemented, match=r"^method Pids$"):
            await channel.client(TASK).Pids(shim_pb2.PidsRequest())


async def test_many_calls_at_once_on_one_connection(served: tuple[Task, Path]) -> None:
    """200 calls at once each get their own answer, while one waits for ever."""
    async with ttrpc.Channel(served[1]) as channel:
        client = channel.client(TASK)
        waiting = asyncio.ensure_future(client.Wait(shim_pb2.WaitRequest(), timeout=None))
        answers = await asyncio.gather(*(client.State(shim_pb2.StateRequest(id=str(i))) for i in range(200)))
        assert [a.id for a in answers] == [str(i) for i in range(200)]
        assert not waiting.done()
        waiting.cancel()


async def test_timeout_is_deadline_exceeded_on_both_sides(served: tuple[Task, Path]) -> None:
    """A call that takes too long fails with DEADLINE_EXCEEDED, its handler is cancelled, and the connection goes on."""
    task, path = served
    async with ttrpc.Channel(path) as channel:
        with pytest.raises(errors.DeadlineExceeded, match="Task/Wait: "):
            await channel.client(TASK).Wait(shim_pb2.WaitRequest(), timeout=0.1)
        await asyncio.wait_for(task.cancelled.wait(), 5)
        assert (await channel.client(TASK).State(shim_pb2.StateRequest(id="b"))).id == "b"


async def test_closed_connection_fails_every_call(served: tuple[Task, Path]) -> None:
    """When the connection ends all pending calls, and all later ones, fail with Unavailable and ttrpc's words;
    on_close is called once.
    """
    task, path = served
    ended: list[int] = []
    channel = ttrpc.Channel(path, on_close=lambda: ended.append(1))
    client = channel.client(TASK)
    waiting = [asyncio.ensure_future(client.Wait(shim_pb2.WaitRequest(), timeout=None)) for _ in range(3)]
    await asyncio.wait_for(task.started.wait(), 5)
    await channel.close()
    for one in waiting:
        with pytest.raises(errors.Unavailable, match=r"^ttrpc: closed$"):
            await one
    with pytest.raises(errors.Unavailable, match=r"^ttrpc: closed$"):
        await client.State(shim_pb2.StateRequest())
    await channel.close()
    assert ended == [1]


async def test_server_going_away_is_noticed(place: Path) -> None:
    """The end of the server ends the client's calls and its wait_closed."""
    task = Task()
    async with ttrpc.serving(place / "t.sock", [task], grace=0.1):
        channel = ttrpc.Channel(place / "t.sock")
        waiting = asyncio.ensure_future(channel.client(TASK).Wait(shim_pb2.WaitRequest(), timeout=None))
        await asyncio.wait_for(task.started.wait(), 5)
    with pytest.raises(errors.Unavailable, match="ttrpc: closed"):
        await waiting
    await asyncio.wait_for(channel.wait_closed(), 5)


async def test_connecting_to_nothing_says_why(place: Path) -> None:
    """A refused connection is Unavailable with the OSError as its cause; the socket may appear later."""
    channel = ttrpc.Channel(place / "late.sock")
    with pytest.raises(errors.Unavailable) as caught:
        await channel.connect()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    async with ttrpc.serving(place / "late.sock", [Task()]):
        assert (await channel.client(TASK).State(shim_pb2.StateRequest(id="c"))).id == "c"
        await channel.close()


async def test_a_connection_that_ended_meanwhile_was_not_made(place: Path) -> None:
    """A server that is ending accepts connections: a client must not keep one whose end is never reported."""

    class Slow(ttrpc.Channel):
        async def _connect(self) -> None:
            await super()._connect()
            await self.wait_closed()

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(end, place / "ending.sock"):
        with pytest.raises(errors.Unavailable, match="ttrpc: closed"):
            await Slow(place / "ending.sock").connect()


async def test_abstract_sockets_are_reached() -> None:
    """A name after a zero character is an abstract socket's, as old shims use them."""
    name = f"\0splitd-test-{id(object())}"
    server = await asyncio.start_unix_server(lambda r, w: w.close(), path=name)
    async with server:
        channel = ttrpc.Channel(name)
        await channel.connect()
        await asyncio.wait_for(channel.wait_closed(), 5)


async def test_oversized_request_is_refused_before_it_is_sent(served: tuple[Task, Path]) -> None:
    """A request over 4 MiB is RESOURCE_EXHAUSTED at the client, in ttrpc's words, and the connection is usable."""
    async with ttrpc.Channel(served[1]) as channel:
        with pytest.raises(errors.ResourceExhausted, match="exceed maximum message size of 4194304"):
            await channel.client(TASK).State(shim_pb2.StateRequest(id="x" * (5 << 20)))
        assert (await channel.client(TASK).State(shim_pb2.StateRequest(id="d"))).id == "d"


async def test_oversized_answer_is_an_error_of_its_call_only(served: tuple[Task, Path]) -> None:
    """A response over the limit is RESOURCE_EXHAUSTED, and the next call works."""
    async with ttrpc.Channel(served[1]) as channel:
        with pytest.raises(errors.ResourceExhausted):
            await channel.client(TASK).Stats(shim_pb2.StatsRequest())
        assert (await channel.client(TASK).State(shim_pb2.StateRequest(id="e"))).id == "e"


async def test_server_skips_an_oversized_frame(served: tuple[Task, Path]) -> None:
    """A frame of 5 MiB is answered RESOURCE_EXHAUSTED on its stream and skipped; later frames are served."""
    reader, writer = await raw(served[1])
    writer.write(struct.pack(">IIBB", 5 << 20, 1, 1, 0) + bytes(5 << 20) + ttrpc.frame(3, 1, request()))
    assert [(s, r.status.code) for s, r in (await answer(reader), await answer(reader))] == [(1, 8), (3, 0)]
    writer.close()


async def test_server_takes_frames_in_any_pieces(served: tuple[Task, Path]) -> None:
    """Two requests sent byte by byte are both answered."""
    reader, writer = await raw(served[1])
    for byte in ttrpc.frame(1, 1, request(payload=shim_pb2.StateRequest(id="f").SerializeToString())) + ttrpc.frame(
        3, 1, request("Kill")
    ):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert [(s, r.status.code) for s, r in (await answer(reader), await answer(reader))] == [(1, 0), (3, 5)]
    writer.close()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ttrpc.frame(2, 1, request()), "StreamID must be odd"),
        (ttrpc.frame(1, 3, b""), "StreamID is no longer active"),
        (ttrpc.frame(1, 1, b"\xff\xff\xff"), "unmarshal request error"),
    ],
)
async def test_server_errors_name_the_argument(served: tuple[Task, Path], data: bytes, words: str) -> None:
    """Frames that break the protocol are answered INVALID_ARGUMENT as ttrpc's own server does, and the connection
    goes on.
    """
    reader, writer = await raw(served[1])
    writer.write(data)
    _, response = await answer(reader)
    assert response.status.code == 3
    assert words in response.status.message
    writer.write(ttrpc.frame(5, 1, request()))
    assert (await answer(reader))[1].status.code == 0
    writer.close()


async def test_server_refuses_a_used_stream_and_ignores_unknown_types(served: tuple[Task, Path]) -> None:
    """Stream ids must rise; message types of the future are ignored."""
    reader, writer = await raw(served[1])
    writer.write(ttrpc.frame(9, 77, b"later") + ttrpc.frame(3, 1, request()))
    assert (await answer(reader))[0] == 3
    writer.write(ttrpc.frame(1, 1, request()))
    assert "must increment" in (await answer(reader))[1].status.message
    writer.close()


async def test_streams_are_unimplemented(served: tuple[Task, Path]) -> None:
    """A request that opens a stream is answered UNIMPLEMENTED."""
    reader, writer = await raw(served[1])
    writer.write(ttrpc.frame(1, 1, request(), flags=2))
    assert (await answer(reader))[1].status.code == 12
    writer.close()


async def test_garbage_ends_only_its_own_connection(served: tuple[Task, Path]) -> None:
    """A peer that speaks HTTP is disconnected; another connection works, and an incomplete frame affects no other."""
    reader, writer = await raw(served[1])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    _, half = await raw(served[1])
    half.write(ttrpc.frame(1, 1, request())[:13])
    half.close()
    async with ttrpc.Channel(served[1]) as channel:
        assert (await channel.client(TASK).State(shim_pb2.StateRequest(id="g"))).id == "g"
    writer.close()


async def test_a_lost_client_cancels_its_handlers(served: tuple[Task, Path]) -> None:
    """The handler of a client that went away is cancelled."""
    task, path = served
    _, writer = await raw(path)
    writer.write(ttrpc.frame(1, 1, request("Wait")))
    await asyncio.wait_for(task.started.wait(), 5)
    writer.close()
    await asyncio.wait_for(task.cancelled.wait(), 5)


@pytest.mark.parametrize(
    "data",
    [
        ttrpc.frame(1, 3, b"data for a unary call"),
        ttrpc.frame(1, 2, b"\xff\xff\xff"),
        struct.pack(">IIBB", 5 << 20, 1, 2, 0) + bytes(5 << 20),
    ],
)
async def test_client_survives_bad_answers(place: Path, data: bytes) -> None:
    """An answer that breaks the protocol fails its call, not the connection; answers to unknown calls are dropped."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (ttrpc.frame(41, 2, b"") + data, ttrpc.frame(3, 2, ttrpc_pb2.Response().SerializeToString())):
            length, *_ = struct.unpack(">IIBB", await reader.readexactly(10))
            await reader.readexactly(length)
            writer.write(reply)
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(lie, place / "l.sock"):
        channel = ttrpc.Channel(place / "l.sock")
        with pytest.raises(errors.NodeError):
            await channel.client(TASK).State(shim_pb2.StateRequest())
        assert isinstance(await channel.client(TASK).Kill(shim_pb2.KillRequest()), empty_pb2.Empty)
        await channel.close()


async def test_details_of_an_error_pass_through(place: Path) -> None:
    """Status details are kept: sent as the grpc-status-details-bin trailer, received as the status."""

    class Detailed:
        SERVICE = TASK

        async def State(self, request, call):
            status = ttrpc_pb2.Response().status
            status.code, status.message = 9, "no: failed precondition"
            status.details.add(type_url="x.Y", value=b"z")
            raise errors.FailedPrecondition.verbatim(
                status.message, (("grpc-status-details-bin", status.SerializeToString()),)
            )

    async with ttrpc.serving(place / "d.sock", [Detailed()]), ttrpc.Channel(place / "d.sock") as channel:
        with pytest.raises(errors.FailedPrecondition) as caught:
            await channel.client(TASK).State(shim_pb2.StateRequest())
    assert b"x.Y" in dict(caught.value.trailers)["grpc-status-details-bin"]
