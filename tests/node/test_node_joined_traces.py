"""A command of an old client, which sends no trace context, is one trace: ctr of containerd 1.6, and of 2.x where
SPLITD_TEST_CONTAINERD2 names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deploy.samples import Registry
from tests.collector import Collector, Span, covered
from tests.peer import PROGRAMS
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]

CTRS = {"1.6": "ctr", **({"2": str(Path(PROGRAMS) / "ctr")} if PROGRAMS else {})}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with short_directory() as directory:
        running = Collector(directory / "traces.sock")
        yield running
        running.stop()


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[Node]:
    with short_directory() as directory:
        node = Node(
            directory,
            config=f'[metrics]\naddress = "{directory}/metrics.sock"\n',  # which listens to calls, too
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"},
        )
        try:
            node.up()
            yield node
        finally:
            node.clear()


class Operations:
    """The operations that a collector has heard of since this was made."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._before = set(collector.traces())

    def one(self, namespace: str, processes: set[str]) -> tuple[Span, Sequence[Span]]:
        """The only trace of a namespace that is new: its root, and all of its spans, once all are there."""

        def found() -> tuple[Span, Sequence[Span]]:
            new = {trace: spans for trace, spans in self._collector.traces().items() if trace not in self._before}
            of_it = [
                spans
                for spans in new.values()
                if any(span.attributes.get("splitd.namespace") == namespace for span in spans)
            ]
            assert len(of_it) == 1, [[span.name for span in spans if not span.parent] for spans in new.values()]
            (spans,) = of_it
            roots = [span for span in spans if not span.parent]
            assert len(roots) == 1, [span.name for span in roots]
            (root,) = roots
            known = {span.id for span in spans}
            orphans = [(span.service, span.name) for span in spans if span.parent and span.parent not in known]
            assert not orphans, orphans
            assert {f"splitd-{name}" for name in processes} <= {span.service for span in spans}
            return root, spans

        return eventually(found, f"no trace of {namespace}")


@pytest.mark.parametrize("version", CTRS)
def test_a_command_is_one_connected_trace(version: str, traced: Node, collector: Collector, registry: Registry) -> None:
    """A pull, a run and a deletion have a root each, which says what they were about. No span is without its parent,
    all processes that took part have spans, and the spans cover the root's time.
    """
    ctr, namespace, image = CTRS[version], f"joined-{version[0]}", f"{registry.host}/box:1"
    operations = Operations(collector)
    traced.ctr("images", "pull", "--plain-http", image, program=ctr, namespace=namespace)
    root, spans = operations.one(namespace, {"gateway", "metadata", "content", "snapshots", "images"})
    assert covered(root, spans) >= 0.95, _shown(root, spans)
    said = root.attributes
    assert (root.name, said["splitd.operation"], said["splitd.outcome"]) == ("pull", "pull", "ok")
    assert said["container.image.name"] == image
    assert said["oci.manifest.digest"].startswith("sha256:")
    assert said["splitd.snapshotter"] == "overlayfs"
    assert said["splitd.bytes"] > 0
    assert said["splitd.layers"] == 1
    assert [span.name for span in spans if span.error] == []

    operations = Operations(collector)
    said_by_it = traced.out("run", "--rm", image, "one", "echo", "hello", program=ctr, namespace=namespace)
    assert said_by_it == "hello\n"
    root, spans = operations.one(namespace, {"gateway", "metadata", "snapshots", "tasks"})
    assert covered(root, spans) >= 0.95, _shown(root, spans)
    said = root.attributes
    assert (root.name, said["splitd.outcome"], said["container.id"]) == ("run", "ok", "one")
    assert said["container.image.name"] == image
    assert [span.name for span in spans if span.error] == []
    assert {"tasks.shim.start", "tasks.shim.create"} <= {span.name for span in spans}

    operations = Operations(collector)
    traced.ctr("images", "rm", image, program=ctr, namespace=namespace)
    root, spans = operations.one(namespace, {"gateway", "images", "metadata"})
    assert (root.name, root.attributes["container.image.name"]) == ("delete", image)


def _shown(root: Span, spans: Sequence[Span]) -> str:
    """The spans directly below a root, for a failure's message."""
    below = sorted((span for span in spans if span.parent == root.id), key=lambda span: span.start)
    return json.dumps(
        [(span.name, (span.start - root.start) / 1e6, (span.end - root.start) / 1e6) for span in below], indent=0
    )
