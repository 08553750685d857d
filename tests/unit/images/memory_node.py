"""A node in memory for the parts of transfers: blobs, images, snapshots, and layers whose application returns a given
diff id. And small archives.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.content.store import Info
from services.images.node.ingest import FileIngest
from services.images.transfer import Applied, Image, Ingest, Progress, UnpackModes
from services.kit import errors, filters
from services.kit.slices import Lane
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest, digest_of
from services.oci.mounts import Mount
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.diff.media import UNCOMPRESSED
from services.snapshots.store import Info as Snapshot
from services.snapshots.store import Kind, Usage, kept_labels, updated_labels


def tar_of(files: Mapping[str, bytes | str]) -> bytes:
    """A tar of files; a str is the target of a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def layout(entries: Sequence[Mapping[str, Any]], blobs: Mapping[str, bytes]) -> bytes:
    """An OCI layout with these entries in its index."""
    return tar_of(
        {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
            **{f"blobs/sha256/{digest[7:]}": data for digest, data in blobs.items()},
        }
    )


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Cut ``data`` as a client sends it."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


class Told(list[Progress]):
    """A report that keeps what it received."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)

    def events(self) -> list[tuple[str, str]]:
        return [(p.event, p.name) for p in self]


class MemorySink:
    """A client that takes all bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False

    async def write(self, data: bytes) -> None:
        assert not self.closed
        self.data += data

    async def close(self) -> None:
        self.closed = True


class MemoryFilling:
    def __init__(self, node: MemoryNode, path: Path) -> None:
        self._node = node
        self._path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def filled(self) -> None:
        os.close(self.fd)
        self.fd = -1

    async def commit(self, digest: str, size: int, labels: Mapping[str, str] = {}) -> None:
        assert self.fd < 0, "committed while open"
        data = self._path.read_bytes()
        assert (digest_of(data), len(data)) == (digest, size)
        if digest not in self._node.blobs:
            self._node.put(data, labels)


class MemorySnapshotter:
    """A ``Snapshotter`` of records: committed names and active keys with their parents and labels. An application is
    recorded under the key's mount.
    """

    def __init__(self) -> None:
        self.committed: dict[str, tuple[str, Mapping[str, str]]] = {}
        self.active: dict[str, tuple[str, Mapping[str, str]]] = {}
        """Active snapshots and views."""
        self.views: set[str] = set()
        self.times: dict[str, tuple[int, int]] = {}
        """The times of creation and of the last update."""
        self.makes: set[str] = set()
        """Chain ids whose snapshots it makes by itself, as stargz does."""
        self.read_only = False
        self.lost: set[str] = set()
        """Committed names that have a record only."""

    def _info(self, key: str) -> Snapshot:
        kind = Kind.COMMITTED if key in self.committed else Kind.VIEW if key in self.views else Kind.ACTIVE
        parent, labels = self._there(key)
        return Snapshot(key, kind, *self.times.get(key, (0, 0)), parent, dict(labels))

    def _there(self, key: str) -> tuple[str, Mapping[str, str]]:
        found = self.committed.get(key) or self.active.get(key)
        if found is None:
            raise errors.NotFound(f"snapshot {key}")
        return found

    async def stat(self, key: str) -> Snapshot:
        return self._info(key)

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Snapshot]:
        wanted = await filters.parsed(sources, Lane())
        for info in [self._info(key) for key in sorted((*self.committed, *self.active))]:
            if wanted.match(info.field):
                yield info

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Snapshot:
        parent, current = self._there(key)
        (self.committed if key in self.committed else self.active)[key] = (
            parent,
            updated_labels(key, current, labels, paths),
        )
        self.times[key] = self.times.get(key, (0, 0))[0], time.time_ns()
        return self._info(key)

    async def usage(self, key: str) -> Usage:
        self._there(key)
        if key in self.lost:
            raise errors.NotFound(f"snapshot {key} is recorded, and snap does not have it")
        return Usage()

    async def mounts(self, key: str) -> Sequence[Mount]:
        self._there(key)
        if key in self.committed:
            raise errors.FailedPrecondition(f"requested snapshot {key} not active or view")
        parent, _ = self.active[key]
        if key in self.views:
            return [Mount("bind", parent or key, ("ro",))]
        return [Mount("bind", key, ("ro",) if self.read_only else ("rw",))]

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        return await self._made(key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        await self._made(key, parent, labels)
        self.views.add(key)
        return await self.mounts(key)

    async def _made(self, key: str, parent: str, labels: Mapping[str, str] | None) -> Sequence[Mount]:
        target = (labels or {}).get("containerd.io/snapshot.ref", "")
        if target in self.makes:
            self.committed.setdefault(target, (parent, labels or {}))
        if target in self.committed:
            raise errors.AlreadyExists(f"snapshot {target}")
        if parent and parent not in self.committed:
            self._there(parent)
            raise errors.InvalidArgument(f'parent "{parent}" is not committed snapshot')
        if key in self.committed or key in self.active:
            raise errors.AlreadyExists(f"snapshot {key}")
        self.active[key] = (parent, kept_labels(labels or {}))
        self.times[key] = (time.time_ns(),) * 2
        return await self.mounts(key)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        if name in self.committed or name in self.active:
            raise errors.AlreadyExists(f"snapshot {name}")
        own, _ = self._there(key)
        if key not in self.active or key in self.views:
            raise errors.FailedPrecondition(f'snapshot "{key}" is not active')
        if parent and parent not in self.committed:
            raise errors.NotFound(f"snapshot {parent}")
        del self.active[key]
        self.committed[name] = (own or parent, kept_labels(labels or {}))
        self.times[name] = (time.time_ns(),) * 2

    async def remove(self, key: str) -> None:
        self._there(key)
        if any(parent == key for parent, _ in (*self.committed.values(), *self.active.values())):
            raise errors.FailedPrecondition("cannot remove snapshot with child")
        (self.committed if key in self.committed else self.active).pop(key)
        self.views.discard(key)

    async def cleanup(self) -> None:
        """Do nothing: there are only records."""


class MemoryNode:
    """See ``services.images.transfer.Node``. ``directory`` is for blobs being made."""

    namespace = "memory"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs: dict[str, bytes] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.images: dict[str, Image] = {}
        self.snapshots: dict[str, MemorySnapshotter] = {}
        self.diff_ids: dict[str, str] = {}
        """The diff id that applying a blob returns; a blob that is not named is NotFound."""
        self.applied: list[str] = []
        self.how = UnpackModes(follows=True, side_by_side=False)
        self.unnamed: dict[str, tuple[Unnamed, ...]] = {}
        """The directories without an entry that applying a blob alone reports."""
        self.inherited: list[tuple[list[str], tuple[Unnamed, ...]]] = []
        """For each call: the directories below from which the layer's unnamed directories took their attributes."""
        self.refs: list[str] = []

    def put(self, data: bytes, labels: Mapping[str, str] = {}) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        self.labels.setdefault(digest, {}).update(labels)
        return digest

    def _there(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise errors.NotFound(f"content digest {digest}")
        return self.blobs[digest]

    async def info(self, digest: str) -> Info:
        return Info(Digest.parse(digest), len(self._there(digest)), 0, 0, self.labels[digest])

    async def trouble(self, descriptor: Descriptor, *, verify: bool) -> str:
        data = self.blobs.get(descriptor.digest)
        if data is None or digest_of(data) == descriptor.digest:
            return ""
        return f"{len(data)} other bytes"

    async def replace(self, descriptor: Descriptor, pieces: AsyncIterator[bytes]) -> None:
        data = b"".join([piece async for piece in pieces])
        if digest_of(data) != descriptor.digest:
            raise errors.FailedPrecondition(f"the bytes are not those of {descriptor.digest}")
        self.blobs[descriptor.digest] = data

    async def document(self, descriptor: Descriptor) -> bytes:
        return self._there(descriptor.digest) if (brought := descriptor.brought) is None else brought

    @contextlib.asynccontextmanager
    async def reading(self, digest: str) -> AsyncIterator[int]:
        path = self.directory / "reading"
        path.write_bytes(self._there(digest))
        fd = os.open(path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.asynccontextmanager
    async def filling(self, ref: str) -> AsyncIterator[MemoryFilling]:
        self.refs.append(ref)
        filling = MemoryFilling(self, self.directory / f"filling-{len(self.refs)}")
        try:
            yield filling
        finally:
            if filling.fd >= 0:
                filling.filled()

    @contextlib.asynccontextmanager
    async def ingest(self, descriptor: Descriptor) -> AsyncIterator[FileIngest]:
        if descriptor.digest in self.blobs:
            raise errors.AlreadyExists(f"content {descriptor.digest}")
        path = self.directory / f"ingest-{descriptor.digest[7:]}"

        async def commit(labels: Mapping[str, str]) -> None:
            self.put(path.read_bytes(), labels)
            path.unlink()

        ingest = FileIngest(
            os.open(path, os.O_RDWR | os.O_CREAT), Digest.parse(descriptor.digest), descriptor.size, commit
        )
        try:
            await ingest.resumed()
            yield ingest
        finally:
            await ingest.close()

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        self._there(digest)
        self.labels[digest].update(labels)

    async def compressed(self, diff_ids: Iterable[str]) -> AsyncIterator[Info]:
        wanted = set(diff_ids)
        for digest, labels in self.labels.items():
            if labels.get(UNCOMPRESSED) in wanted:
                yield await self.info(digest)

    async def image(self, name: str) -> Image:
        if name not in self.images:
            raise errors.NotFound(f'image "{name}"')
        return self.images[name]

    async def store(self, image: Image) -> Image:
        self.images[image.name] = image
        return image

    def snapshotter(self, name: str) -> Any:
        return self.snapshots.setdefault(name, MemorySnapshotter())

    async def unpacks(self, snapshotter: str) -> UnpackModes:
        return self.how

    async def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], *, ingest: Ingest | None = None, alone: bool = False
    ) -> Applied:
        if layer.digest not in self.diff_ids:
            raise errors.NotFound(f"content digest {layer.digest}")
        self.applied.append(layer.digest)
        return Applied(self.diff_ids[layer.digest], self.unnamed.get(layer.digest, ()) if alone else ())

    def expect(self) -> None:
        return

    async def inherit(self, mounts: Sequence[Mount], below: Sequence[str], unnamed: Sequence[Unnamed]) -> None:
        self.inherited.append((list(below), tuple(unnamed)))
