"""What a browser is given: numbers, texts and traces that it can hold, whatever the spans say."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

from services.traces.page import documents
from services.traces.store import Link, Live, Span, Status, Trace, Value
from services.traces.verdict import judge
from tests.made_traces import MARKUP, hostile, large, pull

ID = "a" * 32
BEGAN = 1_800_000_000_000_000_000


def read(document: documents.Json) -> documents.Json:
    """As a browser reads it: JSON without NaN."""
    found = json.loads(json.dumps(document, allow_nan=False))
    assert isinstance(found, dict)
    return found


def test_times_are_microseconds_since_the_root() -> None:
    """No number needs more than the 53 bits that JavaScript has."""
    found = read(documents.trace(pull(ID, BEGAN))[0])
    root = found["spans"][0]
    assert (root["parent"], root["start"], found["began"]) == (-1, 0, BEGAN / 1e6)
    assert all(0 <= span["start"] < 100_000_000 for span in found["spans"])
    assert found["services"][root["service"]] == "splitd-gateway"


def test_every_span_leads_to_a_root() -> None:
    """One that is its own parent, circles, and those whose parents are nowhere have none."""
    spans = read(documents.trace(hostile(ID, BEGAN))[0])["spans"]
    for place in range(len(spans)):
        seen, at = [], place
        while at >= 0:
            assert at not in seen
            seen.append(at)
            at = spans[at]["parent"]
    named = {span["name"]: span for span in spans}
    assert named["selfish"]["parent"] == named["orphan"]["parent"] == -1
    assert {named["one"]["parent"], named["two"]["parent"]} == {-1, spans.index(named["one"])}
    assert named["backwards"]["length"] == 0


def test_values_are_what_javascript_can_hold() -> None:
    """Bytes are hex, and numbers that it would change are texts; links name places, or other traces."""
    found = read(documents.trace(hostile(ID, BEGAN))[0])
    (nested,) = [span["attributes"]["nested"]["a"] for span in found["spans"] if "nested" in span.get("attributes", {})]
    assert nested == [MARKUP, "0xff", None, "nan", str(1 << 62)]
    (links,) = [span["links"] for span in found["spans"] if "links" in span]
    assert links == [{"trace": "c" * 32, "id": "c" * 16}, {"id": "c" * 16, "place": -1}]


def test_a_trace_has_a_bounded_number_of_spans() -> None:
    """The longest are kept, below what is kept of those above them; the root is always there."""
    whole = large(ID, BEGAN, 3_000)
    found, places = documents.trace(whole, 500)
    spans = read(found)["spans"]
    assert (len(spans), found["left_out"], spans[0]["parent"]) == (500, 2_500, -1)
    lengths = sorted((span.seconds for span in whole.spans), reverse=True)
    assert min(span["length"] for span in spans) / 1e6 >= lengths[499] - 1e-6
    assert all(span["parent"] >= 0 for span in spans[1:])
    assert places[whole.spans[0].id] == 0


def test_spans_below_what_is_left_out_are_below_the_next_one_above() -> None:
    """Here the middle of three is the shortest."""
    spans = [
        Span(ID, f"{n:016x}", f"{n - 1:016x}" if n > 1 else "", str(n), "s", 0, end)
        for n, end in ((1, 9), (2, 1), (3, 5))
    ]
    found = documents.trace(Trace(ID, spans), 2)[0]
    assert [(span["name"], span["parent"]) for span in found["spans"]] == [("1", -1), ("3", 0)]


def test_texts_and_all_attributes_of_a_trace_are_bounded() -> None:
    """A name is cut; the attributes of the spans behind the bound are left out, and the page is told."""
    long = "x" * 100_000
    many: dict[str, Value] = {f"{k}{long}": long for k in range(200)}
    spans = [
        Span(ID, f"{n:016x}", "", long, long, 0, 1, message=long, status=Status.ERROR, attributes=many)
        for n in range(1, 101)
    ]
    text = json.dumps(documents.trace(Trace(ID, spans))[0])
    assert len(text) < 20 << 20
    assert '"bare"' in text


def test_a_verdicts_path_names_spans_by_their_places() -> None:
    """Its pieces follow each other from the root's beginning to its end."""
    trace = pull(ID, BEGAN)
    found, places = documents.trace(trace)
    judged = documents.verdict(judge(trace), trace, places)
    path = judged["path"]
    assert path[0][1] == 0
    assert all(before[2] == after[1] for before, after in itertools.pairwise(path))
    assert abs(path[-1][2] / 1e6 - judged["wall"]) < 1e-5
    assert all(0 <= place < len(found["spans"]) for place, *_ in path)
    assert all(0 <= cause < len(judged["causes"]) for *_, cause in path)


def test_what_is_under_way_says_where_it_stands_and_who_holds_it() -> None:
    """Stages are the open spans that no other is part of."""
    trace = pull(ID, BEGAN, rate=3.0)
    at = BEGAN + 4_000_000_000
    still = [replace(span, end=0) for span in trace.spans if span.start < at < span.end]
    (found,) = read(documents.live(Live(at, still)))["operations"]
    assert (found["trace"], found["operation"], found["seconds"]) == (ID, "pull", 4.0)
    waits = [stage for stage in found["stages"] if stage["name"] == "wait.bytes"]
    assert waits
    for stage in waits:
        (held,) = stage["held"]
        assert held.removeprefix("registry.fetch").removeprefix("images.layer") == (
            f" of layer {stage['attributes']['splitd.layer'] + 1}"
        )
    assert not [stage for stage in found["stages"] if stage["name"] == "images.pull"]


def test_what_another_operation_holds_is_told_with_its_image() -> None:
    """An operation whose root does not say yet what it is, is what its spans say."""
    other = pull("b" * 32, BEGAN, image="team/other:1", rate=3.0)
    holder = next(span for span in other.spans if span.name == "images.layer")
    spans = [
        Span(ID, "1" * 16, "", "containerd.services.leases.v1.Leases/Create", "splitd-gateway", BEGAN, 0),
        Span(ID, "2" * 16, "1" * 16, "images.push", "splitd-images", BEGAN, 0),
        Span(ID, "3" * 16, "2" * 16, "wait.lock", "splitd-images", BEGAN, 0, links=(Link(holder.trace, holder.id),)),
        Span(ID, "4" * 16, "2" * 16, "diff.unpack", "splitd-images", BEGAN, 0, links=(Link(holder.trace, holder.id),)),
    ]
    found = documents.live(Live(BEGAN + 10**9, [*spans, *(replace(span, end=0) for span in other.spans)]))
    (one,) = [each for each in found["operations"] if each["trace"] == ID]
    assert one["operation"] == "push"
    held = {stage["name"]: stage["held"] for stage in one["stages"]}
    assert held == {"wait.lock": ["images.layer of layer 1 of team/other:1"], "diff.unpack": []}
