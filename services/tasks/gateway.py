"""The rest of the node for tasks: it calls the gateway's internal socket, like any other client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import BinaryIO

from api.containerd.events import task_pb2 as events
from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.grpc.health.v1 import health_pb2, health_stubs
from services.content.remote import RemoteStore
from services.kit import errors, loops, rpc
from services.kit.publisher import Publisher
from services.kit.timestamps import time_to_pb
from services.oci.descriptors import Descriptor
from services.oci.digests import CANONICAL, Digest
from services.oci.mounts import Mount
from services.oci.mounts_convert import mounts_from_pb
from services.tasks import convert
from services.tasks.store import Container, Exit

log = logging.getLogger(__name__)

_PIECE = 1 << 20


class Gateway:
    """A :class:`services.tasks.store.Node`."""

    def __init__(self, channel: rpc.Channel, publisher: Publisher) -> None:
        self._channel = channel
        self._publisher = publisher
        self._containers = channel.client(containers_stubs.CONTAINERS)
        self._namespaces = channel.client(namespaces_stubs.NAMESPACES)
        self._snapshots = channel.client(snapshots_stubs.SNAPSHOTS)
        self._content = channel.client(content_stubs.CONTENT)
        self._health = channel.client(health_stubs.HEALTH)
        self.reachable = True
        """True until an outage is seen: at the start no event was missed yet."""
        self._seen = time.time()
        """During an outage: when the gateway was last there."""

    async def container(self, namespace: str, name: str) -> Container:
        response = await self._containers.Get(
            containers_pb2.GetContainerRequest(id=name), headers={rpc.NAMESPACE: namespace}
        )
        return convert.container_from_pb(response.container)

    async def containers(self, namespace: str, selector: str) -> Sequence[Container]:
        response = await self._containers.List(
            containers_pb2.ListContainersRequest(filters=[selector]), headers={rpc.NAMESPACE: namespace}
        )
        return [convert.container_from_pb(c) for c in response.containers]

    async def namespaces(self) -> Sequence[str]:
        response = await self._namespaces.List(namespaces_pb2.ListNamespacesRequest())
        return [n.name for n in response.namespaces]

    async def set_label(self, namespace: str, name: str, key: str, value: str) -> None:
        request = containers_pb2.UpdateContainerRequest()
        request.container.id = name
        request.container.labels[key] = value
        request.update_mask.paths.append(f"labels.{key}")
        await self._containers.Update(request, headers={rpc.NAMESPACE: namespace})

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]:
        response = await self._snapshots.Mounts(
            snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=key), headers={rpc.NAMESPACE: namespace}
        )
        return tuple(mounts_from_pb(response.mounts))

    async def write_blob(self, namespace: str, lease: str, ref: str, media_type: str, file: BinaryIO) -> Descriptor:
        store = RemoteStore(self._channel, {rpc.NAMESPACE: namespace, **({rpc.LEASE: lease} if lease else {})})
        hashing, size = hashlib.sha256(), 0
        writer = await store.writer(ref)
        try:
            await writer.truncate()  # the ref may have data of a write that failed
            while piece := await asyncio.to_thread(file.read, _PIECE):
                hashing.update(piece)
                size += len(piece)
                await writer.write(piece)
            digest = Digest(CANONICAL, hashing.hexdigest())
            with contextlib.suppress(errors.AlreadyExists):
                await writer.commit(size, digest)
        finally:
            await writer.close()
        return Descriptor(media_type, str(digest), size)

    async def read_blob(self, namespace: str, digest: str, file: BinaryIO) -> None:
        async for message in self._content.Read(
            content_pb2.ReadContentRequest(digest=digest), headers={rpc.NAMESPACE: namespace}
        ):
            await asyncio.to_thread(file.write, message.data)

    def exited(self, namespace: str, name: str, exec_id: str, how: Exit) -> None:
        event = events.TaskExit(
            container_id=name, id=exec_id or name, pid=how.pid, exit_status=how.status, exited_at=time_to_pb(how.at)
        )
        self._publisher.publish(namespace, "/tasks/exit", event)

    def deleted(self, namespace: str, name: str, how: Exit) -> None:
        event = events.TaskDelete(container_id=name, pid=how.pid, exit_status=how.status, exited_at=time_to_pb(how.at))
        self._publisher.publish(namespace, "/tasks/delete", event)

    @contextlib.asynccontextmanager
    async def watched(self, returned: Callable[[float], None]) -> AsyncIterator[None]:
        """Keep ``reachable`` up to date. After an outage call ``returned`` with the time at which the gateway was last
        there, in seconds since 1970.
        """
        async with loops.running("the watch of the gateway", functools.partial(self._watch, returned)):
            yield

    async def _watch(self, returned: Callable[[float], None]) -> None:
        while True:
            try:
                async for _ in self._health.Watch(health_pb2.HealthCheckRequest()):
                    if not self.reachable:
                        returned(self._seen)
                        self.reachable = True  # only now: if that failed it is tried again
            except errors.NodeError as error:
                log.debug("the gateway is away: %s", error)
            finally:
                if self.reachable:
                    self.reachable, self._seen = False, time.time()
            await asyncio.sleep(0.2)
