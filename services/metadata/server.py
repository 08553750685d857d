"""The metadata services as gRPC servicers: parse, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from api.containerd.services.containers.v1 import containers_pb2 as containers_pb
from api.containerd.services.containers.v1 import containers_stubs
from api.containerd.services.content.v1 import content_pb2 as content_pb
from api.containerd.services.content.v1 import content_stubs
from api.containerd.services.images.v1 import images_pb2 as images_pb
from api.containerd.services.leases.v1 import leases_pb2 as leases_pb
from api.containerd.services.leases.v1 import leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2 as namespaces_pb
from api.containerd.services.namespaces.v1 import namespaces_stubs
from api.containerd.services.sandbox.v1 import sandbox_pb2 as sandbox_pb
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots_pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.records.v1 import records_pb2 as pb
from api.splitd.records.v1 import records_stubs
from services.kit import errors
from services.kit.rpc import Call, Pieces, Servicer, shielded
from services.kit.slices import Lane
from services.kit.timestamps import time_from_pb
from services.metadata import convert, objects
from services.metadata.containers import Containers
from services.metadata.content import Content, finish_commit
from services.metadata.database import Database
from services.metadata.gc import guard
from services.metadata.images import Images
from services.metadata.intents import ANSWER_KEPT, Intents
from services.metadata.leases import Leases
from services.metadata.namespaces import Namespaces
from services.metadata.sandboxes import Sandboxes
from services.metadata.snapshots import Snapshots, finish_commit_snapshot, finish_snapshot, inherited
from services.metadata.store import LABELS_PER_STEP, Backends, Blob, Event
from services.metadata.together_server import Together

T = TypeVar("T", bound=Message)


class _Sized(Protocol):
    def ByteSize(self) -> int:
        """The encoded size."""
        ...


S = TypeVar("S", bound=_Sized)

_BATCH = 100
"""Infos in one message of a streamed list, as in containerd."""
_BATCH_BYTES = 1 << 20
"""Bytes in one message of a streamed list, besides the last info: one info may have a megabyte of labels."""


async def batches(found: AsyncIterator[list[S]], most: int = _BATCH_BYTES) -> AsyncIterator[list[S]]:
    """Regroup pieces of a list into messages of at most 100 infos and about ``most`` bytes."""
    batch: list[S] = []
    size = 0
    async for some in found:
        for one in some:
            batch.append(one)
            size += one.ByteSize()
            if len(batch) == _BATCH or size >= most:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


async def one_message(found: AsyncIterator[list[T]], message: Callable[[list[T]], Message]) -> Pieces:
    """One answer from a list in pieces, each encoded by ``message``. Encoded messages, concatenated, are one message
    with all of their repeated fields.
    """
    return Pieces([message(some).SerializeToString() async for some in found])


class NamespacesServicer:
    SERVICE = namespaces_stubs.NAMESPACES

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    async def Get(self, request: namespaces_pb.GetNamespaceRequest, call: Call) -> namespaces_pb.GetNamespaceResponse:
        labels = self._namespaces.labels(request.name)
        return namespaces_pb.GetNamespaceResponse(namespace=namespaces_pb.Namespace(name=request.name, labels=labels))

    async def List(self, request: namespaces_pb.ListNamespacesRequest, call: Call) -> Pieces:
        return await one_message(
            self._namespaces.all(lambda name, labels: namespaces_pb.Namespace(name=name, labels=labels)),
            lambda some: namespaces_pb.ListNamespacesResponse(namespaces=some),
        )

    async def Create(
        self, request: namespaces_pb.CreateNamespaceRequest, call: Call
    ) -> namespaces_pb.CreateNamespaceResponse:
        await self._namespaces.create(request.namespace.name, dict(request.namespace.labels))
        return namespaces_pb.CreateNamespaceResponse(namespace=request.namespace)

    async def Update(
        self, request: namespaces_pb.UpdateNamespaceRequest, call: Call
    ) -> namespaces_pb.UpdateNamespaceResponse:
        name = request.namespace.name
        labels = await self._namespaces.update(name, dict(request.namespace.labels), request.update_mask.paths)
        return namespaces_pb.UpdateNamespaceResponse(namespace=namespaces_pb.Namespace(name=name, labels=labels))

    async def Delete(self, request: namespaces_pb.DeleteNamespaceRequest, call: Call) -> Empty:
        await self._namespaces.delete(request.name)
        return Empty()


class ContainersServicer:
    SERVICE = containers_stubs.CONTAINERS

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    async def Get(self, request: containers_pb.GetContainerRequest, call: Call) -> Pieces:
        return Pieces((convert.container_answer(self._containers.get(call.namespace, request.id)),))

    async def List(self, request: containers_pb.ListContainersRequest, call: Call) -> Pieces:
        return Pieces(
            [
                b"".join(some)
                async for some in self._containers.select(call.namespace, request.filters, convert.container_answer)
            ]
        )

    async def ListStream(self, request: containers_pb.ListContainersRequest, call: Call) -> AsyncIterator[Pieces]:
        async for some in self._containers.select(call.namespace, request.filters, convert.container_answer):
            for answer in some:
                yield Pieces((answer,))

    async def Create(
        self, request: containers_pb.CreateContainerRequest, call: Call
    ) -> containers_pb.CreateContainerResponse:
        created = await self._containers.create(call.namespace, convert.container_from_pb(request.container))
        return containers_pb.CreateContainerResponse(container=convert.container_to_pb(created))

    async def Update(
        self, request: containers_pb.UpdateContainerRequest, call: Call
    ) -> containers_pb.UpdateContainerResponse:
        updated = await self._containers.update(
            call.namespace, convert.container_from_pb(request.container), request.update_mask.paths
        )
        return containers_pb.UpdateContainerResponse(container=convert.container_to_pb(updated))

    async def Delete(self, request: containers_pb.DeleteContainerRequest, call: Call) -> Empty:
        await self._containers.delete(call.namespace, request.id)
        return Empty()


class SandboxesServicer:
    """The records of sandboxes. Their controllers are services of other projects, which the gateway calls."""

    SERVICE = sandbox_stubs.STORE

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def Create(self, request: sandbox_pb.StoreCreateRequest, call: Call) -> sandbox_pb.StoreCreateResponse:
        created = await self._sandboxes.create(call.namespace, convert.sandbox_from_pb(request.sandbox))
        return sandbox_pb.StoreCreateResponse(sandbox=convert.sandbox_to_pb(created))

    async def Update(self, request: sandbox_pb.StoreUpdateRequest, call: Call) -> sandbox_pb.StoreUpdateResponse:
        updated = await self._sandboxes.update(call.namespace, convert.sandbox_from_pb(request.sandbox), request.fields)
        return sandbox_pb.StoreUpdateResponse(sandbox=convert.sandbox_to_pb(updated))

    async def Delete(self, request: sandbox_pb.StoreDeleteRequest, call: Call) -> sandbox_pb.StoreDeleteResponse:
        await self._sandboxes.delete(call.namespace, request.sandbox_id)
        return sandbox_pb.StoreDeleteResponse()

    async def List(self, request: sandbox_pb.StoreListRequest, call: Call) -> Pieces:
        return await one_message(
            self._sandboxes.select(call.namespace, request.filters, convert.sandbox_to_pb),
            lambda some: sandbox_pb.StoreListResponse(list=some),
        )

    async def Get(self, request: sandbox_pb.StoreGetRequest, call: Call) -> sandbox_pb.StoreGetResponse:
        found = self._sandboxes.get(call.namespace, request.sandbox_id)
        return sandbox_pb.StoreGetResponse(sandbox=convert.sandbox_to_pb(found))


class LeasesServicer:
    SERVICE = leases_stubs.LEASES

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def Create(self, request: leases_pb.CreateRequest, call: Call) -> leases_pb.CreateResponse:
        lease = await self._leases.create(call.namespace, request.id, dict(request.labels))
        return leases_pb.CreateResponse(lease=convert.lease_to_pb(lease))

    async def Delete(self, request: leases_pb.DeleteRequest, call: Call) -> Empty:
        await self._leases.delete(call.namespace, request.id, sync=request.sync)
        return Empty()

    async def List(self, request: leases_pb.ListRequest, call: Call) -> Pieces:
        return await one_message(
            self._leases.select(call.namespace, request.filters, convert.lease_to_pb),
            lambda some: leases_pb.ListResponse(leases=some),
        )

    async def AddResource(self, request: leases_pb.AddResourceRequest, call: Call) -> Empty:
        await self._leases.add(call.namespace, request.id, convert.resource_from_pb(request.resource))
        return Empty()

    async def DeleteResource(self, request: leases_pb.DeleteResourceRequest, call: Call) -> Empty:
        await self._leases.remove(call.namespace, request.id, convert.resource_from_pb(request.resource))
        return Empty()

    async def ListResources(self, request: leases_pb.ListResourcesRequest, call: Call) -> Pieces:
        return await one_message(
            self._leases.resources(call.namespace, request.id, convert.resource_to_pb),
            lambda some: leases_pb.ListResourcesResponse(resources=some),
        )


class ContentServicer:
    """The methods of Content that need no bytes."""

    SERVICE = content_stubs.CONTENT

    def __init__(self, content: Content, lane: Lane, together: Together) -> None:
        self.together = {"Update": together.update_content}
        self._content = content
        self._lane = lane

    async def Info(self, request: content_pb.InfoRequest, call: Call) -> content_pb.InfoResponse | Pieces:
        blob = await self._content.info(call.namespace, request.digest)
        return (
            await self._many(blob, content_pb.InfoResponse)
            if len(blob.labels) > LABELS_PER_STEP
            else content_pb.InfoResponse(info=convert.info_to_pb(blob))
        )

    async def Update(self, request: content_pb.UpdateRequest, call: Call) -> content_pb.UpdateResponse | Pieces:
        blob = await self._content.update(
            call.namespace, request.info.digest, dict(request.info.labels), request.update_mask.paths
        )
        return (
            await self._many(blob, content_pb.UpdateResponse)
            if len(blob.labels) > LABELS_PER_STEP
            else content_pb.UpdateResponse(info=convert.info_to_pb(blob))
        )

    async def _many(self, blob: Blob, message: Callable[..., Message]) -> Pieces:
        """The answer for a blob with thousands of labels."""
        return Pieces(await self._lane.through(convert.info_pieces(blob, lambda info: message(info=info))))

    async def List(
        self, request: content_pb.ListContentRequest, call: Call
    ) -> AsyncIterator[content_pb.ListContentResponse | Pieces]:
        infos: list[content_pb.Info]
        async for batch in batches(self._content.select(call.namespace, request.filters, _listed)):
            infos, large = [], None
            for one in batch:
                if isinstance(one, _Large):  # the last of a batch
                    large = one.blob
                else:
                    infos.append(one)
            if infos:
                yield content_pb.ListContentResponse(info=infos)
            if large is not None:
                yield Pieces(await self._lane.through(convert.listed_pieces(large)))


@dataclass(frozen=True, slots=True)
class _Large:
    """A blob with thousands of labels, in a list: an answer of its own is made of it, in steps."""

    blob: Blob

    def ByteSize(self) -> int:
        return _BATCH_BYTES


def _listed(blob: Blob) -> content_pb.Info | _Large:
    return _Large(blob) if len(blob.labels) > LABELS_PER_STEP else convert.info_to_pb(blob)


class SnapshotsServicer:
    """The methods of Snapshots that need no snapshotter."""

    SERVICE = snapshots_stubs.SNAPSHOTS

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    async def Stat(self, request: snapshots_pb.StatSnapshotRequest, call: Call) -> snapshots_pb.StatSnapshotResponse:
        return snapshots_pb.StatSnapshotResponse(
            info=convert.snapshot_to_pb(self._snapshots.get(call.namespace, request.snapshotter, request.key))
        )

    async def List(
        self, request: snapshots_pb.ListSnapshotsRequest, call: Call
    ) -> AsyncIterator[snapshots_pb.ListSnapshotsResponse]:
        async for batch in batches(
            self._snapshots.select(call.namespace, request.snapshotter, request.filters, convert.snapshot_to_pb)
        ):
            yield snapshots_pb.ListSnapshotsResponse(info=batch)


OUTAGE = 30.0
"""Seconds for which the store is away until those who open a Write are told INTERNAL; the gateway's own outage."""


class RecordsServicer:
    SERVICE = records_stubs.RECORDS

    def __init__(
        self,
        database: Database,
        content: Content,
        snapshots: Snapshots,
        images: Images,
        intents: Intents,
        publish: Callable[[Event], None],
        together: Together,
    ) -> None:
        self.together = {
            "OpenIngest": together.open_ingests,
            "BeginCommitIngest": together.begin_commits_ingest,
            "BeginSnapshot": together.begin_snapshots,
            "BeginCommitSnapshot": together.begin_commits_snapshot,
            "Finish": together.finish,
        }
        self._publish = publish
        self._database = database
        self._content = content
        self._snapshots = snapshots
        self._images = images
        self._intents = intents

    async def Connect(self, request: pb.ConnectRequest, call: Call) -> pb.ConnectResponse:
        if not request.incarnation:
            raise errors.InvalidArgument("a gateway needs an incarnation")
        known = frozenset(request.open.ids) if request.HasField("open") else None
        return pb.ConnectResponse(store_id=await self._intents.connect(convert.gateway_from_pb(request), known))

    # -- content

    async def OpenIngest(self, request: pb.OpenIngestRequest, call: Call) -> pb.Ingest:
        try:
            ingest = await self._content.open(
                call.namespace,
                call.lease,
                request.incarnation,
                request.ref,
                request.total,
                request.expected,
                request.backend,
            )
        except errors.Unavailable as error:  # which clients that open a Write retry for ever
            if (self._database.transactions.standing.away or 0.0) > OUTAGE:
                raise errors.Internal(str(error).removesuffix(f": {error.suffix}")) from None
            raise
        return convert.ingest_to_pb(ingest)

    async def GetIngest(self, request: pb.GetIngestRequest, call: Call) -> pb.Ingest:
        return convert.ingest_to_pb(self._content.ingest(call.namespace, request.ref))

    async def ListIngests(self, request: Empty, call: Call) -> Pieces:
        return await one_message(
            self._content.ingests(call.namespace, convert.ingest_to_pb),
            lambda some: pb.ListIngestsResponse(ingests=some),
        )

    async def ForgetIngest(self, request: pb.GetIngestRequest, call: Call) -> pb.Ingest:
        return convert.ingest_to_pb(await self._content.forget(call.namespace, call.lease, request.ref))

    async def BeginCommitIngest(self, request: pb.BeginCommitIngestRequest, call: Call) -> pb.Intent:
        intent, finished = await self._content.begin_commit(
            self._intents,
            call.namespace,
            call.lease,
            request.incarnation,
            request.ref,
            request.size,
            request.expected,
            dict(request.labels),
        )
        return convert.intent_to_pb(intent, {}, finished)

    async def ResolveBlob(self, request: pb.ResolveBlobRequest, call: Call) -> pb.Blob:
        return convert.blob_to_pb(self._content.resolve(call.namespace, request.digest))

    async def DeleteBlob(self, request: pb.ResolveBlobRequest, call: Call) -> pb.Finished:
        return convert.finished_to_pb(await self._content.delete(call.namespace, call.lease, request.digest))

    # -- snapshots

    async def BeginSnapshot(self, request: pb.BeginSnapshotRequest, call: Call) -> pb.Intent:
        labels = dict(request.labels)
        intent = await self._snapshots.begin(
            self._intents,
            call.namespace,
            call.lease,
            request.incarnation,
            request.snapshotter,
            request.key,
            request.parent,
            labels,
            view=request.view,
            backend=request.backend,
        )
        return convert.intent_to_pb(intent, inherited(labels))

    async def BeginCommitSnapshot(self, request: pb.BeginCommitSnapshotRequest, call: Call) -> pb.Intent:
        labels = dict(request.labels)
        intent = await self._snapshots.begin_commit(
            self._intents,
            call.namespace,
            call.lease,
            request.incarnation,
            request.snapshotter,
            request.name,
            request.key,
            request.parent,
            labels,
        )
        return convert.intent_to_pb(intent, inherited(labels))

    async def ResolveSnapshot(self, request: pb.ResolveSnapshotRequest, call: Call) -> pb.Snapshot:
        found = self._snapshots.get(call.namespace, request.snapshotter, request.key)
        return pb.Snapshot(raw_key=found.raw_key, backend=found.backend)

    async def RemoveSnapshot(self, request: pb.ResolveSnapshotRequest, call: Call) -> pb.Finished:
        return convert.finished_to_pb(
            await self._snapshots.remove(call.namespace, call.lease, request.snapshotter, request.key)
        )

    async def UpdateSnapshot(self, request: snapshots_pb.UpdateSnapshotRequest, call: Call) -> pb.UpdatedSnapshot:
        updated = await self._snapshots.update(
            call.namespace, request.snapshotter, request.info.name, dict(request.info.labels), request.update_mask.paths
        )
        snapshot = updated.snapshot
        return pb.UpdatedSnapshot(
            info=convert.snapshot_to_pb(snapshot),
            raw_key=snapshot.raw_key,
            backend=snapshot.backend,
            raw_labels=updated.raw_labels,
            raw_mask=FieldMask(paths=updated.raw_paths),
        )

    # -- the ends of intents

    async def Finish(self, request: pb.FinishRequest, call: Call) -> pb.Finished:
        return convert.finished_to_pb(
            await shielded(
                self._intents.finish(request.intent, convert.outcome_from_pb(request), lasting=not request.later)
            )
        )

    async def Cancel(self, request: pb.CancelRequest, call: Call) -> Empty:
        await shielded(self._intents.cancel(request.intent))
        return Empty()

    # -- images

    async def GetImage(self, request: images_pb.GetImageRequest, call: Call) -> Pieces:
        return Pieces((convert.image_answer(self._images.get(call.namespace, request.name)),))

    async def ListImages(self, request: images_pb.ListImagesRequest, call: Call) -> Pieces:
        return Pieces(
            [
                b"".join(some)
                async for some in self._images.select(call.namespace, request.filters, convert.image_answer)
            ]
        )

    async def CreateImage(self, request: images_pb.CreateImageRequest, call: Call) -> images_pb.CreateImageResponse:
        image = await self._images.create(
            call.namespace, call.lease, convert.image_from_pb(request.image), _epoch(request)
        )
        return images_pb.CreateImageResponse(image=convert.image_to_pb(image))

    async def UpdateImage(self, request: images_pb.UpdateImageRequest, call: Call) -> images_pb.UpdateImageResponse:
        image = await self._images.update(
            call.namespace, call.lease, convert.image_from_pb(request.image), request.update_mask.paths, _epoch(request)
        )
        return images_pb.UpdateImageResponse(image=convert.image_to_pb(image))

    async def DeleteImage(self, request: images_pb.DeleteImageRequest, call: Call) -> Empty:
        await self._images.delete(
            call.namespace, call.lease, request.name, target=request.target.digest, sync=request.sync
        )
        return Empty()

    async def Collect(self, request: pb.CollectRequest, call: Call) -> pb.Collected:
        if self._database.collector is None:
            raise errors.Unimplemented("a collector")
        namespace = call.optional_namespace if request.known else ""  # of the deletion
        return convert.collected_to_pb(
            await self._database.collector.collect(everything=not request.known, namespace=namespace)
        )

    async def GetHeld(self, request: Empty, call: Call) -> pb.Held:
        held = self._database.view(guard.held)
        return pb.Held(reason=held.reason, since=held.since) if held is not None else pb.Held()

    async def Release(self, request: Empty, call: Call) -> Empty:
        await guard.release(self._database)
        if self._database.collector is not None:
            self._database.collector.connected()
        return Empty()

    async def GetStanding(self, request: Empty, call: Call) -> pb.Standing:
        return convert.standing_to_pb(self._database.transactions.standing)

    async def ListObjects(self, request: pb.ListObjectsRequest, call: Call) -> pb.Objects:
        return convert.objects_to_pb(await objects.objects(self._database, request.backend, request.limit))

    async def ForgetObjects(self, request: pb.ForgetObjectsRequest, call: Call) -> pb.Objects:
        return convert.objects_to_pb(
            await shielded(objects.forget(self._database, self._intents, request.backend, self._publish))
        )


def _epoch(request: Any) -> int | None:
    return time_from_pb(request.source_date_epoch) if request.HasField("source_date_epoch") else None


class Metadata:
    """All metadata services over one database."""

    def __init__(
        self,
        database: Database,
        publish: Callable[[Event], None],
        backends: Backends,
        *,
        shared: bool = True,
        answer_kept: float = ANSWER_KEPT,
    ) -> None:
        content = Content(database, shared=shared)
        snapshots = Snapshots(database)
        self.intents = Intents(
            database,
            publish,
            backends,
            {
                "commit-ingest": finish_commit,
                "prepare": finish_snapshot,
                "view": finish_snapshot,
                "commit-snapshot": finish_commit_snapshot,
            },
            answer_kept=answer_kept,
        )
        together = Together(database, content, snapshots, self.intents)
        self.servicers: list[Servicer] = [
            NamespacesServicer(Namespaces(database, publish)),
            ContainersServicer(Containers(database, publish)),
            SandboxesServicer(Sandboxes(database)),
            LeasesServicer(Leases(database)),
            ContentServicer(content, database.lane, together),
            SnapshotsServicer(snapshots),
            RecordsServicer(database, content, snapshots, Images(database), self.intents, publish, together),
        ]
