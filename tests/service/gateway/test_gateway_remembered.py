"""What the gateway remembers of metadata's answers: with services that count their calls, and with metadata itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.containers.v1 import containers_pb2 as pb
from api.containerd.services.containers.v1 import containers_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from gateway.config import Config
from gateway.instruments import Go, Order
from gateway.relay import Relay
from gateway.remembered import remembered
from gateway.routes import Routes
from services.kit import errors, rpc, tracing
from services.kit.editions import Edition, Editions
from tests.support import ServiceProcess, eventually_async

pytestmark = pytest.mark.once

CONTAINERS, IMAGES = containers_stubs.CONTAINERS, images_stubs.IMAGES
HEADERS = {"containerd-namespace": "n"}


class Containers:
    """Containers whose image is the number of the call. One that is called "held" waits until it may answer."""

    SERVICE = CONTAINERS

    def __init__(self) -> None:
        self.calls = 0
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def Get(self, request: pb.GetContainerRequest, call: rpc.Call) -> pb.GetContainerResponse:
        self.calls += 1
        image = str(self.calls)
        if request.id == "absent":
            raise errors.NotFound("container absent")
        if request.id == "held":
            self.asked.set()
            await self.go.wait()
        if request.id == "large":
            image = "x" * (1 << 20)
        return pb.GetContainerResponse(container=pb.Container(id=request.id, image=image))

    async def Update(self, request: pb.UpdateContainerRequest, call: rpc.Call) -> pb.UpdateContainerResponse:
        self.calls += 1
        return pb.UpdateContainerResponse(container=request.container)


class Images:
    """Images that count the lists."""

    SERVICE = IMAGES

    def __init__(self) -> None:
        self.calls = 0

    async def List(self, request: images_pb2.ListImagesRequest, call: rpc.Call) -> images_pb2.ListImagesResponse:
        self.calls += 1
        return images_pb2.ListImagesResponse(images=[images_pb2.Image(name=f"{self.calls}-{i}") for i in range(2000)])


class Client:
    """A client of the gateway, on a connection of its own."""

    def __init__(self, channel: rpc.Channel) -> None:
        self._containers, self._images = channel.client(CONTAINERS), channel.client(IMAGES)

    async def get(self, id_: str = "a", **headers: str) -> str:
        answer = await self._containers.Get(pb.GetContainerRequest(id=id_), headers={**HEADERS, **headers})
        assert answer.container.id == id_
        return str(answer.container.image)

    async def label(self, id_: str) -> int:
        answer = await self._containers.Get(pb.GetContainerRequest(id=id_), headers=HEADERS)
        return int(answer.container.labels["at"])

    async def set_label(self, id_: str, value: int) -> None:
        container = pb.Container(id=id_, labels={"at": str(value)}, runtime=pb.Container.Runtime(name="r"))
        request = pb.UpdateContainerRequest(container=container)
        request.update_mask.paths.append("labels")
        await self._containers.Update(request, headers=HEADERS)

    async def create(self, id_: str) -> None:
        container = pb.Container(id=id_, labels={"at": "0"}, runtime=pb.Container.Runtime(name="r"))
        await self._containers.Create(pb.CreateContainerRequest(container=container), headers=HEADERS)

    async def list_containers(self) -> list[int]:
        answer = await self._containers.List(pb.ListContainersRequest(), headers=HEADERS)
        return [int(each.labels["at"]) for each in answer.containers]

    async def list_images(self) -> list[str]:
        answer = await self._images.List(images_pb2.ListImagesRequest(), headers=HEADERS)
        return [each.name for each in answer.images]


async def connected(routes: Routes, *, there: bool = True) -> bool:
    return routes["metadata"].home.is_ready() is there


@contextlib.asynccontextmanager
async def gateway(state: Path) -> AsyncIterator[tuple[Routes, Client]]:
    """A gateway's relay in front of the sockets in ``state``, connected to those that are there."""
    config = Config()
    routes = Routes(state, config, {})
    relay = Relay(routes, config, internal=True, remembered=remembered(state, routes["metadata"]))
    watches = [asyncio.ensure_future(upstream.watch()) for upstream in routes.upstreams]
    try:
        async with (
            rpc.serving(state / "g.sock", [], relay=relay, relayed=True),
            rpc.Channel(state / "g.sock", "gateway") as channel,
        ):
            await eventually_async(lambda: connected(routes), "metadata is connected")
            yield routes, Client(channel)
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_the_same_is_asked_once_in_each_edition(place: Path) -> None:
    """By whatever connection; of each namespace and each request. A change of another table is none."""
    editions, containers, images = Editions(place, ("container", "image")), Containers(), Images()
    editions.begin()
    async with (
        rpc.serving(place / "metadata.sock", [containers], relayed=True),
        rpc.serving(place / "images.sock", [images], relayed=True),
        gateway(place) as (_, client),
        rpc.Channel(place / "g.sock", "gateway") as channel,
    ):
        assert [await client.get(), await client.get(), await Client(channel).get()] == ["1", "1", "1"]
        assert [await client.get("b"), await client.get("b")] == ["2", "2"]
        assert await client.get(**{"containerd-namespace": "other"}) == "3"
        with editions.changing([("container", "other")]):
            pass
        assert [await client.get(), await client.get("b")] == ["1", "2"]
        listed = await client.list_images()
        assert await client.list_images() == listed
        assert (len(listed), listed[0]) == (2000, "1-0")
        with editions.changing([("image",)]):
            pass
        assert await client.get() == "1"
        assert (await client.list_images())[0] == "2-0"
        with editions.changing([("container", "n")]):
            pass
        assert [await client.get(), await client.get(), await client.get("b")] == ["4", "4", "5"]
        assert (await client.list_images())[0] == "2-0"


async def test_only_what_was_answered_in_one_edition_is_remembered(place: Path) -> None:
    """No failure, nothing that is large, nothing that is answered while the table changes or after it has changed, and no
    call that changes anything.
    """
    editions, containers = Editions(place, ("container",)), Containers()
    editions.begin()
    async with rpc.serving(place / "metadata.sock", [containers], relayed=True), gateway(place) as (_, client):
        for calls in (1, 2):
            with pytest.raises(errors.NotFound, match="container absent"):
                await client.get("absent")
            assert containers.calls == calls
        assert len(await client.get("large")) == len(await client.get("large")) == 1 << 20
        assert containers.calls == 4
        with editions.changing([("container", "n")]):
            assert [await client.get(), await client.get()] == ["5", "6"]
        assert [await client.get(), await client.get()] == ["7", "7"]
        asking = asyncio.ensure_future(client.get("held"))
        await containers.asked.wait()
        with editions.changing([("container", "n")]):
            containers.go.set()
            assert await asking == "8"
        assert [await client.get("held"), await client.get("held")] == ["9", "9"]
        for calls in (10, 11):
            await client.set_label("a", 1)
            assert containers.calls == calls


class Seen:
    """A tap's instrument that counts."""

    order = Order.TAP

    def __init__(self) -> None:
        self.calls = 0

    async def unary(self, path: str, request: bytes, headers: rpc.Headers, go: Go) -> bytes:
        self.calls += 1
        return await go()

    def stream(self, path: str, headers: rpc.Headers, carried: rpc.CarriedStream) -> rpc.CarriedStream:
        return carried


async def test_calls_with_something_around_them_go_all_the_way(place: Path) -> None:
    """A tap sees each of them. What it saw is not remembered, and what was remembered before is."""
    editions, containers = Editions(place, ("container",)), Containers()
    editions.begin()
    async with rpc.serving(place / "metadata.sock", [containers], relayed=True), gateway(place) as (routes, client):
        assert [await client.get(), await client.get()] == ["1", "1"]
        seen = Seen()
        routes["metadata"].home.instruments.add(seen)
        assert [await client.get(), await client.get("b")] == ["2", "3"]
        assert seen.calls == 2
        routes["metadata"].home.instruments.remove(seen)
        assert [await client.get(), await client.get("b")] == ["1", "4"]


async def test_a_trace_says_what_was_remembered(place: Path) -> None:
    """A recorded call is answered from memory as any other; its span says so."""
    editions, containers = Editions(place, ("container",)), Containers()
    editions.begin()
    spans: list[Any] = []
    async with rpc.serving(place / "metadata.sock", [containers], relayed=True), gateway(place) as (_, client):
        tracing.setup(spans.append)
        try:
            context = {"traceparent": f"00-{1:032x}-{1:016x}-01"}
            assert [await client.get(**context), await client.get(**context)] == ["1", "1"]
        finally:
            tracing.reset()
    assert {span.name for span in spans} == {"containerd.services.containers.v1.Containers/Get"}
    assert [span.attributes for span in spans if span.attributes] == [{"splitd.remembered": True}]


async def test_nothing_is_remembered_of_an_owner_that_writes_no_editions(place: Path) -> None:
    """What an earlier one wrote says nothing."""
    editions, containers = Editions(place, ("container",)), Containers()
    editions.begin()
    os.close(editions._files.pop("container"))  # as kill -9 leaves it
    async with rpc.serving(place / "metadata.sock", [containers], relayed=True), gateway(place) as (_, client):
        assert [await client.get(), await client.get()] == ["1", "2"]


async def test_nothing_is_given_while_metadata_is_away(place: Path) -> None:
    """A call waits for it, as any other."""
    editions, containers = Editions(place, ("container",)), Containers()
    editions.begin()
    async with gateway_of(place, containers) as (routes, client, served):
        assert [await client.get(), await client.get()] == ["1", "1"]
        await served.aclose()
        await eventually_async(lambda: connected(routes, there=False), "metadata is gone")
        asking = asyncio.ensure_future(client.get())
        async with rpc.serving(place / "metadata.sock", [containers], relayed=True):
            assert await asking == "2"


@contextlib.asynccontextmanager
async def gateway_of(
    place: Path, containers: Containers
) -> AsyncIterator[tuple[Routes, Client, contextlib.AsyncExitStack]]:
    """A gateway in front of ``containers``, which the last part of the result ends."""
    async with contextlib.AsyncExitStack() as served:
        await served.enter_async_context(rpc.serving(place / "metadata.sock", [containers], relayed=True, grace=0.0))
        async with gateway(place) as (routes, client):
            yield routes, client, served


async def test_no_answer_is_older_than_a_change_that_was_answered(place: Path) -> None:
    """With metadata's own process, and many clients: whoever asks after a change was answered sees it, whoever made it;
    after kill -9 of metadata, too.
    """
    with ServiceProcess("services.metadata", place / "root", place / "state") as metadata:
        async with (
            gateway(place / "state") as (routes, client),
            rpc.Channel(place / "state" / "g.sock", "gateway") as channel,
        ):
            await client.create("a")
            known = 0
            over = asyncio.Event()

            async def reads(reader: Client) -> int:
                count = 0
                while not over.is_set():
                    least = known
                    found, listed = await reader.label("a"), await reader.list_containers()
                    assert least <= found <= listed[0]
                    count += 1
                return count

            reading = [asyncio.ensure_future(reads(each)) for each in (client, Client(channel), client)]
            for value in range(1, 80):
                await client.set_label("a", value)
                known = value
            over.set()
            assert all(await asyncio.gather(*reading))
            metadata.kill()
            metadata.start()
            async with rpc.Channel(place / "state" / "metadata.sock") as beside:
                await Client(beside).set_label("a", 1000)
                assert await client.label("a") == 1000
                await eventually_async(lambda: connected(routes), "metadata is connected again")
                for value in range(1001, 1030):
                    await Client(beside).set_label("a", value)
                    assert await client.label("a") == await client.label("a") == value
            edition = Edition(place / "state", "container")
            edition.look()
            assert edition.now()
