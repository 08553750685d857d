"""The services behind the gateway are replaced while it runs: the next call goes to the new one, whichever path it
takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from api.containerd.types.mount_pb2 import Mount
from api.splitd.records.v1 import records_pb2, records_stubs
from gateway.config import Config
from gateway.content import ContentServicer
from gateway.events import Exchange
from gateway.hop import Hop
from gateway.intents import Intents
from gateway.relay import Relay
from gateway.remote import RemoteRecords
from gateway.routes import Routes
from gateway.snapshots import SnapshotsServicer
from gateway.upstream import Upstream
from gateway.writes import Commit
from services.kit import errors, rpc
from services.kit.rpc import NAMESPACE, Call
from tests.support import eventually_async

pytestmark = pytest.mark.once

HEADERS = {NAMESPACE: "n"}
SMALL = b"a small blob"
DIGEST = f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
LARGE = bytes(100_000)
LARGE_DIGEST = f"sha256:{hashlib.sha256(LARGE).hexdigest()}"


@pytest.fixture(autouse=True, params=["wire", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport that carries all calls."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)


@dataclass
class Images:
    """Images whose answers have its own name."""

    name: str
    SERVICE = images_stubs.IMAGES

    async def Get(self, request: images_pb2.GetImageRequest, call: Call) -> images_pb2.GetImageResponse:
        return images_pb2.GetImageResponse(image=images_pb2.Image(name=self.name))


@dataclass
class Tasks:
    """Tasks whose processes end with its own status, or not at all."""

    status: int | None
    waits: int = 0
    SERVICE = tasks_stubs.TASKS

    async def Wait(self, request: tasks_pb2.WaitRequest, call: Call) -> tasks_pb2.WaitResponse:
        self.waits += 1
        if self.status is None:
            await asyncio.Event().wait()
        return tasks_pb2.WaitResponse(exit_status=self.status)


@dataclass
class Content:
    """Content with blobs by digest; it counts its Reads."""

    blobs: dict[str, bytes]
    reads: int = 0
    SERVICE = content_stubs.CONTENT

    async def Read(
        self, request: content_pb2.ReadContentRequest, call: Call
    ) -> AsyncIterator[content_pb2.ReadContentResponse]:
        self.reads += 1
        yield content_pb2.ReadContentResponse(data=self.blobs[request.digest])


@dataclass
class Snapshotter:
    """A snapshotter with mounts of its own; a Prepare waits for ``go``."""

    source: str
    asked: int = 0
    preparing: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    SERVICE = snapshots_stubs.SNAPSHOTS

    async def Mounts(self, request: snapshots_pb2.MountsRequest, call: Call) -> snapshots_pb2.MountsResponse:
        self.asked += 1
        return snapshots_pb2.MountsResponse(mounts=[Mount(source=self.source)])

    async def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, call: Call
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        self.preparing.set()
        await self.go.wait()
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[Mount(source=self.source)])


@dataclass
class Metadata:
    """Metadata that says that each namespace has everything; it records which gateway announced itself, and all
    requests.
    """

    incarnations: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    SERVICE = records_stubs.RECORDS

    async def Connect(self, request: records_pb2.ConnectRequest, call: Call) -> records_pb2.ConnectResponse:
        self.incarnations.append(request.incarnation)
        return records_pb2.ConnectResponse()

    async def ResolveBlob(self, request: records_pb2.ResolveBlobRequest, call: Call) -> records_pb2.Blob:
        self.asked.append("ResolveBlob")
        size = len(SMALL) if request.digest == DIGEST else len(LARGE)
        return records_pb2.Blob(digest=request.digest, size=size, backend="content")

    async def ResolveSnapshot(self, request: records_pb2.ResolveSnapshotRequest, call: Call) -> records_pb2.Snapshot:
        self.asked.append("ResolveSnapshot")
        return records_pb2.Snapshot(raw_key=f"n/1/{request.key}", backend=f"snapshots.{request.snapshotter}")

    async def BeginSnapshot(self, request: records_pb2.BeginSnapshotRequest, call: Call) -> records_pb2.Intent:
        self.asked.append("BeginSnapshot")
        return records_pb2.Intent(id=str(uuid.uuid4()), backend="snapshots.overlayfs", raw_key=f"n/2/{request.key}")

    async def Finish(self, request: records_pb2.FinishRequest, call: Call) -> records_pb2.Finished:
        self.asked.append("Finish")
        return records_pb2.Finished()

    async def Cancel(self, request: records_pb2.CancelRequest, call: Call) -> Empty:
        self.asked.append("Cancel")
        return Empty()


@contextlib.asynccontextmanager
async def gateway(
    place: Path, lasting: Callable[[str], bool] = lambda _: True
) -> AsyncIterator[tuple[Routes, rpc.Channel]]:
    """A gateway's calls on ``place/g.sock``, as its process has them, in front of the sockets in ``place``.
    ``lasting`` says whether a snapshotter's mounts last.
    """
    config = Config()
    routes = Routes(place, config, {})
    routes.know(["overlayfs"], heard=True)
    records = RemoteRecords(routes["metadata"], Exchange(), content="content", snapshotters=routes.snapshotters)
    intents = Intents(records)
    content = ContentServicer(routes["content"], records, Commit(records, intents), config)
    relay = Relay(routes, config, internal=True, coordinated=content.coordinated, joined=content.joined)
    watches = [asyncio.ensure_future(upstream.watch()) for upstream in routes.upstreams]
    routes.added.append(lambda upstream: watches.append(asyncio.ensure_future(upstream.watch())))
    servicers: list[rpc.Servicer] = [content, SnapshotsServicer(routes, records, intents, config, lasting)]
    try:
        async with (
            rpc.serving(place / "g.sock", servicers, relay=relay, relayed=True),
            rpc.Channel(place / "g.sock", "gateway") as channel,
        ):
            yield routes, channel
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def replace(routes: Routes, place: Path, name: str, socket: str) -> None:
    """From now on the server on ``socket`` is the upstream for ``name``."""
    routes[name].replace(routes.upstream(name, place / socket, "another"))


@pytest.mark.parametrize("many", [False, True], ids=["alone", "among many"])
async def test_a_relayed_call_goes_to_the_current_upstream(place: Path, many: bool) -> None:
    """It goes on the connection and with the headers of the calls before, which the transport has cached."""
    async with (
        rpc.serving(place / "images.sock", [Images("one")], relayed=True),
        rpc.serving(place / "other.sock", [Images("other")], relayed=True),
        gateway(place) as (routes, channel),
    ):
        client = channel.client(images_stubs.IMAGES)

        async def names() -> set[str]:
            answers = await asyncio.gather(
                *(client.Get(images_pb2.GetImageRequest(), headers=HEADERS, together=many) for _ in range(3))
            )
            return {answer.image.name for answer in answers}

        assert await names() == {"one"}
        replace(routes, place, "images", "other.sock")
        assert await names() == {"other"}


async def test_a_repeated_call_goes_to_the_current_upstream(place: Path) -> None:
    """A Wait lasts; when its service ends, the Wait is repeated to the service in its place."""
    old, new = Tasks(None), Tasks(7)
    async with rpc.serving(place / "other.sock", [new]), gateway(place) as (routes, channel):
        async with rpc.serving(place / "tasks.sock", [old], grace=0):
            waiting = asyncio.ensure_future(
                channel.client(tasks_stubs.TASKS).Wait(tasks_pb2.WaitRequest(), headers=HEADERS, timeout=30)
            )
            await eventually_async(lambda: asyncio.sleep(0, old.waits == 1), "the Wait does not come")
            replace(routes, place, "tasks", "other.sock")
            assert not waiting.done()
        assert (await waiting).exit_status == 7
    assert (old.waits, new.waits) == (1, 1)


async def test_mounts_are_forgotten_and_small_blobs_are_not(place: Path) -> None:
    """The gateway's own calls go to the new ones. The new snapshotter decides how a snapshot is mounted; the bytes of a
    digest cannot change.
    """
    blobs = {DIGEST: SMALL, LARGE_DIGEST: LARGE}
    contents = [Content(blobs), Content(blobs)]
    snapshotters = [Snapshotter("one"), Snapshotter("other")]
    async with (
        rpc.serving(place / "metadata.sock", [Metadata()]),
        rpc.serving(place / "content.sock", [contents[0]]),
        rpc.serving(place / "content2.sock", [contents[1]]),
        rpc.serving(place / "snapshots-overlayfs.sock", [snapshotters[0]]),
        rpc.serving(place / "overlayfs2.sock", [snapshotters[1]]),
        gateway(place) as (routes, channel),
    ):

        async def read(digest: str) -> bytes:
            request = content_pb2.ReadContentRequest(digest=digest)
            stream = channel.client(content_stubs.CONTENT).Read(request, headers=HEADERS)
            return b"".join([response.data async for response in stream])

        async def source() -> str:
            request = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key="k")
            answer = await channel.client(snapshots_stubs.SNAPSHOTS).Mounts(request, headers=HEADERS)
            return answer.mounts[0].source

        for _ in range(2):
            assert (await read(DIGEST), await read(LARGE_DIGEST), await source()) == (SMALL, LARGE, "one")
        assert (contents[0].reads, snapshotters[0].asked) == (3, 1)
        replace(routes, place, "content", "content2.sock")
        replace(routes, place, "snapshots.overlayfs", "overlayfs2.sock")
        for _ in range(2):
            assert (await read(DIGEST), await read(LARGE_DIGEST), await source()) == (SMALL, LARGE, "other")
        assert (contents[0].reads, snapshotters[0].asked) == (3, 1)
        assert (contents[1].reads, snapshotters[1].asked) == (2, 1)


async def test_mounts_are_kept_only_while_their_snapshotter_says_that_they_last(place: Path) -> None:
    """Another release of it may say otherwise: then those that are kept are no answers any more."""
    says = {"overlayfs": False}
    snapshotter = Snapshotter("one")
    async with (
        rpc.serving(place / "metadata.sock", [Metadata()]),
        rpc.serving(place / "snapshots-overlayfs.sock", [snapshotter]),
        gateway(place, says.__getitem__) as (_, channel),
    ):
        client = channel.client(snapshots_stubs.SNAPSHOTS)

        async def asked() -> int:
            for _ in range(2):
                await client.Mounts(snapshots_pb2.MountsRequest(snapshotter="overlayfs", key="k"), headers=HEADERS)
            return snapshotter.asked

        assert await asked() == 2
        says["overlayfs"] = True
        assert await asked() == 3
        says["overlayfs"] = False
        assert await asked() == 5


async def test_mounts_of_a_snapshotter_that_ends_behind_its_answer_are_forgotten(place: Path) -> None:
    """It comes back with other options while metadata is told of the snapshot that it has made."""
    snapshotter, hops = Snapshotter("one"), list[Hop]()
    snapshotter.go.set()

    class Store(Metadata):
        async def Finish(self, request: records_pb2.FinishRequest, call: Call) -> records_pb2.Finished:
            snapshotter.source = "other"
            hops[0].tell()
            return await super().Finish(request, call)

        async def ResolveSnapshot(
            self, request: records_pb2.ResolveSnapshotRequest, call: Call
        ) -> records_pb2.Snapshot:
            return records_pb2.Snapshot(raw_key=f"n/2/{request.key}", backend="snapshots.overlayfs")

    async with (
        rpc.serving(place / "metadata.sock", [Store()]),
        rpc.serving(place / "snapshots-overlayfs.sock", [snapshotter]),
        gateway(place) as (routes, channel),
    ):
        hops.append(routes["snapshots.overlayfs"])
        client = channel.client(snapshots_stubs.SNAPSHOTS)
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="k")
        assert (await client.Prepare(prepare, headers=HEADERS)).mounts[0].source == "one"
        mounts = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key="k")
        assert (await client.Mounts(mounts, headers=HEADERS)).mounts[0].source == "other"


async def test_a_hop_is_asked_with_what_the_call_is_about(place: Path) -> None:
    """For each call: its namespace, and the key if the gateway parses the request."""
    async with (
        rpc.serving(place / "metadata.sock", [Metadata()]),
        rpc.serving(place / "content.sock", [Content({DIGEST: SMALL, LARGE_DIGEST: LARGE})]),
        rpc.serving(place / "images.sock", [Images("one")]),
        rpc.serving(place / "snapshots-overlayfs.sock", [Snapshotter("one")]),
        gateway(place) as (routes, channel),
    ):
        asked: dict[str, list[tuple[str, str]]] = {}

        def note(hop: Hop) -> None:
            to = hop.to

            def noted(namespace: str, key: str = "") -> Upstream:
                asked[hop.name].append((namespace, key))
                return to(namespace, key)

            hop.to = noted  # type: ignore[method-assign]

        for name in ("content", "images", "snapshots.overlayfs"):
            note(routes[name])
        for namespace in ("n", "m"):
            asked |= {"content": [], "images": [], "snapshots.overlayfs": []}
            headers = {NAMESPACE: namespace}
            await channel.client(images_stubs.IMAGES).Get(images_pb2.GetImageRequest(name="i"), headers=headers)
            mounts = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key="k")
            await channel.client(snapshots_stubs.SNAPSHOTS).Mounts(mounts, headers=headers)
            piece = content_pb2.ReadContentRequest(digest=LARGE_DIGEST, size=1)
            async for _ in channel.client(content_stubs.CONTENT).Read(piece, headers=headers):
                continue
            assert set(asked["images"]) == {(namespace, "")}
            assert asked["snapshots.overlayfs"] == [(namespace, "k")]
            assert set(asked["content"]) == {(namespace, LARGE_DIGEST), (namespace, "")}


async def test_an_intent_ends_where_it_began(place: Path) -> None:
    """It ends with the metadata that began it and the snapshotter that it was begun for. The next one begins with those
    in their place, to which the gateway has announced itself.
    """
    stores, snapshotters = [Metadata(), Metadata()], [Snapshotter("one"), Snapshotter("other")]
    async with (
        rpc.serving(place / "metadata.sock", [stores[0]]),
        rpc.serving(place / "metadata2.sock", [stores[1]]),
        rpc.serving(place / "snapshots-overlayfs.sock", [snapshotters[0]]),
        rpc.serving(place / "overlayfs2.sock", [snapshotters[1]]),
        gateway(place) as (routes, channel),
    ):
        client = channel.client(snapshots_stubs.SNAPSHOTS)

        async def prepared(key: str) -> str:
            request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=key)
            return (await client.Prepare(request, headers=HEADERS, timeout=30)).mounts[0].source

        first = asyncio.ensure_future(prepared("k"))
        await asyncio.wait_for(snapshotters[0].preparing.wait(), 30)
        replace(routes, place, "metadata", "metadata2.sock")
        replace(routes, place, "snapshots.overlayfs", "overlayfs2.sock")
        snapshotters[1].go.set()
        assert await prepared("l") == "other"
        snapshotters[0].go.set()
        assert await first == "one"
        assert [store.asked for store in stores] == [["BeginSnapshot", "Finish"]] * 2
        assert stores[0].incarnations[:1] == stores[1].incarnations

        async def mounted() -> str:
            request = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key="k")
            return (await client.Mounts(request, headers=HEADERS)).mounts[0].source

        assert await mounted() == "other"


async def test_an_upstream_that_was_not_started_is_named(place: Path) -> None:
    """The error does not name the earlier one, which is there."""
    async with rpc.serving(place / "images.sock", [Images("one")]), gateway(place) as (routes, channel):
        client = channel.client(images_stubs.IMAGES)
        await client.Get(images_pb2.GetImageRequest(), headers=HEADERS)
        routes["images"].replace(routes.upstream("images-of-mine", place / "nobody.sock"))
        with pytest.raises(errors.Unavailable, match="^service images-of-mine has been unreachable for "):
            await client.Get(images_pb2.GetImageRequest(), headers=HEADERS, timeout=1)
