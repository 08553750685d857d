"""Open spans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.traces import live
from services.traces.live import Asking, OpenSpans
from services.traces.store import Span
from tests.suites.traces import NOW, SECOND, span


def told(opened: OpenSpans, process: str, spans: Sequence[Span], lifetime: float, dropped: int) -> None:
    opened.report(process, min((each.start for each in spans), default=0), lambda: spans, lifetime, dropped)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_report_replaces_the_one_before() -> None:
    """And is void after its lifetime."""
    clock = Clock()
    opened = OpenSpans(lambda: NOW, clock)
    one, other, third = span(end=0), span(end=0, start=NOW - 1), span(end=0)
    told(opened, "a", [one], 5.0, 0)
    told(opened, "b", [other], 3.0, 0)
    assert (opened.live().now, opened.live().spans) == (NOW, [other, one])
    told(opened, "a", [third], 5.0, 0)
    assert opened.live().spans == [other, third]
    clock.now += 3.5
    assert opened.live().spans == [third]
    told(opened, "a", [], 5.0, 0)
    assert opened.live().spans == []


def test_what_processes_lost_is_added_up() -> None:
    """Each says how much since its beginning; a restarted one begins anew."""
    opened = OpenSpans()
    told(opened, "a", [], 5.0, 7)
    told(opened, "a", [], 5.0, 9)
    told(opened, "b", [], 5.0, 1)
    assert opened.dropped() == 10
    told(opened, "a", [], 5.0, 2)
    told(opened, "a", [], 5.0, 2)
    assert opened.dropped() == 12


def test_reports_are_bounded() -> None:
    """In number, in spans and in time."""
    clock = Clock()
    opened = OpenSpans(lambda: NOW, clock)
    first = span(end=0, start=NOW - 10)
    told(opened, "many", [*(span(end=0) for _ in range(live.SPANS)), first], 5.0, 0)
    assert opened.live().spans[0] == first
    assert len(opened.live().spans) == live.SPANS
    for number in range(live.REPORTERS + 10):
        told(opened, str(number), [span(end=0)], 1e9, 1)
    assert len(opened.live().spans) == live.REPORTERS
    assert opened.dropped() == live.REPORTERS + 10
    clock.now += live.LIFETIME + 1
    assert opened.live().spans == []


def test_spans_are_made_when_somebody_asks() -> None:
    """Hardly ever somebody looks. How old the oldest is, is known all the same."""
    clock = Clock()
    opened = OpenSpans(lambda: NOW + 5 * SECOND, clock)
    made: list[Span] = []

    def read() -> list[Span]:
        made.append(span(end=0))
        return made

    opened.report("a", NOW, read, 5.0, 0)
    opened.report("b", NOW + SECOND, read, 5.0, 0)
    opened.report("c", 0, read, 5.0, 0)
    assert (opened.age(), made) == (5.0, [])
    assert opened.live().spans[0] is made[0]
    clock.now += 6
    assert opened.age() == 0


def test_whoever_looks_makes_the_processes_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a file that they look at. Many questions at once touch it once; where it cannot be, the answer is the same."""
    clock, asked = Clock(), tmp_path / "asked"
    opened = OpenSpans(lambda: NOW, clock, Asking(asked, clock))
    told(opened, "a", [span(end=0)], 5.0, 0)
    assert (opened.live().now, asked.exists()) == (NOW, False)
    assert (opened.asked(), asked.exists()) == (opened.live(), True)
    asked.unlink()
    clock.now += 0.4
    assert (opened.asked(), asked.exists()) == (opened.live(), False)
    clock.now += 0.2
    assert (opened.asked(), asked.exists()) == (opened.live(), True)
    nowhere = OpenSpans(lambda: NOW, clock, Asking(tmp_path / "no/asked", clock))
    assert nowhere.asked().spans == []
    assert "processes cannot be asked what is in flight" in caplog.text
