"""What distinguishes the slowest tenth of pulls."""

from __future__ import annotations

import random

import pytest

from services.traces.slowest import FEWEST, _chance, why_slow
from services.traces.store import Trace
from tests.unit.traces.spans import Spans

HOUR = 3_600_000.0


def pull(
    number: int, seconds: float, *, host: str = "near", start: float | None = None, outcome: str = "ok", **root
) -> Trace:
    start = number * HOUR if start is None else start
    spans = Spans(f"{number:032x}")
    spans.id = f"{number:032x}"
    attributes = {"splitd__operation": "pull", "splitd__outcome": outcome, **root}
    top = spans.add("Transfer", start, start + seconds * 1000, **attributes)
    spans.add("registry.fetch", start, start + seconds * 900, top, server__address=host)
    return spans.trace()


def test_the_host_of_the_slow_ones() -> None:
    """Nine of the ten slow pulls are from one host; two others are too."""
    traces = [pull(n, 1 + n / 1000, host="far" if n < 2 else "near") for n in range(90)]
    traces += [pull(100 + n, 10, host="far" if n else "near") for n in range(10)]
    found = why_slow(traces)
    assert [(f.attribute, f.value, f.slow, f.rest) for f in found.findings] == [("host", "far", 9, 2)]
    assert found.threshold == 10
    assert len(found.slow) == 10
    said = "the slowest 10 of 100 pulls took 10.0 s and longer (median 1.0 s): "
    assert found.sentence == said + "9 of these 10 have host far, of the others 2 of 90"


def test_other_pulls_meanwhile() -> None:
    """Pulls that ran beside others were slow, and failed ones are others too."""
    traces = [pull(n, 1) for n in range(60)]
    traces += [pull(1000 + n, 9, start=1e12 + n * 1000, outcome="ok" if n < 6 else "failed") for n in range(8)]
    found = why_slow(traces)
    assert found.pulls == 66
    assert ("other pulls meanwhile", "several", 6, 0) in [
        (f.attribute, f.value, f.slow, f.rest) for f in found.findings
    ]


def test_nothing_distinguishes_them() -> None:
    """Properties at random: at most one in a hundred such lists of pulls seems to have a reason."""
    wrong = 0
    for seed in range(50):
        rng = random.Random(seed)
        traces = [
            pull(n, rng.lognormvariate(0, 1), host=rng.choice("abcd"), splitd__bytes=rng.choice([0, 5e6, 5e7, 5e8]))
            for n in range(60)
        ]
        found = why_slow(traces)
        if found.findings:
            wrong += 1
        else:
            assert found.sentence.endswith("nothing distinguishes them from the others")
    assert wrong <= 2


def test_none_is_slow() -> None:
    """A tenth that takes as long as the others is not slow, whatever it has."""
    traces = [pull(n, 1.0 + (n >= 90) / 10, host="far" if n >= 90 else "near") for n in range(100)]
    found = why_slow(traces)
    assert found.findings == ()
    assert found.sentence.startswith("none is slow")


def test_too_few_pulls() -> None:
    """It says how many are needed."""
    found = why_slow([pull(n, n + 1) for n in range(FEWEST - 1)])
    assert found.sentence == "19 pulls are too few to tell: 20 are needed"
    assert why_slow([]).median == 0


def test_other_operations() -> None:
    """Those that were asked for count, under their name."""
    traces = [pull(n, n + 1, splitd__operation="collect") for n in range(FEWEST - 1)]
    found = why_slow(traces, "collect")
    assert (found.pulls, found.sentence) == (19, "19 collections are too few to tell: 20 are needed")
    assert why_slow(traces, "Images.List").sentence == "0 operations Images.List are too few to tell: 20 are needed"
    traces.append(pull(50, 99, splitd__operation="collect"))
    assert "of 20 collections took" in why_slow(traces, "collect").sentence


def test_traces_of_others() -> None:
    """Traces without spans, of other operations and with impossible times are no pulls, or have no hour."""
    spans = Spans()
    spans.add("Transfer", 0, 1, splitd__operation="push")
    far = pull(1, 1, start=1e17)
    assert why_slow([spans.trace(), Trace("c" * 32, ()), far]).pulls == 1


def test_the_chance_is_that_of_fishers_test() -> None:
    """The tea taster's: four of four cups right."""
    assert _chance(4, 4, 4, 8) == pytest.approx(1 / 70)
    assert _chance(3, 4, 4, 8) == pytest.approx(17 / 70)
