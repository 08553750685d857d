"""The tree of a trace, whatever its spans say."""

from __future__ import annotations

import pytest

from services.traces.store import Span, Trace
from services.traces.tree import UNKNOWN_ROOT, tree
from tests.unit.traces.spans import TRACE, Spans


def test_a_trace_without_spans_has_no_tree() -> None:
    """There is nothing to judge, and the error names the trace."""
    with pytest.raises(ValueError, match=f"trace {TRACE} has no span"):
        tree(Trace(TRACE, ()))


def test_the_root_adopts_a_span_whose_parent_is_unknown() -> None:
    """Its parent may have been dropped, or come later."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    orphan = spans.add("orphan", 2, 4, parent="c" * 16)
    made = tree(spans.trace())
    assert made.root.span.id == root
    assert [(node.span.id, node.adopted) for node in made.root.children] == [(orphan, True)]


def test_circles_are_cut() -> None:
    """No span is lost in a circle, and a walk through the tree ends."""
    spans = [
        Span(TRACE, "1" * 16, "", "root", "s", 0, 100),
        Span(TRACE, "2" * 16, "2" * 16, "own parent", "s", 0, 10),
        Span(TRACE, "3" * 16, "4" * 16, "a", "s", 5, 20),
        Span(TRACE, "4" * 16, "3" * 16, "b", "s", 6, 20),
        Span(TRACE, "5" * 16, "4" * 16, "below the circle", "s", 7, 20),
    ]
    made = tree(Trace(TRACE, spans))
    names = {node.span.name: node.parent.span.name for node in made.nodes.values() if node.parent}
    assert names == {"own parent": "root", "a": "root", "b": "a", "below the circle": "b"}


def test_only_circles() -> None:
    """Where all spans have parents that are known, the one that spans all others is the root."""
    spans = [Span(TRACE, "1" * 16, "2" * 16, "a", "s", 0, 9), Span(TRACE, "2" * 16, "1" * 16, "b", "s", 1, 9)]
    made = tree(Trace(TRACE, spans))
    assert made.root.span.name == "a"
    assert [node.span.name for node in made.root.children] == ["b"]


def test_several_tops_of_an_unknown_root() -> None:
    """A client that traces calls the node twice: its own span is not known, but its time is."""
    spans = Spans()
    spans.add("Transfer", 0, 10, parent="d" * 16)
    spans.add("Get", 12, 15, parent="d" * 16)
    made = tree(spans.trace())
    assert made.root.span.name == UNKNOWN_ROOT
    assert made.root.span.id == "d" * 16
    assert made.root.length == 15_000_000
    assert [node.span.name for node in made.root.children] == ["Transfer", "Get"]


def test_one_top_of_an_unknown_root_is_the_root() -> None:
    """So the operation is what the node did, and not what the client did around it."""
    spans = Spans()
    top = spans.add("Transfer", 0, 10, parent="d" * 16)
    spans.add("images.pull", 1, 9, parent=top)
    assert tree(spans.trace()).root.span.id == top


def test_the_root_that_names_the_operation() -> None:
    """Of several spans without a parent."""
    spans = Spans()
    spans.add("longer", 0, 100)
    pull = spans.add("Transfer", 0, 10, splitd__operation="pull")
    assert tree(spans.trace()).root.span.id == pull


def test_a_span_that_came_twice() -> None:
    """It was open when its process forked; the longer one tells more."""
    twice = [Span(TRACE, "1" * 16, "", "root", "s", 0, end) for end in (5, 10)]
    made = tree(Trace(TRACE, twice))
    assert len(made.nodes) == 1
    assert made.root.length == 10


def test_a_span_that_ends_before_it_starts_is_empty() -> None:
    """Its time is where it starts."""
    made = tree(Trace(TRACE, [Span(TRACE, "1" * 16, "", "root", "s", 10, 3)]))
    assert (made.root.start, made.root.end) == (10, 10)


def test_attributes_from_outside_are_bounded() -> None:
    """A name is cut; a number is finite and not negative."""
    spans = Spans()
    root = spans.add("root", 0, 1, text="x" * 1000, wrong=float("nan"), less=-1, flag=True, several=["a"], big=1 << 80)
    made = tree(spans.trace()).nodes[root]
    assert len(made.text("text")) == 203
    assert made.text("several") == ""
    assert [made.number(name) for name in ("wrong", "less", "flag", "several", "big", "text")] == [None] * 6
