"""What the spans of the tasks service say: where the time of a run goes, who waits for whom, and that shims get the
context.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.kit import tracing
from services.kit.publisher import Publisher
from services.kit.spans import state
from services.tasks.gateway import Gateway
from services.tasks.local import LocalTasks
from services.tasks.store import CreateOptions
from tests.spans import RecordedSpan, Recorder
from tests.suites.tasks import end, start
from tests.suites.tasks_node import TasksNode, tasks_node
from tests.support import eventually_async

pytestmark = pytest.mark.root


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self.exporter = Recorder()

    def named(self, name: str) -> list[RecordedSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> RecordedSpan:
        (found,) = self.named(name)
        return found

    def above(self, span: RecordedSpan) -> list[str]:
        """The names of the spans that it is below, the nearest first."""
        by_id = {each.context.span_id: each for each in self.exporter.get_finished_spans()}
        names = []
        while span.parent is not None and (found := by_id.get(span.parent.span_id)) is not None:
            names.append(found.name)
            span = found
        return names


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    tracing.setup(made.exporter.export, loose=True)
    yield made
    tracing.reset()


@pytest.fixture
async def node(others: Path, place: Path) -> AsyncIterator[TasksNode]:
    async with tasks_node(others / "s/internal.sock", others, place) as node:
        yield node


@pytest.fixture
async def tasks(node: TasksNode) -> AsyncIterator[LocalTasks]:
    async with (
        Publisher(node.channel).running() as publisher,
        LocalTasks(node.root, node.state, Gateway(node.channel, publisher)) as tasks,
    ):
        yield tasks


async def test_the_life_of_a_task(tasks: LocalTasks, node: TasksNode, spans: Spans, place: Path) -> None:
    """Each step is a span: the program of the shim, the connection, and each call of it. The program has the context
    in its environment.
    """
    said = place / "said"
    program = place / "containerd-shim-runc-v2"
    program.write_text(f"""#!/bin/sh
for verb; do :; done
[ "$verb" != start ] || echo "$TRACEPARENT" >{said}
exec {shutil.which("containerd-shim-runc-v2")} "$@"
""")
    program.chmod(0o755)
    with tracing.root("run") as root:
        await start(tasks, node, "one", "sleep", "100", runtime=str(program))
        await end(tasks, node, "one")
    await tasks._endings.wait(15)
    assert spans.above(spans.one("tasks.shim.program")) == ["tasks.shim.start", "run"]
    assert spans.above(spans.one("tasks.shim.connect")) == ["tasks.shim.start", "run"]
    assert spans.above(spans.one("tasks.shim.create")) == ["run"]
    assert spans.above(spans.one("tasks.bundle")) == ["run"]
    assert spans.above(spans.one("tasks.shim.end")) == ["tasks.end", "run"]
    assert spans.above(spans.one("tasks.bundle.remove")) == ["tasks.end", "run"]
    calls = {
        span.name.rpartition("/")[2]: spans.above(span)
        for span in spans.exporter.get_finished_spans()
        if span.name.startswith("containerd.task.v")
    }
    assert calls["Create"] == ["tasks.shim.create", "run"]
    assert {name: calls[name] for name in ("Start", "Kill", "Delete")} == {
        name: ["run"] for name in ("Start", "Kill", "Delete")
    }
    # outlives the calls, and is no part of what they did
    assert calls["Wait"] == []
    trace, program_span = f"{root.trace}", f"{spans.one('tasks.shim.program').context.span_id:016x}"
    assert said.read_text() == f"00-{trace}-{program_span}-01\n"
    assert root.attributes["container.id"] == "one"
    assert [span.name for span in spans.exporter.get_finished_spans() if span.status.failed] == []


async def test_who_waits_for_a_creation(tasks: LocalTasks, node: TasksNode, spans: Spans, place: Path) -> None:
    """The wait links to the span of the creation."""
    goes_on = place / "goes-on"
    program = place / "containerd-shim-runc-v2"
    program.write_text(f"""#!/bin/sh
for verb; do :; done
[ "$verb" != start ] || while [ ! -e {goes_on} ]; do sleep 0.02; done
exec {shutil.which("containerd-shim-runc-v2")} "$@"
""")
    program.chmod(0o755)
    await node.add("slow", "sleep", "100", runtime=str(program))

    async def create() -> None:
        with tracing.root("create"):
            await tasks.create(node.ns, "slow", CreateOptions(rootfs=(node.mount,)))

    async def ask() -> None:
        with tracing.root("ask"):
            await tasks.get(node.ns, "slow")

    creating = asyncio.ensure_future(create())
    await eventually_async(lambda: asyncio.sleep(0, (node.ns, "slow") in tasks._names._creations))
    asking = asyncio.ensure_future(ask())
    await eventually_async(lambda: asyncio.sleep(0, any(span.name == "wait.lock" for span in state.open)))
    goes_on.touch()
    await asyncio.gather(creating, asking)
    waiting = spans.one("wait.lock")
    assert spans.above(waiting) == ["ask"]
    assert (waiting.attributes or {})["splitd.wait.for"] == "the creation of task slow"
    assert [link.context.span_id for link in waiting.links] == [spans.one("create").context.span_id]
    await end(tasks, node, "slow")
