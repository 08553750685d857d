"""The cases by which gRPC's implementations test each other, as calls of our rpc: ``python -m tests.interop.client
127.0.0.1:PORT [CASE...]``.

It prints a line of JSON for each case: its name, the seconds it took, and what was wrong, or null.
SPLITD_GRPC_TRANSPORT says by which transport. The cases and their numbers are those of gRPC's
doc/interop-test-descriptions.md; those that need TLS, Google's cloud or compression are not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import traceback
from typing import Any

from services.kit import errors, rpc
from tests.interop import orca_pb2, orca_stubs, testing_stubs
from tests.interop import testing_pb2 as pb
from tests.interop.server import INITIAL, LOAD, TRAILING

SERVICE = testing_stubs.TEST_SERVICE
UNARY = f"/{SERVICE.full_name}/UnaryCall"

REQUEST_SIZES = (27182, 8, 1828, 45904)
RESPONSE_SIZES = (31415, 9, 2653, 58979)
METADATA: rpc.Headers = {INITIAL: "test_initial_metadata_value", TRAILING: b"\x0a\x0b\x0a\x0b\x0a\x0b"}
LATENCY = 10.0
"""Seconds that a call of the soak cases may take. It takes milliseconds, and hangs if a wakeup is lost; others allow
one second, for which a machine may stop.
"""


def same(got: object, want: object) -> None:
    """Assert equality with a message: pytest does not rewrite the asserts of a program."""
    if got != want:
        raise AssertionError(f"got {got!r:.300}, want {want!r:.300}")


class Peer:
    """A channel to the server under test, and the calls that several cases make."""

    def __init__(self, channel: rpc.Channel) -> None:
        self.channel = channel
        self.client = channel.client(SERVICE)

    def duplex(self, headers: rpc.Headers = {}, timeout: float | None = None) -> rpc.Stream:
        stream: rpc.Stream = self.client.FullDuplexCall(headers=headers, timeout=timeout)
        return stream

    def unary(self, headers: rpc.Headers = {}) -> rpc.Stream:
        """UnaryCall as a stream, which shows its metadata."""
        return self.channel.stream(
            UNARY, headers, 10.0, pb.SimpleRequest.SerializeToString, pb.SimpleResponse.FromString
        )

    async def large(self) -> None:
        answer = await self.client.UnaryCall(pb.SimpleRequest(response_size=314159, payload=body(271828)))
        same_payload(answer, 314159)


def body(size: int) -> pb.Payload:
    return pb.Payload(body=bytes(size))


def asking(request_size: int, *sizes: int) -> pb.StreamingOutputCallRequest:
    """Return a request of a stream that wants responses of these sizes."""
    return pb.StreamingOutputCallRequest(
        payload=body(request_size), response_parameters=[pb.ResponseParameters(size=size) for size in sizes]
    )


def same_payload(answer: pb.SimpleResponse | pb.StreamingOutputCallResponse | None, size: int) -> None:
    assert answer is not None, f"the end, want {size} bytes"
    same(answer.payload.type, pb.COMPRESSABLE)
    same(answer.payload.body, bytes(size))


async def failure(call: Any) -> errors.NodeError:
    """Return the error of the call, which must not succeed."""
    try:
        answer = await call
    except errors.NodeError as error:
        return error
    raise AssertionError(f"got {answer!r:.300}, want an error")


def same_status(error: errors.NodeError, code: int, message: str) -> None:
    same((error.code, str(error)), (code, message))


async def is_cancelled(peer: Peer, stream: rpc.Stream) -> None:
    """Check that the stream has ended as CANCELLED, and that its connection goes on. A transport may report one's own
    cancellation as asyncio does.
    """
    reading = asyncio.ensure_future(stream.receive())
    await asyncio.wait([reading])
    if not reading.cancelled():
        same(type(reading.exception()), errors.Cancelled)
    await empty_unary(peer)


# ------------------------------------------------------------------------------------------ the cases


async def empty_unary(peer: Peer) -> None:
    same(await peer.client.EmptyCall(pb.Empty()), pb.Empty())


async def large_unary(peer: Peer) -> None:
    await peer.large()


async def client_streaming(peer: Peer) -> None:
    async with peer.client.StreamingInputCall() as stream:
        for size in REQUEST_SIZES:
            await stream.send(pb.StreamingInputCallRequest(payload=body(size)))
        await stream.done_sending()
        same(await stream.receive(), pb.StreamingInputCallResponse(aggregated_payload_size=74922))
        same(await stream.receive(), None)


async def server_streaming(peer: Peer) -> None:
    answers = [answer async for answer in peer.client.StreamingOutputCall(asking(0, *RESPONSE_SIZES))]
    same(len(answers), len(RESPONSE_SIZES))
    for answer, size in zip(answers, RESPONSE_SIZES, strict=True):
        same_payload(answer, size)


async def ping_pong(peer: Peer) -> None:
    async with peer.duplex() as stream:
        for request, response in zip(REQUEST_SIZES, RESPONSE_SIZES, strict=True):
            await stream.send(asking(request, response))
            same_payload(await stream.receive(), response)
        await stream.done_sending()
        same(await stream.receive(), None)


async def half_duplex(peer: Peer) -> None:
    """This is no case of upstream's list, but a method of its service: the answers come after the last request.
    grpc-go's client has no case for it.
    """
    async with peer.client.HalfDuplexCall() as stream:
        for request, response in zip(REQUEST_SIZES, RESPONSE_SIZES, strict=True):
            await stream.send(asking(request, response))
        await stream.done_sending()
        for response in RESPONSE_SIZES:
            same_payload(await stream.receive(), response)
        same(await stream.receive(), None)


async def empty_stream(peer: Peer) -> None:
    async with peer.duplex() as stream:
        await stream.done_sending()
        same(await stream.receive(), None)


async def timeout_on_sleeping_server(peer: Peer) -> None:
    # upstream's, which may be over before anything is sent; and one within which the server goes to sleep
    for timeout in (0.001, 0.05):
        async with peer.duplex(timeout=timeout) as stream:
            with contextlib.suppress(errors.DeadlineExceeded):
                await stream.send(asking(27182))
            same(type(await failure(stream.receive())), errors.DeadlineExceeded)
        await empty_unary(peer)


async def cancel_after_begin(peer: Peer) -> None:
    async with peer.client.StreamingInputCall(headers=METADATA) as stream:
        pass
    await is_cancelled(peer, stream)


async def cancel_after_first_response(peer: Peer) -> None:
    async with peer.duplex() as stream:
        await stream.send(asking(27182, 31415))
        same_payload(await stream.receive(), 31415)
    await is_cancelled(peer, stream)


async def status_code_and_message(peer: Peer) -> None:
    status = pb.EchoStatus(code=2, message="test status message")
    same_status(
        await failure(peer.client.UnaryCall(pb.SimpleRequest(response_status=status))), 2, "test status message"
    )
    async with peer.duplex() as stream:
        await stream.send(pb.StreamingOutputCallRequest(response_status=status))
        await stream.done_sending()
        same_status(await failure(stream.receive()), 2, "test status message")


async def special_status_message(peer: Peer) -> None:
    message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    status = pb.EchoStatus(code=2, message=message)
    same_status(await failure(peer.client.UnaryCall(pb.SimpleRequest(response_status=status))), 2, message)


async def custom_metadata(peer: Peer) -> None:
    async with peer.unary(METADATA) as stream:
        await stream.send(pb.SimpleRequest(response_size=314159, payload=body(271828)))
        await stream.done_sending()
        same_payload(await stream.receive(), 314159)
        await same_metadata(stream)
    async with peer.duplex(METADATA) as stream:
        await stream.send(asking(271828, 314159))
        same((await stream.leading()).get(INITIAL), METADATA[INITIAL])
        same_payload(await stream.receive(), 314159)
        await stream.done_sending()
        await same_metadata(stream)


async def same_metadata(stream: rpc.Stream) -> None:
    """Check that the stream has brought back the sent metadata at its end."""
    same(await stream.receive(), None)
    same((await stream.leading()).get(INITIAL), METADATA[INITIAL])
    same(stream.trailing().get(TRAILING), METADATA[TRAILING])


async def custom_metadata_with_a_status(peer: Peer) -> None:
    """This is no case of upstream's list: trailing metadata also comes with an error status, unary and streamed, and is
    in the raised error.
    """
    status = pb.EchoStatus(code=9, message="no")
    async with peer.unary(METADATA) as stream:
        await stream.send(pb.SimpleRequest(response_status=status))
        await stream.done_sending()
        await same_failure(stream)
    async with peer.duplex(METADATA) as stream:
        await stream.send(pb.StreamingOutputCallRequest(response_status=status))
        await same_failure(stream)


async def same_failure(stream: rpc.Stream) -> None:
    error = await failure(stream.receive())
    same_status(error, 9, "no")
    same(dict(error.trailers).get(TRAILING), METADATA[TRAILING])
    same(stream.trailing().get(TRAILING), METADATA[TRAILING])


async def unimplemented_method(peer: Peer) -> None:
    same(
        type(await failure(peer.channel.unary(f"/{SERVICE.full_name}/UnimplementedCall", b"", {}, 10.0))),
        errors.Unimplemented,
    )


async def unimplemented_service(peer: Peer) -> None:
    same(
        type(await failure(peer.channel.unary("/grpc.testing.UnimplementedService/UnimplementedCall", b"", {}, 10.0))),
        errors.Unimplemented,
    )


async def orca_per_rpc(peer: Peer) -> None:
    load: dict[str, Any] = {
        "cpu_utilization": 0.8210,
        "request_cost": {"cost": 3456.32},
        "utilization": {"util": 0.30499},
    }
    async with peer.unary() as stream:
        await stream.send(pb.SimpleRequest(orca_per_query_report=pb.TestOrcaReport(memory_utilization=0.5847, **load)))
        await stream.done_sending()
        same(await stream.receive(), pb.SimpleResponse(payload=body(0)))
        same(await stream.receive(), None)
        told = stream.trailing().get(LOAD, b"")
        assert isinstance(told, bytes)
        same(orca_pb2.OrcaLoadReport.FromString(told), orca_pb2.OrcaLoadReport(mem_utilization=0.5847, **load))


async def orca_oob(peer: Peer) -> None:
    watching = orca_pb2.OrcaLoadReportRequest()
    watching.report_interval.FromMilliseconds(100)
    async with peer.duplex() as stream:
        for cpu in (0.8210, 0.29309):
            request = asking(0, 1)
            request.orca_oob_report.CopyFrom(
                pb.TestOrcaReport(cpu_utilization=cpu, memory_utilization=0.2, utilization={"util": 0.2039})
            )
            await stream.send(request)
            same_payload(await stream.receive(), 1)
            want = orca_pb2.OrcaLoadReport(cpu_utilization=cpu, mem_utilization=0.2, utilization={"util": 0.2039})
            loads = peer.channel.client(orca_stubs.OPEN_RCA_SERVICE).StreamCoreMetrics(watching)
            same(await anext(loads), want)
            same(await anext(loads), want)
            await loads.aclose()


async def rpc_soak(peer: Peer) -> None:
    """Many large calls on one connection, none of them slow."""
    for _ in range(100):
        await in_time(peer.large())


async def channel_soak(peer: Peer) -> None:
    """Many connections with a large call on each."""
    for _ in range(30):
        async with rpc.Channel(peer.channel.address, peer.channel.name, pings="never") as channel:
            await in_time(Peer(channel).large())


async def in_time(call: Any) -> None:
    begun = time.monotonic()
    await call
    assert time.monotonic() - begun < LATENCY, f"a call took {time.monotonic() - begun:.2f} s"


CASES = (
    empty_unary,
    large_unary,
    client_streaming,
    server_streaming,
    ping_pong,
    half_duplex,
    empty_stream,
    timeout_on_sleeping_server,
    cancel_after_begin,
    cancel_after_first_response,
    status_code_and_message,
    special_status_message,
    custom_metadata,
    custom_metadata_with_a_status,
    unimplemented_method,
    unimplemented_service,
    orca_per_rpc,
    orca_oob,
    rpc_soak,
    channel_soak,
)


async def main(address: str, names: list[str]) -> bool:
    fine = True
    for case in CASES:
        if names and case.__name__ not in names:
            continue
        error = None
        begun = time.monotonic()
        try:
            async with asyncio.timeout(30), rpc.Channel(address, "peer", pings="never") as channel:
                await case(Peer(channel))
        except (Exception, asyncio.CancelledError):
            error, fine = traceback.format_exc(), False
        print(
            json.dumps({"case": case.__name__, "seconds": round(time.monotonic() - begun, 3), "error": error}),
            flush=True,
        )
    return fine


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main(sys.argv[1], sys.argv[2:])) else 1)
