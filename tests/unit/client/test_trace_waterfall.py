"""The waterfall of a trace: which spans have lines, what is marked, and that it fits whatever somebody sent."""

from __future__ import annotations

import io
import random

import pytest

from client import shown, trace_views, waterfall
from services.traces.store import Span, Status, Trace
from services.traces.tree import tree
from services.traces.verdict import judge
from tests.unit.traces.spans import OTHER, T0, TRACE, Spans


def text(trace: Trace, columns: int = 120, **options: bool) -> list[str]:
    """The lines of a trace's waterfall with its critical path, without colours."""
    made = tree(trace)
    parts = trace_views.parts(made, judge(trace).path)
    rows = waterfall.rows(made, parts, everything=options.pop("everything", False))
    lines = waterfall.draw(rows, made.root.start, made.root.end, columns, ascii_only=True)
    return [shown.painted(line, colours=False) for line in lines]


def pull(layers: int = 2) -> Spans:
    """A pull whose layers take a second each, one after the other, beside small calls."""
    spans = Spans()
    root = spans.add(
        "splitd.pull",
        0,
        1000 * layers,
        service="splitd-gateway",
        splitd__operation="pull",
        container__image__name="registry.test/box:1",
    )
    for layer in range(layers):
        begin = 1000 * layer
        fetch = spans.add(
            "registry.fetch", begin, begin + 1000, root, splitd__layer=layer, server__address="registry.test"
        )
        for call in range(5):
            spans.add("containerd.services.content.v1.Content/Info", begin + call, begin + call + 0.5, fetch)
    return spans


def test_the_path_is_marked_where_it_was() -> None:
    """Each layer's bar is critical for its own half, and says which layer it is, from 1."""
    scale, root, first, *rest = text(pull().trace())
    second = next(line for line in rest if "layer 2" in line)
    assert scale.split() == ["0", "500", "ms", "1.00", "s", "1.50", "s", "2.00", "s"]
    assert root.startswith("  pull registry.test/box:1")
    assert "gateway" in root
    assert root.rstrip("-").endswith("s ")
    assert first.startswith("*   registry.fetch  layer 1, from registry.test")
    bars = [line[len(scale) - len(scale.lstrip()) :].strip() for line in (root, first, second)]
    assert set(bars[0]) == {"-"}
    assert set(bars[1]) == set(bars[2]) == {"#"}
    assert len(bars[1]) + len(bars[2]) in (len(bars[0]), len(bars[0]) + 1)


def test_short_spans_are_one_line_unless_all_are_wanted() -> None:
    """The line counts them and says what they are; with --all each has its own."""
    many = pull(30)
    lines = text(many.trace())
    assert len(lines) <= waterfall.LINES + 1
    assert sum("+ 5 short: 5 Content/Info" in line for line in lines) <= 30
    everything = text(many.trace(), everything=True)
    assert len(everything) == len(many.spans) + 1
    assert sum("Content/Info" in line and "short" not in line for line in everything) == 150


def test_what_failed_has_a_line_however_short() -> None:
    """Its message stands beside it."""
    spans = pull(20)
    spans.add(
        "registry.request",
        5,
        5.001,
        spans.spans[1].id,
        status=Status.ERROR,
        message="no route to host\nsplitd: all is well",
    )
    (failed,) = [line for line in text(spans.trace(), 200) if "no route" in line]
    assert r"no route to host\nsplitd" in failed


def test_a_call_is_one_line_for_all_processes_that_carry_it() -> None:
    """The client's, the relay's and the server's span have one name; the line has the first and the last process."""
    name = "containerd.services.diff.v1.Diff/Apply"
    spans = Spans()
    above = spans.add("images.unpack", 0, 1000)
    for service in ("splitd-images", "splitd-gateway", "splitd-snapshots"):
        above = spans.add(name, 10, 990, above, service=service)
    trace = Trace(spans.id, [Span(**{**_fields(s), "kind": 3 if s.name == name else 1}) for s in spans.spans])
    (hop,) = [line for line in text(trace) if "Diff/Apply" in line]
    assert "images>snapshots" in hop
    assert sum("Diff/Apply" in line for line in text(trace, everything=True)) == 3


def _fields(span: Span) -> dict:
    return {name: getattr(span, name) for name in Span.__slots__}


def test_a_wait_for_another_trace_is_marked() -> None:
    """The path goes through the other trace meanwhile, which this one cannot show."""
    other = Spans(OTHER)
    held = other.add("registry.fetch", 0, 900)
    spans = Spans()
    root = spans.add("splitd.pull", 0, 1000)
    spans.add("wait.lock", 100, 900, root, link=f"{OTHER}-{held}", splitd__wait__for="another pull of layer 1")
    made = tree(spans.trace())
    parts = trace_views.parts(made, judge(spans.trace(), [other.trace()]).path)
    (row,) = [row for row in waterfall.rows(made, parts) if row.label == "wait.lock"]
    assert row.critical == [(T0 + 100_000_000, T0 + 900_000_000)]
    assert row.note == "another pull of layer 1"


HOSTILE = ["\x1b[2J", "\u202e" * 50, "a\nb\tc", "\u5b57" * 400, "x" * 100_000, "e\u0301" * 300, "\ud800", ""]


@pytest.mark.parametrize("columns", [20, 40, 79, 80, 132, 400])
def test_every_line_fits_whatever_the_names_are(columns: int) -> None:
    """Escapes, wide and combining characters, and lengths; the terminal gets nothing but printable lines."""
    spans = Spans()
    above = spans.add(HOSTILE[0], 0, 1000, splitd__operation="\x1b]0;x\x07", container__image__name="\u5b57" * 99)
    for number, name in enumerate(HOSTILE):
        above = spans.add(name, number, 1000, above, service=name, splitd__wait__for=name, server__address=name)
    for line in text(spans.trace(), columns):
        assert shown.columns(line) < max(columns, 52), line
        assert line.isprintable()


def test_many_spans_of_any_shape_take_few_lines_and_little_time() -> None:
    """Ends before starts, parents that follow their children, circles, far-away times, a chain of 5,000."""
    chance = random.Random(7)
    spans = []
    for number in range(20_000):
        parent = number if number < 5_000 else chance.randrange(20_000)
        start = chance.choice([0, 1, (1 << 64) - 1, T0, T0 + chance.randrange(10**9)])
        spans.append(
            Span(
                TRACE,
                f"{number + 1:016x}",
                f"{parent:016x}" if parent else "",
                f"name {number % 7}",
                "service",
                start,
                chance.choice([start, 0, T0 + 10**9]),
                status=chance.choice([0, 2]),
            )
        )
    lines = text(Trace(TRACE, spans))
    assert len(lines) <= waterfall.LINES + 1
    assert all(len(line) < 120 for line in lines)


def test_one_empty_span() -> None:
    """A trace that takes no time has a line all the same."""
    spans = Spans()
    spans.add("events.publish", 0, 0)
    _, line = text(spans.trace())
    assert "events.publish" in line


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a pipe, not with NO_COLOR, not on a dumb terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    assert shown.has_colours(terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not shown.has_colours(terminal)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not shown.has_colours(terminal)
    assert shown.painted([("a\x1b[1m", shown.Style.ERROR)], colours=True) == "\x1b[31ma\\x1b[1m\x1b[0m"
    assert shown.painted([("a\x1b[1m ", shown.Style.ERROR)], colours=False) == "a\\x1b[1m"
