"""A command of an old client, which sends no trace context, is one trace in the node's own store: of ctr of containerd
1.6, and of 2.x where SPLITD_TEST_CONTAINERD2 names it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.samples import Registry
from gateway.operation import union
from services.kit.rpc import Channel
from services.traces.remote import RemoteStore
from services.traces.store import Query, Span, Status, Trace
from tests.peer import PROGRAMS
from tests.support import Node, eventually_async, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]

CTRS = {"1.6": "ctr", **({"2": str(Path(PROGRAMS) / "ctr")} if PROGRAMS else {})}


@pytest.fixture(scope="module")
def traced() -> Iterator[Node]:
    """A node as it is by default, but for metrics, which listen to calls too."""
    with short_directory() as directory:
        node = Node(directory, config=f'[metrics]\naddress = "{directory}/metrics.sock"\n')
        try:
            node.up()
            yield node
        finally:
            node.clear()


@pytest.fixture
async def store(traced: Node) -> AsyncIterator[RemoteStore]:
    async with Channel(traced.state / "traces.sock") as channel:
        yield RemoteStore(channel)


class Operation:
    """The trace of an operation."""

    def __init__(self, trace: Trace) -> None:
        roots = [span for span in trace.spans if not span.parent]
        assert len(roots) == 1, [span.name for span in roots]
        self.root = roots[0]
        self.spans = trace.spans
        known = {span.id for span in trace.spans}
        orphans = [(span.service, span.name) for span in trace.spans if span.parent and span.parent not in known]
        assert not orphans, orphans

    @property
    def processes(self) -> set[str]:
        return {span.service.removeprefix("splitd-") for span in self.spans}

    def covered(self) -> float:
        """The part of the root's time that the union of the spans below it covers."""
        root = self.root
        times = [(max(s.start, root.start), min(s.end, root.end)) for s in self.spans if s is not root]
        return union(times) / (root.end - root.start)

    def failures(self) -> list[Span]:
        return [span for span in self.spans if span.status == Status.ERROR]

    def __str__(self) -> str:
        """The spans directly below the root, for a failure's message."""
        below = [span for span in self.spans if span.parent == self.root.id]
        times = [(s.name, (s.start - self.root.start) / 1e6, (s.end - self.root.start) / 1e6) for s in below]
        return json.dumps(times, indent=0)


async def newest(store: RemoteStore, namespace: str, number: int, processes: set[str]) -> Operation:
    """The newest of ``number`` operations in a namespace, once it is whole."""

    async def found() -> Operation:
        known = await store.traces(Query(namespace=namespace))
        assert len(known) == number, [summary.name for summary in known]
        operation = Operation(await store.trace(known[0].id))
        assert processes <= operation.processes, operation.processes
        return operation

    return await eventually_async(found, f"operation {number} of {namespace}")


@pytest.mark.parametrize("version", CTRS)
async def test_a_command_is_one_connected_trace(
    version: str, traced: Node, store: RemoteStore, registry: Registry
) -> None:
    """A pull, a run and a deletion have a root each, which says what they were about. No span is without its parent,
    all processes that took part have spans, and the spans cover the root's time.
    """
    ctr, namespace, image = CTRS[version], f"joined-{version[0]}", f"{registry.host}/box:1"
    traced.ctr("images", "pull", "--plain-http", image, program=ctr, namespace=namespace)
    pull = await newest(store, namespace, 1, {"gateway", "metadata", "content", "snapshots", "images"})
    assert pull.covered() >= 0.95, str(pull)
    assert pull.failures() == []
    said = pull.root.attributes
    assert (pull.root.name, said["splitd.operation"], said["splitd.outcome"]) == ("pull", "pull", "ok")
    assert said["container.image.name"] == image
    assert str(said["oci.manifest.digest"]).startswith("sha256:")
    assert said["splitd.snapshotter"] == "overlayfs"
    assert int(str(said["splitd.bytes"])) > 0
    assert said["splitd.layers"] == 1

    assert traced.out("run", "--rm", image, "one", "echo", "hello", program=ctr, namespace=namespace) == "hello\n"
    run = await newest(store, namespace, 2, {"gateway", "metadata", "snapshots", "tasks"})
    assert run.covered() >= 0.95, str(run)
    assert run.failures() == []
    said = run.root.attributes
    assert (run.root.name, said["splitd.outcome"], said["container.id"]) == ("run", "ok", "one")
    assert said["container.image.name"] == image
    assert {"tasks.shim.start", "tasks.shim.create"} <= {span.name for span in run.spans}

    traced.ctr("images", "rm", image, program=ctr, namespace=namespace)
    deletion = await newest(store, namespace, 3, {"gateway", "images", "metadata"})
    assert (deletion.root.name, deletion.root.attributes["container.image.name"]) == ("delete", image)
