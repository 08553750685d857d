"""kit.otlp with collectors of all kinds: our own server on both transports, grpcio's with TLS, an HTTP server; and some
that are absent, slow or full.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.server
import logging
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

from services.kit import config, errors, otlp, rpc
from services.kit.spans import INTERNAL, Span
from tests.support import TOP, eventually_async, within

PREFIX = "OTEL_EXPORTER_OTLP_"
OK, FAILED = True, False


def spans(*names: str) -> list[Span]:
    """Return ended spans with these names."""
    found = [Span(name, INTERNAL, None) for name in names]
    for span in found:
        span.end()
    return found


def names_in(request: Any) -> list[str]:
    return [span.name for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set OTEL_EXPORTER_OTLP_*."""

    def put(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(PREFIX + name, str(value))

    return put


async def export(exporter: otlp.Exporter, *names: str) -> Any:
    """Export from a thread."""
    return await asyncio.to_thread(exporter.export, spans(*names))


def pausing(exporter: Any) -> threading.Event:
    """An event that is set when the exporter has failed and waits to try again."""
    paused, pause = threading.Event(), exporter._pause

    def noted(seconds: float) -> None:
        paused.set()
        pause(seconds)

    exporter._pause = noted
    return paused


# ---------------------------------------------------------------------------------------------- gRPC


class Collector:
    """A TraceService. ``answers`` are its actions for the next requests; without any it accepts them."""

    SERVICE = pb.DESCRIPTOR.services_by_name["TraceService"]

    def __init__(self) -> None:
        self.names: list[str] = []
        self.calls: list[rpc.Call] = []
        self.answers: list[Any] = []

    async def Export(self, request: Any, call: rpc.Call) -> Any:
        self.calls.append(call)
        answer = self.answers.pop(0) if self.answers else pb.ExportTraceServiceResponse()
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = pb.ExportTraceServiceResponse()
        if isinstance(answer, Exception):
            raise answer
        self.names += names_in(request)
        return answer


@pytest.fixture(params=rpc.TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport of all calls of this process, including the collector's."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)
    return str(request.param)


@contextlib.asynccontextmanager
async def serving(address: Path | str) -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    async with rpc.serving(address, [collector], grace=0.2) as server:
        yield collector, f"http://{server.address}" if isinstance(address, str) else f"unix:{address}"


@pytest.fixture
async def collector(transport: str, environ: Callable[..., None]) -> AsyncIterator[Collector]:
    """A collector that listens at the address in the environment."""
    async with serving("127.0.0.1:0") as (collector, endpoint):
        environ(ENDPOINT=endpoint, TIMEOUT=5)
        yield collector


def throttled(kind: type[errors.NodeError], seconds: float) -> errors.NodeError:
    """Return an error with a RetryInfo."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    status = status_pb2.Status(code=kind.code)
    status.details.add().Pack(info)
    return kind("not now", trailers=(("grpc-status-details-bin", status.SerializeToString()),))


async def test_spans_arrive_with_their_headers(collector: Collector, environ: Callable[..., None]) -> None:
    """This is over TCP; the call has the remaining time as its deadline."""
    environ(HEADERS="api-key=a%20b, Other = c=d")
    exporter = otlp.configured("test")
    assert await export(exporter, "one", "two") is OK
    assert await export(exporter, "three") is OK
    assert collector.names == ["one", "two", "three"]
    assert [(call.headers["api-key"], call.headers["other"]) for call in collector.calls] == [("a b", "c=d")] * 2
    assert all(0 < (call.remaining() or 0) <= 5 for call in collector.calls)
    exporter.close()


async def test_a_unix_socket_is_an_endpoint_too(transport: str, place: Path, environ: Callable[..., None]) -> None:
    """It may be a collector that is a process of the node."""
    async with serving(place / "traces.sock") as (collector, endpoint):
        environ(ENDPOINT=endpoint)
        exporter = otlp.configured("test")
        assert await export(exporter, "one") is OK
        assert collector.names == ["one"]
        exporter.close()


async def test_gzip_is_understood(collector: Collector, environ: Callable[..., None]) -> None:
    """Servers of both kinds decompress it; test_the_export_request shows that it is gzip."""
    environ(COMPRESSION="gzip")
    exporter = otlp.configured("test")
    assert await export(exporter, *["the same name"] * 500) is OK
    assert collector.names == ["the same name"] * 500
    exporter.close()


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_the_export_request(compression: str, environ: Callable[..., None]) -> None:
    """It is read as bytes, since our own header blocks are plain: the encoding is declared and applied."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environ(ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}", COMPRESSION=compression, TIMEOUT=1)
        exporter = otlp.configured("test")
        exporting = asyncio.ensure_future(export(exporter, *["the same name"] * 100))

        def received() -> bytes:
            connected = listener.accept()[0]
            with connected:
                data = b""
                while part := connected.recv(1 << 16):  # until the exporter has waited long enough for an answer
                    data += part
                return data

        data = await asyncio.to_thread(received)
        listener.close()
        assert await exporting is FAILED
    assert b"/opentelemetry.proto.collector.trace.v1.TraceService/Export" in data
    assert (b"grpc-encoding\x04gzip" in data) is (compression == "gzip")
    assert data.count(b"the same name") == (0 if compression == "gzip" else 100)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.Unavailable("starting"), 0.4),
        (errors.Aborted("again"), 0.4),
        (throttled(errors.Unavailable, 0.9), 0.9),
        (throttled(errors.ResourceExhausted, 0.1), 0.4),
    ],
)
async def test_transient_failures_are_retried(error: errors.NodeError, seconds: float, collector: Collector) -> None:
    """They are retried after a pause, and not before the time that the collector sets; RESOURCE_EXHAUSTED only if it
    sets one.
    """
    exporter = otlp.configured("test")
    collector.answers = [error]
    with within(seconds + 1.5, at_least=seconds):
        assert await export(exporter, "one") is OK
    assert (len(collector.calls), collector.names) == (2, ["one"])
    exporter.close()


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument("what is that"),
        errors.ResourceExhausted("too big"),
        errors.Unimplemented("Export"),
        errors.Unauthenticated("who are you"),
        throttled(errors.Unavailable, 60),
    ],
)
async def test_permanent_failures_are_given_up(
    error: errors.NodeError, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """They are given up at once, and so are retries that would come after the timeout. The log has one line at the
    beginning and one at the end of the failure.
    """
    exporter = otlp.configured("test")
    collector.answers = [error, error]
    with caplog.at_level(logging.INFO, otlp.__name__):
        assert await export(exporter, "one", "two") is FAILED
        assert await export(exporter, "three") is FAILED
        assert await export(exporter, "four") is OK
        assert await export(exporter, "five") is OK
    assert (len(collector.calls), collector.names) == (4, ["four", "five"])
    told = [record.getMessage() for record in caplog.records if record.name == otlp.__name__]
    assert told == [f"spans are lost: {type(error).__name__}: {error}", "spans are delivered again; 3 were lost"]
    exporter.close()


async def test_a_collector_writes_no_lines_of_its_own(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """What it says is one line without effect on a terminal."""
    exporter, said = otlp.configured("test"), "no\x1b[31m\nother line"
    collector.answers = [
        errors.Unauthenticated(said),
        pb.ExportTraceServiceResponse(partial_success=pb.ExportTracePartialSuccess(error_message=said)),
    ]
    assert await export(exporter, "one") is FAILED
    assert await export(exporter, "two") is OK
    told = [record.getMessage() for record in caplog.records if record.name == otlp.__name__]
    assert [line for line in told if r"no\x1b[31m\nother line" in line] == told
    assert len(told) == 2
    exporter.close()


async def test_a_partial_success_is_a_success(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """It must not be repeated."""
    exporter = otlp.configured("test")
    collector.answers = [
        pb.ExportTraceServiceResponse(
            partial_success=pb.ExportTracePartialSuccess(rejected_spans=1, error_message="too long")
        )
    ]
    assert await export(exporter, "one", "two") is OK
    assert len(collector.calls) == 1
    assert "the collector refuses 1 spans: too long" in caplog.text
    exporter.close()


async def test_a_collector_that_does_not_answer_costs_the_timeout(
    collector: Collector, environ: Callable[..., None]
) -> None:
    """The next call is on a new connection."""
    environ(TIMEOUT=0.5)
    exporter = otlp.configured("test")
    collector.answers = [30.0] * 10
    with within(1.5, at_least=0.4):
        assert await export(exporter, "one") is FAILED
    collector.answers = []
    exporter._timeout = 30  # it is not about this one's
    assert await export(exporter, "two") is OK
    assert collector.names == ["two"]
    exporter.close()


async def test_a_collector_may_be_restarted(transport: str, place: Path, environ: Callable[..., None]) -> None:
    """Between two batches this costs nothing: the end of the old connection is noticed before the next call."""
    exporter = None
    for name in ("one", "two"):
        async with serving(place / "traces.sock") as (collector, endpoint):
            environ(ENDPOINT=endpoint)
            exporter = exporter or otlp.configured("test")
            assert await export(exporter, name) is OK
            assert (len(collector.calls), collector.names) == (1, [name])
    assert exporter is not None
    exporter.close()


async def test_a_collector_that_comes_late_gets_the_spans(
    transport: str, place: Path, environ: Callable[..., None]
) -> None:
    """The exporter tries again within the timeout."""
    environ(ENDPOINT=f"unix:{place / 'traces.sock'}")
    exporter = otlp.configured("test")
    paused = pausing(exporter)
    exporting = asyncio.ensure_future(export(exporter, "one"))
    await asyncio.to_thread(paused.wait, 15)
    async with serving(place / "traces.sock") as (collector, _):
        assert await exporting is OK
        assert collector.names == ["one"]
    exporter.close()


async def test_the_end_of_a_process_waits_for_no_pause(place: Path, environ: Callable[..., None]) -> None:
    """Waiting batches are tried once more at once; later ones are tried once."""
    environ(ENDPOINT=f"unix:{place / 'nobody.sock'}", TIMEOUT=60)
    exporter = otlp.configured("test")
    paused = pausing(exporter)
    exporting = asyncio.ensure_future(export(exporter, "one"))
    await asyncio.to_thread(paused.wait, 15)
    exporter.finish(3)
    async with asyncio.timeout(1):
        assert await exporting is FAILED
        assert await export(exporter, "two") is FAILED


async def test_a_big_batch_goes_through_both_windows(collector: Collector) -> None:
    """The server opens the windows of stream and connection as it reads."""
    exporter = otlp.configured("test")
    names = [f"{n:07}" + "x" * 4000 for n in range(700)]
    assert await export(exporter, *names) is OK
    assert collector.names == names
    exporter.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", b"\0\0\0\4\0\0\0\0\0", b"x" * 1000]
)
async def test_a_server_without_grpc_is_a_failure(
    answer: bytes, environ: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """It closes the connection, speaks HTTP/1.1, stays silent, or sends nonsense."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connected = listener.accept()[0]
                    with connected:
                        connected.sendall(answer)
                        connected.recv(1 << 16)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        environ(ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}", TIMEOUT=0.5)
        exporter = otlp.configured("test")
        assert await export(exporter, "one") is FAILED
        assert "spans are lost" in caplog.text
        listener.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(thread.join)


PROCESS = """
import pathlib, sys
from services.kit import config, exporting, tracing
exporting.begin("test", config.Tracing(fold=0.0), pathlib.Path("/nowhere"))
with tracing.root("outer"), tracing.span("inner"):
    pass
tracing.shutdown()
assert "grpc" not in sys.modules
"""


async def test_a_process_that_ends_exports_pending_spans_without_spans_about_it(collector: Collector) -> None:
    """The export itself has no span, or it would never end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", PROCESS, env={**_environment(), "PYTHONPATH": str(TOP)}
    )
    assert await process.wait() == 0
    assert sorted(collector.names) == ["inner", "outer"]


async def test_spans_go_where_the_configuration_says() -> None:
    """To any collector instead of the node's traces service."""
    async with serving("127.0.0.1:0") as (collector, endpoint):
        code = PROCESS.replace("fold=0.0", f"fold=0.0, endpoint={endpoint!r}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", code, env={**_environment(), "PYTHONPATH": str(TOP)}
        )
        assert await process.wait() == 0
    assert sorted(collector.names) == ["inner", "outer"]


@pytest.mark.parametrize(
    ("endpoint", "good"),
    [
        ("http://127.0.0.1:4317", True),
        ("https://[::1]/", True),
        ("unix:/run/collector.sock", True),
        ("unix:relative", False),
        ("unix:/" + "x" * 107, False),
        ("127.0.0.1:4317", False),
        ("http://a:99999", False),
        ("http://:4317", False),
        ("http://a/v1/traces", False),
        ("http://[::1", False),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(endpoint: str, good: bool) -> None:
    """When the configuration is read: no process fails on it later."""
    if good:
        found = config.Tracing(endpoint=endpoint)
        assert otlp.place_of(otlp.Variable("endpoint", found.endpoint)).host
    else:
        with pytest.raises(ValueError, match="^endpoint: "):
            config.Tracing(endpoint=endpoint)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_process_ends_whatever_its_collector_does(silent: bool, environ: Callable[..., None]) -> None:
    """An absent collector costs nothing; one that accepts and does not answer costs the second allowed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environ(ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1] if silent else 9}")
        ending = f"import time; begun = time.monotonic(); tracing.shutdown(); assert time.monotonic() < begun + {3 if silent else 2}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            PROCESS.replace("tracing.shutdown()", ending),
            env={**_environment(), "PYTHONPATH": str(TOP)},
        )
        assert await process.wait() == 0


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


# ---------------------------------------------------------------------------------------------- HTTP


class HttpCollector(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP receiver. ``answers`` are (status, headers) of the next answers."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.names: list[str] = []
        self.requests: list[tuple[str, Any]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.connections = self.closed = 0
        self.hang = threading.Event()
        self.hang.set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that went away."""

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.closed += 1


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpCollector

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, self.headers))
        self.server.hang.wait(10)
        status, headers = self.server.answers.pop(0) if self.server.answers else (200, {})
        if status == 200:
            self.server.names += names_in(
                pb.ExportTraceServiceRequest.FromString(
                    gzip.decompress(body) if self.headers["content-encoding"] else body
                )
            )
        answer = pb.ExportTraceServiceResponse().SerializeToString() if status == 200 else b"no"
        self.send_response(status)
        for name, value in {"content-length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver(environ: Callable[..., None]) -> Iterator[HttpCollector]:
    """A receiver that listens at the address in the environment."""
    server = HttpCollector()
    environ(PROTOCOL="http/protobuf", ENDPOINT=f"http://{server.address}", TIMEOUT=5)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_http_posts_the_same_message(
    compression: str, receiver: HttpCollector, environ: Callable[..., None]
) -> None:
    """It has its headers, and all requests are on one connection."""
    environ(COMPRESSION=compression, HEADERS="api-key=a%20b")
    exporter = otlp.configured("test")
    assert await export(exporter, "one", "two") is OK
    assert await export(exporter, "three") is OK
    assert receiver.names == ["one", "two", "three"]
    path, headers = receiver.requests[0]
    assert (path, headers["content-type"], headers["api-key"]) == ("/v1/traces", "application/x-protobuf", "a b")
    assert headers["host"] == receiver.address
    assert headers["content-encoding"] == (compression if compression == "gzip" else None)
    assert receiver.connections == 1
    exporter.close()


@pytest.mark.parametrize(
    ("status", "after", "seconds"),
    [(429, "1", 1), (502, "", 0.4), (503, "0", 0.4), (504, "Fri, 31 Dec 1999 23:59:59 GMT", 0.4)],
)
async def test_http_retries_transient_failures(
    status: int, after: str, seconds: float, receiver: HttpCollector
) -> None:
    """They are retried after a pause, and not before the time in Retry-After."""
    exporter = otlp.configured("test")
    receiver.answers = [(status, {"retry-after": after} if after else {})]
    with within(seconds + 1.5, at_least=seconds):
        assert await export(exporter, "one") is OK
    assert (len(receiver.requests), receiver.names) == (2, ["one"])
    exporter.close()


@pytest.mark.parametrize(
    "answer",
    [(400, {}), (401, {}), (404, {}), (500, {}), (302, {"location": "/elsewhere"}), (503, {"retry-after": "60"})],
)
async def test_http_gives_up_on_permanent_failures(
    answer: tuple[int, dict[str, str]], receiver: HttpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    """The table in OTLP's specification decides; redirects are not followed."""
    exporter = otlp.configured("test")
    receiver.answers = [answer]
    assert await export(exporter, "one") is FAILED
    assert await export(exporter, "two") is OK
    assert (len(receiver.requests), receiver.names) == (2, ["two"])
    assert f"answers {answer[0]}" in caplog.text
    exporter.close()


async def test_http_has_the_timeout_too(receiver: HttpCollector, environ: Callable[..., None]) -> None:
    """A collector that does not answer does not block the exporter."""
    environ(TIMEOUT=0.5)
    exporter = otlp.configured("test")
    receiver.hang.clear()
    with within(1.5, at_least=0.4):
        assert await export(exporter, "one") is FAILED
    receiver.hang.set()
    exporter.close()


async def test_http_notices_that_it_was_hung_up_on(receiver: HttpCollector) -> None:
    """HTTP servers close idle connections: the next batch uses a new one, without a pause."""
    exporter = otlp.configured("test")
    receiver.answers = [(200, {"connection": "close"})]
    assert await export(exporter, "one") is OK
    await eventually_async(lambda: asyncio.sleep(0, receiver.closed), "the connection is not ended")
    with within(0.4):  # less than the shortest pause
        assert await export(exporter, "two") is OK
    assert (receiver.names, receiver.connections) == (["one", "two"], 2)
    exporter.close()


# ---------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``server.pem`` and ``client.pem``, each its own authority, with ``.key`` beside."""
    directory = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-keyout",
                directory / f"{name}.key",
                "-out",
                directory / f"{name}.pem",
            ],
            check=True,
            capture_output=True,
        )
    return directory


@pytest.fixture
def tls_collector(certificates: Path) -> Iterator[tuple[int, list[str]]]:
    """grpcio's server, which requires a client certificate: its port, and the names of the received spans."""
    names: list[str] = []

    def take(request: Any, context: Any) -> Any:
        names.extend(names_in(request))
        return pb.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        take, pb.ExportTraceServiceRequest.FromString, pb.ExportTraceServiceResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": handler}
            ),
        )
    )
    key, certificate, client = (
        (certificates / name).read_bytes() for name in ("server.key", "server.pem", "client.pem")
    )
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)], client, require_client_auth=True)
    )
    server.start()
    yield port, names
    server.stop(None).wait()


@pytest.mark.parametrize("endpoint", ["https://localhost:{}", "localhost:{}", "https://127.0.0.1:{}"])
async def test_grpc_over_tls(
    endpoint: str, certificates: Path, tls_collector: tuple[int, list[str]], environ: Callable[..., None]
) -> None:
    """Both sides present certificates; there is more than one batch on a connection."""
    port, names = tls_collector
    environ(
        ENDPOINT=endpoint.format(port),
        CERTIFICATE=certificates / "server.pem",
        CLIENT_CERTIFICATE=certificates / "client.pem",
        CLIENT_KEY=certificates / "client.key",
        COMPRESSION="gzip",
    )
    exporter = otlp.configured("test")
    assert await export(exporter, "one") is OK
    assert await export(exporter, *["x" * 4000] * 500) is OK
    assert len(names) == 501
    exporter.close()


async def test_a_certificate_that_is_not_trusted_is_refused(
    certificates: Path,
    tls_collector: tuple[int, list[str]],
    environ: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """We refuse it, and the collector does if we present none."""
    port, names = tls_collector
    environ(ENDPOINT=f"https://localhost:{port}")
    for trusted in (None, certificates / "server.pem"):
        if trusted is not None:
            environ(CERTIFICATE=trusted)
        exporter = otlp.configured("test")
        exporter.finish(10)  # tried once: the log has the last error only
        assert await export(exporter, "one") is FAILED
        assert ("certificate verify failed" in caplog.text) is (trusted is None)
        caplog.clear()
    assert not names


async def test_http_over_tls(certificates: Path, environ: Callable[..., None]) -> None:
    """The certificates are the same."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server = HttpCollector(context)
    environ(PROTOCOL="http/protobuf", ENDPOINT=f"https://{server.address}", CERTIFICATE=certificates / "server.pem")
    exporter = otlp.configured("test")
    assert await export(exporter, "one") is OK
    assert await export(exporter, "two") is OK
    assert server.names == ["one", "two"]
    exporter.close()
    server.shutdown()
    server.server_close()
