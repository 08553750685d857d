"""kit.exporting: a process of the node sends its spans to the traces service, as its configuration says now."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.splitd.traces.v1 import traces_pb2, traces_stubs
from services.kit import clock, errors, exporting, rpc
from tests.collector import Collector
from tests.support import ServiceProcess, eventually_async

PARENT = "b7ad6b7169203331"
CONFIG = '[tracing]\nfold = "{fold}"\nenabled = {enabled}\nschedule_delay = "20ms"\nendpoint = "{endpoint}"\n'

numbers = itertools.count(1)


class Side:
    """A content service that traces, and the node's traces service."""

    def __init__(self, place: Path) -> None:
        self.config = place / "config.toml"
        self.configure()
        anchor = {clock.VARIABLE: str(clock.anchor() - 3_600_000_000_000)}
        self.traces = ServiceProcess("services.traces", place / "r", place / "s", env=anchor)
        self.content = ServiceProcess("services.content", place / "r", place / "s", config=self.config, env=anchor)
        self.place = place

    def configure(self, *, fold: str = "0s", enabled: bool = True, endpoint: str = "") -> None:
        """Write the configuration as an editor does, to another file that takes the place of the first."""
        new = self.config.with_suffix(".new")
        new.write_text(CONFIG.format(fold=fold, enabled=str(enabled).lower(), endpoint=endpoint))
        new.replace(self.config)

    async def ask(self, flags: str = "01") -> str:
        """Call the content service in a trace of its own, whose id is returned."""
        trace = f"{next(numbers):032x}"
        async with rpc.Channel(self.place / "s/content.sock") as channel:
            with pytest.raises(errors.NotFound):
                await channel.client(content_stubs.CONTENT).Info(
                    content_pb2.InfoRequest(digest=f"sha256:{'0' * 64}"),
                    headers={"containerd-namespace": "x", "traceparent": f"00-{trace}-{PARENT}-{flags}"},
                )
        return trace

    async def spans(self, trace: str) -> list[trace_pb2.Span]:
        """What the traces service has of it."""
        found: list[trace_pb2.Span] = []
        async with rpc.Channel(self.place / "s/traces.sock") as channel:
            try:
                async for answer in channel.client(traces_stubs.TRACES).Get(traces_pb2.GetRequest(id=trace)):
                    for resource in trace_pb2.TracesData.FromString(answer.data).resource_spans:
                        found += [span for scope in resource.scope_spans for span in scope.spans]
            except errors.NotFound:
                return []
        return found

    async def arrived(self, trace: str) -> list[trace_pb2.Span]:
        """The calls in it, once there are any. It may have waits, too."""
        found: list[trace_pb2.Span] = []

        async def there() -> bool:
            found[:] = [each for each in await self.spans(trace) if each.kind == trace_pb2.Span.SPAN_KIND_SERVER]
            return bool(found)

        await eventually_async(there, self.content.text())
        return found

    async def says(self, words: str) -> None:
        """Call until the log of the content service says so."""

        async def said() -> bool:
            await self.ask()
            return words in self.content.text()

        await eventually_async(said, self.content.text(), 20)


@pytest.fixture
async def side(place: Path) -> AsyncIterator[Side]:
    with contextlib.ExitStack() as stack:
        side = Side(place)
        stack.enter_context(side.traces)
        stack.enter_context(side.content)
        yield side


async def test_spans_reach_the_traces_service_with_the_nodes_clock(side: Side) -> None:
    """Without a word in the configuration but the table's keys; NOT_FOUND is no failure."""
    before = clock.anchor() - 3_600_000_000_000 + clock.now() - clock.ANCHOR
    (span,) = await side.arrived(await side.ask())
    assert (span.name, span.parent_span_id.hex()) == ("containerd.services.content.v1.Content/Info", PARENT)
    assert span.status.code == 0
    assert {a.key: a.value.int_value for a in span.attributes}["rpc.grpc.status_code"] == 5
    assert before < span.start_time_unix_nano <= span.end_time_unix_nano < before + 60_000_000_000


async def test_a_client_that_does_not_record_is_heard(side: Side) -> None:
    unwanted = await side.ask("00")
    await side.arrived(await side.ask())
    assert not await side.spans(unwanted)


async def test_settings_change_while_the_process_runs(side: Side) -> None:
    """Off, and on again; a file that cannot be read changes nothing."""
    await side.arrived(await side.ask())
    side.config.write_text("[tracing]\nenabled = maybe\n")
    await side.says("tracing goes on as before: config file")
    side.config.write_text(f'[tracing]\nfold = "{"9" * 400}h"\n')
    await side.says("is more than the longest duration")
    await side.arrived(await side.ask())
    side.configure(enabled=False)
    await side.says("tracing is off")
    unwanted = await side.ask()
    side.configure(fold="1h")
    await side.says("tracing is on: sampling_ratio 0.05, fold 1h")
    folded = await side.ask()
    side.configure()
    await side.says("fold 0s")
    await side.arrived(await side.ask())
    assert not await side.spans(unwanted)
    assert [span.parent_span_id.hex() for span in await side.spans(folded)] == [PARENT]  # the first of its trace


async def test_spans_go_elsewhere_while_the_process_runs(side: Side) -> None:
    """To a collector, and back to the traces service. An address that cannot be changes nothing."""
    collector = Collector(side.place / "c.sock")
    with contextlib.ExitStack() as stack:
        stack.callback(collector.stop)
        side.configure(endpoint=collector.endpoint)
        await side.says(f"spans go to {collector.endpoint}")
        there = await side.ask()
        await eventually_async(lambda: asyncio.sleep(0, bool(collector.spans(there))), side.content.text())
        side.configure(endpoint="ftp://box:1")
        await side.says("tracing goes on as before: config file")
        also = await side.ask()
        await eventually_async(lambda: asyncio.sleep(0, bool(collector.spans(also))), side.content.text())
        side.configure()
        await side.says("spans go to the node's traces service")
        here = await side.ask()
        await side.arrived(here)
        assert not collector.spans(here)
        assert not await side.spans(there) + await side.spans(also)


async def test_a_traces_service_that_is_killed_costs_nobody_anything(side: Side) -> None:
    """Calls are answered meanwhile, spans are dropped, and the log has a line at the beginning and at the end."""
    await side.arrived(await side.ask())
    side.traces.kill()
    await side.says("spans are lost")
    side.traces.start()
    await side.says("spans are delivered again")
    await side.arrived(await side.ask())
    assert side.content.text().count("spans are lost") == 1
    assert side.content.text().count("spans are delivered again") == 1
    assert "WARNING" not in side.content.text()


async def test_who_asks_what_is_in_flight_is_told_anew(side: Side) -> None:
    """The traces service touches a file, and for some seconds the processes of the node know it."""
    state = side.place / "s"
    async with rpc.Channel(state / "traces.sock") as channel:
        assert not exporting.asked(state)
        await channel.client(traces_stubs.TRACES).Live(traces_pb2.LiveRequest())
    told = state / exporting.ASKED
    os.utime(told)
    assert exporting.asked(state)
    for seconds in (-60, 60):
        os.utime(told, (time.time() + seconds, time.time() + seconds))
        assert not exporting.asked(state)
