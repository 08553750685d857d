"""Open spans."""

from __future__ import annotations

from services.traces import live
from services.traces.live import OpenSpans
from tests.suites.traces import NOW, span


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_report_replaces_the_one_before() -> None:
    """And is void after its lifetime."""
    clock = Clock()
    opened = OpenSpans(lambda: NOW, clock)
    one, other, third = span(end=0), span(end=0, start=NOW - 1), span(end=0)
    opened.report("a", [one], 5.0, 0)
    opened.report("b", [other], 3.0, 0)
    assert (opened.live().now, opened.live().spans) == (NOW, [other, one])
    opened.report("a", [third], 5.0, 0)
    assert opened.live().spans == [other, third]
    clock.now += 3.5
    assert opened.live().spans == [third]
    opened.report("a", [], 5.0, 0)
    assert opened.live().spans == []


def test_what_processes_lost_is_added_up() -> None:
    """Each says how much since its beginning; a restarted one begins anew."""
    opened = OpenSpans()
    opened.report("a", [], 5.0, 7)
    opened.report("a", [], 5.0, 9)
    opened.report("b", [], 5.0, 1)
    assert opened.dropped() == 10
    opened.report("a", [], 5.0, 2)
    opened.report("a", [], 5.0, 2)
    assert opened.dropped() == 12


def test_reports_are_bounded() -> None:
    """In number, in spans and in time."""
    clock = Clock()
    opened = OpenSpans(lambda: NOW, clock)
    first = span(end=0, start=NOW - 10)
    opened.report("many", [*(span(end=0) for _ in range(live.SPANS)), first], 5.0, 0)
    assert opened.live().spans[0] == first
    assert len(opened.live().spans) == live.SPANS
    for number in range(live.REPORTERS + 10):
        opened.report(str(number), [span(end=0)], 1e9, 1)
    assert len(opened.live().spans) == live.REPORTERS
    assert opened.dropped() == live.REPORTERS + 10
    clock.now += live.LIFETIME + 1
    assert opened.live().spans == []
