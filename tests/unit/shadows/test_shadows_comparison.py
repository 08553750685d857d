"""The comparison of two services' answers."""

from __future__ import annotations

import random

import pytest

from services.shadows.comparison import Comparison, Latencies, general
from services.shadows.store import ABSENT, CODE, EXAMPLES, FIELDS, OTHER, Answer


def ok(**fields: str) -> Answer:
    return Answer("OK", fields, 0.001)


def compared(*calls: tuple[Answer, Answer] | tuple[Answer, Answer, Answer]) -> Comparison:
    made = Comparison("/s/M")
    for number, (ours, candidate, *again) in enumerate(calls):
        made.calls += 1
        made.compare(ours, candidate, again[0] if again else None, request=f"n={number}".__str__, trace=f"t{number}")
    return made


def test_equal_answers_are_the_same() -> None:
    report = compared(*[(ok(a="1"), ok(a="1"), ok(a="1"))] * 5).report()
    assert (report.calls, report.same, report.different, report.differences) == (5, 5, 0, [])


def test_a_difference_is_reported_with_three_examples() -> None:
    report = compared(*[(ok(a="1", b="x"), ok(a="2", b="x"), ok(a="1", b="x"))] * 5).report()
    assert (report.same, report.different) == (0, 5)
    (found,) = report.differences
    assert (found.name, found.count, found.noise, found.asked) == ("a", 5, 0, 5)
    assert len(found.examples) == EXAMPLES
    assert [(e.ours, e.candidate, e.where, e.request, e.trace) for e in found.examples[:2]] == [
        ("1", "2", "a", "n=0", "t0"),
        ("1", "2", "a", "n=1", "t1"),
    ]


def test_a_field_that_one_answer_lacks_differs() -> None:
    (found,) = compared((ok(a="1"), ok())).report().differences
    assert found.examples[0].candidate == ABSENT


def test_answers_with_different_codes_differ_in_the_code_alone() -> None:
    (found,) = compared((ok(a="1"), Answer("NOT_FOUND"))).report().differences
    assert (found.name, found.examples[0].ours, found.examples[0].candidate) == (CODE, "OK", "NOT_FOUND")


def test_what_ours_answers_differently_by_itself_is_noise() -> None:
    """A counter differs at each call from both; the real difference beside it stays."""
    numbers = iter(range(1000))

    def counted(**fields: str) -> Answer:
        return ok(number=str(next(numbers)), **fields)

    report = compared(*[(counted(a="1"), counted(a="2"), counted(a="1")) for _ in range(50)]).report()
    assert [each.name for each in report.differences] == ["a"]
    assert report.different == 50
    report = compared(*[(counted(a="1"), counted(a="1"), counted(a="1")) for _ in range(50)]).report()
    assert (report.differences, report.same, report.different) == ([], 50, 0)


@pytest.mark.parametrize(("candidate", "reported"), [(0.1, False), (0.5, True)])
def test_a_field_that_differs_now_and_then_must_differ_clearly_more_often(candidate: float, reported: bool) -> None:
    """Ours differs from itself in a tenth of the calls."""
    chance = random.Random(1)

    def answer(share: float) -> Answer:
        return ok(a="odd" if chance.random() < share else "even")

    calls = [(ok(a="even"), answer(candidate), answer(0.1)) for _ in range(2000)]
    assert bool(compared(*calls).report().differences) == reported


def test_concrete_paths_of_one_field_count_as_one() -> None:
    assert general("info[sha256:12].labels.a.b/c") == "info[].labels"
    assert general("mounts[0].options[1]") == "mounts[].options[]"
    calls = [(Answer("OK", {f"info[{n}].size": "1"}), Answer("OK", {f"info[{n}].size": "2"})) for n in range(10)]
    (found,) = compared(*calls).report().differences
    assert (found.name, found.count, found.examples[1].where) == ("info[].size", 10, "info[1].size")


def test_the_number_of_fields_is_bounded() -> None:
    report = compared(*[(Answer("OK", {f"f{n}": "1"}), ok()) for n in range(FIELDS * 3)]).report()
    assert len(report.differences) <= FIELDS + 1
    assert report.different == FIELDS * 3
    assert next(each for each in report.differences if each.name == OTHER).count == FIELDS * 2


def test_percentiles_do_not_keep_the_times() -> None:
    times = Latencies()
    for number in range(1000):
        times.add(0.001 if number < 980 else 0.5)
    found = times.latency()
    assert found.count == 1000
    assert found.p50 == pytest.approx(0.001, rel=0.1)
    assert found.p99 == pytest.approx(0.5, rel=0.1)
    assert Latencies().latency().p99 == 0.0
