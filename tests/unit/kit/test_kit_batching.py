"""kit.batching: for any values of the variables, the resulting settings are valid; what becomes of spans, and when."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from services.kit import batching, tracing
from services.kit.batching import Batches, Batching
from services.kit.spans import Span, state
from tests.support import eventually, within

QUEUE, BATCH, DELAY = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"
ODD = ("", " ", "0", "-1", "1", "100", "1e3", "many", "\u0663", "9" * 18, "9" * 5000)


@pytest.mark.parametrize(
    ("variables", "wanted", "said"),
    [
        ({}, Batching(2048, 512, 5000, 30_000), []),
        ({QUEUE: "100"}, Batching(100, 100, 5000, 30_000), []),
        ({QUEUE: "4096", BATCH: " 1024 ", DELAY: "200"}, Batching(4096, 1024, 200, 30_000), []),
        (
            {QUEUE: "100", BATCH: "200"},
            Batching(100, 100, 5000, 30_000),
            [f"{BATCH}=200 is more than {QUEUE}, 100: batches have 100"],
        ),
        (
            {DELAY: "0"},
            Batching(2048, 512, 5000, 30_000),
            [f"{DELAY}=0 is not a whole number from 1 to 86400000: 5000 is used"],
        ),
        (
            {BATCH: "few"},
            Batching(2048, 512, 5000, 30_000),
            [f"{BATCH}=few is not a whole number from 1 to 1048576: 512 is used"],
        ),
    ],
)
def test_what_is_made_of_the_variables(variables: dict[str, str], wanted: Batching, said: list[str]) -> None:
    """A batch is no larger than the queue; an unusable value is reported together with its replacement."""
    assert batching.read(variables) == (wanted, said)


def test_whatever_the_variables_say_the_values_are_valid() -> None:
    """In every combination of odd values, each setting is one that a queue and a thread's wait accept; and no message
    is long.
    """
    for values in itertools.product(ODD, repeat=3):
        found, wrong = batching.read(dict(zip((QUEUE, BATCH, DELAY), values, strict=True)))
        assert 1 <= found.batch <= found.queue <= 1 << 20
        assert 1 <= found.delay <= 86_400_000
        assert all(len(line) < 300 for line in wrong)


# ---------------------------------------------------------------------------------------------- the thread

SOON = Batching(queue=100, batch=10, delay=20, timeout=1000)
LATE = Batching(queue=100, batch=10, delay=3_600_000, timeout=1000)


class Way:
    """What a collector would see: batches and reports."""

    def __init__(self) -> None:
        self.batches: list[list[Span]] = []
        self.reports: list[tuple[list[str], int, float]] = []
        self.heard = True
        self.go = threading.Event()
        self.go.set()

    def export(self, batch: Sequence[Span]) -> bool:
        self.go.wait(20)
        if any(span.name == "bad" for span in batch):
            raise ValueError("bad")
        self.batches.append(list(batch))
        return self.heard

    def report(self, spans: Sequence[Span], dropped: int, lifetime: float) -> bool:
        self.reports.append(([span.name for span in spans], dropped, lifetime))
        return self.heard


@pytest.fixture
def way() -> Iterator[Way]:
    """Spans are made, and nothing takes them but what a test begins."""
    tracing.setup(lambda _: None)
    yield Way()
    tracing.reset()


def ended(name: str) -> Span:
    span = tracing.root(name)
    span.end()
    return span


def due(batches: Batches) -> None:
    """The next report is due now."""
    batches._said = 0.0
    batches._woken.set()


def gone(batches: Batches) -> None:
    batches.end(5)
    batches.join()
    assert not batches._thread.is_alive()


def test_spans_leave_together_and_soon(way: Way) -> None:
    """The first one of a batch waits for the delay; a full batch for nothing."""
    batches = Batches(way.export, SOON)
    spans = [ended(str(number)) for number in range(3)]
    for span in spans:
        batches.put(span)
    eventually(lambda: sum(map(len, way.batches)) == 3)
    gone(batches)
    late = Batches(way.export, LATE)
    way.batches.clear()
    for _ in range(10):
        late.put(spans[0])
    eventually(lambda: [len(batch) for batch in way.batches] == [10])
    late.put(spans[1])
    late.put(spans[2])
    gone(late)  # what is left leaves at the end
    assert way.batches[1] == spans[1:]
    assert late.dropped == 0


def test_a_batch_leaves_when_no_further_span_ends(way: Way) -> None:
    """Long before its time, and with all that ended meanwhile."""
    batches = Batches(way.export, Batching(queue=100, batch=10, delay=3_600_000, timeout=1000, quiet=20))
    for _ in range(5):
        batches.put(ended("x"))
    eventually(lambda: sum(map(len, way.batches)) == 5)
    gone(batches)


def test_a_batch_waits_for_what_is_open(way: Way) -> None:
    """Up to the delay, since more will end; but not for what lasts."""
    batches = Batches(way.export, Batching(queue=100, batch=10, delay=3_600_000, timeout=1000, quiet=20))
    opened = tracing.root("open")
    batches.put(ended("x"))
    assert batches._left() > 60
    opened.start -= 100_000_000_000
    batches.put(ended("y"))
    batches._woken.set()
    eventually(lambda: sum(map(len, way.batches)) == 2)
    opened.end()
    gone(batches)


def test_a_batch_does_not_wait_for_an_end_of_the_spans(way: Way) -> None:
    """Where a span ends again and again, it waits for the delay."""
    batches = Batches(way.export, Batching(queue=1 << 20, batch=1 << 20, delay=100, timeout=1000, quiet=3_600_000))
    span = ended("x")

    def some() -> bool:
        batches.put(span)
        return way.batches != []

    eventually(some)
    assert len(way.batches[0]) > 1
    gone(batches)


def test_what_has_no_room_or_is_not_taken_is_counted(way: Way) -> None:
    """Nobody waits for it, and one that no library can send takes only its batch along."""
    way.go.clear()
    batches = Batches(way.export, SOON)
    span = ended("x")
    for _ in range(10):
        batches.put(span)
    eventually(lambda: len(batches._queue) == 0)  # ten are being sent
    for _ in range(130):
        batches.put(span)
    assert batches.dropped == 30
    way.go.set()
    eventually(lambda: len(way.batches) == 11)
    batches.put(ended("bad"))
    eventually(lambda: batches.dropped == 31)
    way.heard = False
    batches.put(span)
    eventually(lambda: batches.dropped == 32)
    gone(batches)


def test_the_end_does_not_wait_for_a_collector_that_hangs(way: Way) -> None:
    way.go.clear()
    batches = Batches(way.export, SOON)
    batches.put(ended("x"))
    eventually(lambda: len(batches._queue) == 0)
    with within(2):
        batches.end(0.3)
        batches.join()
    way.go.set()


def test_an_open_span_is_reported_from_its_first_seconds_to_its_end(way: Way) -> None:
    """As long as nobody asks, reports follow each other more and more slowly, and most slowly if nothing but what lasts
    is open. The last one says that nothing is left.
    """
    batches = Batches(way.export, LATE, report=way.report)
    eventually(lambda: state.idle is not None)
    old, young = tracing.root("old"), tracing.root("young")
    eventually(lambda: state.idle is None, "the thread was woken")
    old.start -= 2_000_000_000
    young.start += 100_000_000_000
    for number in range(4):
        due(batches)
        eventually(lambda number=number: len(way.reports) > number)  # type: ignore[misc]
    assert way.reports[:4] == [(["old"], 0, lifetime) for lifetime in (4.0, 6.0, 7.0, 7.0)]
    young.start -= 102_000_000_000
    due(batches)
    eventually(lambda: (["old", "young"], 0, 4.0) in way.reports, "another operation: from the beginning")
    young.end()
    eventually(lambda: way.reports[-1][0] == ["old"])
    old.start -= 100_000_000_000

    def again() -> bool:
        due(batches)
        return way.reports[-1] == (["old"], 0, 12.0)

    eventually(again)
    assert batches._until_look() == 5.0
    old.end()
    due(batches)
    eventually(lambda: way.reports[-1][0] == [])
    eventually(lambda: state.idle is not None, "the thread sleeps again")
    gone(batches)


def test_short_calls_do_not_wake_the_thread_again_and_again(way: Way) -> None:
    """The first one does, and then it looks by itself for a second: else each call would cost as much as 20 spans."""
    looks = []
    batches = Batches(way.export, LATE, report=way.report, look=lambda: looks.append(1))
    eventually(lambda: state.idle is not None)
    begun = time.monotonic()

    def calls() -> bool:
        tracing.root("call").end()
        return time.monotonic() - begun > 1.0

    eventually(calls)
    assert 1 <= len(looks) <= 4 + 2 * (time.monotonic() - begun)
    gone(batches)


def test_an_operation_that_has_ended_is_reported_soon(way: Way) -> None:
    """It is shown as in flight until then."""
    old, other = tracing.root("old"), tracing.root("other")
    for span in (old, other):
        span.start -= 2_000_000_000
    batches = Batches(way.export, LATE, report=way.report)
    eventually(lambda: way.reports != [])
    batches._every = 1000.0
    other.end()
    eventually(lambda: way.reports[-1][0] == ["old"])
    gone(batches)
    old.end()


def test_whoever_asks_learns_each_second_what_is_open(way: Way) -> None:
    """And what has ended leaves sooner."""
    batches = Batches(way.export, LATE, report=way.report, asked=lambda: True)
    span = tracing.root("open")
    span.start -= 1_500_000_000
    eventually(lambda: len(way.reports) >= 2)
    assert way.reports[:2] == [(["open"], 0, 4.0)] * 2
    batches.put(ended("over"))
    eventually(lambda: way.batches != [])
    gone(batches)
    span.end()


def test_what_was_dropped_is_reported_though_nothing_is_open(way: Way) -> None:
    """And again until somebody hears it."""
    way.heard = False
    batches = Batches(way.export, SOON, report=way.report)
    batches.put(ended("x"))
    eventually(lambda: way.reports == [([], 1, 3.0)])
    way.heard = True
    batches._said = 0.0
    batches._woken.set()
    eventually(lambda: len(way.reports) == 2)
    assert way.reports[-1] == ([], 1, 3.0)
    gone(batches)


def test_a_report_that_fails_ends_nothing(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Spans that end are sent all the same, and open ones are reported again; one line says it."""
    tries = []

    def report(spans: Sequence[Span], dropped: int, lifetime: float) -> bool:
        tries.append([span.name for span in spans])
        if len(tries) < 3:
            raise ValueError("a span that nobody can read")
        return way.report(spans, dropped, lifetime)

    batches = Batches(way.export, SOON, report=report)
    opened = tracing.root("open")
    opened.start -= 2_000_000_000

    def again() -> bool:
        due(batches)
        return way.reports != []

    eventually(again)
    batches.put(ended("later"))
    eventually(lambda: way.batches != [])
    opened.end()
    gone(batches)
    assert tries[:3] == [["open"]] * 3
    assert caplog.text.count("1 open spans could not be reported") == 1
