"""Exports: from images to an archive that containerd, docker load and OCI tools can read.

The archive is an OCI layout: ``oci-layout``; ``index.json``, with an entry for each name; and the blobs of all wanted
manifests. It also has ``manifest.json`` for docker load, with one manifest of each image. The archive is a plain tar.
Its files are in the order of their names and have no times or owners: the same images always give the same bytes, which
are the same as containerd's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.images import names
from services.images.concurrency import threads
from services.images.distribution.source_labels import SOURCE
from services.images.documents import blobs, manifests
from services.images.documents.graph import Walk
from services.images.transfer import ExportStream, ImageStore, Node, Progress, Report, Sink
from services.kit import errors
from services.oci import media_types, platforms, references
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest

log = logging.getLogger(__name__)

_PIECE = 1 << 20
_OCTAL_LIMIT = 1 << 33
"""Bytes from which a size does not fit into a plain header."""


@dataclass(frozen=True, slots=True)
class Record:
    """A file or a directory of the archive, with ``data`` or with the bytes of ``blob``."""

    name: str
    mode: int = 0o644
    data: bytes = b""
    blob: Descriptor | None = None

    @property
    def size(self) -> int:
        return len(self.data) if self.blob is None else self.blob.size


@dataclass(slots=True)
class _Manifest:
    """A manifest that is offered to docker load, and its names."""

    descriptor: Descriptor
    names: list[str] = field(default_factory=list)


async def export_archive(source: ImageStore, destination: ExportStream, node: Node, report: Report) -> None:
    """Write the source's images to the archive. NotFound for a missing image, document or layer, and for an index that
    has nothing for the platform.
    """
    report(Progress("Exporting"))
    targets = [
        image.target.annotated({names.IMAGE_NAME: image.name, names.REF_NAME: names.for_oci(image.name)})
        for image in await names.look_up(source, node)
    ]
    records = await _Archive(destination, node).records(targets)
    await written(records, destination.sink, node)
    report(Progress("Completed export"))


class _Archive:
    """The contents of an archive."""

    def __init__(self, wanted: ExportStream, node: Node) -> None:
        self._wanted = wanted
        self._node = node
        self._walk = Walk(node)
        self._platforms = platforms.Ordered(*(wanted.platforms or (platforms.default(),)))
        self._records: dict[str, Record] = {}
        self._docker: dict[str, _Manifest] = {}
        self._chosen: dict[str, str] = {}  # from an index to the manifest that stands for it
        self._algorithms: set[str] = set()

    async def records(self, targets: Sequence[Descriptor]) -> list[Record]:
        """The records, in their order."""
        entries = []
        for target in targets:
            try:
                labels = (await self._node.info(target.digest)).labels
            except errors.NotFound as error:
                log.warning("%s is not exported: %s", target.annotations.get(names.IMAGE_NAME), error)
                continue
            entries.append(target.annotated({key: value for key, value in labels.items() if key.startswith(SOURCE)}))
        for entry in entries:
            self._walk = Walk(self._node)
            await self._add(entry)
        self._put(Record("oci-layout", 0o444, manifests.encoded({"imageLayoutVersion": "1.0.0"})))
        self._put(
            Record(
                "index.json",
                0o644,
                manifests.encoded(
                    {
                        "schemaVersion": 2,
                        "mediaType": media_types.INDEX,
                        "manifests": [manifests.descriptor_to_json(entry) for entry in entries],
                    }
                ),
            )
        )
        if self._docker and not self._wanted.skip_docker_manifest:
            self._put(
                Record(
                    "manifest.json",
                    0o644,
                    manifests.encoded([await self._for_docker(manifest) for manifest in self._docker.values()]),
                )
            )
        if self._algorithms:
            self._put(Record("blobs/", 0o755))
        for algorithm in self._algorithms:
            self._put(Record(f"blobs/{algorithm}/", 0o755))
        return sorted(self._records.values(), key=lambda record: record.name.encode())

    async def _add(self, entry: Descriptor) -> None:
        if media_types.is_manifest(entry.media_type):
            if entry.digest not in self._docker:
                await self._tree(entry)
                self._docker[entry.digest] = _Manifest(entry)
            chosen = entry.digest
        elif media_types.is_index(entry.media_type):
            if entry.digest not in self._chosen:
                self._chosen[entry.digest] = await self._index(entry)
            chosen = self._chosen[entry.digest]
        else:
            raise errors.InvalidArgument("only manifests may be exported")
        self._docker[chosen].names.append(entry.annotations[names.IMAGE_NAME])

    async def _index(self, entry: Descriptor) -> str:
        """Add all wanted manifests of an index. Returns the digest of the one that fits best."""
        fitting = []
        children = await self._walk.children(entry)
        self._walk.follow(entry, children)
        for manifest in children:
            if manifest.platform is None or self._platforms.matches(manifest.platform):
                fitting.append(manifest)
            elif not self._wanted.all_platforms:
                continue
            await self._tree(manifest)
        self._blob(entry, of_tree=False)
        if not fitting:
            raise errors.NotFound("no manifest found for platform")
        best = platforms.in_order(fitting, lambda manifest: manifest.platform, self._platforms)[0]
        self._docker.setdefault(best.digest, _Manifest(best))
        return best.digest

    async def _tree(self, descriptor: Descriptor) -> None:
        if not self._walk.first(descriptor):
            return
        children = await self._walk.children(descriptor)
        self._walk.follow(descriptor, children)
        self._blob(descriptor)
        for child in children:
            await self._tree(child)

    def _blob(self, descriptor: Descriptor, *, of_tree: bool = True) -> None:
        try:
            Digest.parse(descriptor.digest)
        except ValueError as error:
            raise errors.InvalidArgument(f"{descriptor.digest!r}: {error}") from None
        if of_tree:
            self._algorithms.add(descriptor.digest.partition(":")[0])
        if not (self._wanted.skip_non_distributable and media_types.is_non_distributable(descriptor.media_type)):
            self._put(Record(_path(descriptor.digest), 0o444, blob=descriptor))

    def _put(self, record: Record) -> None:
        self._records.setdefault(record.name, record)

    async def _for_docker(self, manifest: _Manifest) -> dict[str, object]:
        config, *layers = await blobs.children(
            self._node, replace(manifest.descriptor, media_type=media_types.MANIFEST)
        )
        return {
            "Config": _path(config.digest),
            "RepoTags": [references.familiar(name) for name in manifest.names] or None,
            "Layers": [_path(layer.digest) for layer in layers] or None,
        }


def _path(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


# ---------------------------------------------------------------------------------------------- the tar


async def written(records: Sequence[Record], sink: Sink, node: Node) -> None:
    """Write the tar of ``records`` to ``sink``, with its end. Unknown for a blob that does not match its descriptor."""
    for record in records:
        await sink.write(header(record))
        if record.blob is None:
            await sink.write(record.data)
        else:
            await _blob(record.blob, sink, node)
        await sink.write(bytes(-record.size % tarfile.BLOCKSIZE))
    await sink.write(bytes(2 * tarfile.BLOCKSIZE))


def header(record: Record) -> bytes:
    """The header of a file or a directory, as Go writes it."""
    kind = tarfile.DIRTYPE if record.name.endswith("/") else tarfile.REGTYPE
    name = record.name.encode()
    if record.size >= _OCTAL_LIMIT or len(name) > 100:
        info = tarfile.TarInfo(record.name)
        info.mode, info.size, info.type = record.mode, record.size, kind
        return info.tobuf(tarfile.PAX_FORMAT)
    block = bytearray(tarfile.BLOCKSIZE)
    for offset, text in (
        (0, name),
        (100, b"%07o" % record.mode),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, b"%011o" % record.size),
        (136, b"00000000000"),
        (148, b" " * 8),
        (156, kind),
        (257, b"ustar\x0000"),
        (329, b"0000000"),
        (337, b"0000000"),
    ):
        block[offset : offset + len(text)] = text
    block[148:155] = b"%06o\x00" % sum(block)
    return bytes(block)


async def _blob(descriptor: Descriptor, sink: Sink, node: Node) -> None:
    hashing = hashlib.new(descriptor.digest.partition(":")[0])
    size = 0

    def piece(fd: int) -> bytes:
        data = os.read(fd, _PIECE)
        hashing.update(data)
        return data

    async with node.reading(descriptor.digest) as fd:
        while data := await threads.to_thread(piece, fd):
            size += len(data)
            if size > descriptor.size:
                break
            await sink.write(data)
    if size != descriptor.size:
        raise errors.Unknown(f"unexpected copy size for {_path(descriptor.digest)}")
    if hashing.hexdigest() != descriptor.digest.partition(":")[2]:
        raise errors.Unknown(f"unexpected digest {hashing.name}:{hashing.hexdigest()} copied")
