"""The suites of Records on metadata's process, with a stand-in for the gateway. The suite of images runs on containerd
too, to check the suite itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.events.v1 import events_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from services.kit import any as kit_any
from services.kit import rpc
from services.metadata.convert import _EVENTS, KINDS_TO_PB
from tests.peer import containerd
from tests.suites import records, records_candidates, records_images
from tests.suites.records_lives import Clients, RawStandIn, over
from tests.support import ServiceProcess, short_directory

NO_COLLECTION = '[metadata.gc]\nschedule_delay = "1h"\nstartup_delay = "0s"\nmutation_threshold = 0\n'
"""The suites hold most of what they need by leases, but not all of it."""


class StandIn:
    """The services that the process calls on internal.sock: the raw services and the receiver of events."""

    def __init__(self, raw: RawStandIn) -> None:
        self.raw = raw
        self.events: list[Any] = []
        self.servicers: list[Any] = []
        for name, pb in (("Content", content_pb2), ("Snapshots", snapshots_pb2), ("Events", events_pb2)):
            methods = {
                m.name: getattr(self, f"{name}{m.name}")
                for m in pb.DESCRIPTOR.services_by_name[name].methods
                if hasattr(self, f"{name}{m.name}")
            }
            self.servicers.append(
                type(
                    name,
                    (),
                    {
                        "SERVICE": pb.DESCRIPTOR.services_by_name[name],
                        **{k: staticmethod(v) for k, v in methods.items()},
                    },
                )()
            )

    async def ContentInfo(self, request: content_pb2.InfoRequest, call: rpc.Call) -> content_pb2.InfoResponse:
        size = await self.raw.blob_size(self._backend(call, "content"), request.digest)
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=size))

    async def ContentStatus(self, request: content_pb2.StatusRequest, call: rpc.Call) -> content_pb2.StatusResponse:
        offset = await self.raw.ingest_offset(self._backend(call, "content"), request.ref)
        return content_pb2.StatusResponse(status=content_pb2.Status(ref=request.ref, offset=offset))

    async def SnapshotsStat(
        self, request: snapshots_pb2.StatSnapshotRequest, call: rpc.Call
    ) -> snapshots_pb2.StatSnapshotResponse:
        kind = await self.raw.snapshot_kind(self._backend(call, f"snapshots.{request.snapshotter}"), request.key)
        return snapshots_pb2.StatSnapshotResponse(info=snapshots_pb2.Info(name=request.key, kind=KINDS_TO_PB[kind]))

    async def EventsForward(self, request: events_pb2.ForwardRequest, call: rpc.Call) -> Empty:
        self.events.append(request.envelope)
        return Empty()

    @staticmethod
    def _backend(call: rpc.Call, expected: str) -> str:
        assert call.headers[rpc.RAW] == expected
        assert not call.optional_namespace
        return expected


class Life:
    """Metadata's process for the suites."""

    def __init__(self, channel: rpc.Channel, stand_in: StandIn) -> None:
        self._channel = channel
        self._stand_in = stand_in
        self.raw = stand_in.raw

    def client(self, service: ServiceDescriptor) -> Any:
        return self._channel.client(service)

    def published(self, namespace: str) -> list[tuple[str, Message]]:
        found: list[tuple[str, Message]] = []
        for envelope in self._stand_in.events:
            if envelope.namespace == namespace:
                event = kit_any.unpack(envelope.event, _EVENTS[envelope.topic])
                assert event is not None, f"{envelope.topic} is of another type"
                found.append((envelope.topic, event))
        return found


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """The state directory of a metadata process."""
    with short_directory() as directory:
        (directory / "config.toml").write_text(NO_COLLECTION)
        with ServiceProcess(
            "services.metadata", directory / "root", directory / "state", config=directory / "config.toml"
        ):
            yield directory / "state"


@pytest.fixture
async def life(state: Path) -> AsyncIterator[Life]:
    stand_in = StandIn(RawStandIn())
    async with (
        rpc.serving(state / "internal.sock", stand_in.servicers),
        rpc.Channel(state / "metadata.sock") as channel,
    ):
        yield Life(channel, stand_in)


class TestGateway(records.GatewaySuite):
    """The process."""


class TestContent(records.ContentRecordsSuite):
    """The process."""


class TestSnapshots(records.SnapshotRecordsSuite):
    """The process."""


class TestCandidates(records_candidates.CandidatesSuite):
    """The process."""


class TestDeadGateway(records.DeadGatewaySuite):
    """The process."""


class TestEvents:
    """Events that metadata publishes itself."""

    async def test_events_come_in_order_with_their_namespaces_and_times(self, life: Life) -> None:
        """Events of a namespace and of a container in it arrive although the gateway was absent when they happened."""
        from tests.suites import containers, namespaces

        space = records.new_namespace()
        calls, pb = life.client(containers.CONTAINERS), containers.pb
        head = records.headers(space)
        await life.client(namespaces.NAMESPACES).Create(
            namespaces.pb.CreateNamespaceRequest(namespace=namespaces.pb.Namespace(name=space, labels={"a": "1"}))
        )
        made = containers.container("c", image="i")
        made.runtime.options.CopyFrom(containers.OPTIONS)
        await calls.Create(pb.CreateContainerRequest(container=made), headers=head)
        await calls.Update(
            pb.UpdateContainerRequest(container=containers.container("c", image="j", labels={"x": "y"})), headers=head
        )
        await calls.Delete(pb.DeleteContainerRequest(id="c"), headers=head)

        async def four() -> bool:
            return len(life.published(space)) == 4

        await records.eventually_async(four)
        topics, (created, made_event, updated, deleted) = zip(*life.published(space), strict=True)
        assert topics == ("/namespaces/create", "/containers/create", "/containers/update", "/containers/delete")
        assert (created.name, dict(created.labels)) == (space, {"a": "1"})
        assert (made_event.id, made_event.image, made_event.runtime.name, made_event.runtime.options) == (
            "c",
            "i",
            made.runtime.name,
            containers.OPTIONS,
        )
        assert (updated.id, updated.image, dict(updated.labels)) == ("c", "j", {"x": "y"})
        assert deleted.id == "c"


class TestImages(records_images.ImageRecordsSuite):
    """The process, called by Records."""

    @pytest.fixture
    def clients(self, life: Life) -> Clients:
        return life.client

    @pytest.fixture
    def images(self, clients: Clients, request: pytest.FixtureRequest) -> records_images.ImagesOf:
        if "sync" in request.node.name or request.node.name == "test_delete_removes":
            pytest.skip("this process collects nothing")
        return records_images.ImagesOf(clients(records.RECORDS), records=True)


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The socket of Debian's containerd."""
    with short_directory() as directory, containerd(directory) as socket:
        yield socket


@pytest.mark.root
class TestImagesOfContainerd(records_images.ImageRecordsSuite):
    """Debian's containerd, called by Images."""

    newest = False

    @pytest.fixture
    async def clients(self, debian: Path) -> AsyncIterator[Clients]:
        async with rpc.Channel(debian) as channel:
            yield over(channel)

    @pytest.fixture
    def images(self, clients: Clients) -> records_images.ImagesOf:
        return records_images.ImagesOf(clients(records_images.IMAGES), records=False)
