"""kit.rpc over a real socket: arities, errors, deadlines, cancellation, limits, draining, and the spans of a hop.

Health is used where a unary call is enough; containerd's Content service has the streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.grpc.health.v1 import health_pb2, health_stubs
from services.kit import errors, rpc, tracing
from tests.spans import Recorder
from tests.support import ServiceProcess, eventually_async, health, short_directory

SERVICE = content_stubs.CONTENT


class Content:
    """A servicer with one method for each case."""

    SERVICE = SERVICE

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.seen: list[rpc.Call] = []
        self.entered = asyncio.Event()

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        self.seen.append(call)
        self.entered.set()
        match request.digest:
            case "bug":
                raise ZeroDivisionError("secret")
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/x")
            case "slow":
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    self.cancelled.append("Info")
                    raise
            case "big":
                raise errors.NotFound("x" * 15_000)
            case "trailers":
                raise errors.FailedPrecondition("odd", trailers=(("grpc-status-details-bin", b"\x08\x09"),))
            case "namespace":
                return pb.InfoResponse(info=pb.Info(digest=call.namespace + "/" + call.lease))
            case "absent":
                raise errors.NotFound("content absent")
            case "unspeakable":
                raise errors.NotFound("content \udcff")
        return pb.InfoResponse(info=pb.Info(digest=request.digest))

    async def Read(self, request: pb.ReadContentRequest, call: rpc.Call) -> AsyncIterator[pb.ReadContentResponse]:
        try:
            for i in range(request.size):
                yield pb.ReadContentResponse(offset=i, data=b"x" * 100_000)
        finally:
            self.cancelled.append("Read")
        if request.offset:
            raise errors.OutOfRange("read past the end")

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], call: rpc.Call
    ) -> AsyncIterator[pb.WriteContentResponse]:
        total = 0
        async for request in requests:
            total += len(request.data)
            yield pb.WriteContentResponse(action=request.action, offset=total)
            if request.action == pb.COMMIT:
                raise errors.AlreadyExists("content there")


@contextlib.asynccontextmanager
async def content(**kwargs: Any) -> AsyncIterator[tuple[Content, Any, rpc.Server, Path]]:
    with short_directory() as directory:
        servicer = Content()
        async with (
            rpc.serving(directory / "c.sock", [servicer], **kwargs) as server,
            rpc.Channel(directory / "c.sock", "content") as channel,
        ):
            yield servicer, channel.client(SERVICE), server, directory


async def test_a_unary_call_carries_headers_namespace_and_lease() -> None:
    """The Call has what the client sent."""
    async with content() as (_, client, _, _):
        answer = await client.Info(pb.InfoRequest(digest="namespace"), headers={rpc.NAMESPACE: "n", rpc.LEASE: "l"})
        assert answer.info.digest == "n/l"


async def test_of_a_repeated_header_the_first_counts() -> None:
    """As in containerd: Go clients whose context has two namespaces send both, the inner one first."""
    async with content() as (_, _, _, directory), grpc.aio.insecure_channel(f"unix:{directory / 'c.sock'}") as channel:
        info = channel.unary_unary(
            f"/{SERVICE.full_name}/Info", pb.InfoRequest.SerializeToString, pb.InfoResponse.FromString
        )
        metadata = ((rpc.NAMESPACE, "inner"), (rpc.NAMESPACE, "outer"), (rpc.LEASE, "l1"), (rpc.LEASE, "l2"))
        assert (await info(pb.InfoRequest(digest="namespace"), metadata=metadata)).info.digest == "inner/l1"


async def test_a_missing_namespace_is_refused_in_containerds_words() -> None:
    """``namespace is required: failed precondition``, code 9."""
    async with content() as (_, client, _, _):
        with pytest.raises(errors.FailedPrecondition, match="^namespace is required: failed precondition$"):
            await client.Info(pb.InfoRequest(digest="namespace"))


async def test_a_bug_is_internal_and_keeps_its_words_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the traceback once; the client gets no text of the exception."""
    async with content() as (_, client, _, _):
        with pytest.raises(errors.Internal) as caught:
            await client.Info(pb.InfoRequest(digest="bug"))
    assert "secret" not in str(caught.value)
    assert [r.levelname for r in caplog.records if r.exc_info and "ZeroDivision" in str(r.exc_info[0])] == ["ERROR"]


async def test_a_full_disk_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets the kernel's words, and the log has one line: the disk may be full wherever a service writes."""
    async with content() as (_, client, _, _):
        with pytest.raises(
            errors.ResourceExhausted,
            match=f"^/{SERVICE.full_name}/Info: /run/x: no space left on device: resource exhausted$",
        ):
            await client.Info(pb.InfoRequest(digest="full"))
    (record,) = [r for r in caplog.records if "no space left" in r.getMessage()]
    assert record.levelname == "WARNING"
    assert not record.exc_info


async def test_a_call_that_fails_leaves_a_line_and_one_that_finds_nothing_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line has its namespace and code."""
    caplog.set_level(logging.INFO, "services.kit.logs")
    async with content() as (_, client, _, _):
        for digest in ("absent", "trailers"):
            with pytest.raises(errors.NodeError):
                await client.Info(pb.InfoRequest(digest=digest), headers={rpc.NAMESPACE: "n"})
    lines = [r.getMessage() for r in caplog.records if r.name == "services.kit.logs"]
    assert lines == [f"/{SERVICE.full_name}/Info in namespace n failed: odd: failed precondition (FAILED_PRECONDITION)"]


async def test_errors_keep_code_message_and_binary_trailers() -> None:
    """Trailing metadata on errors arrives, grpc-status-details-bin too."""
    async with content() as (_, client, _, _):
        with pytest.raises(errors.FailedPrecondition) as caught:
            await client.Info(pb.InfoRequest(digest="trailers"))
    assert dict(caught.value.trailers)["grpc-status-details-bin"] == b"\x08\x09"


async def test_a_long_error_message_is_not_a_resource_problem() -> None:
    """15 KB of message pass; grpcio's default turns them into RESOURCE_EXHAUSTED."""
    async with content() as (_, client, _, _):
        with pytest.raises(errors.NotFound, match="x{15000}: not found"):
            await client.Info(pb.InfoRequest(digest="big"))


async def test_a_method_that_a_servicer_lacks_is_unimplemented() -> None:
    """No stub pretends."""
    async with content() as (_, client, _, _):
        with pytest.raises(errors.Unimplemented):
            await client.Delete(pb.DeleteContentRequest(digest="x"))


async def test_messages_of_8_mib_pass_both_ways() -> None:
    """containerd 2.x clients write 8 MiB at once."""
    async with content() as (_, client, _, _):
        async with client.Write() as stream:
            await stream.send(pb.WriteContentRequest(action=pb.WRITE, data=bytes(8 << 20)))
            assert (await stream.receive()).offset == 8 << 20


async def test_a_stream_ends_with_its_status() -> None:
    """The messages before an error arrive, then the error."""
    async with content() as (_, client, _, _):
        got = []
        with pytest.raises(errors.OutOfRange):
            async for message in client.Read(pb.ReadContentRequest(size=3, offset=1)):
                got.append(message.offset)
        assert got == [0, 1, 2]


async def test_a_bidirectional_stream_that_fails_tells_the_sender_too() -> None:
    """Sending into a call that has ended raises the call's error."""
    async with content() as (_, client, _, _):
        async with client.Write() as stream:
            await stream.send(pb.WriteContentRequest(action=pb.COMMIT))
            assert (await stream.receive()).action == pb.COMMIT
            with pytest.raises(errors.AlreadyExists):
                await stream.receive()
            with pytest.raises(errors.AlreadyExists):
                await stream.send(pb.WriteContentRequest())


async def test_leaving_a_stream_cancels_its_handler() -> None:
    """A reader that leaves frees the server."""
    async with content() as (servicer, client, server, _):
        async with contextlib.aclosing(client.Read(pb.ReadContentRequest(size=100_000))) as responses:
            await anext(responses)

        async def idle() -> bool:
            return servicer.cancelled == ["Read"] and not server.calls()

        await eventually_async(idle, "the handler went on")


async def test_a_cancelled_caller_cancels_the_handler() -> None:
    """Cancellation crosses the wire."""
    async with content() as (servicer, client, _, _):
        task = asyncio.ensure_future(client.Info(pb.InfoRequest(digest="slow")))
        await servicer.entered.wait()
        task.cancel()

        async def cancelled() -> bool:
            return servicer.cancelled == ["Info"]

        await eventually_async(cancelled)


async def test_a_deadline_reaches_the_handler_and_ends_the_call() -> None:
    """``remaining`` counts down from the client's deadline; without a deadline it is None. The error names the call and
    the process, whichever side was first.
    """
    said = r"(service c: \S+Content/Info: not done in|Content/Info: service content did not answer) .*exceeded$"
    async with content() as (servicer, client, _, _):
        with pytest.raises(errors.DeadlineExceeded, match=said):
            await client.Info(pb.InfoRequest(digest="slow"), timeout=0.2)
        await client.Info(pb.InfoRequest(digest="x"), timeout=None)
        left = servicer.seen[0].deadline
        assert left is not None
        assert servicer.seen[1].remaining() is None


async def test_a_call_without_a_server_fails_and_names_the_service() -> None:
    """The error names the process that is absent."""
    with short_directory() as directory:
        async with rpc.Channel(directory / "none.sock", "content") as channel:
            with pytest.raises(errors.Disconnected, match="service content is not reachable"):
                await channel.client(SERVICE).Info(pb.InfoRequest(digest="x"))


async def test_draining_ends_long_calls_at_once_and_lets_others_finish() -> None:
    """Health.Watch would last for ever: it ends with Disconnected, so that a relay repeats it to the successor; the
    socket is gone afterwards.
    """
    with short_directory() as directory:
        async with rpc.Channel(directory / "c.sock", "content") as channel:
            health = channel.client(health_stubs.HEALTH)
            async with rpc.serving(directory / "c.sock", [Content()], grace=10):
                watch = health.Watch(health_pb2.HealthCheckRequest())
                assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
                start = time.monotonic()
            assert time.monotonic() - start < 5
            with pytest.raises(errors.Disconnected):
                await anext(watch)
        assert not (directory / "c.sock").exists()


async def test_health_knows_the_services_served() -> None:
    """ "" and each full name serve; others are NOT_FOUND."""
    with short_directory() as directory:
        async with rpc.serving(directory / "c.sock", [Content()]), rpc.Channel(directory / "c.sock") as channel:
            health = channel.client(health_stubs.HEALTH)
            for name in ("", SERVICE.full_name):
                assert (
                    await health.Check(health_pb2.HealthCheckRequest(service=name))
                ).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(errors.NotFound, match="service nobody"):
                await health.Check(health_pb2.HealthCheckRequest(service="nobody"))


async def test_the_socket_is_its_owners_only() -> None:
    """Its mode is 0600 from the first instant, since a client that can connect controls the node."""
    async with content() as (_, _, _, directory):
        assert (directory / "c.sock").stat().st_mode & 0o777 == 0o600


async def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    """108 bytes are one too many, and the message says what to do."""
    with pytest.raises(errors.InvalidArgument, match="longer than 107 bytes"):
        async with rpc.serving(Path("/tmp/" + "x" * 110), []):
            pass


async def test_shielded_work_ends_though_its_caller_does_not_wait() -> None:
    """Cancellation ends the waiting, not the work."""
    go, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go.wait()
        done.set()

    waiting = asyncio.ensure_future(rpc.shielded(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not done.is_set()
    go.set()
    await asyncio.wait_for(done.wait(), 5)


@pytest.fixture
def spans() -> Any:
    """Spans of the process, collected in a list."""
    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    yield exporter
    tracing.reset()


async def test_each_hop_has_a_client_and_a_server_span_of_one_trace(spans: Recorder) -> None:
    """The server's span is the child of the client's, which is the child of the caller's."""
    async with content() as (_, client, _, _):
        with tracing.span("outer"):
            await client.Info(pb.InfoRequest(digest="x"))
    by_kind = {s.kind.name: s for s in spans.get_finished_spans()}
    assert len({s.context.trace_id for s in by_kind.values()}) == 1
    assert by_kind["SERVER"].parent.span_id == by_kind["CLIENT"].context.span_id
    assert by_kind["CLIENT"].parent.span_id == by_kind["INTERNAL"].context.span_id


@pytest.mark.parametrize(("digest", "code", "described"), [("absent", 5, ""), ("bug", 13, "secret")])
async def test_spans_carry_the_status_that_the_client_gets(
    spans: Recorder, digest: str, code: int, described: str
) -> None:
    """An expected error is its code in the span, which is no failure; a defect is 13, with its text for readers of
    traces.
    """
    async with content() as (_, client, _, _):
        with pytest.raises(errors.NodeError):
            await client.Info(pb.InfoRequest(digest=digest))
    server = next(s for s in spans.get_finished_spans() if s.kind.name == "SERVER")
    assert server.attributes is not None
    assert server.attributes["rpc.grpc.status_code"] == code
    assert server.status.failed == bool(described)
    assert described in server.status.description


async def test_without_tracing_the_callers_context_is_passed_on() -> None:
    """A node without tracing does not break the trace of its callers and callees."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    class Front:
        SERVICE = SERVICE

        def __init__(self, back: Any) -> None:
            self._back = back

        async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> Any:
            return await self._back.Info(request)

    async with content() as (servicer, client, _, directory):
        async with rpc.serving(directory / "f.sock", [Front(client)]), rpc.Channel(directory / "f.sock") as front:
            await front.client(SERVICE).Info(pb.InfoRequest(digest="x"), headers={"traceparent": parent})
        assert servicer.seen[-1].headers["traceparent"] == parent


async def test_a_collector_that_is_away_does_not_hold_up_the_end(place: Path) -> None:
    """A process with spans and no reachable collector still ends within its supervisor's limit."""
    root, state = place / "r", place / "s"
    with ServiceProcess(
        "services.content", root, state, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    ) as process:
        for _ in range(3):
            assert await health(state / "content.sock") == health_pb2.HealthCheckResponse.SERVING
        start = time.monotonic()
        assert await asyncio.to_thread(process.stop) == 0
        assert time.monotonic() - start < 8
