"""Taps: what an operator sees of the calls to a service, and what is never shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.streaming.v1 import streaming_stubs
from api.containerd.types.transfer import registry_pb2
from client.taps_remote import Asked, Called, Passed, RemoteTaps
from gateway.config import Config
from gateway.relay import Relay
from gateway.routes import Routes
from gateway.taps_server import TapsServicer
from services.kit import errors, rpc
from services.kit.rpc import NAMESPACE, Call
from tests.spans import Kind, recorded
from tests.support import eventually_async

pytestmark = pytest.mark.once

SECRET = "hunter2-hunter2"
HEADERS = {NAMESPACE: "n"}


@pytest.fixture(autouse=True, params=["wire", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport that carries all calls."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)


@dataclass
class Images:
    """Images, some of which are not there."""

    asked: int = 0
    SERVICE = images_stubs.IMAGES

    async def Get(self, request: images_pb2.GetImageRequest, call: Call) -> images_pb2.GetImageResponse:
        self.asked += 1
        if request.name == "absent":
            raise errors.NotFound('image "absent"')
        return images_pb2.GetImageResponse(image=images_pb2.Image(name=request.name))


@dataclass
class Streams:
    """Answers each message with the same."""

    SERVICE = streaming_stubs.STREAMING

    async def Stream(self, requests: AsyncIterator[AnyMessage], call: Call) -> AsyncIterator[AnyMessage]:
        async for request in requests:
            yield request


@dataclass
class Containers:
    """Containers as they are created."""

    all: dict[str, containers_pb2.Container] = field(default_factory=dict)
    SERVICE = containers_stubs.CONTAINERS

    async def Create(
        self, request: containers_pb2.CreateContainerRequest, call: Call
    ) -> containers_pb2.CreateContainerResponse:
        self.all[request.container.id] = request.container
        return containers_pb2.CreateContainerResponse(container=request.container)


class Content:
    """Content whose Write takes everything; raw calls only reach it."""

    SERVICE = content_stubs.CONTENT

    async def Write(
        self, requests: AsyncIterator[content_pb2.WriteContentRequest], call: Call
    ) -> AsyncIterator[content_pb2.WriteContentResponse]:
        size = 0
        async for request in requests:
            size += len(request.data)
            yield content_pb2.WriteContentResponse(action=request.action, offset=size)


@dataclass
class Scene:
    channel: rpc.Channel
    taps: RemoteTaps
    servicer: TapsServicer
    routes: Routes
    images: Images


@contextlib.asynccontextmanager
async def scene(place: Path) -> AsyncIterator[Scene]:
    """A gateway in front of a few services."""
    config, images = Config(), Images()
    routes = Routes(place, config, {})
    servicer = TapsServicer(routes)
    watches = [asyncio.ensure_future(upstream.watch()) for upstream in routes.upstreams]
    try:
        async with (
            rpc.serving(place / "images.sock", [images, Streams()], relayed=True),
            rpc.serving(place / "metadata.sock", [Containers()], relayed=True),
            rpc.serving(place / "content.sock", [Content()], relayed=True),
            rpc.serving(place / "g.sock", [servicer], relay=Relay(routes, config, internal=True), relayed=True),
            rpc.Channel(place / "g.sock", "gateway") as channel,
        ):
            yield Scene(channel, RemoteTaps(channel), servicer, routes, images)
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


@contextlib.asynccontextmanager
async def tapped(here: Scene, **chosen: Any) -> AsyncIterator[Any]:
    """The events of a tap that stands when the block begins."""
    tap: Any = here.taps.tap(**chosen)
    assert await anext(tap) is None
    try:
        yield tap
    finally:
        await tap.aclose()


async def get(here: Scene, name: str, headers: Mapping[str, str] = HEADERS) -> None:
    await here.channel.client(images_stubs.IMAGES).Get(images_pb2.GetImageRequest(name=name), headers=headers)


async def test_calls_are_seen_as_they_pass(place: Path) -> None:
    """Which service, namespace, size, code and trace; those of other methods and namespaces are not."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with scene(place) as here, tapped(here, service="images", method="Get", namespace="n") as events:
        await get(here, "other", {NAMESPACE: "other"})
        await get(here, "a", {**HEADERS, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        with pytest.raises(errors.NotFound):
            await get(here, "absent")
        first, second = await anext(events), await anext(events)
    assert isinstance(first, Called)
    assert (first.service, first.path, first.namespace) == ("images", "/containerd.services.images.v1.Images/Get", "n")
    assert (first.sent, first.sent_bytes, first.received, first.received_bytes) == (1, 3, 1, 5)
    assert (first.code, first.message, first.trace) == (0, "", trace)
    assert 0 < first.duration < 10e9
    assert (second.code, second.message) == (errors.NotFound.code, 'image "absent": not found')
    assert (second.call, second.received) == (2, 0)


async def test_nothing_stands_when_the_tap_has_ended(place: Path) -> None:
    """Its caller may also just go away."""
    async with scene(place) as here:
        async with tapped(here):
            await get(here, "a")
            assert [tap.seen for tap in here.servicer.taps.all()] == [1]

        async def gone() -> bool:
            return not here.servicer.taps.all() and all(not [*each.instruments] for each in here.routes.upstreams)

        await eventually_async(gone, "the tap is still there")
        assert here.routes["images"].to("").channel.around is None


async def test_it_stands_at_an_upstream_that_comes_later(place: Path) -> None:
    """Such as a candidate; and a snapshotter by the name of all."""
    async with scene(place) as here, tapped(here, service="snapshots"):
        assert not [*here.routes["images"].to("").instruments]
        here.routes.know(["overlayfs"], heard=True)
        (found,) = here.routes["snapshots.overlayfs"].to("").instruments
        assert getattr(found, "words", "") == "tap of snapshots.*"


async def test_messages_are_shown_without_secrets(place: Path) -> None:
    """Specs, environment, credentials, headers, labels that nobody knows and data: their sizes only."""
    spec = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=SECRET.encode())
    container = containers_pb2.Container(
        id="box",
        image="docker.io/library/box:1",
        spec=spec,
        labels={"containerd.io/snapshot/pullsecret": SECRET, "containerd.io/gc.ref.content.0": "sha256:abc"},
        extensions={"x": spec},
    )
    answer = AnyMessage(
        type_url="containerd.types.transfer.AuthResponse",
        value=registry_pb2.AuthResponse(secret=SECRET, username=SECRET).SerializeToString(),
    )
    registry = AnyMessage(
        type_url="containerd.types.transfer.OCIRegistry",
        value=registry_pb2.OCIRegistry(
            reference="registry.internal/box:1",
            resolver=registry_pb2.RegistryResolver(auth_stream=SECRET, headers={"Authorization": SECRET}),
        ).SerializeToString(),
    )
    async with scene(place) as here, tapped(here, messages=True) as events:
        await here.channel.client(containers_stubs.CONTAINERS).Create(
            containers_pb2.CreateContainerRequest(container=container), headers={**HEADERS, "authorization": SECRET}
        )
        async with here.channel.client(streaming_stubs.STREAMING).Stream(headers=HEADERS) as stream:
            for message in (answer, registry):
                await stream.send(message)
                await stream.receive()
            await stream.done_sending()
            assert await stream.receive() is None
        headers = {**HEADERS, "splitd-raw": "content"}
        async with here.channel.client(content_stubs.CONTENT).Write(headers=headers) as stream:
            await stream.send(
                content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="n/1/r", data=SECRET.encode())
            )
            await stream.receive()
            await stream.done_sending()
            assert await stream.receive() is None
        found = [await anext(events) for _ in range(11)]
    texts = [each.text for each in found if isinstance(each, Passed)]
    assert SECRET not in repr(found)
    assert texts[0] == (
        'container: {id: "box" labels: {containerd.io/gc.ref.content.0: "sha256:abc", '
        'containerd.io/snapshot/pullsecret: (15 characters)} image: "docker.io/library/box:1" '
        'spec: {type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec" value: (15 bytes)} '
        f"extensions: {{x: ({spec.ByteSize()} bytes)}}}}"
    )
    assert texts[1] == texts[0]
    assert texts[2] == f'type_url: "containerd.types.transfer.AuthResponse" value: ({len(answer.value)} bytes)'
    assert texts[4] == (
        'type_url: "containerd.types.transfer.OCIRegistry" value: {reference: "registry.internal/box:1" '
        "resolver: {auth_stream: (15 characters) headers: {Authorization: (15 characters)}}}"
    )
    assert texts[6] == 'action: WRITE ref: "n/1/r" data: (15 bytes)'
    calls = [each for each in found if isinstance(each, Called)]
    assert [(each.service, each.sent, each.received, each.code) for each in calls] == [
        ("metadata", 1, 1, 0),
        ("images", 2, 2, 0),
        ("content", 1, 1, 0),
    ]


async def test_there_are_bounds(place: Path) -> None:
    """Of taps at once."""
    async with scene(place) as here, contextlib.AsyncExitStack() as stack:
        with pytest.raises(errors.ResourceExhausted, match="there are 16 taps already"):
            while True:
                await stack.enter_async_context(tapped(here))


async def test_a_client_that_leaves_ends_the_call(place: Path) -> None:
    """It is seen as cancelled."""
    async with scene(place) as here, tapped(here) as events:
        async with here.channel.client(streaming_stubs.STREAMING).Stream(headers=HEADERS) as stream:
            await stream.send(AnyMessage(type_url="a"))
            await stream.receive()
        seen = await anext(events)
    assert (seen.code, seen.sent, seen.received) == (errors.Cancelled.code, 1, 1)


async def test_a_fault_is_in_the_trace(place: Path) -> None:
    """On the client's span, with what it does: of a call that passes through, and of one that a servicer makes. Both
    transports have such a span then, and the tap's trace is the call's.
    """
    async with scene(place) as here, tapped(here, service="images") as events:
        fault = await here.taps.fault(Asked(service="images", method="*", error="ABORTED", share=1.0))
        with recorded() as spans:
            with pytest.raises(errors.Aborted, match=f"injected by splitd fault \\({fault.id}\\)"):
                await get(here, "a")
            with pytest.raises(errors.Aborted):
                async with here.channel.client(streaming_stubs.STREAMING).Stream(headers=HEADERS) as stream:
                    await stream.send(AnyMessage(type_url="a"))
                    await stream.receive()
            for name in ("images.v1.Images/Get", "streaming.v1.Streaming/Stream"):
                faulted = [
                    span for span in spans.named(f"containerd.services.{name}") if "splitd.fault" in span.attributes
                ]
                (span,) = faulted
                assert span.kind is Kind.CLIENT
                assert span.attributes["splitd.fault"] == f"{fault.id}: {fault.words}"
                assert [event.name for event in span.events] == ["fault.injected"]
                assert span.status.failed
                seen = await anext(events)
                assert seen.trace == f"{span.context.trace_id:032x}"
        await here.taps.stop(fault.id)
        assert here.images.asked == 0
