"""The images suite: on the images process over a metadata process, and on Debian's containerd, to check the suite
itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from api.containerd.services.images.v1 import images_pb2 as pb
from gateway.events import EventsServicer, Exchange
from services.kit import errors, filters, rpc
from services.kit.addresses import CONNECT_TIMEOUT
from services.kit.rpc import NAMESPACE, Channel
from tests.peer import containerd
from tests.suites import images as suite
from tests.support import ServiceProcess, freeze, short_directory

Processes = tuple[Path, ServiceProcess, ServiceProcess]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """State directory, metadata and images."""
    with short_directory() as place:
        state, config = place / "state", place / "images.toml"
        config.write_text(
            '[images]\nhold = "30s"\n'
        )  # a busy machine may start metadata in more than the 5 s of the default
        with (
            ServiceProcess("services.metadata", place / "root", state) as metadata,
            ServiceProcess("services.images", place / "root", state, config=config) as images,
        ):
            yield state, metadata, images


@pytest.fixture
async def publisher(processes: Processes) -> AsyncIterator[Channel]:
    """The events of a gateway, on the internal socket."""
    socket = processes[0] / "internal.sock"
    async with rpc.serving(socket, [EventsServicer(Exchange(replay_seconds=0))]), Channel(socket) as channel:
        yield channel


@pytest.fixture
async def channel(processes: Processes, publisher: Channel) -> AsyncIterator[Channel]:
    """The images process."""
    async with Channel(processes[0] / "images.sock") as channel:
        yield channel


class TestProcess(suite.NodeImagesSuite):
    """python -m services.images"""


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The socket of Debian's containerd."""
    with short_directory() as directory, containerd(directory) as socket:
        yield socket


@pytest.mark.root
class TestContainerd(suite.ImagesSuite):
    """Debian's containerd."""

    @pytest.fixture
    async def channel(self, debian: Path) -> AsyncIterator[Channel]:
        async with Channel(debian) as channel:
            yield channel

    @pytest.fixture
    def publisher(self, channel: Channel) -> Channel:
        return channel


def create(name: str) -> pb.CreateImageRequest:
    return pb.CreateImageRequest(image=pb.Image(name=name, target=suite.descriptor()))


async def test_a_call_waits_for_metadata_to_come_back(processes: Processes, channel: Channel) -> None:
    """A restart of metadata costs its callers a moment, not an error."""
    _, metadata, _ = processes
    images = suite.Images(channel, "waits")
    await images.create(pb.Image(name="x", target=suite.descriptor()))
    metadata.kill()
    calls = [
        asyncio.ensure_future(images.get("x")),
        asyncio.ensure_future(images.create(pb.Image(name="y", target=suite.descriptor()))),
    ]
    await asyncio.to_thread(metadata.start)
    assert [image.name for image in await asyncio.gather(*calls)] == ["x", "y"]
    assert await images.names() == ["x", "y"]


async def test_without_metadata_a_call_fails_with_its_name(place: Path) -> None:
    """It fails after the configured time, or at the caller's deadline."""
    (place / "c.toml").write_text('[images]\nhold = "200ms"\n')
    with ServiceProcess("services.images", place / "root", place / "state", config=place / "c.toml"):
        async with Channel(place / "state" / "images.sock") as channel:
            with pytest.raises(errors.Unavailable, match="^service metadata is not reachable") as raised:
                await suite.Images(channel, "n").get("x")
            assert not isinstance(raised.value, errors.Disconnected), "the images service itself is there"


async def test_a_call_is_held_once(place: Path) -> None:
    """Metadata stands still: connections succeed, and no answer comes. A read waits for the configured time, and not
    for that and the time of connecting besides.
    """
    (place / "c.toml").write_text('[images]\nhold = "200ms"\n')
    with (
        ServiceProcess("services.metadata", place / "root", place / "state") as metadata,
        ServiceProcess("services.images", place / "root", place / "state", config=place / "c.toml"),
    ):
        async with Channel(place / "state" / "images.sock") as channel:
            images = suite.Images(channel, "n")
            assert await images.names() == []
            freeze(metadata.pid)
            try:
                with pytest.raises(errors.Unavailable):
                    await images.get("x")  # until the pings are not answered
                start = time.monotonic()
                for reading in (images.get("x"), images.names()):
                    with pytest.raises(errors.Unavailable, match="^service metadata is not reachable"):
                        await reading
                assert time.monotonic() - start < CONNECT_TIMEOUT
            finally:
                os.kill(metadata.pid, signal.SIGCONT)


async def test_events_wait_for_the_gateway(processes: Processes) -> None:
    """The next gateway publishes the event of a change that was made while there was none, to subscribers that come
    back to it.
    """
    state = processes[0]
    exchange = Exchange()
    async with Channel(state / "images.sock") as channel:
        await channel.client(suite.IMAGES).Create(create("x"), headers={NAMESPACE: "gateway-away"})
    with exchange.subscribe(filters.parse(["namespace==gateway-away"])) as subscription:
        async with rpc.serving(state / "internal.sock", [EventsServicer(exchange)]), asyncio.timeout(10):
            assert (await anext(subscription)).topic == "/images/create"


async def test_a_caller_that_goes_away_does_not_part_a_change_from_its_event(processes: Processes) -> None:
    """The caller's deadline passes while metadata is slow. In the end the image exists and its event is published."""
    state, metadata, _ = processes
    exchange = Exchange(replay_seconds=0)
    async with (
        rpc.serving(state / "internal.sock", [EventsServicer(exchange)]),
        Channel(state / "images.sock") as channel,
    ):
        images = suite.Images(channel, "slow")
        assert await images.names() == []  # connected all the way
        with exchange.subscribe(filters.parse(["namespace==slow"])) as subscription:
            freeze(metadata.pid)
            try:
                with pytest.raises(errors.DeadlineExceeded):
                    await channel.client(suite.IMAGES).Create(create("x"), headers={NAMESPACE: "slow"}, timeout=0.3)
            finally:
                os.kill(metadata.pid, signal.SIGCONT)
            async with asyncio.timeout(10):
                assert (await anext(subscription)).topic == "/images/create"
        assert await images.names() == ["x"]
