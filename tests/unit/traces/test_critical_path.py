"""The critical path of made-up traces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.traces.critical_path import Path
from services.traces.store import Link, Span, Trace
from services.traces.tree import tree
from services.traces.verdict import judge
from tests.unit.traces.spans import OTHER, T0, TRACE, Spans


def path(*traces: Spans) -> list[tuple[str, float, float]]:
    """The path of the first trace: names and times in milliseconds."""
    trees = [tree(spans.trace()) for spans in traces]
    known = {(node.span.trace, node.span.id): node for made in trees for node in made.nodes.values()}
    pieces = Path(known).of(trees[0].root)
    assert sum(piece.end - piece.start for piece in pieces) == trees[0].root.length
    return [(p.node.span.name, (p.start - T0) / 1e6, (p.end - T0) / 1e6) for p in pieces]


def test_one_after_the_other() -> None:
    """Between its children the time is the parent's own."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("a", 1, 4, root)
    spans.add("b", 5, 9, root)
    assert path(spans) == [("root", 0, 1), ("a", 1, 4), ("root", 4, 5), ("b", 5, 9), ("root", 9, 10)]


def test_side_by_side_the_last_to_end_counts() -> None:
    """The others were not waited for."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("short", 0, 6, root)
    spans.add("long", 0, 10, root)
    assert path(spans) == [("long", 0, 10)]


def test_a_small_overlap_is_none() -> None:
    """Up to 1 % of the parent."""
    spans = Spans()
    root = spans.add("root", 0, 100)
    spans.add("a", 0, 50.9, root)
    spans.add("b", 50, 100, root)
    assert path(spans) == [("a", 0, 50), ("b", 50, 100)]
    spans = Spans()
    root = spans.add("root", 0, 100)
    spans.add("a", 0, 51.1, root)
    spans.add("b", 50, 100, root)
    assert path(spans) == [("root", 0, 50), ("b", 50, 100)]


def test_background_work_is_not_on_the_path() -> None:
    """Nobody waits for it, however long it takes."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("prefetch", 0, 10, root, splitd__background=True)
    spans.add("work", 0, 6, root)
    assert path(spans) == [("work", 0, 6), ("root", 6, 10)]


def test_a_child_that_outlasts_its_parent_was_not_waited_for() -> None:
    """Where another child explains the parent's end; else the clocks differ, and it is clamped."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("waited for", 0, 10, root)
    spans.add("not waited for", 2, 30, root)
    assert path(spans) == [("waited for", 0, 10)]
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("of another clock", -5, 30, root)
    assert path(spans) == [("of another clock", 0, 10)]


def test_a_wait_is_what_its_link_did_then() -> None:
    """Here a worker waits for bytes, and these wait for a pause first."""
    spans = Spans()
    root = spans.add("root", 0, 20)
    fetch = spans.add("fetch", 0, 12, root)
    spans.add("pause", 1, 6, fetch)
    spans.add("transfer", 6, 12, fetch)
    unpack = spans.add("unpack", 2, 20, root)
    spans.add("wait.bytes", 4, 13, unpack, link=fetch)
    assert path(spans) == [
        ("root", 0, 2),
        ("unpack", 2, 4),
        ("pause", 4, 6),
        ("transfer", 6, 12),
        ("wait.bytes", 12, 13),
        ("unpack", 13, 20),
    ]


def test_a_wait_with_two_links() -> None:
    """The last gave way; before it began, the first held it up."""
    spans = Spans()
    root = spans.add("root", 0, 20)
    first = spans.add("first", 0, 8, root)
    last = spans.add("last", 7, 15, root)
    spans.add("wait.lock", 2, 16, root, link=first, also=last)
    spans.add("work", 16, 20, root)
    assert path(spans) == [("root", 0, 2), ("first", 2, 7), ("last", 7, 15), ("wait.lock", 15, 16), ("work", 16, 20)]


def test_a_wait_for_another_trace() -> None:
    """Its spans are on the path, if they are known."""
    other, spans = Spans(OTHER), Spans()
    holder = other.add("collect", -5, 8)
    other.add("mark", 0, 7, holder)
    root = spans.add("root", 0, 10)
    spans.add("wait.lock", 2, 8, root, link=f"{OTHER}-{holder}")
    assert path(spans, other) == [("root", 0, 2), ("mark", 2, 7), ("collect", 7, 8), ("root", 8, 10)]
    assert path(spans) == [("root", 0, 2), ("wait.lock", 2, 8), ("root", 8, 10)]


def test_waits_in_a_circle() -> None:
    """Two spans that wait for each other have no holder to find, and the walk ends."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("wait.lock", 0, 10, root, link="a" + f"{3:015x}")
    spans.add("wait.parent", 0, 10, root, link="a" + f"{2:015x}")
    assert sum(end - start for _, start, end in path(spans)) == 10


def test_a_wait_for_what_is_above_it() -> None:
    """It is not followed: its holder is where the wait is."""
    spans = Spans()
    root = spans.add("root", 0, 10)
    spans.add("wait.lock", 0, 10, root, link=root)
    assert path(spans) == [("wait.lock", 0, 10)]


IDS = [f"{number:016x}" for number in range(8)]
NAMES = (
    "wait.bytes wait.lock wait.budget wait.pause registry.fetch registry.request registry.first_byte diff.unpack"
    " images.layer registry.auth Transfer"
).split()
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.just(["x"])
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(
        "splitd.background splitd.time.cpu_ms splitd.time.bytes_ms splitd.time.disk_ms splitd.time.inflate_ms"
        " oci.layer.digest splitd.layer splitd.bytes splitd.bytes_ms server.address splitd.operation splitd.outcome"
        " splitd.registry.mirror container.image.name".split()
    ),
    VALUES,
    max_size=4,
)
TIMES = st.one_of(st.integers(0, 1000), st.integers(-(1 << 64), 1 << 64))
SPANS = st.builds(
    Span,
    st.sampled_from([TRACE, OTHER]),
    st.sampled_from(IDS),
    st.sampled_from(["", *IDS]),
    st.one_of(st.sampled_from(NAMES), st.text(max_size=3)),
    st.just("s"),
    TIMES,
    TIMES,
    attributes=ATTRIBUTES,
    links=st.lists(st.builds(Link, st.sampled_from([TRACE, OTHER]), st.sampled_from(IDS)), max_size=2),
)


@settings(max_examples=75, derandomize=True, deadline=None, database=None)
@given(st.lists(SPANS, min_size=1, max_size=12), st.lists(SPANS, max_size=6))
def test_the_self_times_add_up(spans: list[Span], others: list[Span]) -> None:
    """To the root's time in nanoseconds, without gap and overlap, whatever the spans say."""
    trace = Trace(TRACE, spans)
    root = tree(trace).root
    verdict = judge(trace, [Trace(OTHER, others)])
    at = root.start
    for segment in verdict.path:
        assert segment.start == at
        assert segment.end > at
        at = segment.end
    assert at == root.end
    assert abs(sum(cause.seconds for cause in verdict.causes) - verdict.wall) <= 1e-6 * verdict.wall


def test_many_spans_are_judged_in_bounded_time() -> None:
    """30,000 spans, each the child of the one before it, and as many beside each other that wait for one another."""
    deep = [Span(TRACE, f"{n + 1:016x}", f"{n:016x}" if n else "", "a", "s", 0, 1000) for n in range(30_000)]
    assert judge(Trace(TRACE, deep)).wall == 1e-6
    root = Span(TRACE, f"{1:016x}", "", "root", "s", 0, 100_000)
    wide = [
        Span(TRACE, f"{n:016x}", root.id, "wait.lock", "s", n, 100_000 - n, links=(Link(TRACE, f"{n + 1:016x}"),))
        for n in range(2, 20_000)
    ]
    assert judge(Trace(TRACE, [root, *wide])).wall == 1e-4


def test_workers_of_one_layer_look_at_a_bounded_number_of_fetches() -> None:
    """A thousand workers and a thousand fetches are not a million looks."""
    about = {"oci.layer.digest": "sha256:1"}
    root = Span(TRACE, f"{1:016x}", "", "root", "s", 0, 1_000_000)
    workers = [
        Span(TRACE, f"{n:016x}", root.id, "diff.unpack", "s", n * 1000 - 1000, n * 1000, attributes=measured)
        for n in range(2, 1000)
        for measured in [about | {"splitd.time.bytes_ms": 0.001}]
    ]
    fetches = [
        Span(TRACE, f"{n + 1000:016x}", root.id, "registry.fetch", "s", 0, 900_000, attributes=about)
        for n in range(1000)
    ]
    verdict = judge(Trace(TRACE, [root, *workers, *fetches]))
    assert sum(segment.end - segment.start for segment in verdict.path) == 1_000_000
    assert {cause.part for cause in verdict.causes} >= {"registry.fetch", "bytes"}
