"""Events through the gateway's process: both its gRPC sockets, the shims' ttrpc socket, and a restart while a client
subscribes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.events import task_pb2
from api.containerd.services.events.v1 import events_pb2 as pb
from api.containerd.services.ttrpc.events.v1 import events_pb2 as ttrpc_pb
from api.containerd.services.ttrpc.events.v1 import events_stubs
from api.containerd.types.event_pb2 import Envelope
from gateway.events import REPLAY_SECONDS
from services.kit import errors, rpc, ttrpc
from services.kit.any import pack
from tests.suites import events as suite
from tests.suites.introspection import INTROSPECTION, VERSION
from tests.support import ServiceProcess, eventually_async, short_directory

TTRPC_EVENTS = events_stubs.EVENTS


@pytest.fixture(scope="module")
def gateway() -> Iterator[ServiceProcess]:
    """The gateway without any service behind it."""
    with (
        short_directory() as place,
        ServiceProcess(
            "gateway",
            place / "root",
            place / "state",
            sockets=("containerd.sock", "containerd.sock.ttrpc", "internal.sock"),
        ) as process,
    ):
        yield process


class TestGateway(suite.NodeEventsSuite):
    """The public socket."""

    @pytest.fixture
    async def events(self, gateway: ServiceProcess) -> AsyncIterator[Any]:
        async with rpc.Channel(gateway.state / "containerd.sock") as channel:
            yield suite.client(channel)


async def test_a_shims_event_reaches_clients(gateway: ServiceProcess) -> None:
    """An event from ttrpc arrives unchanged over gRPC; an invalid envelope is refused in the same words."""
    async with (
        ttrpc.Channel(gateway.state / "containerd.sock.ttrpc") as shim,
        rpc.Channel(gateway.state / "containerd.sock") as channel,
    ):
        sent = Envelope(namespace="shims", topic="/tasks/oom", event=pack(task_pb2.TaskOOM(container_id="c")))
        sent.timestamp.FromSeconds(1_700_000_000)
        async with suite.subscribed(suite.client(channel), "namespace==shims") as subscriber:
            await shim.client(TTRPC_EVENTS).Forward(ttrpc_pb.ForwardRequest(envelope=sent))
            assert await subscriber.seen() == [sent]
        sent.topic = "tasks"
        with pytest.raises(errors.InvalidArgument, match="must start with '/'"):
            await shim.client(TTRPC_EVENTS).Forward(ttrpc_pb.ForwardRequest(envelope=sent))


async def test_events_of_services_reach_clients(gateway: ServiceProcess) -> None:
    """The internal socket leads into the same exchange."""
    async with (
        rpc.Channel(gateway.state / "internal.sock") as inside,
        rpc.Channel(gateway.state / "containerd.sock") as channel,
    ):
        async with suite.subscribed(suite.client(channel), "namespace==inside") as subscriber:
            await suite.publish(suite.client(inside), "/images/create", task_pb2.TaskOOM(), "inside")
            assert await subscriber.topics() == ["/images/create"]


async def test_a_subscriber_that_comes_back_after_a_crash_missed_nothing(gateway: ServiceProcess) -> None:
    """A killed gateway ends the subscription with UNAVAILABLE; a client that soon subscribes to the next one gets the
    events published to it before. Its id is the same.
    """
    async with (
        rpc.Channel(gateway.state / "containerd.sock") as channel,
        rpc.Channel(gateway.state / "internal.sock") as inside,
    ):
        events, introspection = suite.client(channel), channel.client(INTROSPECTION)
        before = await introspection.Server(Empty())
        async with suite.subscribed(events) as subscriber:
            gateway.kill()
            with pytest.raises(errors.Unavailable):
                await subscriber.seen()

        async def first_of_the_next() -> tuple[str, float]:
            """Return a subscriber's first event, and the age of the gateway then, at most."""
            begun = time.perf_counter()  # the gateway's time, which goes on if this process stands
            gateway.start()
            assert await channel.wait_connected(5)
            assert await inside.wait_connected(5)
            await suite.publish(suite.client(inside), "/tasks/exit", suite.exit_of("crash"), "crash")
            async with contextlib.aclosing(
                events.Subscribe(pb.SubscribeRequest(filters=["namespace==crash"]))
            ) as stream:
                first = asyncio.ensure_future(anext(stream))
                while not first.done():
                    await suite.publish(suite.client(inside), "/later", task_pb2.TaskOOM(), "crash")
                    await asyncio.wait([first], timeout=0.1)
                return (await first).topic, time.perf_counter() - begun

        while (told := await first_of_the_next())[0] != "/tasks/exit":
            assert told[1] > REPLAY_SECONDS, "what was published before is lost"
            gateway.kill()  # the machine was too slow to come in time
        after = await introspection.Server(Empty())
        assert (after.uuid, after.pid) == (before.uuid, gateway.pid) != (before.uuid, before.pid)


async def test_a_gateway_that_stops_ends_subscriptions_at_once(gateway: ServiceProcess) -> None:
    """A Subscribe does not delay the end of the process."""
    async with rpc.Channel(gateway.state / "containerd.sock") as channel:
        events = suite.client(channel)
        async with suite.subscribed(events) as subscriber:
            assert gateway.stop(4.0) == 0
            with pytest.raises(errors.Unavailable):
                await subscriber.seen()
    gateway.start()
    async with rpc.Channel(gateway.state / "containerd.sock") as channel:

        async def answers() -> bool:
            return bool((await channel.client(VERSION).Version(Empty())).version)

        await eventually_async(answers, "the gateway is not back")
