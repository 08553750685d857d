"""The publisher of events, with an exchange on a socket that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.containerd.events import task_pb2
from gateway.events import EventsServicer, Exchange, Subscription
from services.kit import rpc, tracing
from services.kit.any import pack
from services.kit.publisher import Publisher
from tests.spans import attribute, recorded


@contextlib.asynccontextmanager
async def gateway(socket: Path, exchange: Exchange) -> AsyncIterator[None]:
    async with rpc.serving(socket, [EventsServicer(exchange)]):
        yield


async def topics(subscription: Subscription, count: int) -> list[str]:
    async with asyncio.timeout(20):
        return [(await anext(subscription)).topic for _ in range(count)]


async def test_events_arrive_in_order_as_they_were(place: Path) -> None:
    """They have the time of publish(), the given namespace, and the message in an Any, or the given Any."""
    exchange = Exchange()
    async with (
        gateway(place / "g.sock", exchange),
        rpc.Channel(place / "g.sock") as channel,
        Publisher(channel).running() as publisher,
    ):
        with exchange.subscribe() as subscription:
            before = time.time_ns()
            publisher.publish("blue", "/n/0", task_pb2.TaskOOM(container_id="c"))
            after = time.time_ns()
            publisher.publish("blue", "/n/1", pack(task_pb2.TaskOOM(container_id="c")))
            async with asyncio.timeout(20):
                first, second = await anext(subscription), await anext(subscription)
            assert (first.namespace, first.topic, second.topic) == ("blue", "/n/0", "/n/1")
            assert before <= first.timestamp.ToNanoseconds() <= after
            assert first.event == second.event == pack(task_pb2.TaskOOM(container_id="c"))
            for n in range(200):
                publisher.publish("blue", f"/m/{n}", task_pb2.TaskOOM())
            assert await topics(subscription, 200) == [f"/m/{n}" for n in range(200)]


async def test_nobody_waits_for_an_event(place: Path) -> None:
    """Its sending is part of the trace of the call that made the change, in the background."""
    exchange = Exchange()
    async with (
        gateway(place / "g.sock", exchange),
        rpc.Channel(place / "g.sock") as channel,
        Publisher(channel).running() as publisher,
    ):
        with recorded() as spans:
            with tracing.span("call"):
                publisher.publish("blue", "/n/0", task_pb2.TaskOOM())
            assert await publisher.flushed(20)
            sent = spans.one("events.publish")
            assert spans.parent(sent).name == "call"
            assert attribute(sent, "splitd.background") is True
            assert attribute(sent, "splitd.topic") == "/n/0"


async def test_events_wait_for_a_gateway_that_is_away(place: Path) -> None:
    """Events from before its start and from its restart arrive in order; no publish() waited."""
    exchange = Exchange()
    subscription = exchange.subscribe()
    async with rpc.Channel(place / "g.sock") as channel, Publisher(channel).running() as publisher:
        publisher.publish("n", "/n/1", task_pb2.TaskOOM())
        assert not await publisher.flushed(0.3)
        publisher.publish("n", "/n/2", task_pb2.TaskOOM())
        async with gateway(place / "g.sock", exchange):
            assert await topics(subscription, 2) == ["/n/1", "/n/2"]
        publisher.publish("n", "/n/3", task_pb2.TaskOOM())
        async with gateway(place / "g.sock", exchange):
            assert await topics(subscription, 1) == ["/n/3"]
            assert await publisher.flushed(5)


async def test_a_refused_event_does_not_hold_up_the_next(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the event and the reason."""
    exchange = Exchange()
    subscription = exchange.subscribe()
    async with (
        gateway(place / "g.sock", exchange),
        rpc.Channel(place / "g.sock") as channel,
        Publisher(channel).running() as publisher,
    ):
        publisher.publish("n", "no slash", task_pb2.TaskOOM())
        publisher.publish("n", "/good", task_pb2.TaskOOM())
        assert await topics(subscription, 1) == ["/good"]
    assert "refused event no slash of namespace n: envelope topic" in caplog.text


async def test_the_end_of_a_service_sends_pending_events(place: Path) -> None:
    """Events that are published just before the end are not lost if the gateway is there."""
    exchange = Exchange()
    subscription = exchange.subscribe()
    async with gateway(place / "g.sock", exchange), rpc.Channel(place / "g.sock") as channel:
        async with Publisher(channel).running() as publisher:
            for n in range(50):
                publisher.publish("n", f"/n/{n}", task_pb2.TaskOOM())
        assert await topics(subscription, 50) == [f"/n/{n}" for n in range(50)]


async def test_the_oldest_are_dropped_when_too_many_wait(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Memory is bounded, and the log has the number of lost events."""
    exchange = Exchange()
    subscription = exchange.subscribe()
    async with rpc.Channel(place / "g.sock") as channel, Publisher(channel, limit=3).running() as publisher:
        for n in range(10):
            publisher.publish("n", f"/n/{n}", task_pb2.TaskOOM())
        async with gateway(place / "g.sock", exchange):
            assert await topics(subscription, 3) == ["/n/7", "/n/8", "/n/9"]
            assert await publisher.flushed(5)
    assert "7 events were dropped" in caplog.text
