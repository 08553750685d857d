"""Sends spans to an OpenTelemetry collector: OTLP over gRPC, by our own wire, or over HTTP. The standard variables
OTEL_EXPORTER_OTLP_* configure it.

OpenTelemetry's exporters are not used. One imports grpc, which a process on the wire does without (160 ms and 26 MB),
the other imports requests (120 ms and 8 MB). The messages are written by :mod:`services.kit.otlp_spans`, and
OpenTelemetry's SDK reads what the environment says of this process (:mod:`services.kit.resource`).

    OTEL_EXPORTER_OTLP_PROTOCOL       grpc (the default) or http/protobuf
    OTEL_EXPORTER_OTLP_ENDPOINT       http://host:port, https://host:port; with grpc also unix:/path, and host:port,
                                      which is TLS unless ..._INSECURE=true
    OTEL_EXPORTER_OTLP_HEADERS        name=value,name=value, in URL encoding
    OTEL_EXPORTER_OTLP_TIMEOUT        seconds (as in OpenTelemetry for Python) for a batch with all its retries; 10
    OTEL_EXPORTER_OTLP_COMPRESSION    none (the default) or gzip
    OTEL_EXPORTER_OTLP_CERTIFICATE    the certificates to trust, instead of the system's;
                                      ..._CLIENT_CERTIFICATE and ..._CLIENT_KEY are our own

For each, OTEL_EXPORTER_OTLP_TRACES_... overrides it. With HTTP, ``/v1/traces`` is appended to ENDPOINT, but not to
TRACES_ENDPOINT.

An :class:`Exporter` is called from a thread of its own (:mod:`services.kit.batching`), so all of this blocks. A batch
that may be accepted later is retried with growing pauses, within the timeout. A process that ends tries to send the
remaining spans once.
"""

from __future__ import annotations

import logging
import os
import random
import re
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from api.splitd.traces.v1 import traces_pb2
from services.kit import errors, logs, otlp_spans
from services.kit.resource import described, resource
from services.kit.spans import Span
from services.kit.version import SPLITD
from services.wire.blocking import BlockingClient

log = logging.getLogger(__name__)

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_REPORT = "/splitd.traces.v1.Traces/Report"
_PATH = "/v1/traces"


_FIRST_PAUSE = 0.5
"""Seconds; each pause is twice the one before, give or take a fifth."""


class SendError(Exception):
    """A batch was not accepted. ``again``: it may be later. ``after``: the collector asks to wait so many seconds."""

    def __init__(self, message: str, *, again: bool, after: float = 0) -> None:
        super().__init__(message)
        self.again = again
        self.after = after


class Sender(Protocol):
    """One of the two protocols."""

    def send(self, request: bytes, timeout: float) -> bytes:
        """Deliver an ExportTraceServiceRequest, and return the response. Raises SendError."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def _refusal(response: bytes) -> tuple[int, str]:
    """How many spans a collector has refused, and why, of an ExportTraceServiceResponse that is not empty."""
    # ours answers so only if it drops spans
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector

    try:
        partial = collector.ExportTraceServiceResponse.FromString(response).partial_success
    except DecodeError:  # a collector that accepted them, and answered in a form of its own
        return 0, ""
    return partial.rejected_spans, partial.error_message


class Exporter:
    """Sends batches, retries those that may be accepted later, and logs when the loss of spans begins and ends."""

    def __init__(
        self,
        sender: Sender,
        timeout: float,
        of: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
        level: int = logging.WARNING,
    ) -> None:
        """``of`` are the attributes of the process; ``level`` is that of the line that says that spans are lost."""
        self._sender = sender
        self._timeout = timeout
        self._of = of
        self._level = level
        self._clock = clock
        self._ending = threading.Event()
        self._pause = pause or self._ending.wait
        self._end = float("inf")
        self._lost = self._refused = 0

    def export(self, spans: Sequence[Span]) -> bool:
        """Deliver a batch, or give it up. The result is whether it was delivered."""
        request = otlp_spans.request(spans, self._of)
        end = self._clock() + self._timeout
        pause = _FIRST_PAUSE
        while True:
            last = self._ending.is_set()
            try:
                response = self._sender.send(request, min(end, self._end) - self._clock())
            except SendError as error:
                wait = max(pause * random.uniform(0.8, 1.2), error.after)  # noqa: S311
                if last or not error.again or self._clock() + wait >= end:
                    self._give_up(len(spans), error)
                    return False
            else:
                self._delivered(response)
                return True
            self._pause(wait)
            pause *= 2

    def _give_up(self, count: int, error: SendError) -> None:
        if not self._lost:
            log.log(self._level, "spans are lost: %s", logs.shown(str(error)))
        self._lost += count

    def _delivered(self, response: bytes) -> None:
        if self._lost:
            log.info("spans are delivered again; %d were lost", self._lost)
            self._lost = 0
        rejected, message = _refusal(response) if response else (0, "")
        if rejected or message:
            if not self._refused:
                why = logs.shown(message)
                log.log(self._level, "the collector refuses %d spans: %s", rejected, why)
            self._refused += rejected or 1
        elif self._refused:
            log.info("the collector takes all spans again; it refused %d", self._refused)
            self._refused = 0

    def finish(self, seconds: float) -> None:
        """The process ends: from here on, sending has ``seconds`` in all, and each batch is tried once."""
        self._end = self._clock() + seconds
        self._ending.set()

    def close(self) -> None:
        """Close the connection, and give up what is tried again."""
        self._ending.set()
        self._sender.close()


# ---------------------------------------------------------------------------------------------- the environment


class Variable(NamedTuple):
    """A setting, and the variable that it came from."""

    name: str
    value: str

    def wrong(self, why: str) -> ValueError:
        """An error that names the variable."""
        return ValueError(f"{self.name}={self.value}: {why}")


def variable(suffix: str) -> Variable:
    """OTEL_EXPORTER_OTLP_TRACES_``suffix``, or else the variable for all signals; empty if neither is set."""
    general = f"OTEL_EXPORTER_OTLP_{suffix}"
    for name in (f"OTEL_EXPORTER_OTLP_TRACES_{suffix}", general):
        if value := os.environ.get(name, "").strip():
            return Variable(name, value)
    return Variable(general, "")


def configured(service: str) -> Exporter:
    """The exporter that the environment asks for, for the process ``service``. ValueError names the variable that is
    wrong.
    """
    protocol = variable("PROTOCOL")
    compression = variable("COMPRESSION")
    if compression.value not in ("", "none", "gzip"):
        raise compression.wrong("choose one of none, gzip")
    compress = compression.value == "gzip"
    headers = _headers(variable("HEADERS"))
    timeout = variable("TIMEOUT")
    try:
        seconds = float(timeout.value or 10)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise timeout.wrong("it must be a number of seconds, a day at most")
    match protocol.value or "grpc":
        case "grpc":
            sender: Sender = OverGrpc(place_of_grpc(), headers, compress=compress)
        case "http/protobuf":
            sender = OverHttp(*place_of_http(), headers, compress=compress)
        case _:
            raise protocol.wrong("choose one of grpc, http/protobuf")
    return Exporter(sender, seconds, described(service))


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _headers(given: Variable) -> dict[str, str]:
    """The headers in a variable. Its values may be secrets, so an error shows none."""
    found: dict[str, str] = {}
    for number, item in enumerate(given.value.split(","), 1):
        if not item.strip():
            continue
        name, separator, value = item.partition("=")
        name, value = unquote(name.strip()).lower(), value.strip()
        if not separator or not _NAME.fullmatch(name):
            raise ValueError(f"{given.name}: its entry {number} is not NAME=VALUE")
        found[name] = value if " " in value else unquote(value)  # others write a value with blanks as it is
        if not found[name].isprintable():
            raise ValueError(f"{given.name}: a value has characters that no header may have")
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """The address of a collector. Without a port, ``host`` is the path of a unix socket."""

    name: str
    host: str
    port: int
    authority: str = "localhost"
    tls: ssl.SSLContext | None = None

    def dial(self, timeout: float) -> socket.socket:
        """A connected socket; OSError."""
        if not self.port:
            connected = socket.socket(socket.AF_UNIX)
            try:
                connected.settimeout(timeout)
                connected.connect(self.host)
            except BaseException:
                connected.close()
                raise
            return connected
        connected = socket.create_connection((self.host, self.port), timeout)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected if self.tls is None else self.tls.wrap_socket(connected, server_hostname=self.host)
        except BaseException:
            connected.close()
            raise


def place_of_grpc() -> Place:
    """The address in ENDPOINT as gRPC reads it."""
    return place_of(variable("ENDPOINT"))


def place_of(endpoint: Variable) -> Place:
    """An address of gRPC's. ValueError names where it is from."""
    value = endpoint.value
    if value.startswith("unix:"):
        path = value.removeprefix("unix:").removeprefix("//")
        if not 0 < len(os.fsencode(path)) <= 107:
            raise endpoint.wrong("the path of a unix socket has 1 to 107 bytes")
        return Place(value, path, 0)
    if "://" in value:
        return _place(endpoint, value, {"http": 4317, "https": 443}, "h2")[0]
    if not re.search(r":[^\]:]*$", value):
        raise endpoint.wrong("it names no port: say HOST:PORT, or http:// or https:// with a host")
    scheme = "http" if variable("INSECURE").value.lower() == "true" else "https"
    return _place(endpoint, f"{scheme}://{value}", {scheme: 0}, "h2")[0]


def place_of_http() -> tuple[Place, str]:
    """The address in ENDPOINT as HTTP reads it, and the path to post to."""
    endpoint = variable("ENDPOINT")
    place, path = _place(endpoint, endpoint.value, {"http": 80, "https": 443}, "http/1.1")
    if endpoint.name.endswith("_TRACES_ENDPOINT"):
        return place, path or "/"
    return place, path.rstrip("/") + _PATH


def _place(endpoint: Variable, url: str, ports: Mapping[str, int], alpn: str) -> tuple[Place, str]:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise endpoint.wrong(str(error)) from None
    if parts.scheme not in ports or "://" not in url:
        raise endpoint.wrong("it is not an http:// or https:// address")
    if not parts.hostname:
        raise endpoint.wrong("it names no host")
    try:
        port = ports[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise endpoint.wrong("its port is no number from 1 to 65535")
    tls = _tls(alpn) if parts.scheme == "https" else None
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    authority = parts.netloc.rpartition("@")[2]
    return Place(f"{parts.scheme}://{authority}", parts.hostname, port, authority, tls), path


def _tls(alpn: str) -> ssl.SSLContext:
    trusted, certificate, key = variable("CERTIFICATE"), variable("CLIENT_CERTIFICATE"), variable("CLIENT_KEY")
    try:
        context = ssl.create_default_context(cafile=trusted.value or None)
    except OSError as error:
        raise trusted.wrong(str(error)) from None
    if certificate.value:
        try:
            context.load_cert_chain(certificate.value, key.value or None)
        except OSError as error:
            raise certificate.wrong(str(error)) from None
    context.set_alpn_protocols([alpn])
    return context


# ---------------------------------------------------------------------------------------------- the two protocols


class OverGrpc:
    """TraceService/Export by our own wire."""

    def __init__(self, place: Place, headers: Mapping[str, str], *, compress: bool) -> None:
        self._metadata = tuple(headers.items())
        self._compress = compress
        self._client = BlockingClient(
            place.dial, f"collector at {place.name}", scheme="https" if place.tls else "http", authority=place.authority
        )

    def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """Another call of the same process. Its failure is one of our errors."""
        return self._client.unary(method, request, self._metadata, timeout, compress=self._compress)

    def send(self, request: bytes, timeout: float) -> bytes:
        try:
            return self.call(_METHOD, request, timeout)
        except errors.NodeError as error:
            after = _retry_delay(error)
            again = error.code in _TRANSIENT or (error.code == errors.ResourceExhausted.code and after is not None)
            raise SendError(f"{type(error).__name__}: {error}", again=again, after=after or 0) from None

    def close(self) -> None:
        self._client.close()


_TRANSIENT = {
    kind.code
    for kind in (
        errors.Cancelled,
        errors.DeadlineExceeded,
        errors.Aborted,
        errors.OutOfRange,
        errors.Unavailable,
        errors.DataLoss,
    )
}
"""The errors that OTLP's specification (OTLP/gRPC Response) calls retryable. RESOURCE_EXHAUSTED is retryable if the
collector says when to retry.
"""


def _retry_delay(error: errors.NodeError) -> float | None:
    """The seconds of a RetryInfo among a status's details; None without one."""
    raw = dict(error.trailers).get("grpc-status-details-bin")
    if not isinstance(raw, bytes):
        return None
    info = error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(raw).details:
            if detail.Unpack(info):
                return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    except DecodeError:
        pass
    return None


class Local:
    """The node's traces service, on its unix socket. It takes ended spans, and reports of those that are open."""

    def __init__(self, place: Place, service: str, timeout: float, level: int = logging.INFO) -> None:
        self._timeout = timeout
        self._of = resource(service)
        self._over = OverGrpc(place, {}, compress=False)
        self._exporter = Exporter(self._over, timeout, self._of, level=level)

    def export(self, spans: Sequence[Span]) -> bool:
        """Deliver a batch; the result is whether it was."""
        return self._exporter.export(spans)

    def report(self, spans: Sequence[Span], dropped: int, lifetime: float) -> bool:
        """Tell which spans are open. If that fails, the next report tells it."""
        request = traces_pb2.ReportRequest(
            data=otlp_spans.resource_spans(spans, self._of) if spans else b"",
            service=f"{self._of['service.name']} {self._of['service.instance.id']}",
            lifetime=lifetime,
            dropped=dropped,
        )
        try:
            self._over.call(_REPORT, request.SerializeToString(), self._timeout)
        except errors.NodeError as error:
            log.debug("open spans are not reported: %s", error)
            return False
        return True

    def finish(self, seconds: float) -> None:
        """The process ends within so many seconds."""
        self._exporter.finish(seconds)

    def close(self) -> None:
        """Close the connection."""
        self._exporter.close()


class OverHttp:
    """A POST of the same message."""

    def __init__(self, place: Place, path: str, headers: Mapping[str, str], *, compress: bool) -> None:
        import http.client

        self._place = place
        self._path = path
        self._compress = compress
        self._headers: dict[str, str | bytes] = {
            "host": place.authority,
            "user-agent": f"splitd/{SPLITD}",
            **{k: v.encode() for k, v in headers.items()},
            "content-type": "application/x-protobuf",
            **({"content-encoding": "gzip"} if compress else {}),
        }
        self._connection = http.client.HTTPConnection(place.host, place.port)
        self._unusable = http.client.HTTPException

    def send(self, request: bytes, timeout: float) -> bytes:
        connection = self._connection
        end = time.monotonic() + timeout
        try:
            if connection.sock is not None and _has_news(connection.sock):  # this can only be that it was closed
                connection.close()
            if connection.sock is None:
                connection.sock = self._place.dial(max(timeout, 0.001))
            connection.sock.settimeout(max(end - time.monotonic(), 0.001))
            connection.request(
                "POST", self._path, zlib.compress(request, wbits=31) if self._compress else request, self._headers
            )
            response = connection.getresponse()
            answer = response.read(_ANSWER)
        except (OSError, self._unusable) as error:
            connection.close()
            why = "it does not answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise SendError(f"collector at {self._place.name} is not reachable ({why})", again=True) from None
        if not response.isclosed():  # there is more than we read
            connection.close()
        if 200 <= response.status < 300:
            return answer
        after = response.headers.get("retry-after", "")
        raise SendError(
            f"collector at {self._place.name} answers {response.status} {response.reason}",
            again=response.status in _TRANSIENT_HTTP,
            after=float(after) if after.isdigit() else 0,
        )

    def close(self) -> None:
        self._connection.close()


_ANSWER = 64 << 10
_TRANSIENT_HTTP = (429, 502, 503, 504)


def _has_news(connected: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))
