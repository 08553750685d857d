"""The node through the gateway, as the caller of a transfer: its content, images, leases, snapshots, and the unpacking
of layers.

Messages go over the internal socket with the caller's headers; whole blobs go by file (``content/blobs_remote.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from api.containerd.services.diff.v1 import diff_pb2, diff_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.introspection.v1 import introspection_pb2, introspection_stubs
from services.content import blobs_remote
from services.content.blobs_remote import Blobs, open_locked
from services.content.remote import RemoteFiles, RemoteStore, RemoteWriter
from services.content.store import Info, Status
from services.images import transfer_convert as convert
from services.images.concurrency import threads
from services.images.concurrency.waves import Waves
from services.images.documents.manifests import DOCUMENT_LIMIT
from services.images.node.ingest import FileIngest, SharedIngest, StreamIngest
from services.images.node.leases_remote import Leases
from services.images.transfer import Applied, Image, Ingest, IngestRestarted, NeedsLowerLayers, UnpackModes
from services.kit import at_work, errors, rpc, tracing
from services.kit.identifiers import quoted
from services.oci.descriptors import Descriptor
from services.oci.descriptors_convert import descriptor_to_pb
from services.oci.digests import Digest
from services.oci.mounts import Mount
from services.oci.mounts_convert import mounts_to_pb
from services.snapshots.diff import media
from services.snapshots.diff.inherit import LONG, DefaultAclError, LinkError, Unnamed, inherit, lookups
from services.snapshots.diff.listings import Listings
from services.snapshots.diff.media import UNCOMPRESSED
from services.snapshots.diff.workers import Appliers, Growth
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import SHARES

T = TypeVar("T")


class RemoteNode:
    """A transfer's :class:`~services.images.transfer.Node` over ``gateway``; ``headers`` are its caller's. ``appliers``
    unpack layers, unless a foreign service serves Diff.
    """

    def __init__(
        self, gateway: rpc.Channel, leases: Leases, headers: Mapping[str, str | bytes], appliers: Appliers
    ) -> None:
        self.headers = dict(headers)
        self._appliers = appliers
        self._here = False
        self._read = 0
        self._listings = Listings()
        self.namespace = str(self.headers.get(rpc.NAMESPACE, ""))
        self._gateway = gateway
        self._leases = leases
        self._store = RemoteStore(gateway, self.headers)
        self._blobs = Blobs(gateway)
        self._files = RemoteFiles(gateway, self.headers, later=True)  # the image's record comes last
        self._unleased = RemoteFiles(gateway, {key: value for key, value in self.headers.items() if key != rpc.LEASE})
        self._commits = Waves("images.commit", "commits of other small blobs")
        self._images = gateway.client(images_stubs.IMAGES)
        self._introspection = gateway.client(introspection_stubs.INTROSPECTION)
        self._diff = gateway.client(diff_stubs.DIFF)

    @contextlib.asynccontextmanager
    async def leased(self) -> AsyncIterator[RemoteNode]:
        """The same node under a lease: the caller's, or one that exists during the block."""
        if self.headers.get(rpc.LEASE):
            yield self
            return
        async with self._leases.lease(self.headers) as lease:
            yield RemoteNode(self._gateway, self._leases, {**self.headers, rpc.LEASE: lease}, self._appliers)

    # ------------------------------------------------------------------------------------------ content

    async def info(self, digest: str) -> Info:
        return await self._store.info(_digest(digest))

    async def trouble(self, descriptor: Descriptor, *, verify: bool) -> str:
        digest = _digest(descriptor.digest)
        try:
            path, size = await self._files.locate(digest)
        except errors.Unimplemented:
            return ""
        except errors.NotFound:
            try:
                await self._store.info(digest)
            except errors.NotFound:
                return ""
            return "its file is missing"
        if size != descriptor.size:
            return f"its file has {size} bytes, and not {descriptor.size}"
        return await threads.to_thread(_wrong_bytes, path, digest) if verify else ""

    async def replace(self, descriptor: Descriptor, pieces: AsyncIterator[bytes]) -> None:
        digest = _digest(descriptor.digest)
        async with self.filling(f"repair-{descriptor.digest}") as filling:
            found, arrived = hashlib.new(digest.algorithm), 0
            async for piece in pieces:
                arrived += len(piece)
                await threads.to_thread(_put, filling.fd, piece, found)
            filling.filled()
            if (arrived, found.hexdigest()) != (descriptor.size, digest.hex):
                raise errors.FailedPrecondition(
                    f"{arrived} bytes came, with digest {digest.algorithm}:{found.hexdigest()}"
                )
            # without a digest: otherwise the node would answer that it has the blob
            await filling.commit("", descriptor.size)

    async def document(self, descriptor: Descriptor) -> bytes:
        if (brought := descriptor.brought) is not None:
            data = brought
        else:
            async with self.reading(descriptor.digest) as fd:
                data = await threads.to_thread(_all_of, fd)
        self._read += len(data)
        if len(data) > DOCUMENT_LIMIT:
            raise errors.ResourceExhausted(f"document {descriptor.digest} is larger than {DOCUMENT_LIMIT} bytes")
        if self._read > _DOCUMENTS_LIMIT:
            raise errors.ResourceExhausted(
                f"document {descriptor.digest}: those of one transfer are larger than {_DOCUMENTS_LIMIT} bytes together"
            )
        return data

    @contextlib.asynccontextmanager
    async def reading(self, digest: str) -> AsyncIterator[int]:
        async with self._blobs.reading(str(_digest(digest)), self.headers) as fd:
            yield fd

    @contextlib.asynccontextmanager
    async def filling(self, ref: str) -> AsyncIterator[_Filling]:
        async with self._blobs.writing(ref, self.headers) as ingest:
            filling = _Filling(ingest)
            try:
                yield filling
            finally:
                if not filling.committed:
                    await rpc.shielded(self._given_up(ref))

    async def _given_up(self, ref: str) -> None:
        with contextlib.suppress(errors.NodeError):  # the ingest expires
            await self._blobs.abort(ref, self.headers)

    @contextlib.asynccontextmanager
    async def ingest(self, descriptor: Descriptor) -> AsyncIterator[FileIngest | StreamIngest | SharedIngest]:
        digest, ref, size = _digest(descriptor.digest), descriptor.ref, descriptor.size
        ingest = await self._when_unlocked(ref, lambda: self._ingest(ref, digest, size))
        try:
            if isinstance(ingest, FileIngest):
                await ingest.resumed()
            yield ingest
        finally:
            await ingest.close()
            if not ingest.committed and not ingest.resumable:
                await rpc.shielded(self._given_up(ref))

    async def _ingest(self, ref: str, digest: Digest, size: int) -> FileIngest | StreamIngest | SharedIngest:
        """An ingest outside the lease: it expires after a day, whatever happens to the lease and to this process. The
        commit adds the blob to the lease.
        """
        small = size <= _SMALL

        async def commit(labels: Mapping[str, str]) -> None:
            await self._files.commit(ref, size, digest, labels, computed=True, together=small)

        try:
            try:
                begun = await self._unleased.begin(ref, size, digest)
            except errors.AlreadyExists:  # the existing blob is not leased yet
                begun = await self._files.begin(ref, size, digest)
        # The ingest is recorded, without the lease; its bytes come by a stream, whose commit adds the blob to the
        # lease.
        except errors.Unimplemented:

            async def opened() -> RemoteWriter:
                return await self._store.writer(ref, size, digest)

            # an ended stream takes a moment to unlock its ref
            return StreamIngest(await opened(), digest, size, lambda: self._when_unlocked(ref, opened))
        if not begun.path:
            return SharedIngest(size, commit)
        fd = open_locked(begun.path, ref)
        return FileIngest(fd, digest, size, commit, self._commits.member if small else contextlib.nullcontext)

    async def _when_unlocked(self, ref: str, begin: Callable[[], Awaitable[T]]) -> T:
        """The result of ``begin``. While another process has the ref locked, wait, as long as that process makes
        progress. Once it has all bytes, that is to have them written to the disk.
        """
        try:
            return await begin()
        except errors.Unavailable:
            with tracing.wait("lock", **{"splitd.wait.for": f"the ingest {ref}, which another process writes"}):
                return await unlocked(begin, lambda: self._store.status(ref))

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        await self._store.update(_digest(digest), labels, [f"labels.{key}" for key in labels])

    async def compressed(self, diff_ids: Iterable[str]) -> AsyncIterator[Info]:
        async for info in self._store.list([f'labels."{UNCOMPRESSED}"=={diff_id}' for diff_id in diff_ids]):
            yield info

    # ------------------------------------------------------------------------------------------ images

    async def image(self, name: str) -> Image:
        response = await self._images.Get(images_pb2.GetImageRequest(name=name), headers=self.headers)
        return convert.image_from_pb(response.image)

    async def store(self, image: Image) -> Image:
        message = convert.image_to_pb(image)
        while True:
            try:
                created = await self._images.Create(images_pb2.CreateImageRequest(image=message), headers=self.headers)
                return convert.image_from_pb(created.image)
            except errors.AlreadyExists:
                with contextlib.suppress(errors.NotFound):  # removed meanwhile
                    updated = await self._images.Update(
                        images_pb2.UpdateImageRequest(image=message), headers=self.headers
                    )
                    return convert.image_from_pb(updated.image)

    # ------------------------------------------------------------------------------------------ snapshots

    def snapshotter(self, name: str) -> RemoteSnapshotter:
        return RemoteSnapshotter(self._gateway, snapshotter=name, headers=self.headers)

    async def unpacks(self, snapshotter: str) -> UnpackModes:
        """Our own Diff runs the same program as ``appliers``. A foreign Diff does its work itself, and reads only
        complete blobs.
        """
        wanted = (f"type=={_SNAPSHOTTER},id=={snapshotter}", f"type=={_DIFFER},id=={_OURS}")
        plugins = (
            await self._introspection.Plugins(introspection_pb2.PluginsRequest(filters=wanted), headers=self.headers)
        ).plugins
        self._here = any(plugin.type == _DIFFER for plugin in plugins)
        of = [plugin for plugin in plugins if plugin.type == _SNAPSHOTTER]
        return UnpackModes(
            self._here,
            self._here and any("rebase" in plugin.capabilities for plugin in of),
            any(plugin.exports.get("enable_remote_snapshot_annotations") == "true" for plugin in of),
            any(plugin.exports.get(SHARES) == "true" for plugin in of),
        )

    def expect(self) -> None:
        if self._here:
            self._appliers.expect()

    async def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], *, ingest: Ingest | None = None, alone: bool = False
    ) -> Applied:
        if not self._here:
            request = diff_pb2.ApplyRequest(diff=descriptor_to_pb(layer), mounts=mounts_to_pb(mounts))
            return Applied((await self._diff.Apply(request, headers=self.headers, timeout=None)).applied.digest)
        target, detect = list(mounts), media.may_be_compressed(layer.media_type)
        image = media.is_image(layer.media_type)
        with tracing.span("images.apply", **{"oci.layer.digest": layer.digest}):
            if ingest is None:
                async with self.reading(layer.digest) as blob:
                    applied = await self._appliers.apply(target, blob, detect=detect, alone=alone, image=image)
            else:
                assert isinstance(ingest, FileIngest)
                with ingest.followed() as following:
                    try:
                        applied = await self._appliers.apply(
                            target,
                            following.blob,
                            detect=detect,
                            alone=alone,
                            image=image,
                            growth=Growth(following.news, following.size, following.span),
                        )
                    except errors.NodeError as error:
                        if isinstance(error, errors.Unknown):  # the worker's own word, not that it was killed
                            await following.judged.wait()  # wrong bytes may be the reason: they are fetched again
                        if not following.broken:
                            raise
                    if following.broken:
                        raise IngestRestarted
        return Applied(applied.diff_id, applied.unnamed)

    async def inherit(self, mounts: Sequence[Mount], below: Sequence[str], unnamed: Sequence[Unnamed]) -> None:
        upper = mounts[0].source
        work = lookups(unnamed, len(below))
        if work > LONG:
            raise NeedsLowerLayers
        try:
            try:
                if work > _FEW:
                    raise LinkError
                inherit(upper, below, unnamed, links=False, listings=self._listings)
            except LinkError:
                await threads.to_thread(inherit, upper, below, unnamed, listings=self._listings)
        except DefaultAclError:
            raise NeedsLowerLayers from None
        except OSError as error:
            where = os.fsencode(error.filename or "").lstrip(b"/").decode("utf-8", "backslashreplace")
            raise errors.Unknown(f"directory {quoted(where)}: {errors.words(error)}") from None


_SNAPSHOTTER, _DIFFER = "io.containerd.snapshotter.v1", "io.containerd.differ.v1"
_OURS = "walking"
"""The id of our own Diff among the node's plugins; a foreign one has the name under which it is configured."""
_FEW = 1000
"""Lookups of a name in a layer, of some microseconds each. Fewer are not worth a thread, which would wait for this one
after each of its system calls.
"""
_DOCUMENTS_LIMIT = 64 << 20
"""Bytes of documents that one transfer may read."""
_SMALL = 4 << 20
"""Bytes up to which a blob is committed together with others. Who waits for a large one waits for the disk."""
_STANDSTILL = 30.0
"""Seconds for which the process that has an ingest locked may make no progress."""


async def unlocked(
    begin: Callable[[], Awaitable[T]],
    status: Callable[[], Awaitable[Status]],
    standstill: float = _STANDSTILL,
    disks: Callable[[], bytes] = at_work.of_all,
) -> T:
    """The result of ``begin``, which fails with Unavailable while another process has the ingest locked whose
    ``status`` this is. Wait, as long as that process makes progress: it brings bytes or, once all are there, waits for
    the ``disks``. Raise the error if there was none for ``standstill`` seconds.
    """
    loop = asyncio.get_running_loop()
    pause, seen, until = 0.02, None, loop.time() + standstill
    while True:
        with contextlib.suppress(errors.NodeError):
            found = await status()
            # updated_at changes too while bytes arrive beyond a gap
            now = found.offset, found.updated_at, disks() if found.offset == found.total > 0 else b""
            if seen != now:
                seen, until = now, loop.time() + standstill
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0, standstill / 4)
        try:
            return await begin()
        except errors.Unavailable:
            if loop.time() > until:
                raise


class _Filling:
    def __init__(self, ingest: blobs_remote.Ingest) -> None:
        self._ingest = ingest
        self.fd = ingest.fd
        self.committed = False

    def filled(self) -> None:
        self._ingest.handed_over()

    async def commit(self, digest: str, size: int, labels: Mapping[str, str] = {}) -> None:
        with contextlib.suppress(errors.AlreadyExists):
            await self._ingest.commit(digest, size, labels)
        self.committed = True


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise errors.InvalidArgument(f"digest {text!r}: {error}") from None


def _put(fd: int, piece: bytes, found: hashlib._Hash) -> None:
    found.update(piece)
    while piece:
        piece = piece[os.write(fd, piece) :]


def _wrong_bytes(path: str, digest: Digest) -> str:
    """Return the defect of a blob's file; "" if there is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            found = hashlib.file_digest(file, digest.algorithm).hexdigest()
    except OSError as error:
        return f"its file cannot be read: {errors.words(error)}"
    return "" if found == digest.hex else f"its file has digest {digest.algorithm}:{found}"


def _all_of(fd: int) -> bytes:
    """All bytes, or slightly more than the limit."""
    data = b""
    while len(data) <= DOCUMENT_LIMIT and (piece := os.read(fd, 1 << 20)):
        data += piece
    return data
