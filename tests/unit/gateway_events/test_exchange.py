"""The exchange by itself: bounds, replay, exits that are reported twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from api.containerd.events import task_pb2
from api.containerd.services.events.v1 import events_pb2 as pb
from api.containerd.services.ttrpc.events.v1 import events_pb2 as ttrpc_pb
from api.containerd.types.event_pb2 import Envelope
from gateway import events
from gateway.events import Exchange, Subscription
from services.kit import errors, filters, rpc
from services.kit.any import pack
from services.kit.rpc import Call
from services.kit.slices import Lane
from services.wire.server import WireServer
from tests.support import eventually_async

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def publish(exchange: Exchange, topic: str, event: Message | None = None, timestamp: int | None = None) -> None:
    exchange.publish("default", topic, pack(event or task_pb2.TaskOOM()), timestamp)


async def waiting(subscription: Subscription) -> list[str]:
    """Return the topics that can be read without waiting."""
    found: list[str] = []
    while True:
        step = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        if not step.done():
            step.cancel()
            return found
        found.append(step.result().topic)


def exit_of(pid: int, at: int, container: str = "c") -> task_pb2.TaskExit:
    event = task_pb2.TaskExit(container_id=container, id=container, pid=pid)
    event.exited_at.FromNanoseconds(at)
    return event


async def test_a_subscriber_gets_later_events() -> None:
    """It gets none once it has left."""
    exchange = Exchange(replay_seconds=0)
    publish(exchange, "/before")
    with exchange.subscribe() as subscription:
        publish(exchange, "/after")
        assert await waiting(subscription) == ["/after"]
        assert exchange.subscribers == 1
    assert exchange.subscribers == 0
    publish(exchange, "/late")
    assert await waiting(subscription) == []


@pytest.mark.parametrize("bounds", [{"queue_events": 10}, {"queue_bytes": 400}])
async def test_a_subscriber_that_does_not_read_is_cut_off(bounds: dict[str, Any]) -> None:
    """It gets an error that says so and holds no memory meanwhile; the others miss no event."""
    exchange = Exchange(replay_seconds=0, **bounds)
    slow, quick = exchange.subscribe(), exchange.subscribe()
    for n in range(50):
        publish(exchange, f"/n/{n}")
        assert await waiting(quick) == [f"/n/{n}"]
    assert exchange.subscribers == 1
    with pytest.raises(
        errors.ResourceExhausted, match=r"^subscriber too slow: \d+ events .* wait for it: resource exhausted$"
    ):
        await anext(slow)
    assert not slow._queue


async def test_all_subscribers_together_have_a_bound() -> None:
    """The subscriber furthest behind is cut off, and so on until the bound is kept. A subscriber that reads misses no
    event, however many do not read.
    """
    exchange = Exchange(replay_seconds=0, subscribers_bytes=100_000)
    quick, slow = exchange.subscribe(), []
    for n in range(2000):
        if n % 20 == 0:
            slow.append(exchange.subscribe())
        publish(exchange, f"/n/{n}")
        assert await waiting(quick) == [f"/n/{n}"]
        assert exchange._backlog.bytes <= 100_000
    left = [subscription for subscription in slow if subscription._queue]
    assert left
    assert left == slow[-len(left) :]  # those that came last are not so far behind
    assert exchange.subscribers == 1 + len(left)
    with pytest.raises(
        errors.ResourceExhausted,
        match=r"^subscriber too slow: \d+ events \(\d+ bytes\) wait for it, and more than 100000 bytes for all subscribers, of whom it is the furthest behind: ",
    ):
        await anext(slow[0])
    for subscription in left:
        await waiting(subscription)
    assert exchange._backlog.bytes == 0


async def test_an_event_is_kept_once() -> None:
    """It is stored once for all subscribers, both as an event and as it is sent; the count is right when a subscriber
    leaves.
    """
    exchange = Exchange(replay_seconds=0)
    subscriptions = [exchange.subscribe() for _ in range(500)]
    for n in range(20):
        publish(exchange, f"/n/{n}", task_pb2.TaskOOM(container_id="x" * 1000))
    assert exchange._backlog.bytes < 20 * (2 * 1100 + events.EVENT_COST) + 500 * 20 * events.PLACE_COST
    first, second = await subscriptions[0].next(), await subscriptions[1].next()
    assert first.data is second.data
    assert Envelope.FromString(first.data) == first.envelope
    for subscription in subscriptions:
        subscription.close()
    assert exchange._backlog.bytes == 0


async def test_the_events_of_a_slow_subscriber_have_no_gap() -> None:
    """A subscriber that reads is not cut off as long as it keeps within the bound; the events that it read are
    consecutive.
    """
    exchange = Exchange(replay_seconds=0, queue_events=10)
    subscription = exchange.subscribe()
    got: list[str] = []
    for n in range(200):
        publish(exchange, f"/n/{n}")
        if not exchange.subscribers:
            break
        if n % 3 == 0:
            got.append((await anext(subscription)).topic)
    assert got == [f"/n/{n}" for n in range(5)]
    with pytest.raises(errors.ResourceExhausted):
        await anext(subscription)


async def test_reading_faster_than_the_bound_loses_nothing() -> None:
    """A subscriber that keeps reading gets many times the bound."""
    exchange = Exchange(replay_seconds=0, queue_events=10)
    with exchange.subscribe() as subscription:
        for n in range(1000):
            publish(exchange, f"/n/{n}")
            if n % 9 == 0:
                await waiting(subscription)
        assert exchange.subscribers == 1


async def test_publishing_does_not_wait_for_a_waiting_reader() -> None:
    """A reader that waits is woken by the next event."""
    exchange = Exchange(replay_seconds=0)
    with exchange.subscribe() as subscription:
        reading = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        publish(exchange, "/now")
        assert (await asyncio.wait_for(reading, 5)).topic == "/now"


async def test_a_waiting_reader_is_told_that_it_is_cut_off() -> None:
    """One event larger than the bound ends even a subscription whose reader waits."""
    exchange = Exchange(replay_seconds=0, queue_bytes=100)
    subscription = exchange.subscribe()
    reading = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    publish(exchange, "/big", task_pb2.TaskOOM(container_id="x" * 200))
    with pytest.raises(errors.ResourceExhausted):
        await asyncio.wait_for(reading, 5)


async def test_a_subscriber_soon_after_a_start_gets_events_since_the_start() -> None:
    """They are filtered and in order, before any newer event. After five seconds no subscriber gets them, and none is
    kept.
    """
    clock = Clock()
    exchange = Exchange(clock=clock)
    publish(exchange, "/a/1")
    publish(exchange, "/b/2")
    clock.now += 4.9
    with exchange.subscribe() as everything, exchange.subscribe(filters.parse(["topic~=^/b"])) as some:
        publish(exchange, "/b/3")
        assert await waiting(everything) == ["/a/1", "/b/2", "/b/3"]
        assert await waiting(some) == ["/b/2", "/b/3"]
        clock.now += 0.2
        with exchange.subscribe() as late:
            publish(exchange, "/a/4")
            assert await waiting(late) == ["/a/4"]
    assert not exchange._replay


async def test_the_replay_is_bounded() -> None:
    """The oldest are dropped first, and a subscriber is not cut off by the replay itself."""
    exchange = Exchange(queue_events=10)
    for n in range(25):
        publish(exchange, f"/n/{n}")
    with exchange.subscribe() as subscription:
        assert await waiting(subscription) == [f"/n/{n}" for n in range(15, 25)]


async def test_an_exit_is_told_once_for_ten_minutes() -> None:
    """A second report is dropped, whatever time it has; after ten minutes the pid may be another process's."""
    clock = Clock()
    exchange = Exchange(replay_seconds=0, clock=clock)
    with exchange.subscribe() as subscription:
        publish(exchange, "/1", exit_of(7, 5 * SECOND))
        clock.now += 599
        publish(exchange, "/2", exit_of(7, 6 * SECOND))
        clock.now += 2
        publish(exchange, "/3", exit_of(7, 7 * SECOND))
        assert await waiting(subscription) == ["/1", "/3"]


@pytest.mark.parametrize(("started", "wanted"), [(6 * SECOND, ["/1", "/start", "/2"]), (4 * SECOND, ["/1", "/start"])])
@pytest.mark.parametrize("exec_id", ["", "e"])
async def test_a_restart_with_the_same_pid_exits_again(started: int, wanted: list[str], exec_id: str) -> None:
    """A start after the exit begins a new life; the start before it, if it is delivered late, does not."""
    exchange = Exchange(replay_seconds=0)
    ended = exit_of(7, 5 * SECOND)
    ended.id = exec_id or "c"
    start = (
        task_pb2.TaskExecStarted(container_id="c", exec_id=exec_id, pid=7)
        if exec_id
        else task_pb2.TaskStart(container_id="c", pid=7)
    )
    with exchange.subscribe() as subscription:
        publish(exchange, "/1", ended)
        publish(exchange, "/start", start, started)
        publish(exchange, "/2", ended)
        assert await waiting(subscription) == wanted


async def test_memory_of_exits_is_bounded() -> None:
    """The oldest is forgotten first."""
    exchange = Exchange(replay_seconds=0, exits=3)
    with exchange.subscribe() as subscription:
        for n in (1, 2, 3, 4, 2, 1):
            publish(exchange, f"/{n}", exit_of(n, SECOND))
        assert await waiting(subscription) == ["/1", "/2", "/3", "/4", "/1"]
    assert len(exchange._exits._exits) == 3


async def test_an_exit_of_the_longest_names_is_one_event() -> None:
    """Names may have the greatest length, in characters of four bytes."""
    exchange = Exchange(replay_seconds=0)
    ended = exit_of(7, 100 * SECOND, "\U0001f433" * 128)
    with exchange.subscribe() as subscription:
        for _ in range(2):
            publish(exchange, "/tasks/exit", ended)
        assert await waiting(subscription) == ["/tasks/exit"]


@pytest.mark.parametrize("length", [200, 1_000_000])
async def test_exits_of_impossible_names_are_not_remembered(length: int) -> None:
    """Any client may publish an exit. One with ids that no container can have costs no memory, and goes to subscribers
    each time.
    """
    exchange = Exchange(replay_seconds=0)
    with exchange.subscribe() as subscription:
        for _ in range(2):
            publish(exchange, "/tasks/exit", exit_of(7, 100 * SECOND, "c" * length))
        assert await waiting(subscription) == ["/tasks/exit"] * 2
    assert not exchange._exits._exits


async def test_costly_filters_are_matched_by_their_subscribers() -> None:
    """They are matched one at a time, in turn; the events that each subscriber gets, and their order, do not change."""
    exchange = Exchange(replay_seconds=0)
    wanted = ["event.container_id~=(a|b)*a(a|b){29}c$", 'topic=="/last"']
    with (
        exchange.subscribe(filters.parse(wanted)) as one,
        exchange.subscribe(filters.parse(wanted)) as other,
        exchange.subscribe(filters.parse(['topic=="/last"'])) as cheap,
    ):
        for n in range(20):
            publish(
                exchange,
                f"/t{n}",
                task_pb2.TaskOOM(container_id="ab" * (3000 if n % 5 else 100) + ("c" if n % 2 else "d")),
            )
        publish(exchange, "/last", task_pb2.TaskOOM())
        assert (await anext(cheap)).topic == "/last"
        expected = [f"/t{n}" for n in range(20) if n % 2] + ["/last"]
        for subscription in (one, other):
            assert [(await anext(subscription)).topic for _ in expected] == expected


async def test_a_costly_match_is_made_in_slices() -> None:
    """Two thousand conditions take milliseconds: the loop turns between them, and events published meanwhile do not
    disturb the match.
    """
    exchange, turns = Exchange(replay_seconds=0, lane=Lane(0.0)), 0
    wanted = filters.parse([f"labels.x{n}" for n in range(150)] + ['topic=="/last",event.container_id!=x'])
    with exchange.subscribe(wanted) as subscription:
        publish(exchange, "/last", task_pb2.TaskOOM(container_id="a" * 10_000))
        found = asyncio.ensure_future(anext(subscription))
        while not found.done():
            turns += 1
            publish(exchange, "/other", task_pb2.TaskOOM(container_id="x"))
            await asyncio.sleep(0)
        assert found.result().topic == "/last"
    assert turns > 150


async def test_a_field_of_an_event_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds however many conditions read the field: it may be a megabyte, which protobuf copies each time."""
    exchange, read = Exchange(replay_seconds=0), []
    message_field = events.message_field

    def reading(message: Message, path: Sequence[str]) -> tuple[str, bool]:
        read.append(tuple(path))
        return message_field(message, path)

    monkeypatch.setattr(events, "message_field", reading)
    wanted = filters.parse([f"event.container_id==x{n}" for n in range(1000)] + ["event.container_id!=y"])
    with exchange.subscribe(wanted) as one, exchange.subscribe(wanted) as other:
        publish(exchange, "/t", task_pb2.TaskOOM(container_id="a" * 10_000))
        publish(exchange, "/u", task_pb2.TaskOOM(container_id="y"))
        publish(exchange, "/v", task_pb2.TaskOOM(container_id="b"))
        assert [(await anext(each)).topic for each in (one, other) for _ in range(2)] == ["/t", "/v"] * 2
    assert len(read) <= 6, "at most once for each event and each turn in which it is matched"


async def test_an_exit_that_cannot_be_decoded_goes_through() -> None:
    """It goes through twice, since its container is unknown."""
    exchange = Exchange(replay_seconds=0)
    broken = pack(task_pb2.TaskExit())
    broken.value = b"\xff\xff"
    with exchange.subscribe() as subscription:
        exchange.publish("default", "/1", broken)
        exchange.publish("default", "/2", broken)
        assert await waiting(subscription) == ["/1", "/2"]


@pytest.mark.parametrize("time", [Timestamp(seconds=1, nanos=-5), Timestamp(seconds=1 << 60)])
async def test_an_exit_at_a_time_that_is_none_is_told_once(time: Timestamp) -> None:
    """As in containerd, no event is lost by a shim's clock or by its bug."""
    exchange = Exchange(replay_seconds=0)
    exited = pack(task_pb2.TaskExit(container_id="c", id="c", pid=3, exited_at=time))
    with exchange.subscribe() as subscription:
        for topic in ("/1", "/2"):
            exchange.publish("default", topic, exited)
        assert await waiting(subscription) == ["/1"]


async def test_shims_forward_over_ttrpc_into_the_same_exchange() -> None:
    """The ttrpc service has one method, which is answered once the event is queued."""
    exchange = Exchange(replay_seconds=0)
    servicer = events.TtrpcEventsServicer(exchange)
    envelope = Envelope(namespace="n", topic="/tasks/oom", event=pack(task_pb2.TaskOOM()))
    envelope.timestamp.FromSeconds(5)
    with exchange.subscribe() as subscription:
        await servicer.Forward(ttrpc_pb.ForwardRequest(envelope=envelope), Call("", {}))
        assert await waiting(subscription) == ["/tasks/oom"]
    assert servicer.SERVICE.full_name == "containerd.services.events.ttrpc.v1.Events"


async def test_a_client_that_stops_reading_is_cut_off_on_the_wire(place: Path) -> None:
    """It finds the status after the events that had been sent; publishers did not wait for it meanwhile."""
    exchange = Exchange(replay_seconds=0, queue_events=50)
    async with (
        rpc.serving(place / "e.sock", [events.EventsServicer(exchange)]),
        rpc.Channel(place / "e.sock") as channel,
    ):
        stream = channel.client(events.EventsServicer.SERVICE).Subscribe(pb.SubscribeRequest())
        first = asyncio.ensure_future(anext(stream))
        await eventually_async(lambda: asyncio.sleep(0, exchange.subscribers), "no subscription")
        sent = 0
        async with asyncio.timeout(60):
            while exchange.subscribers:  # flow control fills up first: some hundred KiB
                publish(exchange, f"/n/{sent}", task_pb2.TaskOOM(container_id="x" * 4000))
                sent += 1
                await asyncio.sleep(0)
        got = [(await first).topic]
        with pytest.raises(errors.ResourceExhausted, match="subscriber too slow"):
            async for envelope in stream:
                got.append(envelope.topic)
        assert got == [f"/n/{n}" for n in range(len(got))]
        assert 0 < len(got) < sent


async def test_many_that_do_not_read_hold_little(place: Path) -> None:
    """Neither their queues nor their streams hold much: unsent events wait in the exchange, once for all, and within
    its bound.
    """
    exchange = Exchange(replay_seconds=0, subscribers_bytes=200_000)
    async with (
        rpc.serving(place / "e.sock", [events.EventsServicer(exchange)]) as server,
        rpc.Channel(place / "e.sock") as channel,
    ):
        streams = [channel.stream("/containerd.services.events.v1.Events/Subscribe", {}) for _ in range(50)]
        for stream in streams:
            await stream.send(b"")
            await stream.done_sending()
        await eventually_async(lambda: asyncio.sleep(0, exchange.subscribers == 50), "not all subscribed")
        async with asyncio.timeout(60):
            sent = 0
            while exchange.subscribers > 40:
                publish(exchange, f"/n/{sent}", task_pb2.TaskOOM(container_id="x" * 4000))
                sent += 1
                await asyncio.sleep(0)
                if isinstance(server, WireServer):
                    assert all(
                        each.queued <= 4 * 4096 for link in server.links for each in link.connection.streams.values()
                    )
        assert exchange._backlog.bytes <= 200_000
        for stream in streams:
            await stream.__aexit__()
