"""Which blobs a node tells its fleet of: a gateway's events and lists, in any order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from api.containerd.events import content_pb2 as content_events
from api.containerd.events import image_pb2 as image_events
from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from gateway.events import EventsServicer, Exchange
from services.fleet.shared_remote import SharedBlobs
from services.kit import errors, loops, rpc
from services.kit.any import pack
from services.oci.digests import Digest
from tests.support import eventually_async, short_directory

A, B, C = (f"sha256:{digit * 64}" for digit in "abc")


class Content:
    """What the gateway has, by namespace. A list waits for ``go``."""

    SERVICE = content_stubs.CONTENT

    def __init__(self) -> None:
        self.blobs: dict[str, dict[str, int]] = {"one": {}, "two": {}, "private": {}}
        self.lists = 0
        self.go = asyncio.Event()
        self.go.set()

    async def List(self, request: pb.ListContentRequest, call: rpc.Call) -> AsyncIterator[pb.ListContentResponse]:
        found = dict(self.blobs[call.namespace])
        self.lists += 1
        await self.go.wait()
        yield pb.ListContentResponse(info=[pb.Info(digest=digest, size=size) for digest, size in found.items()])


class Kept:
    """What is told."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.more = 0

    def blobs(self, found: Mapping[str, int], more: int = 0) -> None:
        self.found, self.more = dict(found), more

    def blob(self, digest: str, size: int | None) -> None:
        if size is None:
            self.found.pop(digest, None)
        else:
            self.found[digest] = size


class Located:
    """Where blobs are; ``foreign``: their content service gives no files."""

    def __init__(self) -> None:
        self.foreign = False
        self.asked = 0

    async def locate(self, digest: Digest) -> tuple[str, int]:
        self.asked += 1
        if self.foreign:
            raise errors.Unimplemented("files of service content")
        return "/file", 1


class Gateway:
    """A gateway's side, with what it was told to have."""

    def __init__(self, place: Path) -> None:
        self.socket = place / "internal.sock"
        self.content = Content()
        self.events = Exchange()
        self.kept = Kept()
        self.files: Any = Located()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with rpc.serving(self.socket, [self.content, EventsServicer(self.events)], grace=0.1):
            yield

    def create(self, namespace: str, digest: str, size: int) -> None:
        self.content.blobs[namespace][digest] = size
        event = content_events.ContentCreate(digest=digest, size=size)
        self.events.publish(namespace, "/content/create", pack(event))

    def delete(self, namespace: str, digest: str) -> None:
        del self.content.blobs[namespace][digest]
        self.events.publish(namespace, "/content/delete", pack(content_events.ContentDelete(digest=digest)))


@contextlib.asynccontextmanager
async def following(gateway: Gateway, *, most: int = 100) -> AsyncIterator[SharedBlobs]:
    async with rpc.Channel(gateway.socket, "gateway") as channel:
        shared = SharedBlobs(channel, {"one": gateway.files, "two": gateway.files}, gateway.kept, tick=0.05, most=most)
        async with loops.running("the blobs of the fleet", shared.follow):
            yield shared


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with short_directory() as place:
        yield Gateway(place)


async def holds(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await eventually_async(look, seconds=30)


async def test_lists_and_events(gateway: Gateway) -> None:
    """A blob of two namespaces is told until both have lost it; of others that are not shared nothing is."""
    gateway.content.blobs["one"] = {A: 1}
    gateway.content.blobs["two"] = {A: 1}
    gateway.content.blobs["private"] = {C: 3}
    async with gateway.running(), following(gateway) as shared:
        await holds(lambda: gateway.kept.found == {A: 1} and not shared.trouble)
        gateway.create("private", B, 2)
        gateway.create("one", B, 2)
        await holds(lambda: gateway.kept.found == {A: 1, B: 2})
        gateway.delete("one", A)
        gateway.delete("one", B)
        await holds(lambda: gateway.kept.found == {A: 1})
        gateway.delete("two", A)
        await holds(lambda: gateway.kept.found == {})


async def test_what_changes_while_a_list_is_made(gateway: Gateway) -> None:
    """The list is older than the events that came meanwhile."""
    gateway.content.blobs["one"] = {A: 1}
    gateway.content.go.clear()
    async with gateway.running(), following(gateway):
        await holds(lambda: gateway.content.lists)
        gateway.delete("one", A)
        gateway.create("one", B, 2)
        await holds(lambda: B in gateway.kept.found)
        gateway.content.go.set()
        await holds(lambda: gateway.content.lists == 2)
        await holds(lambda: gateway.kept.found == {B: 2})


async def test_what_the_collector_removed(gateway: Gateway) -> None:
    """Nobody tells of it: the lists are asked for again after an image was removed, and once more a little later."""
    gateway.content.blobs["one"] = {A: 1, B: 2}
    async with gateway.running(), following(gateway):
        await holds(lambda: gateway.kept.found == {A: 1, B: 2})
        gateway.events.publish("private", "/images/delete", pack(image_events.ImageDelete(name="x")))
        gateway.events.publish("one", "/images/delete", pack(image_events.ImageDelete(name="x")))
        await holds(lambda: gateway.content.lists >= 4)
        del gateway.content.blobs["one"][A]
        await holds(lambda: gateway.kept.found == {B: 2})


async def test_a_gateway_that_was_away(gateway: Gateway) -> None:
    """What has changed meanwhile is told when it is back; meanwhile what was known is."""
    gateway.content.blobs["one"] = {A: 1}
    async with following(gateway) as shared:
        async with gateway.running():
            await holds(lambda: gateway.kept.found == {A: 1})
        await holds(lambda: "the gateway does not tell which blobs this node has" in shared.trouble)
        assert gateway.kept.found == {A: 1}
        gateway.content.blobs["one"] = {B: 2}
        async with gateway.running():
            await holds(lambda: gateway.kept.found == {B: 2} and not shared.trouble)


async def test_no_more_is_kept_than_the_limit(gateway: Gateway) -> None:
    """Further ones are counted, also those that come later."""
    gateway.content.blobs["one"] = {A: 1, B: 2}
    async with gateway.running(), following(gateway, most=1):
        await holds(lambda: (gateway.kept.found, gateway.kept.more) == ({A: 1}, 1))
        gateway.create("two", C, 3)
        await holds(lambda: (gateway.kept.found, gateway.kept.more) == ({A: 1}, 2))


async def test_an_event_that_makes_no_sense(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one counts."""
    async with gateway.running(), following(gateway) as shared:
        await holds(lambda: not shared.trouble)
        broken = pack(content_events.ContentCreate(digest=A, size=1))
        broken.value = b"\xff"
        gateway.events.publish("one", "/content/create", broken)
        gateway.create("one", B, 2)
        await holds(lambda: gateway.kept.found == {B: 2})
    assert "an event of /content/create makes no sense" in caplog.text


async def test_blobs_that_are_no_files_here_are_not_told(gateway: Gateway) -> None:
    """Another content service has them, so peers would get 404. Once the node's own has them, they are told."""
    gateway.files.foreign = True
    gateway.content.blobs["one"] = {A: 1}
    async with gateway.running(), following(gateway) as shared:
        await holds(lambda: "peers get no blobs of one: the content service" in shared.trouble)
        gateway.create("two", B, 2)
        await holds(lambda: "peers get no blobs of one, two: " in shared.trouble)
        assert gateway.kept.found == {}
        gateway.files.foreign = False
        gateway.events.publish("one", "/images/delete", pack(image_events.ImageDelete(name="x")))
        await holds(lambda: gateway.kept.found == {A: 1, B: 2} and not shared.trouble)
        asked = gateway.files.asked
        gateway.create("two", C, 3)
        await holds(lambda: C in gateway.kept.found)
        assert gateway.files.asked - asked <= 2, "each new blob is asked for"
