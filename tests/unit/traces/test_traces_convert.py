"""What others send is sorted out before it is stored."""

from __future__ import annotations

import time

from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

from services.traces import convert


def sent(count: int) -> otlp.ResourceSpans:
    """Spans of which every other one has an id of a wrong length."""
    resource = otlp.ResourceSpans()
    spans = resource.scope_spans.add().spans
    for number in range(count):
        spans.add(trace_id=b"t" * 16, span_id=number.to_bytes(8 - number % 2, "big"), name=f"number {number}")
    return resource


def test_spans_with_a_wrong_id_are_refused() -> None:
    """All others stay, as they were, and in their order."""
    resource = sent(100)
    assert convert.refuse([resource]) == 50
    assert [span.name for span in resource.scope_spans[0].spans] == [f"number {number}" for number in range(0, 100, 2)]
    assert convert.refuse([resource]) == 0


def test_refusing_takes_a_time_that_grows_with_the_number() -> None:
    """Sixteen times as many take about sixteen times as long; if each were removed alone, it would be 250 times."""
    took = []
    for count in (20_000, 320_000):
        resource = sent(count)
        begun = time.thread_time()
        assert convert.refuse([resource]) == count // 2
        took.append(time.thread_time() - begun)
    assert took[1] < 80 * took[0]
