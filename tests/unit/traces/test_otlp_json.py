"""OTLP/JSON: what we write is read back as it was, and what others write is read with their latitude."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from services.traces import convert, otlp_json
from services.traces.store import Event, Kind, Link, Span, Status

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | _TEXT
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT.filter(bool), inner, max_size=3),
    max_leaves=8,
)
_ATTRIBUTES = st.dictionaries(_TEXT.filter(bool), _VALUES, max_size=4)
_IDS, _LONG_IDS = (st.binary(min_size=n, max_size=n).map(bytes.hex) for n in (8, 16))
_TIMES = st.integers(0, 2**64 - 1)
_SPANS = st.builds(
    Span,
    trace=_LONG_IDS,
    id=_IDS,
    parent=st.just("") | _IDS.filter(lambda each: each.strip("0") != ""),
    name=_TEXT,
    service=_TEXT,
    start=_TIMES,
    end=_TIMES,
    kind=st.sampled_from([int(kind) for kind in Kind]),
    status=st.sampled_from([int(status) for status in Status]),
    message=_TEXT,
    attributes=_ATTRIBUTES,
    events=st.lists(st.builds(Event, _TIMES, _TEXT, _ATTRIBUTES), max_size=2).map(tuple),
    links=st.lists(st.builds(Link, _LONG_IDS, _IDS, _ATTRIBUTES), max_size=2).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(_SPANS, max_size=4))
def test_what_is_written_is_read_back(spans: list[Span]) -> None:
    """All seven kinds of values, any times and names; those of one service stand together."""
    written = json.dumps(otlp_json.spans_to_json(spans), allow_nan=False)
    found = otlp_json.spans_from_json(json.loads(written))
    assert sorted(map(repr, found.spans)) == sorted(map(repr, spans))
    assert found.refused == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(_SPANS, max_size=3))
def test_protobufs_own_json_is_read_too(spans: list[Span]) -> None:
    """Its ids are base64 and its enums names; fields have either spelling."""
    sent = convert.spans_to_pb(spans)
    wanted = sorted(repr(span) for span in convert.spans(sent.SerializeToString()))
    for names in (False, True):
        document = json_format.MessageToDict(sent, preserving_proto_field_name=names)
        found = otlp_json.spans_from_json(document or {"resourceSpans": []})
        assert sorted(repr(_same(span)) for span in found.spans) == wanted


def _same(span: Span) -> Span:
    """With lists where protobuf's reader makes them."""
    return Span(
        **{
            **{name: getattr(span, name) for name in Span.__slots__},
            "events": list(span.events) if span.events else (),
            "links": list(span.links) if span.links else (),
        }
    )


def one(**fields: Any) -> otlp_json.Parsed:
    span = {"traceId": "AB" * 16, "spanId": "cd" * 8, **fields}
    return otlp_json.spans_from_json({"resource_spans": [{"scope_spans": [{"spans": [span]}]}]})


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {"trace": "ab" * 16, "id": "cd" * 8, "parent": "", "start": 0, "end": 0, "kind": 0, "status": 0}),
        ({"parentSpanId": "0" * 16}, {"parent": ""}),
        ({"parent_span_id": "cd" * 8}, {"parent": "cd" * 8}),
        ({"kind": "SPAN_KIND_CLIENT"}, {"kind": 3}),
        ({"kind": 99}, {"kind": 0}),
        ({"kind": []}, {"kind": 0}),
        ({"status": {"code": "STATUS_CODE_ERROR", "message": "no"}}, {"status": 2, "message": "no"}),
        ({"startTimeUnixNano": "7", "end_time_unix_nano": 5}, {"start": 7, "end": 5}),
        ({"startTimeUnixNano": str(2**64)}, {"start": 0}),
        ({"startTimeUnixNano": -1}, {"start": 0}),
        ({"startTimeUnixNano": True, "endTimeUnixNano": {}}, {"start": 0, "end": 0}),
        ({"name": "\ud800x"}, {"name": "?x"}),
        ({"name": None, "attributes": {}, "events": [1], "links": "x", "status": 3}, {"name": "", "attributes": {}}),
        ({"attributes": [{"key": "a", "value": {"intValue": str(2**70)}}]}, {"attributes": {"a": str(2**70)}}),
        ({"attributes": [{"key": "a", "value": {"doubleValue": "NaN"}}, 7, {"value": 1}]}, {}),
        ({"attributes": [{"key": "a", "value": {"bytesValue": "!"}}]}, {"attributes": {"a": b""}}),
        ({"links": [{"traceId": "ab", "spanId": "cd"}]}, {"links": ()}),
    ],
)
def test_what_others_write(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    """As the OpenTelemetry collector takes it; what makes no sense is as if it were not there."""
    (span,) = one(**fields).spans
    assert {name: getattr(span, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": "ab"},
        {"spanId": ""},
        {"spanId": "zz" * 8},
        {"parentSpanId": "cd"},
        {"traceId": 5},
        {"spanId": "cd" * 9},
    ],
)
def test_a_span_whose_ids_have_a_wrong_length_is_counted(fields: dict[str, Any]) -> None:
    """The others are taken."""
    assert one(**fields) == otlp_json.Parsed([], 1)


@pytest.mark.parametrize("document", [None, [], 5, {}, {"traceEvents": []}, {"resourceSpan": []}])
def test_another_document_is_refused(document: Any) -> None:
    """It has no resourceSpans."""
    with pytest.raises(otlp_json.NotOtlp):
        otlp_json.spans_from_json(document)


def test_a_value_that_is_nested_too_deep_ends_there() -> None:
    """Nothing recurses with what somebody sent."""
    value: Any = {"stringValue": "x"}
    for _ in range(200):
        value = {"arrayValue": {"values": [value]}}
    (span,) = one(attributes=[{"key": "a", "value": value}]).spans
    depth, found = 0, span.attributes["a"]
    while isinstance(found, list):
        depth, found = depth + 1, found[0]
    assert (depth, found) == (otlp_json.DEPTH, None)
