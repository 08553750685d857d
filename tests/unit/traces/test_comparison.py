"""Two pulls side by side."""

from __future__ import annotations

import pytest

from services.traces.comparison import compare
from tests.unit.traces.spans import OTHER, TRACE, Spans


def pull(trace: str, first_byte: float, cpu: float) -> Spans:
    """A pull of one layer: resolve, first byte, transfer, worker."""
    spans = Spans(trace)
    root = spans.add("Transfer", 0, 200 + first_byte + cpu, splitd__operation="pull", splitd__outcome="ok")
    resolve = spans.add("registry.resolve", 0, 100, root)
    spans.add("registry.request", 0, 100, resolve, server__address="host")
    layer = spans.add("images.layer", 100, 200 + first_byte, root, oci__layer__digest="sha256:1", splitd__layer=0)
    request = spans.add("registry.request", 100, 200 + first_byte, layer, server__address="host")
    spans.add("registry.first_byte", 100, 100 + first_byte, request)
    spans.add("registry.transfer", 100 + first_byte, 200 + first_byte, request, splitd__bytes=1e6)
    spans.add("diff.unpack", 200 + first_byte, 200 + first_byte + cpu, root, splitd__time__cpu_ms=cpu)
    return spans


def test_where_the_second_took_longer() -> None:
    """The rows add up to both times; the sentence says the stage and the cause."""
    made = compare(pull(TRACE, 100, 300).trace(), pull(OTHER, 1100, 200).trace())
    assert sum(row.a for row in made.rows) == pytest.approx(made.a.wall)
    assert sum(row.b for row in made.rows) == pytest.approx(made.b.wall)
    assert next(row.stage for row in made.rows) == "resolve"
    found = {(row.stage, row.kind.value, row.part): row.difference for row in made.rows}
    assert found["layers' bytes", "registry", "first byte"] == pytest.approx(1.0)
    assert found["unpack", "cpu", "other"] == pytest.approx(-0.1)
    assert made.sentence == (
        "the second took 0.90 s longer (0.60 s and 1.5 s): 1.0 s of it in layers' bytes (registry: first byte)"
    )


def test_where_the_first_took_longer() -> None:
    """The difference is told of the one that took longer."""
    made = compare(pull(TRACE, 1100, 200).trace(), pull(OTHER, 100, 300).trace())
    assert made.sentence.startswith("the first took 0.90 s longer (1.5 s and 0.60 s): 1.0 s of it")


def test_equally_long() -> None:
    """Up to 5 %."""
    made = compare(pull(TRACE, 100, 300).trace(), pull(OTHER, 110, 300).trace())
    assert made.sentence == "both took equally long: 0.60 s and 0.61 s"


def test_two_that_took_no_time_at_all() -> None:
    """Somebody else's file may have such ones."""
    first, second = Spans(TRACE), Spans(OTHER)
    first.add("Transfer", 0, 0)
    second.add("Transfer", 0, 0)
    made = compare(first.trace(), second.trace())
    assert made.sentence.startswith("both took equally long")
    assert made.rows == ()
