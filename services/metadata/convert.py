"""Conversion between protobuf messages and domain values, both directions side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, TypeVar

from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.message import Message

from api.containerd.events import container_pb2, content_pb2, image_pb2, namespace_pb2, snapshot_pb2
from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2 as contents_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.types import descriptor_pb2, sandbox_pb2
from api.splitd.records.v1 import records_pb2
from services.kit import memory
from services.kit.any import pack
from services.kit.slices import Steps
from services.kit.timestamps import time_from_pb, time_to_pb
from services.metadata.schema import CONTAINERS_CACHED
from services.metadata.store import (
    LABELS_PER_STEP,
    Blob,
    Collected,
    Container,
    Event,
    Finished,
    Gateway,
    Image,
    Ingest,
    Intent,
    Kind,
    Lease,
    Objects,
    Outcome,
    RawSnapshot,
    Resource,
    Sandbox,
    Snapshot,
)
from services.metadata.transactions import Standing
from services.oci.opaque import Opaque
from services.oci.opaque_convert import opaque_from_pb, opaque_to_pb

V = TypeVar("V", bound=Hashable)
M = TypeVar("M")


class Cached(Generic[V, M]):
    """``make`` with a cache of its last ``count`` results. A result whose ``size`` is above ``largest`` is not cached:
    clients choose how large a record is.

    Callers must not change a result: the next caller gets the same object. A result is measured once, when it is made:
    measuring it at every use would cost as much as everything else in a list.
    """

    def __init__(self, make: Callable[[V], M], count: int, largest: int, size: Callable[[M], int]) -> None:
        self._make = make
        self._count = count
        self._largest = largest
        self._size = size
        self._made: dict[V, M] = {}
        memory.when_idle(self._made.clear)

    def __call__(self, value: V) -> M:
        found = self._made.get(value)
        if found is None:
            found = self._make(value)
            if self._size(found) <= self._largest:
                if len(self._made) >= self._count:
                    del self._made[next(iter(self._made))]
                self._made[value] = found
        return found

    def __len__(self) -> int:
        """The number of cached results."""
        return len(self._made)


# -- containers


def container_to_pb(container: Container) -> containers_pb2.Container:
    return containers_pb2.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=containers_pb2.Container.Runtime(
            name=container.runtime, options=opaque_to_pb(container.runtime_options)
        ),
        spec=opaque_to_pb(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=time_to_pb(container.created),
        updated_at=time_to_pb(container.updated),
        extensions={name: AnyPb(type_url=o.type_url, value=o.value) for name, o in container.extensions.items()},
        sandbox=container.sandbox,
    )


def _container_answer(container: Container) -> bytes:
    return containers_pb2.GetContainerResponse(container=container_to_pb(container)).SerializeToString()


container_answer = Cached(_container_answer, CONTAINERS_CACHED, 32 << 10, len)
"""The serialized answer to Get; it is that to a List of this container alone, too, as :data:`image_answer` is."""


def container_from_pb(message: containers_pb2.Container) -> Container:
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=message.runtime.name,
        runtime_options=opaque_from_pb(message.runtime.options, present=message.runtime.HasField("options")),
        spec=opaque_from_pb(message.spec, present=message.HasField("spec")),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions={name: Opaque(o.type_url, o.value) for name, o in message.extensions.items()},
        sandbox=message.sandbox,
    )


# -- sandboxes


def sandbox_to_pb(sandbox: Sandbox) -> sandbox_pb2.Sandbox:
    return sandbox_pb2.Sandbox(
        sandbox_id=sandbox.id,
        runtime=sandbox_pb2.Sandbox.Runtime(name=sandbox.runtime, options=opaque_to_pb(sandbox.runtime_options)),
        spec=opaque_to_pb(sandbox.spec),
        labels=sandbox.labels,
        created_at=time_to_pb(sandbox.created),
        updated_at=time_to_pb(sandbox.updated),
        extensions={name: AnyPb(type_url=o.type_url, value=o.value) for name, o in sandbox.extensions.items()},
        sandboxer=sandbox.sandboxer,
    )


def sandbox_from_pb(message: sandbox_pb2.Sandbox) -> Sandbox:
    return Sandbox(
        id=message.sandbox_id,
        runtime=message.runtime.name,
        runtime_options=opaque_from_pb(message.runtime.options, present=message.runtime.HasField("options")),
        spec=opaque_from_pb(message.spec, present=message.HasField("spec")),
        sandboxer=message.sandboxer,
        extensions={name: Opaque(o.type_url, o.value) for name, o in message.extensions.items()},
        labels=dict(message.labels),
    )


# -- images


def image_to_pb(image: Image) -> images_pb2.Image:
    return images_pb2.Image(
        name=image.name,
        labels=image.labels,
        target=descriptor_pb2.Descriptor(
            media_type=image.media_type, digest=image.digest, size=image.size, annotations=image.annotations
        ),
        created_at=time_to_pb(image.created),
        updated_at=time_to_pb(image.updated),
    )


def _image_answer(image: Image) -> bytes:
    return images_pb2.GetImageResponse(image=image_to_pb(image)).SerializeToString()


image_answer = Cached(_image_answer, 1024, 8 << 10, len)
"""The encoded answer to Get. It is also the answer to a List of this image alone (both have their images in field 1);
several of them, concatenated, are the answer to a List of several.
"""


def image_from_pb(message: images_pb2.Image) -> Image:
    target = message.target
    return Image(
        name=message.name,
        labels=dict(message.labels),
        digest=target.digest,
        media_type=target.media_type,
        size=target.size,
        annotations=dict(target.annotations),
    )


# -- leases


def lease_to_pb(lease: Lease) -> leases_pb2.Lease:
    return leases_pb2.Lease(id=lease.id, labels=lease.labels, created_at=time_to_pb(lease.created))


def resource_to_pb(resource: Resource) -> leases_pb2.Resource:
    return leases_pb2.Resource(id=resource.id, type=resource.type)


def resource_from_pb(message: leases_pb2.Resource) -> Resource:
    return Resource(message.type, message.id)


# -- content


def info_to_pb(blob: Blob) -> contents_pb2.Info:
    return contents_pb2.Info(
        digest=blob.digest,
        size=blob.size,
        labels=blob.labels,
        created_at=time_to_pb(blob.created),
        updated_at=time_to_pb(blob.updated),
    )


def info_pieces(blob: Blob, message: Callable[[contents_pb2.Info], Message]) -> Steps[list[bytes]]:
    """The encoded ``message`` with an info of thousands of labels, made in steps. The pieces have some labels each;
    concatenated, they are one message with all labels.
    """
    pieces = [message(info_to_pb(replace(blob, labels={}))).SerializeToString()]
    labels = iter(blob.labels.items())
    while some := dict(islice(labels, LABELS_PER_STEP)):
        pieces.append(message(contents_pb2.Info(labels=some)).SerializeToString())
        yield
    return pieces


def listed_pieces(blob: Blob) -> Steps[list[bytes]]:
    """The encoded answer of a list with one info, of thousands of labels, as :func:`info_pieces` makes it. Within a
    field, too, pieces of a message are one message.
    """
    pieces = yield from info_pieces(blob, lambda info: info)
    return [b"\x0a" + _varint(sum(map(len, pieces))), *pieces]  # field 1, ``info``


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def blob_to_pb(blob: Blob) -> records_pb2.Blob:
    return records_pb2.Blob(digest=blob.digest, size=blob.size, backend=blob.backend)


def ingest_to_pb(ingest: Ingest) -> records_pb2.Ingest:
    return records_pb2.Ingest(
        ref=ingest.ref,
        raw_ref=ingest.raw_ref,
        backend=ingest.backend,
        expected=ingest.expected,
        shared=ingest.shared,
        size=ingest.size,
        started_at=time_to_pb(ingest.started),
    )


# -- snapshots

KINDS_TO_PB: Mapping[Kind, snapshots_pb2.Kind] = {
    "view": snapshots_pb2.VIEW,
    "active": snapshots_pb2.ACTIVE,
    "committed": snapshots_pb2.COMMITTED,
}
KINDS_FROM_PB: Mapping[int, Kind] = {number: kind for kind, number in KINDS_TO_PB.items()}


def snapshot_to_pb(snapshot: Snapshot) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=KINDS_TO_PB[snapshot.kind],
        labels=snapshot.labels,
        created_at=time_to_pb(snapshot.created),
        updated_at=time_to_pb(snapshot.updated),
    )


def raw_snapshot_from_pb(message: snapshots_pb2.Info) -> RawSnapshot:
    return RawSnapshot(
        name=message.name,
        parent=message.parent,
        labels=dict(message.labels),
        created=time_from_pb(message.created_at),
        updated=time_from_pb(message.updated_at),
    )


# -- events

_EVENTS: Mapping[str, type[Message]] = {
    "/namespaces/create": namespace_pb2.NamespaceCreate,
    "/namespaces/update": namespace_pb2.NamespaceUpdate,
    "/namespaces/delete": namespace_pb2.NamespaceDelete,
    "/containers/create": container_pb2.ContainerCreate,
    "/containers/update": container_pb2.ContainerUpdate,
    "/containers/delete": container_pb2.ContainerDelete,
    "/content/create": content_pb2.ContentCreate,
    "/content/delete": content_pb2.ContentDelete,
    "/images/delete": image_pb2.ImageDelete,
    "/snapshot/prepare": snapshot_pb2.SnapshotPrepare,
    "/snapshot/commit": snapshot_pb2.SnapshotCommit,
    "/snapshot/remove": snapshot_pb2.SnapshotRemove,
}


def event_to_pb(event: Event) -> AnyPb:
    return pack(_EVENTS[event.topic](**{name: _field(value) for name, value in event.fields.items()}))


def _field(value: Any) -> Any:
    if isinstance(value, Opaque):
        return opaque_to_pb(value)
    return {k: _field(v) for k, v in value.items()} if isinstance(value, Mapping) else value


# -- intents


def gateway_from_pb(message: records_pb2.ConnectRequest) -> Gateway:
    return Gateway(
        incarnation=message.incarnation,
        content=message.content,
        snapshotters=tuple(message.snapshotters),
        candidates=tuple(message.candidates),
    )


def standing_to_pb(standing: Standing) -> records_pb2.Standing:
    return records_pb2.Standing(
        store=standing.store,
        revision=standing.revision,
        in_step=standing.away is None,
        away=standing.away or 0.0,
        reads=standing.reads,
        why=standing.why,
    )


def objects_to_pb(objects: Objects) -> records_pb2.Objects:
    return records_pb2.Objects(
        blobs=objects.blobs,
        ingests=objects.ingests,
        snapshots=objects.snapshots,
        intents=objects.intents,
        uncollected=objects.uncollected,
        some=[
            records_pb2.Object(
                namespace=each.namespace,
                kind=each.kind,
                name=each.name,
                snapshotter=each.snapshotter,
                containers=each.containers,
            )
            for each in objects.some
        ],
    )


def intent_to_pb(intent: Intent, raw_labels: Mapping[str, str], finished: Finished | None = None) -> records_pb2.Intent:
    return records_pb2.Intent(
        id=intent.id,
        backend=intent.backend,
        raw_ref=intent.raw_ref,
        raw_key=intent.raw_key,
        raw_parent=intent.raw_parent,
        raw_name=intent.raw_name,
        raw_labels=raw_labels,
        target=intent.target,
        finished=None if finished is None else finished_to_pb(finished),
    )


def outcome_from_pb(message: records_pb2.FinishRequest) -> Outcome:
    return Outcome(
        digest=message.digest, size=message.size, adopted=tuple(raw_snapshot_from_pb(info) for info in message.adopted)
    )


def finished_to_pb(finished: Finished) -> records_pb2.Finished:
    return records_pb2.Finished(
        events=[records_pb2.Event(namespace=e.namespace, topic=e.topic, event=event_to_pb(e)) for e in finished.events],
        digest=finished.digest,
        size=finished.size,
    )


def collected_to_pb(collected: Collected) -> records_pb2.Collected:
    return records_pb2.Collected(removed=collected.removed, failed=collected.failed, seconds=collected.seconds)
