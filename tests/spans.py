"""The spans that this process records during a test, read from the bytes that a collector would get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

from services.kit import otlp_spans, spans, tracing


class Kind(IntEnum):
    """OTLP's kinds of spans."""

    INTERNAL, SERVER, CLIENT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Context:
    """Names a span."""

    trace_id: int
    span_id: int


@dataclass(frozen=True, slots=True)
class Status:
    """How a span ended."""

    failed: bool
    description: str


@dataclass(frozen=True, slots=True)
class Link:
    """Another span that a span refers to."""

    context: Context


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a span."""

    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedSpan:
    """A span that has ended."""

    name: str
    kind: Kind
    context: Context
    parent: Context | None
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    status: Status
    start_time: int
    end_time: int


def _context(trace: bytes, span: bytes) -> Context:
    return Context(int.from_bytes(trace), int.from_bytes(span))


def _attributes(given: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in given}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return kind and getattr(value, kind)


def _recorded(message: otlp.Span) -> RecordedSpan:
    return RecordedSpan(
        message.name,
        Kind(message.kind),
        _context(message.trace_id, message.span_id),
        _context(message.trace_id, message.parent_span_id) if message.parent_span_id else None,
        _attributes(message.attributes),
        tuple(Event(each.name, _attributes(each.attributes)) for each in message.events),
        tuple(Link(_context(each.trace_id, each.span_id)) for each in message.links),
        Status(message.status.code == otlp.Status.STATUS_CODE_ERROR, message.status.message),
        message.start_time_unix_nano,
        message.end_time_unix_nano,
    )


class Recorder:
    """Takes spans when they end."""

    def __init__(self) -> None:
        self._spans: list[RecordedSpan] = []

    def export(self, span: spans.Span) -> None:
        """Take one; for ``tracing.setup``."""
        self._spans.append(_recorded(otlp.Span.FromString(otlp_spans.encoded(span))))

    def get_finished_spans(self) -> list[RecordedSpan]:
        """Those that have ended, in the order of their ends."""
        return [*self._spans]


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: Recorder) -> None:
        self._exporter = exporter

    def all(self) -> list[RecordedSpan]:
        """All of them, in the order of their ends."""
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[RecordedSpan]:
        """Those of a name, in the order of their ends."""
        return [each for each in self.all() if each.name == name]

    def one(self, name: str) -> RecordedSpan:
        """The only one of a name."""
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} spans {name}"
        return found[0]

    def parent(self, span: RecordedSpan) -> RecordedSpan:
        """The span's parent, which has ended."""
        assert span.parent is not None
        return self._by_id(span.parent.span_id)

    def linked(self, span: RecordedSpan) -> list[RecordedSpan]:
        """The ended spans that ``span`` links to."""
        return [self._by_id(link.context.span_id) for link in span.links]

    def _by_id(self, number: int) -> RecordedSpan:
        (found,) = (each for each in self.all() if each.context.span_id == number)
        return found


def attribute(span: RecordedSpan, name: str) -> object:
    """An attribute of a span, which it must have."""
    return span.attributes[name]


def milliseconds(span: RecordedSpan) -> float:
    """How long a span lasted."""
    return (span.end_time - span.start_time) / 1e6


@contextlib.contextmanager
def recorded() -> Iterator[Spans]:
    """Record spans during the block."""
    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    try:
        yield Spans(exporter)
    finally:
        tracing.reset()
