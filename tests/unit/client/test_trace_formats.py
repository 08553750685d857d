"""Traces for Perfetto and speedscope: each lane nests, nothing is lost, and arrows lead forward."""

from __future__ import annotations

import json
import random
from collections import defaultdict

import pytest

from client import trace_formats, trace_views
from services.traces.store import Event, Span, Trace
from services.traces.tree import tree
from services.traces.verdict import judge
from tests.unit.traces.spans import T0, TRACE, Spans


def tangled(seed: int, count: int = 300) -> Trace:
    """Spans of three processes that cross each other in every way, some ending before they start."""
    chance = random.Random(seed)
    spans = []
    for number in range(count):
        start = T0 + chance.randrange(1000)
        spans.append(
            Span(
                TRACE,
                f"{number + 1:016x}",
                f"{chance.randrange(number):016x}" if number else "",
                f"name {number % 5}",
                f"service {number % 3}",
                start,
                start + chance.randrange(-20, 400),
                attributes={"inf": float("inf"), "bytes": b"\xff", "map": {"a": [None, True]}},
                events=(Event(start, "event"),) if number % 10 == 0 else (),
            )
        )
    return Trace(TRACE, spans)


@pytest.mark.parametrize("seed", range(5))
def test_chrome_slices_nest_within_their_threads(seed: int) -> None:
    """Complete events (X) with pid and tid, each of which metadata (M) names; a viewer draws no slice across another."""
    trace = tangled(seed)
    document = json.loads(json.dumps(trace_formats.chrome(trace, {trace.spans[0].id}), allow_nan=False))
    events = document["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert sorted(event["args"]["span_id"] for event in slices) == sorted(span.id for span in trace.spans)
    named = {(e["name"], e["pid"], e["tid"]) for e in events if e["ph"] == "M"}
    lanes = defaultdict(list)
    for event in slices:
        assert {"name", "cat", "ts", "dur", "pid", "tid", "args"} <= event.keys()
        assert event["ts"] >= 0 <= event["dur"]
        assert ("process_name", event["pid"], 0) in named
        assert ("thread_name", event["pid"], event["tid"]) in named
        lanes[event["pid"], event["tid"]].append((round(event["ts"] * 1000), round(event["dur"] * 1000)))
    for lane in lanes.values():
        assert nested([(start, start + length) for start, length in lane])
    assert [event["args"]["span_id"] for event in slices if "critical" in event["cat"]] == [trace.spans[0].id]
    assert sum(event["ph"] == "i" for event in events) == 30


def nested(spans: list[tuple[int, int]]) -> bool:
    """Whether any two are one within the other, or apart."""
    open_: list[int] = []
    for start, end in sorted(spans, key=lambda each: (each[0], -each[1])):
        while open_ and open_[-1] <= start:
            open_.pop()
        if open_ and end > open_[-1]:
            return False
        open_.append(end)
    return True


def test_a_link_is_an_arrow_from_the_holder_to_who_waited() -> None:
    """A pair of flow events with one id, each within its slice."""
    spans = Spans()
    root = spans.add("pull", 0, 1000)
    held = spans.add("registry.fetch", 100, 600, root)
    spans.add("wait.bytes", 200, 700, root, link=held, service="splitd-snapshots")
    spans.add("wait.lock", 200, 700, root, link=f"{'b' * 32}-{held}")  # of a trace that is not here
    events = trace_formats.chrome(spans.trace())["traceEvents"]
    (begun,) = [event for event in events if event["ph"] == "s"]
    (ended,) = [event for event in events if event["ph"] == "f"]
    assert begun["id"] == ended["id"]
    assert ended["bp"] == "e"
    assert (begun["ts"], ended["ts"]) == (200_000, 700_000)
    slices = {event["name"]: (event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    assert slices["registry.fetch"] == (begun["pid"], begun["tid"])
    assert slices["wait.bytes"] == (ended["pid"], ended["tid"])


def replayed(profile: dict, frames: list) -> dict[str, float]:
    """Check an evented profile as speedscope does, and return the time for which each frame was on the stack."""
    stack: list[tuple[int, float]] = []
    last = profile["startValue"]
    total: dict[str, float] = defaultdict(float)
    for event in profile["events"]:
        assert last <= event["at"] <= profile["endValue"]
        last = event["at"]
        if event["type"] == "O":
            stack.append((event["frame"], last))
        else:
            frame, since = stack.pop()
            assert frame == event["frame"], "closed in another order"
            total[frames[frame]["name"]] += last - since
    assert not stack
    return total


@pytest.mark.parametrize("seed", range(5))
def test_speedscope_profiles_close_what_they_open(seed: int) -> None:
    """In order, and within the profile; the lanes of a name together have its spans' time."""
    trace = tangled(seed)
    verdict = judge(trace)
    document = trace_formats.speedscope(trace, "a title", trace_views.stacks(tree(trace), verdict.path))
    path, *lanes = json.loads(json.dumps(document, allow_nan=False))["profiles"]
    frames = document["shared"]["frames"]
    times: dict[str, float] = defaultdict(float)
    for lane in lanes:
        for name, time in replayed(lane, frames).items():
            times[name] += time
    wanted: dict[str, float] = defaultdict(float)
    for span in trace.spans:
        wanted[span.name] += max(0, span.end - span.start)
    assert {name: time for name, time in times.items() if time} == {name: time for name, time in wanted.items() if time}
    assert path["name"] == "critical path"
    assert replayed(path, frames)[tree(trace).root.span.name] >= verdict.wall * 1e9 - 1


def test_a_deep_chain_makes_no_large_file() -> None:
    """Each span opens and closes a few frames, however many are above it; and the profiles are still valid."""

    def exported(depth: int) -> dict:
        chain = Spans()
        above = ""
        for number in range(depth):
            above = chain.add("step", number, 2 * depth - number, above)
        trace = chain.trace()
        return trace_formats.speedscope(trace, "deep", trace_views.stacks(tree(trace), judge(trace).path))

    small, large = exported(500), exported(2000)
    assert len(json.dumps(large)) < 5 * len(json.dumps(small))
    for profile in large["profiles"]:
        assert len(profile["events"]) <= 5 * 2 * 2000
        assert replayed(profile, large["shared"]["frames"])["step"] > 0


def test_many_spans_that_all_cross_take_no_long_time() -> None:
    """Somebody else's file may have any."""
    spans = [Span(TRACE, f"{n + 1:016x}", "", "x", "s", T0 + n, T0 + 20_000 + n) for n in range(20_000)]
    assert sum(len(lane.spans) for lane in trace_formats.lanes(spans)) == 20_000
