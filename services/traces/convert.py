"""OTLP's spans to the domain's and back, and the splitting of what a process sends into pieces.

Spans that are only stored are not converted, since that would cost twenty times as much. What is read here may come
from anybody: ids of a wrong length never get here (:func:`refuse`), a span that is too large loses attributes
(:func:`_cut`), and values that are nested too deep end in "...".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from api.splitd.traces.v1 import traces_pb2 as pb
from services.kit import errors
from services.kit.otlp_messages import AnyValue, KeyValue, Resource, otlp
from services.traces import plain
from services.traces.store import (
    LAST,
    LIMIT,
    OF_TRACE,
    TRANSFERS,
    Event,
    Figures,
    Kind,
    Link,
    Piece,
    Query,
    Span,
    Status,
    Summary,
    Trace,
    Value,
    best,
    head,
)

SPAN = 64 << 10
"""Bytes of a span. One that is larger loses events, links, and its largest attributes."""
RESOURCE = 16 << 10
"""Bytes of what is said of a process. More is reduced to its name."""
PIECE = 1 << 20
"""Bytes of a piece; the last span may exceed it."""
TELLING = 16
"""Spans of a piece that are asked what they say of their trace."""
DEPTH = 32
"""Levels of lists and maps in a value."""
_NAME, _MESSAGE = 1 << 10, 4 << 10
"""Characters of the name and of the status of a span that is too large."""

_ERROR = otlp.Status.STATUS_CODE_ERROR
_ZERO, _NOBODY = bytes(16), bytes(8)
_U64 = (1 << 64) - 1


# ---------------------------------------------------------------------------------------------- on the way in


def refuse(sent: Iterable[otlp.ResourceSpans]) -> int:
    """Remove spans with an id of a wrong length; the result is how many. An empty id counts as zero, as in
    OpenTelemetry's collector.
    """
    refused = 0
    for resource in sent:
        for scope in resource.scope_spans:
            good = [
                span
                for span in scope.spans
                if len(span.trace_id) in (16, 0) and len(span.span_id) in (8, 0) and len(span.parent_span_id) in (8, 0)
            ]
            if bad := len(scope.spans) - len(good):
                _keep(scope.spans, good)
                refused += bad
    return refused


def _keep(spans: Any, some: Sequence[otlp.Span]) -> None:
    """Remove all but ``some`` of these spans. Each ``del`` of one would move all that are behind it."""
    kept = otlp.ScopeSpans(spans=some)
    del spans[:]
    spans.MergeFrom(kept.spans)


def begun(sent: Iterable[otlp.ResourceSpans]) -> int:
    """When the first of these spans began, at least 1; 0 if there is none."""
    starts = [span.start_time_unix_nano for each in sent for scope in each.scope_spans for span in scope.spans]
    return max(1, min(starts)) if starts else 0


def sender(sent: Sequence[otlp.ResourceSpans]) -> str:
    """What tells one sending process from another: its service and instance."""
    if not sent:
        return ""
    said = {each.key: each.value.string_value for each in sent[0].resource.attributes[:64]}
    return f"{said.get('service.name', '')} {said.get('service.instance.id', '')}"[:256]


def pieces(sent: Iterable[otlp.ResourceSpans]) -> Iterator[Piece]:
    """Split spans by their traces. What is too large is cut in place."""
    for resource in sent:
        if resource.resource.ByteSize() > RESOURCE:
            _reduce(resource.resource)
        for scope in resource.scope_spans:
            if scope.scope.ByteSize() > RESOURCE:
                scope.scope.Clear()
            by_trace: dict[bytes, list[list[otlp.Span]]] = {}
            sizes: dict[bytes, int] = {}
            for span in scope.spans:
                if (size := span.ByteSize()) > SPAN:
                    size = _cut(span)
                trace = span.trace_id or _ZERO
                groups = by_trace.setdefault(trace, [[]])
                if (total := sizes.get(trace, 0)) + size > PIECE and groups[-1]:
                    groups.append([])
                    total = 0
                groups[-1].append(span)
                sizes[trace] = total + size
            for trace, groups in by_trace.items():
                for group in groups:
                    yield _piece(trace, resource, scope, group)


def _piece(trace: bytes, resource: otlp.ResourceSpans, scope: otlp.ScopeSpans, group: Sequence[otlp.Span]) -> Piece:
    data = otlp.TracesData()
    if len(resource.scope_spans) == 1 and len(group) == len(scope.spans):
        data.resource_spans.append(resource)
    else:
        mine = data.resource_spans.add(resource=resource.resource, schema_url=resource.schema_url[:_NAME])
        mine.scope_spans.add(scope=scope.scope, schema_url=scope.schema_url[:_NAME]).spans.extend(group)
    service = _service(resource.resource)
    return Piece(
        trace.hex(),
        data.SerializeToString(),
        [(span.span_id or _NOBODY, span.status.code == _ERROR) for span in group],
        min(LAST, *(span.start_time_unix_nano for span in group)),
        min(LAST, max(max(span.start_time_unix_nano, span.end_time_unix_nano) for span in group)),
        best(head(_span(span, service)) for span in _telling(group)),
    )


def _telling(group: Sequence[otlp.Span]) -> Sequence[otlp.Span]:
    """The spans of a piece that say most about their trace: a root; without one a few that say something of it, those
    first that are named after the operation; at least the one that began first.
    """
    roots = [span for span in group if not _parent(span)]
    if roots:
        return roots[:TELLING]
    first = min(group, key=lambda span: span.start_time_unix_nano)
    telling = [s for s in group if s.name in TRANSFERS or any(each.key in OF_TRACE for each in s.attributes)]
    telling.sort(key=lambda span: (span.name not in TRANSFERS, span.start_time_unix_nano))
    return [first, *telling[:TELLING]]


def _parent(span: otlp.Span) -> bool:
    return span.parent_span_id not in (b"", _NOBODY)


def _reduce(resource: Resource) -> None:
    name = _service(resource)
    resource.Clear()
    resource.attributes.add(key="service.name").value.string_value = name


def _cut(span: otlp.Span) -> int:
    """Make a span small; the result is its size. What was removed is counted where OTLP has it."""
    if span.events:
        span.dropped_events_count = min(span.dropped_events_count + len(span.events), 0xFFFFFFFF)
        del span.events[:]
    if span.links:
        span.dropped_links_count = min(span.dropped_links_count + len(span.links), 0xFFFFFFFF)
        del span.links[:]
    span.name = span.name[:_NAME]
    span.status.message = span.status.message[:_MESSAGE]
    span.trace_state = ""
    kept, room = [], SPAN - 16 * 1024
    for attribute in sorted(span.attributes, key=lambda each: each.ByteSize()):
        if (room := room - attribute.ByteSize() - 8) < 0:
            break
        kept.append(attribute)
    lost = len(span.attributes) - len(kept)
    copies = [KeyValue.FromString(each.SerializeToString()) for each in kept]
    del span.attributes[:]
    span.attributes.extend(copies)
    span.dropped_attributes_count = min(span.dropped_attributes_count + lost, 0xFFFFFFFF)
    span.DiscardUnknownFields()
    return span.ByteSize()


def joined(parts: Iterable[bytes]) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """The pieces of one trace as one, without spans that are there twice; and their ids, and whether each is an
    ERROR. DataLoss if they are none.
    """
    data = otlp.TracesData()
    try:
        for part in parts:
            data.MergeFromString(part)
    except DecodeError as error:
        raise errors.DataLoss(f"spans cannot be read: {error}") from None
    seen: dict[bytes, bool] = {}
    zeros: list[tuple[bytes, bool]] = []
    for resource in data.resource_spans:
        for scope in resource.scope_spans:
            first = []
            for span in scope.spans:
                key, failed = span.span_id or _NOBODY, span.status.code == _ERROR
                if key == _NOBODY:
                    zeros.append((key, failed))
                elif key in seen:
                    continue
                else:
                    seen[key] = failed
                first.append(span)
            if len(first) < len(scope.spans):
                _keep(scope.spans, first)
    return data.SerializeToString(), [*seen.items(), *zeros]


# ---------------------------------------------------------------------------------------------- spans


def trace(name: str, parts: Iterable[bytes]) -> Trace:
    """The trace whose encoded spans these are. DataLoss if they are none."""
    seen: set[str] = set()
    found = []
    for part in parts:
        for span in spans(part):
            if span.id not in seen:
                found.append(span)
                if span.id != "0" * 16:
                    seen.add(span.id)
    found.sort(key=lambda span: span.start)
    return Trace(name, found)


def spans(data: bytes) -> Iterator[Span]:
    """The spans of a TracesData. DataLoss if it is none."""
    try:
        parsed = otlp.TracesData.FromString(data)
    except DecodeError as error:
        raise errors.DataLoss(f"spans cannot be read: {error}") from None
    return spans_from_pb(parsed.resource_spans)


def spans_from_pb(sent: Iterable[otlp.ResourceSpans]) -> Iterator[Span]:
    """All spans of some processes."""
    for resource in sent:
        service = _service(resource.resource)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(span, service)


def _service(resource: Resource) -> str:
    return next((each.value.string_value for each in resource.attributes if each.key == "service.name"), "")[:256]


def _span(span: otlp.Span, service: str) -> Span:
    return Span(
        (span.trace_id or _ZERO).hex(),
        (span.span_id or _NOBODY).hex(),
        span.parent_span_id.hex() if _parent(span) else "",
        span.name,
        service,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.kind if 0 <= span.kind <= Kind.CONSUMER else Kind.UNSPECIFIED,
        span.status.code if 0 <= span.status.code <= Status.ERROR else Status.UNSET,
        span.status.message,
        _attributes(span.attributes),
        [Event(each.time_unix_nano, each.name, _attributes(each.attributes)) for each in span.events]
        if span.events
        else (),
        [
            Link(each.trace_id.hex(), each.span_id.hex(), _attributes(each.attributes))
            for each in span.links
            if len(each.trace_id) == 16 and len(each.span_id) == 8
        ]
        if span.links
        else (),
    )


def _attributes(sent: Iterable[KeyValue]) -> dict[str, Value]:
    return {each.key: _value(each.value) for each in sent}


def _value(sent: AnyValue, depth: int = 1) -> Value:
    kind = sent.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        if depth > DEPTH:
            return "..."
        return [_value(each, depth + 1) for each in sent.array_value.values]
    if kind == "kvlist_value":
        if depth > DEPTH:
            return "..."
        return {each.key: _value(each.value, depth + 1) for each in sent.kvlist_value.values}
    value: Value = getattr(sent, kind)
    return value


def spans_to_pb(given: Iterable[Span]) -> otlp.TracesData:
    """Spans as OTLP, those of one service together."""
    data = otlp.TracesData()
    services: dict[str, Any] = {}
    for span in given:
        if span.service not in services:
            resource = data.resource_spans.add()
            resource.resource.attributes.add(key="service.name").value.string_value = _valid(span.service)
            services[span.service] = resource.scope_spans.add().spans
        made = services[span.service].add(
            trace_id=bytes.fromhex(span.trace),
            span_id=bytes.fromhex(span.id),
            parent_span_id=bytes.fromhex(span.parent),
            name=_valid(span.name),
            kind=span.kind if 0 <= span.kind <= Kind.CONSUMER else 0,
            start_time_unix_nano=_time(span.start),
            end_time_unix_nano=_time(span.end),
        )
        if span.status or span.message:
            made.status.code = span.status
            made.status.message = _valid(span.message)
        _put(made.attributes, span.attributes)
        for event in span.events:
            told = made.events.add(time_unix_nano=_time(event.time), name=_valid(event.name))
            _put(told.attributes, event.attributes)
        for link in span.links:
            linked = made.links.add(trace_id=bytes.fromhex(link.trace), span_id=bytes.fromhex(link.span))
            _put(linked.attributes, link.attributes)
    return data


def _put(attributes: Any, given: Mapping[str, Value]) -> None:
    for name, value in given.items():
        _fill(attributes.add(key=_valid(name)).value, value)


def _fill(made: AnyValue, value: Value, depth: int = 1) -> None:
    """An empty AnyValue stands for None. An integer beyond 64 bits becomes text, so that it is not lost."""
    match value:
        case None:
            pass
        case bool():
            made.bool_value = value
        case int() if -(1 << 63) <= value < 1 << 63:
            made.int_value = value
        case float():
            made.double_value = value
        case str():
            made.string_value = _valid(value)
        case bytes():
            made.bytes_value = value
        case Mapping() | Sequence() if depth > DEPTH:
            made.string_value = "..."
        case Mapping():
            made.kvlist_value.SetInParent()
            for name, inner in value.items():
                _fill(made.kvlist_value.values.add(key=_valid(str(name))).value, inner, depth + 1)
        case Sequence():
            made.array_value.SetInParent()
            for inner in value:
                _fill(made.array_value.values.add(), inner, depth + 1)
        case _:
            made.string_value = _valid(str(value))


def _valid(text: str) -> str:
    """``text`` without halves of surrogate pairs, which protobuf refuses."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _time(moment: int) -> int:
    return min(max(moment, 0), _U64)


# ---------------------------------------------------------------------------------------------- our own messages


def query_to_pb(query: Query) -> pb.ListRequest:
    return pb.ListRequest(
        since=query.since,
        operation=query.operation,
        image=query.image,
        namespace=query.namespace,
        failed=query.failed,
        longer=query.longer,
        limit=query.limit,
        operations=query.operations,
    )


def query_from_pb(request: pb.ListRequest) -> Query:
    return Query(
        since=request.since,
        operation=request.operation,
        image=request.image,
        namespace=request.namespace,
        failed=request.failed,
        longer=request.longer,
        limit=request.limit or LIMIT,
        operations=request.operations,
    )


def summary_to_pb(summary: Summary) -> pb.Summary:
    return pb.Summary(
        id=summary.id,
        name=summary.name,
        operation=summary.operation,
        namespace=summary.namespace,
        image=summary.image,
        outcome=summary.outcome,
        start=summary.start,
        end=summary.end,
        spans=summary.spans,
        errors=summary.errors,
        attributes=plain.to_json(summary.attributes),
    )


def summary_from_pb(sent: pb.Summary) -> Summary:
    return Summary(
        sent.id,
        sent.name,
        sent.operation,
        sent.namespace,
        sent.image,
        sent.outcome,
        sent.start,
        sent.end,
        sent.spans,
        sent.errors,
        plain.from_json(sent.attributes),
    )


def figures_to_pb(figures: Figures) -> pb.FiguresResponse:
    return pb.FiguresResponse(
        traces=figures.traces, spans=figures.spans, bytes=figures.bytes, oldest=figures.oldest, dropped=figures.dropped
    )


def figures_from_pb(sent: pb.FiguresResponse) -> Figures:
    return Figures(sent.traces, sent.spans, sent.bytes, sent.oldest, sent.dropped)
