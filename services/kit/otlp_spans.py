"""Our spans in OTLP's wire format (opentelemetry/proto/trace/v1/trace.proto).

The bytes are written here, without protobuf: its messages of a span take longer to make, and their modules take memory
in each process (docs/adr/0015). A test reads them with OpenTelemetry's messages, and compares those with what its SDK
makes of the same spans.

A tag is ``number << 3 | type``. The types here are 0, a varint; 1 and 5, 8 and 4 bytes; and 2, a length and so many
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any

from services.kit import spans

_U64 = (1 << 64) - 1
_KEYS = 1000
"""Names of attributes whose bytes are remembered; most are constants of our code."""

_times = Struct("<BQBQ").pack
_double = Struct("<Bd").pack
_BYTE = [bytes((number,)) for number in range(128)]

_FLAGS = b"\x85\x01"
_HAS_IS_REMOTE = (0x100).to_bytes(4, "little")
_IS_REMOTE = (0x300).to_bytes(4, "little")
"""SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, and that with SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK."""
_KIND = {spans.INTERNAL: b"0\x01", spans.SERVER: b"0\x02", spans.CLIENT: b"0\x03"}
_ERROR = b"\x18\x02"
_SCOPE = b"\n\x08\n\x06splitd"


def resource_spans(given: Sequence[spans.Span], of: Mapping[str, str]) -> bytes:
    """The ResourceSpans of some spans of one process, whose attributes are ``of``."""
    resource, scope = bytearray(), bytearray(_SCOPE)
    _put(resource, b"\n", of)
    for span in given:
        _add(scope, b"\x12", encoded(span))
    made = bytearray()
    _add(made, b"\n", resource)
    _add(made, b"\x12", scope)
    return bytes(made)


def request(given: Sequence[spans.Span], of: Mapping[str, str]) -> bytes:
    """The ExportTraceServiceRequest of the same."""
    made = bytearray()
    _add(made, b"\n", resource_spans(given, of))
    return bytes(made)


def encoded(span: spans.Span) -> bytes:
    """One Span. One that is open ends at 0."""
    made = bytearray(b"\n\x10%b\x12\x08%b" % (bytes.fromhex(span.trace), bytes.fromhex(span.id)))
    if span.above:
        made += b'"\x08%b' % bytes.fromhex(span.above)
    _add(made, b"*", spans.text(span.name).encode() or b"?")
    made += _KIND[span.kind]
    made += _times(0x39, span.start, 0x41, span.over)
    _put(made, b"J", _attributes(span))
    if span.lost:
        made += b"P" + _varint(span.lost)
    for time, title, values in span.events:
        event = bytearray(b"\x09" + time.to_bytes(8, "little"))
        _add(event, b"\x12", title.encode())
        _put(event, b"\x1a", values)
        _add(made, b"Z", event)
    for trace, identity in span.links:
        made += b"j!\n\x10" + bytes.fromhex(trace) + b"\x12\x08" + bytes.fromhex(identity) + b"5" + _IS_REMOTE
    if span.failed:
        status = bytearray()
        _add(status, b"\x12", span.message.encode())
        _add(made, b"z", status + _ERROR)
    made += _FLAGS
    made += _IS_REMOTE if span.above and span.parent is None else _HAS_IS_REMOTE
    return bytes(made)


def _attributes(span: spans.Span) -> Mapping[str, Any]:
    """Its attributes, with those that it has in fields."""
    attributes = span.attributes
    if not span.method and span.code is None and not span.folded:
        return attributes
    attributes = dict(attributes)
    if span.method:
        service, _, name = span.method[1:].rpartition("/")
        attributes.setdefault("rpc.system", "grpc")
        attributes["rpc.service"], attributes["rpc.method"] = spans.text(service), spans.text(name)
    if span.code is not None:
        attributes[f"rpc.{attributes.get('rpc.system', 'grpc')}.status_code"] = span.code
    if span.folded:
        attributes["splitd.folded.count"] = span.folded
        attributes["splitd.folded.ms"] = span.folded_ns / 1e6
    return attributes


# ---------------------------------------------------------------------------------------------- values


def _put(made: bytearray, tag: bytes, given: Mapping[str, Any]) -> None:
    """Add a KeyValue for each attribute."""
    for name, value in given.items():
        key = _keys.get(name) or _key(name)
        any_value = _value(value)
        size, whole = len(any_value), len(any_value) + len(key) + 1
        if whole < 128:
            made += b"%b%c%b%c%b" % (tag, whole, key, size, any_value)
        else:
            pair = key + _varint(size) + any_value
            made += tag + _varint(len(pair)) + pair


_keys: dict[str, bytes] = {}


def _key(name: str) -> bytes:
    """The beginning of a KeyValue, up to the length of its value."""
    key = spans.text(name).encode()
    begins = b"\n" + _varint(len(key)) + key + b"\x12"
    if len(_keys) < _KEYS:
        _keys[name] = begins
    return begins


def _value(value: Any) -> bytes:
    """An AnyValue, of a value as :func:`services.kit.spans.bounded` leaves it."""
    if isinstance(value, str):
        data = value.encode()
        size = len(data)
        return b"\n%c%b" % (size, data) if size < 128 else b"\n" + _varint(size) + data
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & _U64)
    if isinstance(value, float):
        return _double(0x21, value)
    if value is None:
        return b""
    made = bytearray()
    if isinstance(value, bytes):
        _add(made, b":", value)
        return bytes(made)
    items = bytearray()
    if isinstance(value, Mapping):
        _put(items, b"\n", value)
        _add(made, b"2", items)
    else:
        for each in value:
            _add(items, b"\n", _value(each))
        _add(made, b"*", items)
    return bytes(made)


def _add(made: bytearray, tag: bytes, data: bytes | bytearray) -> None:
    """Add a field that has a length."""
    made += tag + _varint(len(data))
    made += data


def _varint(number: int) -> bytes:
    if number < 128:
        return _BYTE[number]
    if number < 16384:
        return bytes((number & 127 | 128, number >> 7))
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)
