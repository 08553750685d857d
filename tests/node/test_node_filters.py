"""Filters that would take a backtracking matcher for ever, in each process that matches filters, as a client uses
them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.containerd.events import container_pb2, image_pb2
from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.events.v1 import events_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.introspection.v1 import introspection_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from services.kit import errors
from services.kit.any import pack
from services.kit.rpc import Channel
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]

HEADERS = {"containerd-namespace": "default"}
NAME = "a" * 60 + "!"
SLOW = '"(a+)+$"'
"""If it does not match, a backtracking matcher tries 2^60 ways."""


def caller(channel: Channel, module: Any, service: str) -> Any:
    return channel.client(module.DESCRIPTOR.services_by_name[service])


@pytest.fixture
async def channel(node: Node) -> Any:
    async with Channel(node.socket) as channel:
        yield channel


async def test_every_list(channel: Channel) -> None:
    """Images, containers, leases, blobs, snapshots, plugins: each list is answered at once, and selects as Go would."""
    images = caller(channel, images_pb2, "Images")
    image = images_pb2.Image(name=NAME, labels={"l": NAME})
    image.target.digest, image.target.media_type, image.target.size = "sha256:" + "a" * 64, "x", 1
    await images.Create(images_pb2.CreateImageRequest(image=image), headers=HEADERS, timeout=5)
    containers = caller(channel, containers_pb2, "Containers")
    container = containers_pb2.Container(
        id="hostile",
        labels={"l": NAME},
        runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
        spec=pack(image),
    )
    await containers.Create(containers_pb2.CreateContainerRequest(container=container), headers=HEADERS, timeout=5)
    leases = caller(channel, leases_pb2, "Leases")
    await leases.Create(leases_pb2.CreateRequest(id="hostile", labels={"l": NAME}), headers=HEADERS, timeout=5)

    for pattern, found in ((SLOW, 0), ('"(a+)+!$"', 1)):
        for wanted in (f"name~={pattern}", f"labels.l~={pattern}"):
            assert (
                len(
                    (
                        await images.List(images_pb2.ListImagesRequest(filters=[wanted]), headers=HEADERS, timeout=5)
                    ).images
                )
                == found
            )
        listed = await containers.List(
            containers_pb2.ListContainersRequest(filters=[f"labels.l~={pattern}"]), headers=HEADERS, timeout=5
        )
        assert len(listed.containers) == found
        assert (
            len(
                (
                    await leases.List(
                        leases_pb2.ListRequest(filters=[f"labels.l~={pattern}"]), headers=HEADERS, timeout=5
                    )
                ).leases
            )
            == found
        )

    wanted = f"labels.l~={SLOW}"
    blobs = caller(channel, content_pb2, "Content").List(
        content_pb2.ListContentRequest(filters=[wanted]), headers=HEADERS, timeout=5
    )
    assert not [blob async for answer in blobs for blob in answer.info]
    snapshots = caller(channel, snapshots_pb2, "Snapshots").List(
        snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs", filters=[wanted]), headers=HEADERS, timeout=5
    )
    assert not [snapshot async for answer in snapshots for snapshot in answer.info]
    plugins = await caller(channel, introspection_pb2, "Introspection").Plugins(
        introspection_pb2.PluginsRequest(filters=[f"id~={SLOW}"]), headers=HEADERS, timeout=5
    )
    assert not plugins.plugins


async def test_subscribers(channel: Channel) -> None:
    """The gateway matches events: a hostile filter delays no other subscriber, and one with a costly filter gets its
    events in order.
    """
    events = caller(channel, events_pb2, "Events")
    wanted = [f"event.name~={SLOW}", 'event.name~=^b(a|b)*a(a|b){20}!$,topic=="/images/create"', "event.id==last"]
    stream = events.Subscribe(events_pb2.SubscribeRequest(filters=wanted), headers=HEADERS)
    got: list[str] = []

    async def take() -> None:
        async for envelope in stream:
            if envelope.topic == "/containers/create":
                return
            got.append(image_pb2.ImageCreate.FromString(envelope.event.value).name)

    taking = asyncio.ensure_future(take())
    expected = []
    last = container_pb2.ContainerCreate(id="last")
    for n in range(1000):
        event = image_pb2.ImageCreate(name="b" + NAME + str(n) * (n % 2) + "ab" * 2000 * (n % 3 == 0))
        if event.name == "b" + NAME:
            expected.append(event.name)
        await events.Publish(
            events_pb2.PublishRequest(topic="/images/create", event=pack(event)), headers=HEADERS, timeout=5
        )
        if taking.done():
            break
    await events.Publish(
        events_pb2.PublishRequest(topic="/containers/create", event=pack(last)), headers=HEADERS, timeout=5
    )
    await asyncio.wait_for(taking, 20)
    # The stream may have begun after some were published: what it got is the end of them.
    assert got
    assert got == expected[-len(got) :]


async def test_a_filter_of_a_message(channel: Channel) -> None:
    """It is as large as a message may be: metadata and the gateway refuse it with a short error."""
    large = ["name==" + "x" * 4_000_000] * 3
    images, events = caller(channel, images_pb2, "Images"), caller(channel, events_pb2, "Events")
    with pytest.raises(errors.InvalidArgument, match="filters: 12000018 characters, at most"):
        await images.List(images_pb2.ListImagesRequest(filters=large), headers=HEADERS, timeout=5)
    with pytest.raises(errors.NodeError, match="filters: 12000018 characters, at most"):
        await anext(aiter(events.Subscribe(events_pb2.SubscribeRequest(filters=large), headers=HEADERS, timeout=5)))
