"""The gateway's watch of a service, and its behaviour after an unexpected exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.supervision import Supervision
from gateway.upstream import Upstream
from services.kit import loops, tracing
from tests.spans import Recorder


class FakeChannel:
    """A connection that is there as soon as it is watched."""

    def __init__(self) -> None:
        self.closed = False

    async def connections(self) -> AsyncIterator[bool]:
        yield True
        await asyncio.Event().wait()

    def connected(self) -> bool:
        return True

    async def close(self) -> None:
        self.closed = True


async def test_a_watch_that_fails_begins_anew_and_tells_again_that_the_service_is_there(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Users of the watch (Records announces the gateway) are told of the connection after all. Meanwhile the service
    counts as absent, not as present for ever.
    """
    upstream = Upstream(
        "metadata", place / "metadata.sock", "metadata", Supervision(place / "supervisor.sock"), hold=5.0
    )
    channel = FakeChannel()
    upstream.channel = channel  # type: ignore[assignment]
    told: list[bool] = []
    heard = asyncio.Event()

    def callback() -> None:
        told.append(upstream.up)
        if len(told) == 1:
            raise ZeroDivisionError("unthought of")
        heard.set()

    upstream.on_connect.append(callback)
    watch = loops.task(
        "the watch of service metadata", loops.lasting("the watch of service metadata", upstream.watch, pause=0.001)
    )
    await asyncio.wait_for(heard.wait(), 15)
    assert told == [True, True]
    assert "the watch of service metadata failed" in caplog.text
    assert upstream.is_ready()
    watch.cancel()
    await asyncio.wait([watch])
    assert channel.closed
    assert not upstream.up


async def test_a_call_that_is_held_says_for_whom(place: Path) -> None:
    """The time until the service is back is a wait that names it."""
    upstream = Upstream("content", place / "content.sock", "", Supervision(place / "supervisor.sock"), hold=5.0)
    upstream.channel = FakeChannel()  # type: ignore[assignment]
    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    try:
        with tracing.root("call"):
            held = asyncio.ensure_future(upstream.ready())
            await asyncio.sleep(0)
            assert not held.done()
            watch = loops.task("the watch of service content", upstream.watch())
            await held
            await upstream.ready()
        watch.cancel()
        await asyncio.wait([watch])
    finally:
        tracing.reset()
    waits = [span for span in exporter.get_finished_spans() if span.name == "wait.lock"]
    assert [(span.attributes or {})["splitd.wait.for"] for span in waits] == ["service content, which is away"]
