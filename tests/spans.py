"""The spans that this process records during a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.kit import tracing


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> list[ReadableSpan]:
        """All of them, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of a name, in the order of their ends."""
        return [each for each in self._exporter.get_finished_spans() if each.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only one of a name."""
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} spans {name}"
        return found[0]

    def parent(self, span: ReadableSpan) -> ReadableSpan:
        """The span's parent, which has ended."""
        assert span.parent is not None
        return self._by_id(span.parent.span_id)

    def linked(self, span: ReadableSpan) -> list[ReadableSpan]:
        """The ended spans that ``span`` links to."""
        return [self._by_id(link.context.span_id) for link in span.links]

    def _by_id(self, number: int) -> ReadableSpan:
        (found,) = (
            each
            for each in self._exporter.get_finished_spans()
            if each.context is not None and each.context.span_id == number
        )
        return found


def attribute(span: ReadableSpan, name: str) -> object:
    """An attribute of a span, which it must have."""
    assert span.attributes is not None
    return span.attributes[name]


def milliseconds(span: ReadableSpan) -> float:
    """How long a span lasted."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e6


@contextlib.contextmanager
def recorded() -> Iterator[Spans]:
    """Record spans during the block."""
    exporter = InMemorySpanExporter()
    tracing.setup("test", exporter=exporter)
    try:
        yield Spans(exporter)
    finally:
        tracing.reset()
