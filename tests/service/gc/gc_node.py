"""The real processes that take part in a collection (content, snapshots, metadata and the gateway), and a client of
them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.splitd.records.v1 import records_pb2, records_stubs
from services.kit import errors
from services.kit.rpc import LEASE, NAMESPACE, RAW, Channel
from services.oci.digests import digest_of
from tests.support import ServiceProcess, eventually_async

SNAPSHOTTERS = ("overlayfs", "native")

PACE = "[metadata.gc]\npause_threshold = 0.5\n"
"""Collections take at most half of the time, on average. By default it is a fiftieth: after a collection that a busy
machine made slow, the next would be long in coming.
"""


class Processes:
    """Four of a node's processes below ``directory``; fault points are requested in ``faults``."""

    def __init__(self, directory: Path) -> None:
        self.root, self.state, self.faults = directory / "r", directory / "s", directory / "f"
        self.faults.mkdir()
        self._config = directory / "c.toml"
        self._config.write_text(PACE)
        self._stack = contextlib.ExitStack()
        self.content = self._start("services.content")
        self.snapshots = self._start("services.snapshots", *(f"snapshots-{name}.sock" for name in SNAPSHOTTERS))
        self.metadata = self._start("services.metadata")
        self.gateway = self._start("gateway", "containerd.sock", "internal.sock")

    def _start(self, module: str, *sockets: str) -> ServiceProcess:
        return self._stack.enter_context(
            ServiceProcess(
                module,
                self.root,
                self.state,
                sockets=sockets,
                config=self._config,
                env={"SPLITD_FAULTS": str(self.faults)},
            )
        )

    def close(self) -> None:
        self._stack.close()

    def fault(self, point: str) -> None:
        """Let the next process that comes to ``point`` die there."""
        (self.faults / point).touch()


class Client:
    """A client of one namespace of the node, and of the raw stores. Use it as ``async with``."""

    def __init__(self, processes: Processes, namespace: str = "ns") -> None:
        self.processes = processes
        self.namespace = namespace
        self._public = Channel(processes.state / "containerd.sock")
        self._internal = Channel(processes.state / "internal.sock")
        self._records = Channel(processes.state / "metadata.sock")
        self.content = self._public.client(content_stubs.CONTENT)
        self.snapshots = self._public.client(snapshots_stubs.SNAPSHOTS)
        self.leases = self._public.client(leases_stubs.LEASES)
        self.raw_content = self._internal.client(content_stubs.CONTENT)
        self.raw_snapshots = self._internal.client(snapshots_stubs.SNAPSHOTS)
        self.records = self._records.client(records_stubs.RECORDS)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for channel in (self._public, self._internal, self._records):
            await channel.close()

    def headers(self, lease: str = "") -> dict[str, str]:
        return {NAMESPACE: self.namespace, **({LEASE: lease} if lease else {})}

    # -- what clients do

    async def lease(self, id_: str, **labels: str) -> str:
        named = {f"containerd.io/{key.replace('_', '.')}": value for key, value in labels.items()}
        await self.leases.Create(leases_pb2.CreateRequest(id=id_, labels=named), headers=self.headers())
        return id_

    async def unlease(self, id_: str, *, sync: bool = False) -> None:
        await self.leases.Delete(leases_pb2.DeleteRequest(id=id_, sync=sync), headers=self.headers(), timeout=60)

    async def open(self, ref: str, data: bytes, lease: str = "") -> None:
        """Write an ingest and leave it open."""
        async with self.content.Write(headers=self.headers(lease)) as stream:
            await stream.send(content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref=ref, data=data))
            await stream.receive()

    async def write(
        self, data: bytes, labels: Mapping[str, str] = {}, lease: str = "", ref: str = "", *, say: bool = True
    ) -> str:
        """Write and commit a blob; with ``say`` its digest is given beforehand. Return the digest."""
        digest = digest_of(data)
        expected = digest if say else ""
        async with self.content.Write(headers=self.headers(lease), timeout=60) as stream:
            try:
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.WRITE,
                        ref=ref or f"w-{digest}",
                        data=data,
                        total=len(data),
                        expected=expected,
                    )
                )
                answer = await stream.receive()
                assert answer.offset == len(data)
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.COMMIT,
                        ref=ref or f"w-{digest}",
                        offset=len(data),
                        total=len(data),
                        expected=expected,
                        labels=labels,
                    )
                )
                answer = await stream.receive()
                assert answer.digest == digest
            except errors.AlreadyExists:
                return digest
        return digest

    async def read(self, digest: str) -> bytes:
        return b"".join(
            [
                answer.data
                async for answer in self.content.Read(
                    content_pb2.ReadContentRequest(digest=digest), headers=self.headers()
                )
            ]
        )

    async def layer(
        self,
        name: str,
        parent: str = "",
        snapshotter: str = "overlayfs",
        labels: Mapping[str, str] = {},
        lease: str = "",
    ) -> None:
        """Prepare and commit a snapshot; without a lease it is held only until that is done."""
        held = lease or await self.lease(f"making-{name}-{time.monotonic_ns()}")
        await self.prepare(f"{name}-key", parent, snapshotter, lease=held)
        await self.snapshots.Commit(
            snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=name, key=f"{name}-key", labels=labels),
            headers=self.headers(held),
        )
        if not lease:
            await self.unlease(held)

    async def prepare(
        self,
        key: str,
        parent: str = "",
        snapshotter: str = "overlayfs",
        lease: str = "",
        labels: Mapping[str, str] = {},
    ) -> Any:
        return await self.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels),
            headers=self.headers(lease),
        )

    async def image(self, name: str, digest: str) -> None:
        request = images_pb2.CreateImageRequest(image=images_pb2.Image(name=name))
        request.image.target.digest, request.image.target.media_type, request.image.target.size = digest, "m", 1
        await self.records.CreateImage(request, headers=self.headers())

    async def remove_image(self, name: str, *, sync: bool) -> None:
        await self.records.DeleteImage(
            images_pb2.DeleteImageRequest(name=name, sync=sync), headers=self.headers(), timeout=60
        )

    async def collect(self) -> records_pb2.Collected:
        found: records_pb2.Collected = await self.records.Collect(records_pb2.CollectRequest(), timeout=60)
        return found

    # -- what is below

    async def raw_blobs(self) -> set[str]:
        return {
            info.digest
            async for answer in self.raw_content.List(content_pb2.ListContentRequest(), headers={RAW: "content"})
            for info in answer.info
        }

    async def raw_ingests(self) -> set[str]:
        return {
            s.ref
            for s in (
                await self.raw_content.ListStatuses(content_pb2.ListStatusesRequest(), headers={RAW: "content"})
            ).statuses
        }

    async def raw_layers(self) -> set[str]:
        """Return the raw keys of all snapshotters."""
        return {
            info.name
            for name in SNAPSHOTTERS
            async for answer in self.raw_snapshots.List(
                snapshots_pb2.ListSnapshotsRequest(snapshotter=name), headers={RAW: f"snapshots.{name}"}
            )
            for info in answer.info
        }

    async def raw(self) -> set[str]:
        """Return everything in the raw stores."""
        return await self.raw_blobs() | await self.raw_ingests() | await self.raw_layers()

    def directories(self, snapshotter: str = "overlayfs") -> int:
        """Return the snapshot directories on disk."""
        return len(list((self.processes.root / "snapshots" / snapshotter / "snapshots").iterdir()))

    async def listed(self) -> tuple[set[str], set[str]]:
        """Return the digests and snapshots of the namespace's records."""
        blobs = {
            info.digest
            async for answer in self.content.List(content_pb2.ListContentRequest(), headers=self.headers())
            for info in answer.info
        }
        layers = {
            info.name
            for name in SNAPSHOTTERS
            async for answer in self.snapshots.List(
                snapshots_pb2.ListSnapshotsRequest(snapshotter=name), headers=self.headers()
            )
            for info in answer.info
        }
        return blobs, layers

    async def ready(self) -> None:
        """Wait until all processes answer."""
        last: object = None

        async def answering() -> bool:
            nonlocal last
            try:
                last = done = await self.collect()
            except errors.NodeError as error:
                last = error
                return False
            return not done.failed and await self._stamped() and await self._known()

        try:
            await eventually_async(answering, "the processes do not come up", 30)
        except AssertionError as error:
            logs = "".join(
                f"\n--- {p.module}\n{p.text()[-2000:]}"
                for p in (self.processes.metadata, self.processes.gateway, self.processes.content)
            )
            raise AssertionError(f"{error}; the last collection: {last}{logs}") from None

    async def _known(self) -> bool:
        """Return whether the gateway has noticed that metadata is there. After an absence longer than a call is held,
        it holds no calls until then.
        """
        try:
            await self.leases.List(leases_pb2.ListRequest(), headers=self.headers())
        except errors.Unavailable:
            return False
        return True

    async def _stamped(self) -> bool:
        """Return whether each store that tests look into is swept as our own. There may be further stores, such as that
        of a snapshotter that does not work here.
        """
        root = self.processes.root
        return all(
            (where / "store-id").exists()
            for where in (root / "content", *(root / "snapshots" / name for name in SNAPSHOTTERS))
        )
