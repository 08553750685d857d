"""kit.spans: which spans are kept, what they hang on, and what a span holds at most."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from services.kit import errors, spans, tracing
from services.kit.spans import CLIENT, CURRENT, NOTHING, SERVER, Span, Unrecorded, state

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
BASE = "00f067aa0ba902b7"
MS = 1_000_000
FOLD = 5 * MS

Kept = list[Span]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """The spans that this process keeps; those below 5 ms are folded."""
    found: Kept = []
    tracing.setup(found.append, fold=0.005)
    yield found
    tracing.reset()


def last(span: Span, milliseconds: float) -> Span:
    """End a span so long after its beginning."""
    span.end(span.start + int(milliseconds * MS))
    return span


def received(tracestate: str = f"splitd={BASE}", flags: str = "01") -> Span:
    """A server's span for a call with these headers."""
    made = Span.received("a.B/C", SERVER, {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "tracestate": tracestate})
    assert made is not None
    return made


def test_short_spans_are_folded_into_the_nearest_open_span_above(kept: Kept) -> None:
    """It counts all of them, and the time of the outermost."""
    root = tracing.root("pull")
    middle = Span("middle", spans.INTERNAL, root)
    for _ in range(3):
        last(Span("inner", spans.INTERNAL, middle), 1)
    last(middle, 4)
    last(root, 10)
    assert kept == [root]
    assert (root.folded, root.folded_ns) == (4, 4 * MS)


def test_a_root_and_what_failed_are_kept_however_short(kept: Kept) -> None:
    """And so is a span that was told so."""
    root = tracing.root("check")
    failed, marked, fine = (Span(name, spans.INTERNAL, root) for name in ("failed", "marked", "fine"))
    failed.failure(errors.Internal.code, "no")
    fine.failure(errors.NotFound.code, "content x: not found")
    marked.keep()
    for span in (failed, marked, fine, root):
        last(span, 1)
    assert kept == [failed, marked, root]


def test_a_long_child_keeps_a_parent_that_is_still_open(kept: Kept) -> None:
    """Its parent ends soon after; for a span recorded afterwards it began late, too."""
    parent = received()
    child = Span("late", spans.INTERNAL, parent)
    child.start -= 10 * MS
    last(child, 8)
    last(parent, 2)
    assert kept == [child, parent]
    assert child.above == parent.id


def test_a_span_that_outlives_its_parent_hangs_on_the_nearest_that_is_kept(kept: Kept) -> None:
    """Whether it began before or after the end of the one that was folded."""
    root = tracing.root("pull")
    call = Span("call", spans.INTERNAL, root)
    before = Span("before", spans.INTERNAL, call)
    last(call, 1)
    after = Span("after", spans.INTERNAL, call)
    for span in (before, after):
        last(span, 50)
        assert span.above == root.id
    last(root, 60)
    assert kept == [before, after, root]


def test_what_outlives_a_folded_call_hangs_on_the_callers_base(kept: Kept) -> None:
    """The client's span may have been folded in its process, as the server's was here."""
    call = received()
    behind = Span("behind", spans.INTERNAL, call)
    last(call, 1)
    last(behind, 50)
    assert kept == [behind]
    assert behind.above == BASE


@pytest.mark.parametrize(
    ("milliseconds", "code", "above"),
    [
        (50, 0, PARENT),
        (50, errors.Cancelled.code, BASE),  # its caller's span ended earlier
        (1, errors.Internal.code, BASE),  # its caller may have got another answer
    ],
)
def test_a_servers_span_hangs_on_its_callers_if_that_is_kept(
    milliseconds: float, code: int, above: str, kept: Kept
) -> None:
    """That is certain if the server's is long enough, and the caller waited for it."""
    call = received()
    call.status(code, "x")
    last(call, milliseconds)
    assert [span.above for span in kept] == [above]


@pytest.mark.parametrize(("age", "wanted"), [(1, BASE), (6, "")])
def test_the_base_that_a_call_sends_is_the_nearest_span_that_will_be_kept(age: int, wanted: str, kept: Kept) -> None:
    """A span that is open for longer than the fold will be."""
    call = received(f"splitd={BASE},rojo=1, congo=2")
    call.start -= age * MS
    out = Span("d.E/F", CLIENT, call)
    headers = dict(out.headers())
    assert headers["traceparent"] == f"00-{TRACE}-{out.id}-01"
    assert headers["tracestate"] == f"splitd={wanted or call.id},rojo=1, congo=2"
    last(out, 0)


def test_a_call_below_a_root_that_may_be_folded_has_no_base(kept: Kept) -> None:
    """What is long there has a caller's span that is long, too; nothing short is kept, though it is the first."""
    root = tracing.root("collect")
    root.yields()
    headers = dict(Span("a.B/C", CLIENT, root).headers())
    for milliseconds, wanted in ((1, 0), (50, 1)):
        kept.clear()
        call = tracing._arrived("/a.B/C", headers, None)
        assert call is not None
        assert (call.base, call.marked) == ("", True)
        late = Span("late", spans.INTERNAL, call)
        last(call, milliseconds)
        assert len(kept) == wanted
        last(late, 60)
        assert late.above == (call.id if wanted else call.above)
    root.start -= FOLD
    assert dict(Span("a.B/C", CLIENT, root).headers())["tracestate"] == f"splitd={root.id}"


def test_a_strangers_span_is_the_base_of_what_comes_from_there(kept: Kept) -> None:
    """A client of the node's knows nothing of folding."""
    call = received("rojo=1")
    assert (call.base, call.marked, received().marked) == (PARENT, False, True)
    assert dict(Span("d.E/F", CLIENT, call).headers())["tracestate"] == f"splitd={PARENT},rojo=1"


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01 ",
        "x" * 10_000,
    ],
)
def test_a_context_that_is_malformed_or_says_no_is_not_recorded(traceparent: str, kept: Kept) -> None:
    """W3C Trace Context, section 3.2; flag 01 is "sampled"."""
    assert Span.received("a.B/C", SERVER, {"traceparent": traceparent}) is None
    assert not state.open


def test_a_later_version_is_read_as_this_one(kept: Kept) -> None:
    """W3C Trace Context, section 3.2.4: by its beginning."""
    made = Span.received("a.B/C", SERVER, {"traceparent": f"01-{TRACE}-{PARENT}-03-what-else"})
    assert made is not None
    assert made.trace == TRACE


def test_a_span_holds_no_more_than_its_bounds(kept: Kept) -> None:
    """What is dropped is counted; an attribute that is there may change."""
    span = tracing.root("x")
    span.put({f"a{i}": i for i in range(200)})
    span.put({"a0": "y" * 10_000})
    for _ in range(100):
        span.link(f"{TRACE}-{PARENT}")
        span.event("e")
    assert len(span.attributes) == spans.ATTRIBUTES
    assert span.attributes["a0"] == "y" * spans.TEXT
    assert (len(span.links), len(span.events)) == (spans.LINKS, spans.EVENTS)
    assert span.lost == 72 + 68 + 68
    for i in range(20):
        span.put({f"a{i}": "z" * spans.TEXT})
    assert sum(len(str(value)) for value in span.attributes.values()) < spans.ROOM + spans.ATTRIBUTES * 20


def test_a_value_of_any_kind_becomes_one_that_otlp_has() -> None:
    """Deep, long, cyclic and odd ones."""
    cycle: list[object] = []
    cycle.append(cycle)
    deep: object = 1
    for _ in range(50):
        deep = {"a": deep}
    for value in (None, 1.5, True, 1 << 70, -(1 << 63), b"x" * 9000, "\udc80é", cycle, deep, ["x"] * 9999, object()):
        found, size = spans.bounded(value)
        assert len(str(found)) < spans.ROOM * 2
        assert 0 < size <= spans.ROOM
    assert spans.bounded(1 << 63)[0] == str(1 << 63)
    assert spans.bounded("\udc80é")[0] == "\\udc80é"
    assert spans.bounded({1: [True, None]})[0] == {"1": [True, None]}


def test_an_error_of_the_contract_is_no_exception(kept: Kept) -> None:
    """It has no stack; a bug has one, and is kept with it."""
    with tracing.root("work").inside():
        with pytest.raises(errors.FailedPrecondition), tracing.span("refused"):
            raise errors.FailedPrecondition("lease x")
        with pytest.raises(errors.NotFound), tracing.span("absent") as absent:
            raise errors.NotFound("lease x")
        with pytest.raises(ZeroDivisionError), tracing.span("bug"):
            raise ZeroDivisionError("secret")
    refused, bug = kept
    assert (refused.failed, refused.message, refused.events) == (True, "lease x: failed precondition", [])
    assert (absent.failed, absent.attributes) == (False, {"error.type": "NotFound"})
    assert bug.message == "secret"
    ((_, name, attributes),) = bug.events
    assert (name, attributes["exception.type"]) == ("exception", "ZeroDivisionError")
    assert "test_kit_spans.py" in attributes["exception.stacktrace"]


def test_a_span_ends_once(kept: Kept) -> None:
    """Ending it again changes nothing."""
    span = last(tracing.root("x"), 7)
    last(span, 9)
    assert kept == [span]
    assert span.over - span.start == 7 * MS
    assert not state.open


def test_a_span_that_is_open_at_a_fork_is_the_parents(kept: Kept) -> None:
    """The child's end of it is no end, and it makes no spans before it is set up itself."""
    span = tracing.root("x")
    with span.inside():
        read, write = os.pipe()
        if not (pid := os.fork()):
            span.end()
            made = tracing.span("y")
            os.write(write, repr((len(kept), made.recording, len(state.open))).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read, 100) == b"(0, False, 0)"
        os.close(read)
        os.close(write)
    last(span, 7)
    assert kept == [span]


def test_work_that_begins_long_after_a_span_is_no_part_of_it(kept: Kept) -> None:
    """Such as each round of a loop that a call has begun."""
    root = last(tracing.root("x"), 7)
    with root.inside():
        assert tracing.span("soon").recording
        root.over -= 61_000 * MS
        assert tracing.span("round") is NOTHING
    assert [span.name for span in state.open] == ["soon"]


def test_without_a_trace_nothing_is_recorded(kept: Kept) -> None:
    """And the context of a caller that does not record is passed on."""
    with tracing.span("x", a=1) as span:
        span.set(b=2)
        span.link(f"{TRACE}-{PARENT}")
        span.event("e")
    assert (span.ref(), span.headers(), span.recording) == ("", (), False)
    passed = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
    CURRENT.set(Unrecorded(passed))
    try:
        with tracing.span("y"):
            assert tracing.span_headers() == passed
    finally:
        CURRENT.set(NOTHING)
    assert not kept
    assert not state.open


def test_spans_that_nobody_ends_are_forgotten(kept: Kept) -> None:
    """The oldest, beyond a bound; the others still end."""
    made = [tracing.root(str(number)) for number in range(spans.OPEN + 3)]
    assert state.trim() == 3
    assert state.trim() == 0
    for span in made[:5]:
        last(span, 7)
    assert kept == made[3:5]


async def test_a_span_leaves_no_cycle(kept: Kept) -> None:
    """It is freed at once, whatever context it ends in: collections are rare in processes of the node."""

    async def numbers() -> AsyncIterator[int]:
        with tracing.root("x"):
            yield 1

    gc.collect()
    others = [each for each in gc.get_objects() if type(each) is Span]  # loops of other tests may have some
    made = numbers()
    await asyncio.create_task(anext(made))  # type: ignore[arg-type]
    gc.collect()
    gc.disable()
    try:
        await made.aclose()  # type: ignore[attr-defined]
        with tracing.root("y"):
            pass
        kept.clear()
        del made
        await asyncio.sleep(0)  # the loop's handle of this step holds the task
        assert not [each for each in gc.get_objects() if type(each) is Span and each not in others]
    finally:
        gc.enable()
