"""Imports: from an archive to images.

An archive is a tar, perhaps compressed, of one of two kinds. An *OCI layout* has documents of its own: ``oci-layout``,
``index.json``, and blobs. An archive of ``docker save`` has ``manifest.json``, which says which files are the config
and the layers of which image; the importer makes Docker manifests of these, and an index of the manifests. (Archives
that have both, such as our exports, are OCI layouts.)

1. Each file becomes a blob as it arrives, whatever its name. Blobs to which nothing refers at the end are collected
   once the lease is gone.
2. The index is walked: each document is labelled with what it refers to, as far as the destination wants it
   (``documents/graph.py``). A missing document is an error. Layers are not looked at, so an archive may lack those
   that the node has.
3. Layers are unpacked if the destination asks for it.
4. The index and each of its entries are stored as images under the names that the destination gives them
   (``names.py``); those without a name are not stored. If the destination wants only what is for its platforms, an
   entry that has nothing for them is left out and reported.

An archive comes from outside, so the memory for it is limited; the reader limits its headers (``kit/tar.py``). It must
be complete, and so must the compressed stream. Reading it blocks, so a thread does it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from services.images import names
from services.images.archives import compression
from services.images.concurrency import threads
from services.images.concurrency.threads import Handover
from services.images.documents import manifests, parser_program
from services.images.documents.blobs import config_of, write, written
from services.images.documents.graph import Graph
from services.images.documents.limits import LAYERS
from services.images.layers.unpacker import Unpacker, parts
from services.images.transfer import LEFT_OUT, Filling, ImageStore, ImportStream, Node, Progress, Report
from services.kit import errors, inflate, loops, memory, tar, tracing
from services.kit.identifiers import quoted
from services.oci import digests, media_types, platforms, references
from services.oci.descriptors import Descriptor
from services.snapshots.diff.media import UNCOMPRESSED

T = TypeVar("T")
Run = Callable[..., Any]

LAYOUT = "oci-layout"
INDEX = "index.json"
DOCKER = "manifest.json"

_PIECE = 1 << 18
_WINDOW = 1 << 27
"""Bytes of a zstd frame's window. zstd writes such frames with ``--ultra -22`` or ``--long``, and reads them without an
option. This process inflates for all clients.
"""
NAMES_LIMIT = 64 << 20
"""Bytes of the names of an archive's files and of its links' targets; each counts for :data:`_NAME` bytes more."""
_NAME = 200
_SMALL = 1 << 16
"""Bytes up to which a file is read before it becomes a blob."""
_LONG_NAME = 1000
"""Bytes of a file's name that go into the ref of its ingest."""
SPARSE_LIMIT = 64 << 30
"""Bytes of a sparse file: an archive of a kilobyte may have one of any size."""

memory.when_idle(tar.forget)


@dataclass(slots=True)
class Contents:
    """The files that were found in an archive."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    """By name in the archive; without a media type."""
    stored: set[str] = field(default_factory=set)
    """Their digests: many small files may be equal, such as the VERSION of each layer that ``docker save`` wrote for
    years.
    """
    links: dict[str, str] = field(default_factory=dict)
    """Symbolic links and their targets."""
    layout: str | None = None
    """The version of an OCI layout."""
    docker: list[dict[str, Any]] | None = None
    """The contents of ``manifest.json``."""
    room: int = NAMES_LIMIT
    """Bytes of names that may still come."""

    def takes(self, *names: str) -> None:
        """Count names that are remembered. ResourceExhausted if there are too many."""
        self.room -= sum(map(len, names)) + _NAME
        if self.room < 0:
            raise errors.ResourceExhausted("the archive has too many files")


async def import_archive(
    source: ImportStream,
    destination: ImageStore,
    node: Node,
    unpacker: Unpacker,
    report: Report,
    most_layers: int = LAYERS,
) -> None:
    """Import the archive, whose images may have ``most_layers`` layers; ``node`` acts under a lease.

    Unknown for something that is no archive of images, and for an archive without a wanted image. NotFound for
    documents that it lacks.
    """
    report(Progress("Importing"))
    wanted = unpacker.accepted(destination.unpacks)
    with tracing.span("images.import"):
        contents = await read(source, node)
        root = await index_of(contents, node, compress=source.force_compress)
    graph = Graph(node, destination, most_layers)
    entries: list[Descriptor] = []
    images: list[tuple[Descriptor, list[Descriptor]]] = []
    empty = True

    async def visit(descriptor: Descriptor) -> None:
        nonlocal empty
        if not graph.first(descriptor):
            return
        children = await graph.all_children(descriptor)
        if descriptor.digest == root.digest:
            entries.extend(children)
        children = await graph.wanted(descriptor, children)
        empty = empty and not children
        if media_types.is_manifest(descriptor.media_type):
            config, layers = parts(children)
            if config is not None and layers:
                images.append((config, layers))
        for child in children:
            await visit(child)

    await visit(root)
    if empty and not (destination.only_wanted and entries):
        raise errors.Unknown(f"image might be filtered out: {_mismatch(entries, destination)}")
    if wanted:
        for config, layers in {config.digest: (config, layers) for config, layers in images}.values():
            await unpacker.unpack(node, config, layers, wanted)
    to_store = [] if destination.only_wanted else [(root, names.of_root(destination, root))]
    for entry in entries:
        named = names.of_archive(destination, entry)
        if destination.only_wanted and named and (others := await graph.others(entry)):
            report(Progress(f"{LEFT_OUT}{platforms.named(others)}", named[0].name, descriptor=entry))
        else:
            to_store.append((entry, named))
    for descriptor, named in to_store:
        if named:
            for image in await names.store_all(named, node):
                report(Progress("saved", image.name, descriptor=descriptor))
                tracing.operation(**{"container.image.name": image.name, "oci.manifest.digest": descriptor.digest})
    report(Progress("Completed import"))


def _mismatch(entries: Sequence[Descriptor], destination: ImageStore) -> str:
    """Why none of an index's entries is wanted."""
    if not entries:
        return "the archive's index lists no image"
    found = platforms.named(entry.platform for entry in entries if entry.platform is not None)
    return f"the archive is for {found}, wanted is {platforms.named(destination.platforms)}"


# ---------------------------------------------------------------------------------------------- the tar


async def read(source: ImportStream, node: Node, *, room: int = NAMES_LIMIT) -> Contents:
    """Make each file of the archive a blob. ResourceExhausted if its names take more than ``room`` bytes."""
    contents = Contents(room=room)
    unique = base64.urlsafe_b64encode(os.urandom(6)).decode()
    async with _in_thread(source.source) as (file, run):
        archive: _Archive = await run(_Archive, file, not source.media_type)
        while (entry := await run(archive.next)) is not None:
            name = posixpath.normpath(archive.name)
            if entry.type == tar.SYMLINK:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(archive.name), _text(entry.linkname)))
                contents.takes(archive.name, target)
                contents.links[archive.name] = target
            elif name == LAYOUT:
                contents.layout = await parser_program.read(
                    await run(archive.document), manifests.layout_version_in, f"untar {quoted(archive.name)}"
                )
            elif name == DOCKER:
                contents.docker = await parser_program.read(
                    await run(archive.document), manifests.saved_in, f"untar {quoted(archive.name)}"
                )
            else:
                contents.takes(name)
                data = await run(archive.small)
                blob = Descriptor("", digests.digest_of(data), len(data)) if data is not None else None
                if blob is None or blob.digest not in contents.stored:
                    async with node.filling(
                        f"tar-{name if len(name) <= _LONG_NAME else digests.digest_of(name.encode())}-{unique}"
                    ) as filling:
                        blob = await run(archive.copied, filling, data)
                        await filling.commit(blob.digest, blob.size)
                    contents.stored.add(blob.digest)
                contents.blobs[name] = blob
        await run(archive.drain)
    return contents


@contextlib.asynccontextmanager
async def _in_thread(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[Handover, Run]]:
    """``source`` as a file, and a function that runs others in a thread which may read the file. A failure of the
    source is raised by the block.
    """
    handover = Handover()
    pool = ThreadPoolExecutor(1, "import")  # a pool of its own: it may wait for a slow client, and would delay others

    async def pump() -> None:
        try:
            async for data in source:
                await handover.put(data)
        finally:
            handover.end()

    async def run(work: Callable[..., T], *arguments: Any) -> T:
        return await threads.run(pool, functools.partial(work, *arguments), handover.stop)

    pumping = loops.task("the bytes of an archive", pump())
    try:
        yield handover, run
        await pumping  # at its end; or it has failed where the archive could have ended
    except Exception:
        # The thread may have seen only the consequence, an archive that ends early.
        if pumping.done() and not pumping.cancelled() and isinstance(failure := pumping.exception(), errors.NodeError):
            raise failure from None
        raise
    finally:
        pumping.cancel()
        await asyncio.wait((pumping,))
        pool.shutdown(wait=False)


class _Archive:
    """The tar in a file, inflated if it is ``compressed``; for use in the thread. Unknown for a damaged tar, with the
    name of the entry.
    """

    def __init__(self, file: Handover, compressed: bool) -> None:
        self._file = file
        self._entry: tar.Entry | None = None
        self.name = ""
        """The name of the entry."""
        with self._readable():
            chunks = iter(functools.partial(file.read, _PIECE), b"")
            self._stream = tar.Stream(inflate.inflated(chunks, _WINDOW) if compressed else chunks)
            self._reader = tar.Reader(self._stream)

    @contextlib.contextmanager
    def _readable(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except (tar.TarError, inflate.CompressionError) as error:
            where = f" (after {quoted(self.name)})" if self.name and not what else ""
            raise errors.Unknown(f"{what}{error}{where}") from None

    def next(self) -> tar.Entry | None:
        """The next file or link; None at the end of the archive."""
        with self._readable():
            while (entry := self._reader.next()) is not None:
                self.name = _text(entry.name)
                if entry.type in (tar.REG, tar.GNU_SPARSE, tar.SYMLINK):
                    break
        self._entry = entry
        return entry

    def document(self) -> bytes:
        """The contents of the entry, a document."""
        what = f"untar {quoted(self.name)}"
        with self._readable(f"{what}: "):
            if self._reader.stored() > manifests.DOCUMENT_LIMIT:
                raise errors.ResourceExhausted(f"{what}: larger than {manifests.DOCUMENT_LIMIT} bytes")
            return self._reader.whole()

    def small(self) -> bytes | None:
        """The contents of the entry, if it is small."""
        entry = self._entry
        assert entry is not None
        if entry.sparse is not None or entry.size > _SMALL:
            return None
        with self._readable(f"failed to ingest {quoted(self.name)}: "):
            return b"".join(self._reader.data())

    def copied(self, filling: Filling, data: bytes | None) -> Descriptor:
        """Write the entry to the ingest: ``data``, or the contents that are still to be read. Returns its
        descriptor.
        """
        entry = self._entry
        assert entry is not None
        hashing = hashlib.sha256()
        with self._readable(f"failed to ingest {quoted(self.name)}: "):
            for piece in (
                [data]
                if data is not None
                else self._reader.data()
                if entry.sparse is None
                else self._filled(entry.size, entry.sparse)
            ):
                hashing.update(piece)
                write(filling.fd, piece)
        filling.filled()
        return Descriptor("", f"sha256:{hashing.hexdigest()}", entry.size)

    def _filled(self, size: int, sparse: Sequence[tuple[int, int]]) -> Iterator[bytes | memoryview]:
        """The contents of a sparse file, with zeros for its holes."""
        if size > SPARSE_LIMIT:
            raise errors.ResourceExhausted(f"failed to ingest {quoted(self.name)}: a sparse file of {size} bytes")
        pieces = self._reader.data()
        piece: bytes | memoryview = b""
        at = 0
        for offset, length in [*sparse, (size, 0)]:
            while at < offset:
                if self._file.stopped:  # the import was given up, and the loop would not end by itself
                    raise errors.Cancelled(f"failed to ingest {quoted(self.name)}")
                zeros = bytes(min(_PIECE, offset - at))
                at += len(zeros)
                yield zeros
            end = offset + length
            while at < end:
                piece = piece or next(pieces)
                yield (now := piece[: end - at])
                piece = piece[len(now) :]
                at += len(now)

    def drain(self) -> None:
        """Read to the end: a compressed stream has its checksum there, and a client reports an error if its last bytes
        are not taken.
        """
        with self._readable():
            self._stream.drain()
        while self._file.read(_PIECE):
            continue


def _text(name: bytes) -> str:
    """A name as text. One that is not UTF-8 becomes one that no document can refer to."""
    return name.decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------------------------------- the index


async def index_of(contents: Contents, node: Node, *, compress: bool) -> Descriptor:
    """The descriptor of the archive's index, which is made if the archive has none. Unknown for something that is no
    archive of images.
    """
    if contents.layout:
        if contents.layout != "1.0.0":
            raise errors.Unknown(f"unsupported OCI version {contents.layout}")
        index = contents.blobs.get(INDEX)
        if index is None:
            raise errors.Unknown("missing index.json in OCI layout 1.0.0")
        return replace(index, media_type=media_types.INDEX)
    if contents.docker is None:
        raise errors.Unknown("unrecognized image format")
    for name, target in contents.links.items():
        if target not in contents.blobs:
            raise errors.Unknown(f'no target for symlink layer from "{name}" to "{target}"')
        contents.blobs[name] = contents.blobs[target]
    entries = [
        entry
        for found in contents.docker
        for entry in await _docker_image(found, contents.blobs, node, compress=compress)
    ]
    return await written(
        manifests.encoded(
            {"schemaVersion": 2, "manifests": [manifests.descriptor_to_json(entry) for entry in entries] or None}
        ),
        media_types.INDEX,
        node,
    )


async def _docker_image(
    found: Mapping[str, Any], blobs: Mapping[str, Descriptor], node: Node, *, compress: bool
) -> list[Descriptor]:
    """The manifest of one entry of ``manifest.json``, once for each of its names."""
    name = found.get("Config") or ""
    if name not in blobs:
        raise errors.Unknown(f'image config "{name}" not found')
    config = replace(blobs[name], media_type=media_types.DOCKER_CONFIG)
    layers = await _docker_layers(found.get("Layers") or [], blobs, node, compress=compress)
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.DOCKER_MANIFEST,
        "config": manifests.descriptor_to_json(config),
        "layers": [manifests.descriptor_to_json(layer) for layer in layers],
    }
    manifest = await written(manifests.encoded(document), media_types.DOCKER_MANIFEST, node)
    manifest = replace(manifest, platform=(await config_of(node, config)).platform)
    full = [references.normalized(reference) for reference in found.get("RepoTags") or []]
    return [manifest.annotated({names.IMAGE_NAME: n, names.REF_NAME: names.for_oci(n)}) for n in full] or [manifest]


async def _docker_layers(
    files: Sequence[str], blobs: Mapping[str, Descriptor], node: Node, *, compress: bool
) -> list[Descriptor]:
    """The layers' descriptors. If the node has a compressed form of a layer, that is used."""
    missing = next((name for name in files if name not in blobs), None)
    if missing is not None:
        raise errors.Unknown(f'failed to resolve layers: layer "{missing}" not found')
    layers = [blobs[name] for name in files]
    if layers:
        known = {
            info.labels[UNCOMPRESSED]: Descriptor("", str(info.digest), info.size)
            async for info in node.compressed(sorted({d.digest for d in layers}))
        }
        layers = [known.get(layer.digest, layer) for layer in layers]
    return [await _docker_layer(layer, node, compress=compress) for layer in layers]


async def _docker_layer(layer: Descriptor, node: Node, *, compress: bool) -> Descriptor:
    async with node.reading(layer.digest) as fd:
        head = await threads.to_thread(os.read, fd, inflate.HEAD)
    if inflate.compression_of(head) is not None:
        # for zstd too, as in containerd: unpacking looks at the bytes
        return replace(layer, media_type=media_types.DOCKER_LAYER_GZIP)
    if not compress:
        return replace(layer, media_type=media_types.DOCKER_LAYER)
    async with (
        node.reading(layer.digest) as fd,
        node.filling(f"compress-blob-{layer.digest.replace(':', '-')}-{os.urandom(4).hex()}") as filling,
    ):
        digest, size = await threads.to_thread(compression.gzipped, fd, filling.fd)
        filling.filled()
        await filling.commit(digest, size, {UNCOMPRESSED: layer.digest})
    return Descriptor(media_types.DOCKER_LAYER_GZIP, digest, size)
