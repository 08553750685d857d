"""What is in flight: operations, their stages, and who holds what they wait for."""

from __future__ import annotations

import json
from dataclasses import replace

from client import shown, trace_live
from services.traces.store import Live, Summary
from tests.unit.traces.spans import OTHER, T0, Spans

NOW = T0 + 12_000_000_000


def two_pulls() -> Live:
    """One fetches layer 1, since 10 s; the other waits for it, since 3 s."""
    first = Spans()
    root = first.add("containerd.services.transfer.v1.Transfer/Transfer", 0, 0, service="splitd-gateway")
    pull = first.add("images.pull", 10, 0, root, container__image__name="registry.test/box:1")
    fetch = first.add("registry.fetch", 2000, 0, pull, splitd__layer=0, server__address="registry.test")
    first.add("unpack.layer", 9000, 0, pull, splitd__layer=0, service="splitd-images")
    second = Spans(OTHER)
    other = second.add("splitd.pull", 8000, 0, splitd__operation="pull", container__image__name="registry.test/b:2")
    second.add("wait.lock", 9000, 0, other, link=f"{first.id}-{fetch}", splitd__wait__for="layer 1 of another pull")
    return Live(NOW, [*first.spans, *second.spans])


def test_an_operation_is_shown_with_its_innermost_stages() -> None:
    """The longest first; a wait says who holds what it waits for."""
    first, second = trace_live.flights(two_pulls())
    assert (str(first), first.seconds) == ("pull registry.test/box:1", 12.0)
    assert [(stage.span.name, stage.seconds) for stage in first.stages] == [
        ("registry.fetch", 10.0),
        ("unpack.layer", 3.0),
    ]
    assert str(second) == "pull registry.test/b:2"
    lines = [shown.painted(line, colours=False) for line in trace_live.lines([first, second], 120)]
    assert lines[0].split() == ["pull", "registry.test/box:1", "a" * 12, "12.0", "s"]
    assert lines[1].split("  ")[1] == "images: registry.fetch"
    assert "held by registry.fetch of pull registry.test/box:1" in lines[4]
    assert all(len(line) < 120 for line in lines)


def test_a_list_names_what_is_under_way_by_its_open_spans() -> None:
    """What has ended, and what is not reported to be open, stays as it is."""
    live = two_pulls()
    seen = Summary("a" * 32, "Leases/Create", "", "", "", "", T0 + 5, T0 + 9, 3, 1)
    over = replace(seen, id=OTHER, operation="pull", outcome="failed")
    lost = replace(seen, id="f" * 32)
    (first, second, third) = trace_live.named([seen, over, lost], live)
    assert (first.operation, first.image, first.outcome) == ("pull", "registry.test/box:1", "under way")
    assert (first.seconds, first.failed) == (12.0, False)
    assert (second, third) == (over, lost)
    spans = [replace(span, attributes={}) for span in live.spans if span.trace == seen.id]
    known = replace(seen, operation="import", image="box:3")
    [one] = trace_live.named([known], Live(live.now, spans))
    assert (one.operation, one.image, one.outcome) == ("import", "box:3", "under way")


def test_parts_of_one_blob_are_one_line_that_says_the_layer() -> None:
    """The layer is known to a span above; the longest of them counts."""
    spans = Spans()
    layer = spans.add("images.layer", 0, 0, splitd__layer=2)
    for start in (1000, 2000, 3000):
        path = f"/v2/box/blobs/sha256:{'ab' * 32}"
        spans.add("registry.request", start, 0, layer, http__request__method="GET", url__path=path)
    _, line = trace_live.lines(trace_live.flights(Live(NOW, spans.spans)), 120)
    shown_line = shown.painted(line, colours=False)
    assert shown_line.split("  ", 1)[1].startswith(
        f"images: registry.request  layer 3, GET /v2/box/blobs/sha256:{'ab' * 6} (3 at once) "
    )
    assert shown_line.endswith("11.0 s")


def test_programs_get_the_same() -> None:
    """As one object."""
    live = two_pulls()
    document = json.loads(json.dumps(trace_live.flights_json(live, trace_live.flights(live))))
    (held,) = document["operations"][1]["stages"][0]["heldBy"]
    assert (held["name"], held["operation"]) == ("registry.fetch", "pull registry.test/box:1")
    assert document["operations"][0]["about"] == "registry.test/box:1"


def test_nothing_in_flight() -> None:
    """One line says so."""
    (line,) = trace_live.lines(trace_live.flights(Live(NOW, [])), 80)
    assert shown.painted(line, colours=False) == "nothing has been in flight for longer than a second"


def test_it_fits_the_terminal() -> None:
    """However many operations there are; names are escaped. A clock that is behind makes no time negative."""
    spans = []
    for number in range(50):
        made = Spans(f"{number:032x}")
        made.add("wait.client", 20_000, 0, splitd__wait__for="\x1b[2J" * 99)
        spans += made.spans
    flying = trace_live.flights(Live(NOW, spans))
    assert {flight.seconds for flight in flying} == {0.0}
    lines = [shown.painted(line, colours=False) for line in trace_live.lines(flying, 40, 24)]
    assert len(lines) == 23
    assert all(len(line) < 40 and "\x1b" not in line for line in lines)
    assert lines[-1] == "and 78 more lines"
