"""The service by which gRPC's implementations test each other, on our rpc: ``python -m tests.interop.server
127.0.0.1:0`` prints its address and serves.

SPLITD_GRPC_TRANSPORT selects the transport. The methods are described in gRPC's doc/interop-test-descriptions.md.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable

from services.kit import errors, process, rpc
from tests.interop import orca_pb2, orca_stubs, testing_stubs
from tests.interop import testing_pb2 as pb

INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
LOAD = "endpoint-load-metrics-bin"
"""Trailing metadata with the load of one call."""


class TestServicer:
    SERVICE = testing_stubs.TEST_SERVICE

    def __init__(self, load: Load) -> None:
        self._load = load

    async def EmptyCall(self, request: pb.Empty, call: rpc.Call) -> pb.Empty:
        return pb.Empty()

    async def UnaryCall(self, request: pb.SimpleRequest, call: rpc.Call) -> pb.SimpleResponse:
        echo_metadata(call)
        raise_status(request)
        if request.HasField("orca_per_query_report"):
            call.trailing.append((LOAD, report(request.orca_per_query_report).SerializeToString()))
        return pb.SimpleResponse(
            payload=payload(request.response_type, request.response_size),
            server_id="splitd" if request.fill_server_id else "",
        )

    async def CacheableUnaryCall(self, request: pb.SimpleRequest, call: rpc.Call) -> pb.SimpleResponse:
        call.leading.append(("cache-control", "max-age=60, public"))
        return await self.UnaryCall(request, call)

    async def StreamingOutputCall(
        self, request: pb.StreamingOutputCallRequest, call: rpc.Call
    ) -> AsyncIterator[pb.StreamingOutputCallResponse]:
        echo_metadata(call)
        async for response in responses([request]):
            yield response

    async def StreamingInputCall(
        self, requests: AsyncIterator[pb.StreamingInputCallRequest], call: rpc.Call
    ) -> pb.StreamingInputCallResponse:
        echo_metadata(call)
        return pb.StreamingInputCallResponse(
            aggregated_payload_size=sum([len(request.payload.body) async for request in requests])
        )

    async def FullDuplexCall(
        self, requests: AsyncIterator[pb.StreamingOutputCallRequest], call: rpc.Call
    ) -> AsyncIterator[pb.StreamingOutputCallResponse]:
        echo_metadata(call)
        async for request in requests:
            if request.HasField("orca_oob_report"):
                self._load.now = report(request.orca_oob_report)
            async for response in responses([request]):
                yield response

    async def HalfDuplexCall(
        self, requests: AsyncIterator[pb.StreamingOutputCallRequest], call: rpc.Call
    ) -> AsyncIterator[pb.StreamingOutputCallResponse]:
        echo_metadata(call)
        async for response in responses([request async for request in requests]):
            yield response


def echo_metadata(call: rpc.Call) -> None:
    """Send back the metadata that the client asks for."""
    if INITIAL in call.headers:
        call.leading.append((INITIAL, call.headers[INITIAL]))
    if TRAILING in call.headers:
        call.trailing.append((TRAILING, call.headers[TRAILING]))


def raise_status(request: pb.SimpleRequest | pb.StreamingOutputCallRequest) -> None:
    """End the call with the status in the request."""
    if request.response_status.code:
        raise errors.from_status(request.response_status.code, request.response_status.message)


def payload(kind: int, size: int) -> pb.Payload:
    if kind != pb.COMPRESSABLE or size < 0:
        raise errors.InvalidArgument(f"payload of type {kind} and size {size}")
    return pb.Payload(type=pb.COMPRESSABLE, body=bytes(size))


async def responses(requests: Iterable[pb.StreamingOutputCallRequest]) -> AsyncIterator[pb.StreamingOutputCallResponse]:
    """Yield the requested responses, each after its interval."""
    for request in requests:
        raise_status(request)
        for wanted in request.response_parameters:
            if wanted.interval_us > 0:
                await asyncio.sleep(wanted.interval_us / 1e6)
            yield pb.StreamingOutputCallResponse(payload=payload(request.response_type, wanted.size))


class Load:
    """The server's load, as clients set it; StreamCoreMetrics watches it."""

    SERVICE = orca_stubs.OPEN_RCA_SERVICE

    def __init__(self) -> None:
        self.now = orca_pb2.OrcaLoadReport()

    async def StreamCoreMetrics(
        self, request: orca_pb2.OrcaLoadReportRequest, call: rpc.Call
    ) -> AsyncIterator[orca_pb2.OrcaLoadReport]:
        while True:
            yield self.now
            await asyncio.sleep(max(0.05, request.report_interval.ToNanoseconds() / 1e9))


def report(told: pb.TestOrcaReport) -> orca_pb2.OrcaLoadReport:
    return orca_pb2.OrcaLoadReport(
        cpu_utilization=told.cpu_utilization,
        mem_utilization=told.memory_utilization,
        request_cost=told.request_cost,
        utilization=told.utilization,
    )


async def main(address: str) -> None:
    load = Load()
    async with rpc.serving(address, [TestServicer(load), load], long=frozenset({"StreamCoreMetrics"})) as server:
        print(server.address, flush=True)
        await process.until_signal()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
