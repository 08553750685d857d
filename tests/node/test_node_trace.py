"""One call is one trace, in every process that it crosses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.containerd.services.diff.v1 import diff_pb2, diff_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.types.descriptor_pb2 import Descriptor
from deploy.samples import Registry, busybox_image
from services.kit import rpc
from services.kit.rpc import Channel
from tests.collector import Collector, Span
from tests.fake_registry import FakeRegistry, slow
from tests.pulls import Client, made
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]

TRACES = {
    "bind": "0af7651916cd43dd8448eb211c80319c",
    "overlay": "1af7651916cd43dd8448eb211c80319c",
    "lists": "2af7651916cd43dd8448eb211c80319c",
    "pull": "3af7651916cd43dd8448eb211c80319c",
}
"""The ids of the tests' traces."""
PARTS = ("cpu", "runqueue", "disk", "bytes", "rest")
"""Of a worker's time."""


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
            config='[tracing]\nfold = "0s"\nsampling_ratio = 1.0\n',
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"},
        )
        try:
            node.up()
            yield node
        finally:
            node.clear()


@pytest.mark.parametrize("kind", ["bind", "overlay"])
async def test_an_apply_is_one_trace_from_the_client_to_the_worker(
    kind: str, traced: Node, collector: Collector, registry: Registry
) -> None:
    """Diff.Apply crosses gateway, snapshots, metadata and content: all have spans of the client's trace, and so has the
    worker.
    """
    trace = TRACES[kind]
    parent = {"containerd-namespace": "default", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    image = busybox_image()
    layer = image.layers[0]
    traced.ctr("content", "ingest", "--expected-digest", layer, "layer", stdin=image.blobs[layer], text=False)
    traced.ctr("content", "label", layer, "containerd.io/gc.root=2026-01-01T00:00:00Z")

    async with Channel(traced.socket) as channel:
        snapshots = channel.client(snapshots_stubs.SNAPSHOTS)
        labels = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
        if kind == "overlay":
            base = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="base", labels=labels)
            await snapshots.Prepare(base, headers=parent)
            await snapshots.Commit(
                snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", key="base", name="below", labels=labels),
                headers=parent,
            )
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter="overlayfs", key=kind, parent="below" if kind == "overlay" else "", labels=labels
        )
        made = await snapshots.Prepare(request, headers=parent)
        assert made.mounts[0].type == kind
        diff = channel.client(diff_stubs.DIFF)
        descriptor = Descriptor(
            media_type="application/vnd.oci.image.layer.v1.tar+gzip", digest=layer, size=len(image.blobs[layer])
        )
        await diff.Apply(diff_pb2.ApplyRequest(diff=descriptor, mounts=made.mounts), headers=parent)
    wanted = {"splitd-gateway", "splitd-snapshots", "splitd-metadata", "splitd-content"}
    eventually(lambda: wanted <= collector.processes(trace), f"the trace has {collector.processes(trace)}")

    def names() -> set[tuple[str, str]]:
        return {(span.service, span.name) for span in collector.spans(trace)}

    ends = {("splitd-snapshots", "diff.unpack"), ("splitd-gateway", "containerd.services.diff.v1.Diff/Apply")}
    eventually(lambda: ends <= names(), "the worker's span, and the gateway's")


async def test_the_parts_of_a_workers_time_add_up(traced: Node, collector: Collector) -> None:
    """In a pull from a registry that is slow, each layer's worker says what its time went for. The parts add up to its
    span, what is left over included, and most of it had no bytes.
    """
    trace = TRACES["pull"]
    async with FakeRegistry() as fake, Channel(traced.socket) as channel:
        reference = fake.add(made(kib=1500), "team/slow:1")
        fake.inject("blob", slow(4 << 20, 1 << 16), times=99, method="GET")
        client = Client(channel, "slow")
        client.headers["traceparent"] = f"00-{trace}-b7ad6b7169203331-01"
        await client.pull(reference)

    def named(name: str) -> list[Span]:
        return [span for span in collector.spans(trace) if span.name == name]

    eventually(lambda: len(named("diff.unpack")) == len(named("unpack.layer")) == 2, "the spans of two layers")
    for worker in named("diff.unpack"):
        spent = {name: float(worker.attributes[f"splitd.time.{name}_ms"]) for name in PARTS}
        whole = (worker.end - worker.start) / 1e6
        assert sum(spent.values()) == pytest.approx(whole, rel=0.02, abs=5), spent
        assert spent["bytes"] + spent["runqueue"] > 0.5 * whole, spent  # bytes may come while no processor is free
    assert {span.attributes["splitd.layer"] for span in named("unpack.layer")} == {0, 1}
    assert not [span for span in collector.spans(trace) if span.error]


async def test_images_and_tasks_are_in_their_callers_trace(traced: Node, collector: Collector) -> None:
    """A call relayed to images or tasks continues its client's trace there, and in metadata behind images."""
    from api.containerd.services.images.v1 import images_pb2, images_stubs
    from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs

    trace = TRACES["lists"]
    headers = {"containerd-namespace": "default", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}

    async with Channel(traced.socket) as channel:
        await channel.client(images_stubs.IMAGES).List(images_pb2.ListImagesRequest(), headers=headers)
        await channel.client(tasks_stubs.TASKS).List(tasks_pb2.ListTasksRequest(), headers=headers)
    wanted = {"splitd-gateway", "splitd-images", "splitd-metadata", "splitd-tasks"}
    eventually(lambda: wanted <= collector.processes(trace), f"the trace has {collector.processes(trace)}")


def test_a_node_that_traces_does_not_import_grpc(traced: Node) -> None:
    """Spans are exported over the wire, as all calls are, and have been exported by now."""
    if rpc.transport() == "wire":
        assert traced.with_grpc() == []
