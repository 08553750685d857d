"""kit.otlp_spans and kit.resource: what is sent says what OpenTelemetry's SDK and its encoder say."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.kit import errors, otlp_spans, resource, spans, tracing
from services.kit.spans import CLIENT, INTERNAL, SERVER, Span
from tests.spans import Recorder

TRACE, ABOVE, OTHER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
KINDS = {INTERNAL: SpanKind.INTERNAL, SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}


class Colour(enum.StrEnum):
    """An enum whose values are texts."""

    RED = "red"


def plain() -> Span:
    """A root with an attribute of each kind."""
    made = Span("all kinds", INTERNAL, None)
    made.put(
        {
            "text": "é",
            "surrogate": "\udc80",
            "yes": True,
            "int": -(1 << 63),
            "huge": 1 << 64,
            "float": 0.5,
            "bytes": b"\xff",
            "none": None,
            "list": ["a", 1, None, [True]],
            "empty list": [],
            "map": {"a": {"b": 2.5}, "c": b""},
            "empty map": {},
            "enum": Colour.RED,
        }
    )
    return made


def failed_call() -> Span:
    """A call of a process, with an event and links."""
    made = Span("a.b.C/D", CLIENT, plain())
    made.method = "/a.b.C/D"
    made.status(errors.Internal.code, "broken \udcff")
    made.exception(ValueError("why"))
    made.link(f"{TRACE}-{OTHER}")
    made.lost = 3
    return made


def came() -> Span:
    """A call that came from another process, with folded ones below."""
    made = Span.received("a.b.C/D", SERVER, {"traceparent": f"00-{TRACE}-{ABOVE}-01"})
    assert made is not None
    made.folded, made.folded_ns = 2, 1_500_000
    made.code = 0
    return made


def nameless() -> Span:
    """A span that is open and has no name."""
    return Span("", INTERNAL, None)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    spans.state.forget()


def context(trace: str, span: str, *, remote: bool) -> SpanContext:
    """A context of the SDK."""
    return SpanContext(int(trace, 16), int(span, 16), remote, TraceFlags(TraceFlags.SAMPLED))


def readable(span: Span, of: dict[str, str]) -> ReadableSpan:
    """The span as one of the SDK, which has no number of dropped attributes that could be set."""
    attributes: dict[str, Any] = dict(span.attributes)
    if span.method:
        attributes |= {"rpc.system": "grpc", "rpc.service": "a.b.C", "rpc.method": "D"}
    if span.code is not None:
        attributes["rpc.grpc.status_code"] = span.code
    if span.folded:
        attributes |= {"splitd.folded.count": 2, "splitd.folded.ms": 1.5}
    return ReadableSpan(
        span.name or "?",
        context(span.trace, span.id, remote=False),
        context(span.trace, span.above, remote=span.parent is None) if span.above else None,
        Resource(dict(of)),
        attributes,
        [Event(name, values, at) for at, name, values in span.events],
        [Link(context(trace, identity, remote=True)) for trace, identity in span.links],
        KINDS[span.kind],
        None,
        Status(StatusCode.ERROR, span.message) if span.failed else Status(StatusCode.UNSET),
        span.start,
        span.over,
        InstrumentationScope("splitd"),
    )


def plain_value(value: Any) -> Any:
    """An AnyValue, read back."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: plain_value(each.value) for each in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


@pytest.mark.parametrize("make", [plain, failed_call, came, nameless])
def test_what_is_sent_is_what_the_sdk_sends(make: Any) -> None:
    """A collector sees no difference, but for what the SDK does not carry: how many attributes were dropped."""
    span = make()
    if make is not nameless:
        span.end()
    of = {"service.name": "splitd-x", "service.version": "1"}
    (theirs,) = encode_spans([readable(span, of)]).resource_spans
    (sent,) = theirs.scope_spans[0].spans
    sent.dropped_attributes_count = span.lost
    if not sent.status.ByteSize():
        sent.ClearField("status")  # empty, which means the same
    assert otlp.ResourceSpans.FromString(otlp_spans.resource_spans([span], of)) == theirs
    request = ExportTraceServiceRequest.FromString(otlp_spans.request([span, span], of))
    assert [*request.resource_spans[0].scope_spans[0].spans] == [sent, sent]


NUMBERS = [0, 1, 127, 128, 16383, 16384, (1 << 21) - 1, 1 << 21, (1 << 63) - 1, -1, -128, -(1 << 63)]
LENGTHS = [0, 1, 100, 127, 128, 4095, 4096]
"""Those at which a length takes a byte more are among them, with what surrounds a text."""


def test_numbers_and_lengths_of_all_sizes() -> None:
    """Whatever number of bytes they take, they are read as they were."""
    numbers = {f"n{number}": number for number in NUMBERS}
    texts = {"x" * length: "é" * length for length in LENGTHS}
    texts |= {f"near {length}": "y" * length for near in (100, 4080) for length in range(near, near + 30)}
    deep = {"list": [*NUMBERS, *({"a": [text]} for text in texts.values()), b"z" * 200]}
    span = Span("s" * 5000, INTERNAL, None)
    span.attributes, span.lost = {**numbers, **texts, **deep}, 1 << 20
    (read,) = otlp.ResourceSpans.FromString(otlp_spans.resource_spans([span], {})).scope_spans[0].spans
    assert (read.name, read.dropped_attributes_count) == ("s" * spans.TEXT, 1 << 20)
    assert {each.key: plain_value(each.value) for each in read.attributes} == span.attributes


def test_names_of_attributes_that_never_end_take_no_memory() -> None:
    """A foreign service's answer may bring new ones all the time."""
    span = Span("x", INTERNAL, None)
    for number in range(3 * otlp_spans._KEYS):
        span.attributes = {f"name {number}": number}
        (read,) = otlp.Span.FromString(otlp_spans.encoded(span)).attributes
        assert (read.key, read.value.int_value) == (f"name {number}", number)
    assert len(otlp_spans._keys) <= otlp_spans._KEYS


def test_a_name_that_utf8_has_not_loses_no_batch() -> None:
    """An attribute's name may come from a foreign service's answer."""
    span = Span("x", INTERNAL, None)
    span.put({"\ud800": 1})
    assert [each.key for each in otlp.Span.FromString(otlp_spans.encoded(span)).attributes] == ["\\ud800"]


def test_the_resource_is_that_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and values are in URL encoding, and may have blanks around them; ours are ours."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "a=b%20c, d =e=f ,g=,service.version=0")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    found = resource.described("content")
    assert resource.resource("content").items() - {("service.name", "splitd-content")} <= found.items()
    assert OTELResourceDetector().detect().attributes.items() - {("service.version", "0")} <= found.items()
    assert (found["service.name"], found["a"], list(resource.wrong())) == ("mine", "b c", [])
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert resource.described("content")["service.name"] == "splitd-content"


def test_what_is_no_attribute_is_named_and_left_out() -> None:
    """The others count all the same."""
    wrong = resource.wrong({resource.ATTRIBUTES: "nothing,=x,a=b,,"})
    assert list(wrong) == [
        f"{resource.ATTRIBUTES}: {each} is not NAME=VALUE, and is left out" for each in ("nothing", "=x")
    ]


def test_a_span_that_is_recorded_is_read_back() -> None:
    """What tests see is what a collector would."""
    recorder = Recorder()
    tracing.setup(recorder.export, loose=True)
    try:
        before = time.time_ns()
        with tracing.span("outer", a=1), tracing.span("inner"):
            tracing.current().failure(errors.Internal.code, "why")
    finally:
        tracing.reset()
    inner, outer = recorder.get_finished_spans()
    assert (inner.name, inner.parent, inner.status.failed, inner.status.description) == (
        "inner",
        outer.context,
        True,
        "why",
    )
    assert (outer.attributes, outer.parent, outer.status.failed) == ({"a": 1}, None, False)
    assert before - 10**9 < outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time
