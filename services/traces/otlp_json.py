"""OTLP/JSON and the domain, both directions side by side.

The format is that of the OpenTelemetry protocol 1: protobuf's JSON, but with ids in hex and enums as numbers. What
others write is read with the latitude of the OpenTelemetry collector: names of fields in both spellings, enums by
name, numbers as strings, any times. Ids in base64, as protobuf's own JSON has them, are read too.

Whatever is read is bounded: :data:`SPANS` spans, and for each the bounds of its attributes, events and links. What is
beyond them is left out; a span that is left out is counted.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.traces.store import Event, Kind, Link, Span, Status, Value

SPANS = 200_000
"""Spans of one document."""
ENTRIES = 4096
"""Attributes of a span, an event or a link, events and links of a span, and members of one value."""
DEPTH = 32
"""Values within values."""
TEXT = 65_536
"""Characters of a string, bytes of a value of bytes."""

_HEX = re.compile("[0-9a-f]*")
_UINT64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Parsed:
    """The spans of a document, in its order, and the number of those that were left out: their ids have a wrong length,
    they are no objects, or there are too many.
    """

    spans: list[Span]
    refused: int


class NotOtlp(ValueError):
    """The document is no OTLP."""


# ---------------------------------------------------------------------------------------------- from JSON


def is_otlp(document: Any) -> bool:
    """Whether a decoded document looks like TracesData or a request of an exporter."""
    return isinstance(document, dict) and ("resourceSpans" in document or "resource_spans" in document)


def spans_from_json(document: Any) -> Parsed:
    """The spans of a decoded document; NotOtlp if it is another one."""
    if not is_otlp(document):
        raise NotOtlp("there is no resourceSpans in it")
    spans: list[Span] = []
    refused = 0
    for resource in _objects(document, "resourceSpans"):
        described = _attributes(_get(_get(resource, "resource"), "attributes"))
        service = str(described.get("service.name") or "")
        for scope in _objects(resource, "scopeSpans"):
            found = _get(scope, "spans")
            for each in found if isinstance(found, list) else ():
                span = _span(each, service) if len(spans) < SPANS else None
                if span is None:
                    refused += 1
                else:
                    spans.append(span)
    return Parsed(spans, refused)


def _span(value: Any, service: str) -> Span | None:
    if not isinstance(value, dict):
        return None
    trace, own = _id(_get(value, "traceId"), 16), _id(_get(value, "spanId"), 8)
    parent = _get(value, "parentSpanId")
    above = _id(parent, 8) if parent else ""
    if not trace or not own or above is None:
        return None
    status = _get(value, "status")
    return Span(
        trace=trace,
        id=own,
        parent="" if above.strip("0") == "" else above,
        name=_text(_get(value, "name")),
        service=service,
        start=_time(_get(value, "startTimeUnixNano")),
        end=_time(_get(value, "endTimeUnixNano")),
        kind=_enum(_get(value, "kind"), Kind, "SPAN_KIND_"),
        status=_enum(_get(status, "code"), Status, "STATUS_CODE_"),
        message=_text(_get(status, "message")),
        attributes=_attributes(_get(value, "attributes")),
        events=tuple(
            Event(_time(_get(each, "timeUnixNano")), _text(_get(each, "name")), _attributes(_get(each, "attributes")))
            for each in _objects(value, "events")[:ENTRIES]
        ),
        links=tuple(_links(_objects(value, "links")[:ENTRIES])),
    )


def _links(values: Sequence[Mapping[str, Any]]) -> Iterator[Link]:
    for each in values:
        trace, span = _id(_get(each, "traceId"), 16), _id(_get(each, "spanId"), 8)
        if trace and span:
            yield Link(trace, span, _attributes(_get(each, "attributes")))


def _get(value: Any, name: str) -> Any:
    """A member by its name in JSON, or else by its name in the .proto file."""
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    return value.get(re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name))


def _objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    found = _get(value, name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _id(value: Any, length: int) -> str | None:
    """``length`` bytes as lower-case hex; None if it is no such id."""
    if not isinstance(value, str):
        return None
    low = value.lower()
    if len(low) == 2 * length and _HEX.fullmatch(low):
        return low
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded.hex() if len(decoded) == length else None


def _text(value: Any) -> str:
    """A string; without halves of surrogate pairs, which JSON can name and protobuf cannot."""
    return value[:TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _time(value: Any) -> int:
    """Nanoseconds; 0 if it is none. The field has 64 bits."""
    found = _integer(value)
    return found if found is not None and 0 <= found < _UINT64 else 0


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value) else None


def _enum(value: Any, kind: type[Kind | Status], prefix: str) -> int:
    if isinstance(value, str) and (found := value.removeprefix(prefix)) in kind.__members__:
        return int(kind[found])
    number = _integer(value)
    return number if number is not None and number in set(kind) else 0


def _attributes(values: Any, depth: int = 0) -> dict[str, Value]:
    """The attributes of a list of keys and values; the last of two with one key."""
    found: dict[str, Value] = {}
    for each in values if isinstance(values, list) else ():
        key = _text(_get(each, "key"))
        if key and (len(found) < ENTRIES or key in found):
            found[key] = _value(_get(each, "value"), depth)
    return found


def _value(value: Any, depth: int) -> Value:
    if (text := _get(value, "stringValue")) is not None:
        return _text(text)
    if (boolean := _get(value, "boolValue")) is not None:
        return bool(boolean)
    if (integer := _get(value, "intValue")) is not None:
        number = _integer(integer)
        return number if number is not None and -(1 << 63) <= number < 1 << 63 else _text(str(integer))
    if (double := _get(value, "doubleValue")) is not None:
        return _double(double)
    if (coded := _get(value, "bytesValue")) is not None:
        try:
            return base64.b64decode(_text(coded)[: TEXT // 4 * 4])
        except (binascii.Error, ValueError):
            return b""
    if depth < DEPTH:
        if (array := _get(value, "arrayValue")) is not None:
            members = _get(array, "values")
            return [_value(each, depth + 1) for each in (members if isinstance(members, list) else ())[:ENTRIES]]
        if (pairs := _get(value, "kvlistValue")) is not None:
            return _attributes(_get(pairs, "values"), depth + 1)
    return None


def _double(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


# ---------------------------------------------------------------------------------------------- to JSON


def spans_to_json(spans: Iterable[Span]) -> dict[str, Any]:
    """Spans as TracesData, one resource for each service."""
    services: dict[str, list[Any]] = {}
    for span in spans:
        services.setdefault(span.service, []).append(_span_to_json(span))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes_to_json({"service.name": service} if service else {})},
                "scopeSpans": [{"scope": {"name": "splitd"}, "spans": found}],
            }
            for service, found in services.items()
        ]
    }


def _span_to_json(span: Span) -> dict[str, Any]:
    status = {"code": int(span.status), **({"message": span.message} if span.message else {})}
    return {
        "traceId": span.trace,
        "spanId": span.id,
        **({"parentSpanId": span.parent} if span.parent else {}),
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes_to_json(span.attributes),
        "events": [
            {"timeUnixNano": str(each.time), "name": each.name, "attributes": _attributes_to_json(each.attributes)}
            for each in span.events
        ],
        "links": [
            {"traceId": each.trace, "spanId": each.span, "attributes": _attributes_to_json(each.attributes)}
            for each in span.links
        ],
        "status": status if span.status or span.message else {},
    }


def _attributes_to_json(attributes: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value_to_json(value)} for key, value in attributes.items()]


def _value_to_json(value: Value) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else json.dumps(value)}  # NaN, Infinity: as text
    if isinstance(value, (bytes, bytearray)):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": _attributes_to_json(value)}}
    return {"arrayValue": {"values": [_value_to_json(each) for each in value]}}
