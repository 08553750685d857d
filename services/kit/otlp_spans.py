"""Our spans as OTLP's messages (opentelemetry/proto/trace/v1/trace.proto).

The messages are OpenTelemetry's. Its SDK is not used: with its encoder it takes 1.9 MB in each process, and four times
as long (docs/adr/0015). A test compares the result with that of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

from services.kit import spans

_HAS_IS_REMOTE = otlp.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE = _HAS_IS_REMOTE | otlp.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_FAILED = otlp.Status.STATUS_CODE_ERROR


def resource_spans(given: Sequence[spans.Span], of: Mapping[str, str]) -> otlp.ResourceSpans:
    """The message of some spans of one process."""
    made = otlp.ResourceSpans()
    _put(made.resource.attributes, of)
    scope = made.scope_spans.add()
    scope.scope.name = "splitd"
    scope.spans.extend(map(message, given))
    return made


def message(span: spans.Span) -> otlp.Span:
    """One span. One that is open ends at 0."""
    made = otlp.Span(
        trace_id=bytes.fromhex(span.trace),
        span_id=bytes.fromhex(span.id),
        parent_span_id=bytes.fromhex(span.above),
        name=spans.text(span.name) or "?",
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.over,
        dropped_attributes_count=span.lost,
        flags=_IS_REMOTE if span.above and span.parent is None else _HAS_IS_REMOTE,
    )
    attributes = dict(span.attributes)
    if span.method:
        service, _, name = span.method[1:].rpartition("/")
        attributes.setdefault("rpc.system", "grpc")
        attributes |= {"rpc.service": spans.text(service), "rpc.method": spans.text(name)}
    if span.code is not None:
        attributes[f"rpc.{attributes.get('rpc.system', 'grpc')}.status_code"] = span.code
    if span.folded:
        attributes |= {"splitd.folded.count": span.folded, "splitd.folded.ms": span.folded_ns / 1e6}
    _put(made.attributes, attributes)
    for time, title, values in span.events:
        _put(made.events.add(time_unix_nano=time, name=title).attributes, values)
    for trace, identity in span.links:
        made.links.add(trace_id=bytes.fromhex(trace), span_id=bytes.fromhex(identity), flags=_IS_REMOTE)
    if span.failed:
        made.status.code, made.status.message = _FAILED, span.message
    return made


_KINDS = {
    spans.INTERNAL: otlp.Span.SPAN_KIND_INTERNAL,
    spans.SERVER: otlp.Span.SPAN_KIND_SERVER,
    spans.CLIENT: otlp.Span.SPAN_KIND_CLIENT,
}


def _put(attributes: Any, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        _set(attributes.add(key=spans.text(name)).value, value)


def _set(any_value: AnyValue, value: Any) -> None:
    """Set a value as :func:`services.kit.spans.bounded` leaves it."""
    match value:
        case None:
            any_value.SetInParent()  # a value of no kind
        case bool():
            any_value.bool_value = value
        case str():
            any_value.string_value = value
        case int():
            any_value.int_value = value
        case float():
            any_value.double_value = value
        case bytes():
            any_value.bytes_value = value
        case Mapping():
            any_value.kvlist_value.SetInParent()
            _put(any_value.kvlist_value.values, value)
        case _:
            any_value.array_value.SetInParent()
            for each in value:
                _set(any_value.array_value.values.add(), each)
