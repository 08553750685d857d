"""The numbers that a process keeps, and the bound of their series."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from services.kit import errors, loops, metrics
from services.kit.metrics import Counter, Family, Gauge, Histogram, Sample, Summary
from services.kit.metrics_calls import Calls
from services.kit.metrics_server import MetricsServicer, collect, from_pb, to_pb


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Metrics that only this test sees."""
    monkeypatch.setattr(metrics, "_metrics", [])
    monkeypatch.setattr(metrics, "_sources", [])
    metrics.begin()
    yield
    metrics.end()


def values(family: Family) -> dict[tuple[str, ...], float]:
    """The samples, by suffix and labels."""
    return {(s.suffix, *s.labels.values()): s.value for s in family.samples}


def test_a_counter_adds_by_its_labels() -> None:
    counter = Counter("bytes_total", "Bytes.", "host", "kind")
    counter.add(2, "a", "x")
    counter.add(3, "a", "x")
    counter.add(1, "b", "x")
    family = counter.family()
    assert (family.name, family.kind) == ("bytes", "counter")
    assert values(family) == {("_total", "a", "x"): 5, ("_total", "b", "x"): 1}


def test_nothing_is_counted_where_nothing_is_served() -> None:
    metrics.end()
    counter, histogram = Counter("a_total", "A."), Histogram("b", "B.")
    counter.add(1)
    histogram.observe(1)
    assert not counter.family().samples
    assert not histogram.family().samples


def test_hosts_beyond_the_bound_are_one_series() -> None:
    """The first label's values come from outside; the other labels stay as they are."""
    counter = Counter("requests_total", "Requests.", "host", "status")
    for number in range(metrics.VALUES + 50):
        counter.add(1, f"host-{number}", "200")
    counter.add(1, "host-3", "404")  # a known host gets a further series
    found = values(counter.family())
    assert len(found) == metrics.VALUES + 2
    assert found["_total", metrics.OTHER, "200"] == 50
    assert found["_total", "host-3", "404"] == 1


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram("seconds", "Seconds.", "stage", bounds=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value, "dns")
    samples = {(s.suffix, s.labels.get("le", "")): s.value for s in histogram.family().samples}
    assert samples == {
        ("_bucket", "0.1"): 2,
        ("_bucket", "1"): 3,
        ("_bucket", "+Inf"): 4,
        ("_count", ""): 4,
        ("_sum", ""): pytest.approx(7.65),
    }


def test_a_summary_has_no_buckets() -> None:
    summary = Summary("seconds", "Seconds.")
    summary.observe(2.0)
    summary.observe(3.0)
    assert values(summary.family()) == {("_count",): 2, ("_sum",): 5}
    assert summary.family().kind == "summary"


def test_a_gauge_is_looked_up_when_somebody_asks() -> None:
    gauge, waiting = Gauge("queue", "Waiting.", "queue"), [1, 2]
    gauge.set(lambda: len(waiting), "layers")
    gauge.set(7, "workers")
    waiting.append(3)
    assert values(gauge.family()) == {("", "layers"): 3, ("", "workers"): 7}


async def test_everything_is_collected_and_survives_the_wire() -> None:
    Counter("used_total", "Used.").add(1)
    Counter("unused_total", "Never counted.")

    async def looked_up() -> Sequence[Family]:
        return [Family("size_bytes", "Size.", "gauge", [Sample(12.5, {"store": "content"})])]

    metrics.source(looked_up)
    found = await metrics.collect()
    names = {family.name for family in found}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds", "used", "size_bytes"} <= names
    assert "unused" not in names
    assert from_pb(to_pb(found)) == found


async def test_a_source_that_fails_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """One line says it, until it has worked again."""
    Counter("used_total", "Used.").add(1)
    fails = True

    async def asked() -> Sequence[Family]:
        if fails:
            raise errors.Unavailable("the disk is full")
        return [Family("first", "First.", "gauge", [Sample(1)])]

    async def other() -> Sequence[Family]:
        return [Family("second", "Second.", "gauge", [Sample(2)])]

    metrics.source(asked)
    metrics.source(other)
    for _ in range(2):
        names = {family.name for family in await metrics.collect()}
        assert {"used", "second"} <= names
        assert "first" not in names
    assert [record.getMessage() for record in caplog.records] == [
        "some metrics are missing: the disk is full: unavailable"
    ]
    fails = False
    assert "first" in {family.name for family in await metrics.collect()}
    fails = True
    await metrics.collect()
    assert len(caplog.records) == 2


def test_calls_are_counted_by_method_and_code() -> None:
    import api.containerd.services.version.v1.version_pb2  # noqa: F401 - its descriptors are what is known here

    calls, clock = Calls(), []
    for code in (0, 0, 5):
        call = calls.began("server", "/containerd.services.version.v1.Version/Version", {})
        call.ended(code)
        clock.append(call)
    calls.began("relay", "/containerd.services.version.v1.Version/Version", {}).left()
    calls.began("client", "/containerd.services.version.v1.Version/Version", {}).ended()
    handled, seconds = (metric.family() for metric in metrics._metrics)
    method = ("containerd.services.version.v1.Version", "Version", "unary")
    assert values(handled) == {
        ("_total", *method, "OK"): 2,
        ("_total", *method, "NotFound"): 1,
        ("_total", *method, "Canceled"): 1,
    }
    assert values(seconds)["_count", *method] == 4


def test_methods_that_clients_invent_are_counted_together() -> None:
    calls = Calls()
    for number in range(1000):
        calls.began("server", f"/made.Up/Method{number}", {}).ended(12)
    calls.began("relay", "/others.Own/Known", {}).ended(0)  # somebody behind a relay has it
    handled = values(metrics._metrics[0].family())
    assert handled["_total", "other", "other", "unknown", "Unimplemented"] == 1000
    assert handled["_total", "others.Own", "Known", "unknown", "OK"] == 1


class Answers:
    """A process that has answered already."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def client(self, _: object) -> Answers:
        return self

    async def Collect(self, request: object, timeout: float) -> object:
        return self.answer


async def test_very_many_series_do_not_stop_the_loop() -> None:
    """Both sides convert them in a thread: the loop turns meanwhile."""
    Counter("a_total", "A.", "host").add(1, "b")
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with loops.running("the turns", turning):
        answer = await MetricsServicer().Collect(cast("Any", None), cast("Any", None))
        assert (before := turns) > 0
        [family] = [each for each in await collect(cast("Any", Answers(answer)), 1.0) if each.name == "a"]
        assert turns > before
    assert values(family) == {("_total", "b"): 1}
