"""The traces process, through its socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector

from services.kit import errors, metrics_server, rpc
from services.traces.remote import RemoteStore
from services.traces.store import Query
from tests.suites.traces import NOW, TracesSuite, span
from tests.support import ServiceProcess, eventually_async, short_directory

COLLECTOR = collector.DESCRIPTOR.services_by_name["TraceService"]


@pytest.fixture(scope="module")
def process() -> Iterator[ServiceProcess]:
    with short_directory() as directory, ServiceProcess("services.traces", directory / "r", directory / "s") as running:
        yield running


@pytest.fixture
async def channel(process: ServiceProcess) -> AsyncIterator[rpc.Channel]:
    async with rpc.Channel(process.sockets[0], "traces") as opened:
        yield opened


@pytest.fixture
async def store(channel: rpc.Channel) -> RemoteStore:
    found = RemoteStore(channel)
    for each in await found.traces(Query(limit=1000)):
        await found.delete(each.id)
    return found


class TestRemote(TracesSuite):
    """The suite on it."""


async def test_ids_of_a_wrong_length_are_refused_one_by_one(channel: rpc.Channel, store: RemoteStore) -> None:
    """The other spans of the request are taken. An empty id is a zero one."""
    request = collector.ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"1" * 16, span_id=b"1" * 8, name="good", start_time_unix_nano=NOW)
    spans.add(trace_id=b"1" * 15, span_id=b"1" * 8, name="short")
    spans.add(trace_id=b"1" * 16, span_id=b"1" * 9, name="long")
    spans.add(trace_id=b"1" * 16, span_id=b"2" * 8, parent_span_id=b"1", name="short parent")
    spans.add(name="empty")
    answer = await channel.client(COLLECTOR).Export(request)
    assert answer.partial_success.rejected_spans == 3
    assert answer.partial_success.error_message == "3 spans have ids of a wrong length"
    assert [each.name for each in await store.traces(Query())] == ["good", "empty"]
    assert not (await channel.client(COLLECTOR).Export(collector.ExportTraceServiceRequest())).HasField(
        "partial_success"
    )


async def test_large_spans_are_cut(channel: rpc.Channel, store: RemoteStore) -> None:
    """They lose the largest attributes, and say how many. What their process says of itself is reduced to its name."""
    request = collector.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="big").value.string_value = "x" * 100_000
    resource.resource.attributes.add(key="service.name").value.string_value = "me"
    sent = resource.scope_spans.add().spans.add(trace_id=b"2" * 16, span_id=b"2" * 8, name="n" * 100_000)
    sent.attributes.add(key="small").value.int_value = 1
    sent.attributes.add(key="large").value.string_value = "x" * 100_000
    for _ in range(10_000):
        sent.events.add(name="event")
    await channel.client(COLLECTOR).Export(request)
    [found] = (await store.trace("32" * 16)).spans
    assert (found.service, found.name, found.attributes, len(found.events)) == ("me", "n" * 1024, {"small": 1}, 0)


async def test_deep_values_end(channel: rpc.Channel, store: RemoteStore) -> None:
    """Lists in lists as deep as protobuf reads them are taken, and shown to a bounded depth."""
    request = collector.ExportTraceServiceRequest()
    sent = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"3" * 16, span_id=b"3" * 8)
    value = sent.attributes.add(key="deep").value
    for _ in range(40):
        value = value.array_value.values.add()
    value.int_value = 1
    await channel.client(COLLECTOR).Export(request)
    [found] = (await store.trace("33" * 16)).spans
    depth, inner = 0, found.attributes["deep"]
    while isinstance(inner, list):
        depth, inner = depth + 1, inner[0]
    assert (depth, inner) == (32, "...")


async def test_open_spans_are_told(store: RemoteStore) -> None:
    """Those of all processes, until they do not report them any longer."""
    one, other = span(end=0, service="splitd-a"), span(end=0, start=NOW + 1, service="splitd-b")
    await store.report("splitd-a", [one])
    await store.report("splitd-b", [other], dropped=3)
    live = await store.live()
    assert live.spans == [one, other]
    assert live.now > NOW // 2
    await store.report("splitd-a", [])
    await store.report("splitd-b", [], dropped=3)
    assert (await store.live()).spans == []
    assert (await store.figures()).dropped == 3


async def test_a_report_that_is_none(channel: rpc.Channel) -> None:
    """Is refused."""
    from api.splitd.traces.v1 import traces_pb2, traces_stubs

    with pytest.raises(errors.InvalidArgument, match="open spans of x: "):
        await channel.client(traces_stubs.TRACES).Report(traces_pb2.ReportRequest(service="x", data=b"\xff"))


async def test_a_killed_process_keeps_what_it_has_written() -> None:
    """The next one answers with it."""
    with short_directory() as directory, ServiceProcess("services.traces", directory / "r", directory / "s") as running:
        for _ in range(3):
            async with rpc.Channel(running.sockets[0], "traces") as channel:
                store, sent = RemoteStore(channel), span()
                await store.add([sent])
                assert (await store.trace(sent.trace)).spans == [sent]
            running.kill()
            running.start()
            async with rpc.Channel(running.sockets[0], "traces") as channel:
                assert (await RemoteStore(channel).trace(sent.trace)).spans == [sent]


async def test_kills_while_spans_come() -> None:
    """Whenever it dies, the next one opens the file, and has every trace that it ever told of."""
    rng = random.Random(1)
    with short_directory() as directory, ServiceProcess("services.traces", directory / "r", directory / "s") as running:
        told: set[str] = set()
        for _ in range(4):
            async with rpc.Channel(running.sockets[0], "traces") as channel:
                store = RemoteStore(channel)
                assert told <= {each.id for each in await store.traces(Query(limit=100_000))}

                async def flood(store: RemoteStore = store) -> None:
                    with contextlib.suppress(errors.NodeError):
                        while True:
                            sent = span(attributes={"x": rng.randbytes(500)})
                            await store.add([sent, *(span(sent.trace, parent=sent.id) for _ in range(20))])

                flooding = asyncio.ensure_future(flood())
                wanted = len(told) + rng.randrange(3, 20)

                async def enough(store: RemoteStore = store, wanted: int = wanted) -> bool:
                    told.update(each.id for each in await store.traces(Query(limit=100_000)))
                    return len(told) >= wanted

                await eventually_async(enough, "the spans that come are not told of")
                await asyncio.sleep(rng.uniform(0.0, 0.2))
                running.kill()
                await flooding
            running.start()
        assert len(told) > 10
        assert "replaced" not in running.text()


async def test_its_figures_are_metrics() -> None:
    """What it holds, and what was lost where."""
    with short_directory() as directory:
        (directory / "c.toml").write_text('[metrics]\naddress = "127.0.0.1:1"\n')
        with ServiceProcess(
            "services.traces", directory / "r", directory / "s", config=directory / "c.toml"
        ) as running:
            async with rpc.Channel(running.sockets[0], "traces") as channel:
                store = RemoteStore(channel)
                await store.add([span(), span()])
                await store.report("x", [], dropped=7)
                families = await metrics_server.collect(channel, 5.0)
    values = {
        (family.name, *sorted(sample.labels.values())): sample.value
        for family in families
        if family.name.startswith(("splitd_store", "splitd_spans"))
        for sample in family.samples
    }
    assert values.pop(("splitd_store_bytes", "traces")) > 0
    assert values == {
        ("splitd_store_items", "traces", "traces"): 2,
        ("splitd_store_items", "spans", "traces"): 2,
        ("splitd_spans_dropped", "sender"): 7,
        ("splitd_spans_dropped", "store"): 0,
    }


def test_it_is_small(place: Path) -> None:
    """Every node has it."""
    with ServiceProcess("services.traces", place / "r", place / "s", copied=False) as process:
        pss = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    [kilobytes] = [int(line.split()[1]) for line in pss.splitlines() if line.startswith("Pss:")]
    assert kilobytes < 40 << 10
