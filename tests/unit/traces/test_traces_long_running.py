"""Operations that take long are logged while they run."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from services.traces.long_running import LongRunning
from services.traces.store import Live, Span
from tests.suites.traces import NOW, ROOT, SECOND, span


class Node:
    """Open spans, and the time."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.spans: list[Span] = []
        self.passed = 0
        self._caplog = caplog
        self.asked: list[int] = []
        self._watch = LongRunning(
            self.live, 30.0, self.age, lambda: self.asked.append(self.passed), lambda: float(self.passed)
        )
        caplog.set_level(logging.INFO)

    def live(self) -> Live:
        return Live(NOW + self.passed * SECOND, sorted(self.spans, key=lambda span: span.start))

    def age(self) -> float:
        now = self.live().now
        return max((now - span.start for span in self.spans), default=0) / SECOND

    def later(self, seconds: int) -> list[str]:
        """Let time pass; the lines of the log."""
        for _ in range(seconds):
            self.passed += 1
            self._watch.look()
        lines = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return lines


@pytest.fixture
def node(caplog: pytest.LogCaptureFixture) -> Node:
    return Node(caplog)


def opened(trace: str = "", after: int = 0, **what: object) -> Span:
    return span(trace, end=0, start=NOW + after * SECOND, **what)


def test_a_pull_that_takes_long_is_logged_each_minute(node: Node) -> None:
    """With its stage, the deepest of what is open, and its trace, as processes report them when they are asked for it."""
    root = opened(attributes=ROOT, name="Transfer", service="splitd-gateway")
    pull = opened(root.trace, 1, parent=root.id)
    wait = opened(
        root.trace,
        5,
        parent=pull.id,
        name="wait.pause",
        attributes={"splitd.wait.for": "the registry asked for it", "server.address": "a.example"},
    )
    node.spans = [root, pull, wait]
    assert node.later(29) == []
    assert node.later(60) == [
        "pull docker.io/library/busybox:1 in default has taken 32s so far: wait.pause (splitd-images, the registry "
        f"asked for it, a.example) for 27s; trace {root.trace}"
    ]
    node.spans = [
        dataclasses.replace(root, attributes={}),
        dataclasses.replace(pull, attributes={**ROOT, "splitd.operation": None}),
    ]
    [line] = node.later(60)
    assert line.startswith("pull docker.io/library/busybox:1 in default has taken 1m34s")
    assert "has taken 1m34s so far: images.pull (splitd-images) for 1m33s; trace" in line
    node.spans = []
    assert node.later(60) == []
    assert node.asked == [30, 92]


def test_waiting_for_a_container_is_no_news(node: Node) -> None:
    """But what else takes long in the same trace is."""
    run = opened(attributes={"splitd.operation": "run", "container.id": "c"}, name="run")
    wait = opened(run.trace, 1, parent=run.id, name="T/Wait", attributes={"rpc.method": "Wait"})
    below = opened(run.trace, 1, parent=wait.id, name="ttrpc/Wait", attributes={"rpc.method": "Wait"})
    node.spans = [run, wait, below]
    assert (node.later(200), node.asked) == ([], [])
    node.spans.append(opened(run.trace, 200, parent=run.id, name="a.v1.T/Kill", attributes={"rpc.method": "Kill"}))
    assert node.later(29) == []
    [line] = node.later(4)
    assert line.startswith("run c has taken 32s so far: T/Kill (splitd-images) for 32s; trace ")


def test_work_that_nobody_waits_for_is_no_news(node: Node) -> None:
    """Such as what is fetched ahead."""
    node.spans = [opened(name="prefetch", attributes={"splitd.background": True})]
    assert node.later(200) == []


def test_whatever_spans_say_is_one_line(node: Node) -> None:
    """Circles of parents, long names, control characters."""
    one, other = opened(id="1" * 16, parent="2" * 16), None
    other = opened(one.trace, id="2" * 16, parent="1" * 16)
    own = opened(one.trace, id="3" * 16, parent="3" * 16, name="x\n\x1b[2J" + "y" * 1000)
    many = [opened(one.trace, 2) for _ in range(5)]
    node.spans = [one, other, own, *many]
    [line] = node.later(33)
    assert line.isprintable()
    assert len(line) < 600
    assert "and 4 more; trace" in line


def test_it_can_be_turned_off() -> None:
    """By 0 seconds."""
    LongRunning(lambda: pytest.fail("it looked"), 0.0, lambda: 1e9, lambda: None).look()


@pytest.mark.parametrize("method", [["Wait"], {"a": 1}, None, 5, b"Wait"])
def test_a_method_that_is_no_text_is_none(node: Node, method: object) -> None:
    """Somebody else's span may have any value there."""
    node.spans = [opened(attributes={"rpc.method": method}, name="other")]
    [line] = node.later(33)
    assert line.startswith("other has taken 32s so far")


def test_spans_that_are_deep_below_each_other_are_walked_once(node: Node) -> None:
    """As many steps as there are spans, though each has all others above it."""
    walked: list[str] = []

    class Parent(str):
        """Tells when it is looked up."""

        __slots__ = ()

        def __hash__(self) -> int:
            walked.append(self)
            return super().__hash__()

    root = opened(name="root")
    node.spans = [root]
    for number in range(300):
        above = node.spans[-1].id
        node.spans.append(opened(root.trace, number, parent=Parent(above), name=f"number {number}"))
    [line] = node.later(400)[:1]
    assert "number 299" in line
    assert len(walked) < 10 * 300 * 400
