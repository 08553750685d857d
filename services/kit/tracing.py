"""Traces: a server span and a client span for each hop, and W3C trace context from one process to the next.

This module makes spans, and :mod:`services.kit.otlp` exports them (:mod:`services.kit.exporting`). No other module
knows OpenTelemetry. Spans are made only if the standard variables name an endpoint (``OTEL_EXPORTER_OTLP_ENDPOINT`` or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``, unless ``OTEL_SDK_DISABLED`` or ``OTEL_TRACES_EXPORTER=none``). Otherwise the
SDK is not imported (5 MB a process), and the caller's ``traceparent`` is passed on unchanged, so that a node without
tracing does not break the traces of its neighbours.

There are three levels. Hops have spans: this module is the first listener of :mod:`services.kit.observer`. :func:`span`
surrounds an operation or a phase that is worth a line in a trace. Pure code has none. A program that a service starts
finds its context in the environment (:func:`environment`), and continues it with :func:`setup`.
"""

from __future__ import annotations

import contextvars
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from services.kit import batching, loops

log = logging.getLogger(__name__)

_tracer: Any = None
_provider: Any = None
_exporter: Any = None
_incoming: contextvars.ContextVar[tuple[tuple[str, str], ...]] = contextvars.ContextVar("splitd_trace", default=())
"""Without the SDK: the caller's trace headers, to be passed on."""

_HEADERS = ("traceparent", "tracestate")


def setup(service: str, collector: Callable[[], Any] | None = None, *, exporter: Any = None) -> None:
    """Begin tracing as ``service``, if the environment asks for it. (For ``content`` the span's ``service.name`` is
    ``splitd-content``.)

    ``collector`` makes the exporter that the environment describes; without it nothing is exported or traced. If the
    environment cannot be used, this is logged, and the process serves without tracing. ``exporter`` is for tests: an
    OpenTelemetry SpanExporter that is used whatever the environment says. Trace context in the environment
    (``TRACEPARENT``) becomes the parent of this process's spans.
    """
    global _tracer, _provider, _exporter
    parent = tuple((k, os.environ[k.upper()]) for k in _HEADERS if os.environ.get(k.upper()))
    if parent:
        _incoming.set(parent)
    if exporter is not None:
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        _provider = _made(service)
        _provider.add_span_processor(SimpleSpanProcessor(exporter))
    elif collector is None or not _wanted():
        return
    else:
        try:
            provider, exporting = _made(service), collector()
            _add(provider, exporting)
        except Exception as error:  # whatever the SDK and its plugins find wrong with the environment
            log.error("nothing is traced: %s", _reason(error))
            return
        _provider, _exporter = provider, exporting
    _tracer = _provider.get_tracer("splitd")
    if parent:
        from opentelemetry import context

        context.attach(_extract(dict(parent)))


def check(collector: Callable[[], Any]) -> Iterator[str]:
    """What is wrong with the variables. This stops no process, but there will be no traces, or other traces than
    wanted.
    """
    yield from batching.read(os.environ)[1]
    if not _wanted():
        return
    said: list[str] = []
    listening = _Listening(said)
    logging.getLogger("opentelemetry").addHandler(listening)
    try:
        _made("check")
        collector().shutdown()
    except Exception as error:
        said.append(f"nothing is traced: {_reason(error)}")
    finally:
        logging.getLogger("opentelemetry").removeHandler(listening)
    yield from said


class _Listening(logging.Handler):
    """Collects the SDK's warnings."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(f"OpenTelemetry, about a variable OTEL_...: {record.getMessage()}")


def _made(service: str) -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    name = os.environ.get("OTEL_SERVICE_NAME", f"splitd-{service}")
    return TracerProvider(
        shutdown_on_exit=False,
        resource=Resource.create({"service.name": name, "service.instance.id": str(os.getpid())}),
    )


def _add(provider: Any, exporter: Any) -> None:
    """Send spans that have ended, in batches; this starts a thread."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    values, wrong = batching.read(os.environ)
    for line in wrong:
        log.warning(line)
    provider.add_span_processor(BatchSpanProcessor(exporter, values.queue, values.delay, values.batch, values.timeout))


def _reason(error: Exception) -> str:
    """The message of an error: with the variable's name, if it is ours or the SDK's span limits'; else with the kind of
    error, and a hint.
    """
    said = str(error)
    return said if "OTEL_" in said else f"{type(error).__name__}: {said} (one of the OTEL_... variables is wrong)"


def _wanted() -> bool:
    off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    )
    where = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return bool(where) and not off


def shutdown(seconds: float = 3.0) -> None:
    """Export the remaining spans at the end of a process, within ``seconds``, whatever the collector does."""
    if _exporter is not None:
        _exporter.finish(seconds)
    if _provider is not None:
        loops.thread("the export of the last spans", _provider.shutdown).join(seconds)


def reset() -> None:
    """Stop tracing; for tests."""
    global _tracer, _provider, _exporter
    shutdown()
    _tracer = _provider = _exporter = None


class Span:
    """One span; without tracing, only the context to pass on."""

    __slots__ = ("_headers", "_manager", "_otel", "_token")

    def __init__(self, otel: Any = None, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self._otel = otel
        self._headers = headers
        self._manager: Any = None
        self._token: Any = None

    def __enter__(self) -> Span:
        if self._otel is not None:
            from opentelemetry import context, trace

            self._token = context.attach(trace.set_span_in_context(self._otel))
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if self._otel is not None:
            from opentelemetry import context

            if error is not None and isinstance(error, Exception):
                self.exception(error)
            context.detach(self._token)
            self._otel.end()

    @contextmanager
    def inside(self) -> Iterator[Span]:
        """Let spans of the block be below this one, which does not end with the block, and learns of no error. For work
        that goes on after the call that began it; whoever calls this must :meth:`end` the span.
        """
        if self._otel is None:
            yield self
            return
        from opentelemetry import context, trace

        token = context.attach(trace.set_span_in_context(self._otel))
        try:
            yield self
        finally:
            context.detach(token)

    def end(self, at: int = 0) -> None:
        """End a span that is not used as a context manager: now, or at a time of :func:`now`."""
        if self._otel is not None:
            self._otel.end(at or None)

    def rename(self, name: str) -> None:
        """Change the name, for a span whose operation became known later."""
        if self._otel is not None:
            self._otel.update_name(name)

    def default(self, **attributes: str | float | bool) -> None:
        """Set those of the attributes that nobody has set (:func:`operation` may have, in whatever process)."""
        if self._otel is not None:
            known = self._otel.attributes or {}
            self.set(**{name: value for name, value in attributes.items() if name not in known})

    def get(self, name: str) -> str | float | bool | None:
        """An attribute's value; None if nobody has set it, or the span is not recorded."""
        return None if self._otel is None else (self._otel.attributes or {}).get(name)

    def set(self, **attributes: str | float | bool) -> None:
        """Set attributes that became known during the span."""
        if self._otel is not None:
            self._otel.set_attributes(attributes)

    def status(self, code: int, message: str) -> None:
        """Set the gRPC status that the call ended with."""
        if self._otel is not None:
            from opentelemetry.trace import StatusCode

            self._otel.set_attribute("rpc.grpc.status_code", code)
            self._otel.set_status(StatusCode.ERROR, message)

    def exception(self, error: BaseException) -> None:
        """Record a failure that is not part of the contract."""
        if self._otel is not None:
            from opentelemetry.trace import StatusCode

            self._otel.record_exception(error)
            self._otel.set_attribute("rpc.grpc.status_code", 13)
            self._otel.set_status(StatusCode.ERROR, str(error))

    def ref(self) -> str:
        """A reference to this span, for :meth:`link` and :func:`wait`, here or in another process (``TRACE-SPAN`` in
        hex); "" if it is not recorded.
        """
        if self._otel is None:
            return ""
        context = self._otel.get_span_context()
        return f"{context.trace_id:032x}-{context.span_id:016x}" if context.is_valid else ""

    def link(self, ref: str) -> None:
        """Link to the span that ``ref`` names; nothing if it is empty."""
        if self._otel is not None and (context := _context_of(ref)) is not None:
            self._otel.add_link(context)

    def above(self) -> Any:
        """The context in which spans are children of this one."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        return Context() if self._otel is None else set_span_in_context(self._otel)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """W3C headers that make this span the parent of the callee's spans."""
        if self._otel is None:
            return self._headers
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._otel))
        return tuple(carrier.items())


def _extract(headers: Mapping[str, Any]) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({k: str(headers[k]) for k in _HEADERS if k in headers})


class Hop:
    """A call as traces see it (``kit.observer.Observed``). This one is for processes without tracing: it has only the
    caller's context to pass on.
    """

    __slots__ = ("_headers", "_token")
    inside = False

    def __init__(
        self,
        headers: tuple[tuple[str, str], ...] = (),
        token: contextvars.Token[tuple[tuple[str, str], ...]] | None = None,
    ) -> None:
        self._headers = headers
        self._token = token

    def headers(self) -> tuple[tuple[str, str], ...]:
        """W3C headers for the callee."""
        return self._headers

    def enter(self) -> None:
        """From here on the current task works for the call."""

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        """The call has ended, with the status that the caller gets."""
        if self._token is not None:
            with suppress(ValueError):  # a generator closed from another context: its context ends with it
                _incoming.reset(self._token)

    def left(self, size: int = 0) -> None:
        """The caller does not wait for the end any longer."""


_NO_HOP = Hop()


class _Spans:
    """The same with spans: a server's, a client's, or both for a call that passes through, the client's below the
    server's.
    """

    __slots__ = ("_inner", "_outer", "_token")
    inside = True

    def __init__(self, side: str, method: str, headers: Mapping[str, str | bytes], parent: Span | None = None) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace import SpanKind

        name, attributes = method.lstrip("/"), _rpc_attributes(method)
        self._token = self._inner = None
        if side == "client":
            self._outer = Span(_tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes))
            return
        above = _extract(headers) if parent is None else parent.above()
        self._outer = Span(_tracer.start_span(name, context=above, kind=SpanKind.SERVER, attributes=attributes))
        inside = trace.set_span_in_context(self._outer._otel)
        if side == "server":
            self._token = context.attach(inside)
        else:
            self._inner = Span(_tracer.start_span(name, context=inside, kind=SpanKind.CLIENT, attributes=attributes))

    def headers(self) -> tuple[tuple[str, str], ...]:
        return (self._inner or self._outer).headers()

    def enter(self) -> None:
        from opentelemetry import context, trace

        context.attach(trace.set_span_in_context(self._outer._otel))

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        if self._token is not None:
            from opentelemetry import context

            context.detach(self._token)
        for span in (self._inner, self._outer):
            if span is not None:
                if defect is not None:
                    span.exception(defect)
                elif code:
                    span.status(code, message)
                span.end()

    def left(self, size: int = 0) -> None:
        self._outer.end()


def began(side: str, method: str, headers: Mapping[str, str | bytes], parent: Span | None = None) -> Hop | _Spans:
    """A call begins. ``kit.observer`` says what ``side`` means and what the result is for. ``parent`` is a :func:`root`
    that the call belongs to, for calls that came without a trace.
    """
    if _tracer is not None:
        return _Spans(side, method, headers, parent)
    if side == "client":
        passed = _incoming.get()
        return Hop(passed) if passed else _NO_HOP
    if side == "server":
        if "traceparent" in headers or _incoming.get():
            return Hop(token=_incoming.set(_came(headers)))
    elif "traceparent" in headers or "tracestate" in headers:
        return Hop(_came(headers))
    return _NO_HOP


def _came(headers: Mapping[str, str | bytes]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(headers[name])) for name in _HEADERS if name in headers)


def span(name: str, **attributes: str | float | bool) -> Span:
    """A span around an operation or a phase that is worth a line in a trace.

    For example ``with span("content.commit", digest=str(digest)) as s:``.
    """
    if _tracer is None:
        return Span(headers=_incoming.get())
    return Span(_tracer.start_span(name, attributes=attributes))


def wait(cause: str, ref: str = "", **attributes: str | float | bool) -> Span:
    """A span in which this task only waits: ``wait.CAUSE``. The causes are ``bytes``, ``budget``, ``worker``,
    ``parent``, ``lock``, ``pause`` and ``client``. ``ref`` is the span that holds what is waited for.
    """
    waiting = span(f"wait.{cause}", **attributes)
    waiting.link(ref)
    return waiting


def background(name: str, **attributes: str | float | bool) -> Span:
    """A span of work that nobody waits for."""
    return span(name, **attributes, **{"splitd.background": True})


def enabled() -> bool:
    """Whether spans are made at all, now."""
    return _tracer is not None


def root(name: str, start: int = 0, **attributes: str | float | bool) -> Span:
    """Begin a trace: its root, which is recorded, and ended by :meth:`Span.end`. For the process at the node's edge,
    which decides what is recorded. Neither a root nor a hop directly below it is folded.
    """
    if _tracer is None:
        return Span()
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind

    return Span(
        _tracer.start_span(
            name, context=Context(), kind=SpanKind.SERVER, start_time=start or None, attributes=attributes
        )
    )


def recorded(
    name: str, start: int, end: int, ref: str = "", *, parent: Span | None = None, **attributes: str | float | bool
) -> None:
    """Record a span that is over, below ``parent`` or else the current one. ``start`` and ``end`` are those of
    :func:`now`; ``ref`` is a span to link to.
    """
    if _tracer is None:
        return
    above = None if parent is None else parent.above()
    made = Span(_tracer.start_span(name, context=above, start_time=start, attributes=attributes))
    made.link(ref)
    made._otel.end(end)


def current() -> Span:
    """The span that the current task works in. Do not end it."""
    if _tracer is None:
        return Span(headers=_incoming.get())
    from opentelemetry import trace

    return Span(trace.get_current_span())


def operation(**attributes: str | float | bool) -> None:
    """Set attributes of the operation that this work belongs to: on the root span, in whatever process it is."""
    current().set(**attributes)


def now() -> int:
    """Nanoseconds since the epoch, as spans count them: one anchor for all processes of the node, and its monotonic
    clock.
    """
    return time.time_ns()


def _context_of(ref: str) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    trace, _, identity = ref.partition("-")
    if not identity:
        return None
    return SpanContext(int(trace, 16), int(identity, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def environment() -> dict[str, str]:
    """Environment variables for a program started here, so that it continues this trace."""
    return {k.upper(): v for k, v in span_headers()}


def span_headers() -> tuple[tuple[str, str], ...]:
    """The current context as W3C headers."""
    if _tracer is None:
        return _incoming.get()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


def _rpc_attributes(method: str) -> dict[str, str]:
    service, _, name = method.lstrip("/").rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
