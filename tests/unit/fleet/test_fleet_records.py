"""What a node tells the fleet of its images and containers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.events.v1 import events_pb2, events_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.types.event_pb2 import Envelope
from services.etcd.memory import MemoryEtcd
from services.fleet.local import FleetNode
from services.fleet.records_remote import Records
from services.fleet.store import Container
from services.kit import errors, loops, rpc
from tests.suites.fleet import BOX, NEW, OLD, becomes, box, containers, images
from tests.support import short_directory

SECONDS = 1_000_000_000


class Gateway:
    """The images, containers and events of a gateway."""

    def __init__(self) -> None:
        self.images = {"default": {BOX: OLD.digest}, "private": {BOX: NEW.digest}}
        self.containers = {"default": ["c1"], "private": ["p1"]}
        self.lists = 0
        self.subscribers: list[asyncio.Queue[Envelope]] = []
        self.down = False

    def event(self, topic: str, namespace: str = "default") -> None:
        for queue in self.subscribers:
            queue.put_nowait(Envelope(topic=topic, namespace=namespace))


class Images:
    SERVICE = images_stubs.IMAGES

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def List(self, request: images_pb2.ListImagesRequest, call: rpc.Call) -> images_pb2.ListImagesResponse:
        self._gateway.lists += 1
        if self._gateway.down:
            raise errors.Unavailable("the images service is away")
        response = images_pb2.ListImagesResponse()
        for name, digest in self._gateway.images[call.namespace].items():
            image = response.images.add(name=name)
            image.target.digest, image.target.size = digest, 500
            image.updated_at.seconds = 5
        return response


class Containers:
    SERVICE = containers_stubs.CONTAINERS

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ListStream(
        self, request: containers_pb2.ListContainersRequest, call: rpc.Call
    ) -> AsyncIterator[containers_pb2.ListContainerMessage]:
        for name in self._gateway.containers[call.namespace]:
            message = containers_pb2.ListContainerMessage()
            message.container.id, message.container.image = name, BOX
            message.container.created_at.seconds = -1
            yield message


class Events:
    SERVICE = events_stubs.EVENTS

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Subscribe(self, request: events_pb2.SubscribeRequest, call: rpc.Call) -> AsyncIterator[Envelope]:
        assert list(request.filters) == ['topic~="^/images/"', 'topic~="^/containers/"']
        queue = asyncio.Queue[Envelope]()
        self._gateway.subscribers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._gateway.subscribers.remove(queue)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    yield Gateway()


@pytest.fixture
async def node(gateway: Gateway) -> AsyncIterator[FleetNode]:
    """A node in a fleet, fed by the gateway. It lists by events only."""
    node = FleetNode(MemoryEtcd(), "/f", "a", "a:1", ["default"])
    async with contextlib.AsyncExitStack() as stack:
        socket = stack.enter_context(short_directory()) / "internal.sock"
        await stack.enter_async_context(rpc.serving(socket, [Images(gateway), Containers(gateway), Events(gateway)]))
        channel = await stack.enter_async_context(rpc.Channel(socket, "gateway"))
        records = Records(channel, node, quiet=0.01, refresh=3600, retry=0.01)
        await stack.enter_async_context(loops.running("the fleet", node.keep))
        await stack.enter_async_context(loops.running("what the fleet is told of", records.keep))
        yield node


async def test_what_the_node_has_is_told(node: FleetNode, gateway: Gateway) -> None:
    """That of shared namespaces, and each change of it."""
    await becomes(lambda: images(node), [box("a", OLD, updated=5 * SECONDS)])
    await becomes(lambda: containers(node), [Container("a", "default", "c1", BOX, 0)])
    gateway.images["default"]["x"] = NEW.digest
    gateway.containers["default"].clear()
    await becomes(lambda: asyncio.sleep(0, len(gateway.subscribers)), 1)
    gateway.event("/images/create")
    gateway.event("/containers/delete")
    await becomes(lambda: asyncio.sleep(0, node._containers._told), set())

    async def names() -> list[str]:
        return [image.name for image in await images(node)]

    await becomes(names, ["x", BOX])


async def test_other_events_list_nothing(node: FleetNode, gateway: Gateway) -> None:
    """Events of private namespaces, and about other things, are no reason to list."""
    await becomes(lambda: asyncio.sleep(0, gateway.lists), 2)  # the second time for what was before the subscription
    gateway.event("/images/create", "private")
    gateway.event("/tasks/start")
    gateway.event("/containers/update")
    gateway.containers["default"].append("c2")
    gateway.event("/containers/create")

    async def identities() -> list[str]:
        return [each.id for each in await containers(node)]

    await becomes(identities, ["c1", "c2"])
    assert gateway.lists == 2


async def test_what_was_told_stays_while_the_gateway_is_away(
    node: FleetNode, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says once why nothing new is told, and afterwards it goes on."""
    await becomes(lambda: images(node), [box("a", OLD, updated=5 * SECONDS)])
    await becomes(lambda: asyncio.sleep(0, gateway.lists), 2)
    gateway.down = True
    gateway.images["default"].clear()
    gateway.event("/images/delete")
    await becomes(lambda: asyncio.sleep(0, gateway.lists > 3), True)
    assert await images(node) == [box("a", OLD, updated=5 * SECONDS)]
    assert caplog.text.count("the fleet is not told of images and containers: the images service is away") == 1
    gateway.down = False
    await becomes(lambda: images(node), [])
