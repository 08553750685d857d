"""Imports: from an archive to images.

An archive is a tar, perhaps compressed, of one of two kinds. An *OCI layout* has documents of its own: ``oci-layout``, ``index.json``, and blobs. What ``docker save`` writes has ``manifest.json``, which
says which files are whose config and layers; here it is made into Docker manifests and an index of them. (Archives that have both, such as our exports, are OCI layouts.)

1. Every file becomes a blob as it comes by, whatever its name; what nothing refers to in the end is collected once the lease is gone.
2. The index is walked: each document is labelled with what it refers to, as far as the destination wants it (``graph.py``). Documents that are missing are an error; layers are not
   looked at, so an archive may lack those that the node has.
3. Layers are unpacked if the destination says so.
4. The index and each of its entries are stored as images under the names that the destination gives them (``names.py``); those without a name are not.

Reading the tar blocks, so a thread does it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import IO, Any, TypeVar

from services.images import compression, names, oci, references, threads, unpack
from services.images.documents import config_of, write, written
from services.images.graph import LAYERS, Graph
from services.images.oci import Descriptor
from services.images.threads import Handover
from services.images.transfer import UNCOMPRESSED, Filling, ImageStore, ImportStream, Node, Progress, Report
from services.images.unpack import Unpacker
from services.kit import errors, tracing

T = TypeVar("T")
Run = Callable[..., Any]

LAYOUT = "oci-layout"
INDEX = "index.json"
DOCKER = "manifest.json"

_PIECE = 1 << 18


@dataclass(slots=True)
class Contents:
    """What was found in an archive."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    """By name in the archive; without media type."""
    links: dict[str, str] = field(default_factory=dict)
    """Symbolic links and what they name."""
    layout: str | None = None
    """The version of an OCI layout."""
    docker: list[Any] | None = None
    """``manifest.json``."""


async def imported(source: ImportStream, destination: ImageStore, node: Node, unpacker: Unpacker, report: Report, most_layers: int = LAYERS) -> None:
    """Import the archive, whose images have so many layers at most; ``node`` acts under a lease. Unknown for what is no archive of images, NotFound for documents that it lacks."""
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
        children = await graph.all_children(descriptor)
        if descriptor.digest == root.digest:
            entries.extend(children)
        children = await graph.wanted(descriptor, children)
        empty = empty and not children
        if oci.is_manifest(descriptor.media_type):
            config, layers = unpack.parts(children)
            if config is not None and layers:
                images.append((config, layers))
        for child in children:
            await visit(child)

    await visit(root)
    if empty:
        raise errors.Unknown("image might be filtered out")
    if wanted:
        for config, layers in {config.digest: (config, layers) for config, layers in images}.values():
            await unpacker.unpack(node, config, layers, wanted)
    for descriptor, found in ((root, names.of_root(destination, root)), *((entry, names.of_archive(destination, entry)) for entry in entries)):
        if found:
            for image in await names.stored(found, node):
                report(Progress("saved", image.name, descriptor=descriptor))
    report(Progress("Completed import"))


# ---------------------------------------------------------------------------------------------- the tar


async def read(source: ImportStream, node: Node) -> Contents:
    """Make every file of the archive a blob."""
    contents = Contents()
    unique = base64.urlsafe_b64encode(os.urandom(6)).decode()
    async with _in_thread(source.source) as (file, run):
        tar = await run(_opened, file, not source.media_type)
        while tar is not None and (member := await run(_next, tar)) is not None:
            if member.issym():
                contents.links[member.name] = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
            if not member.isreg():
                continue
            name = posixpath.normpath(member.name)
            if name == LAYOUT:
                contents.layout = _layout_version(await run(_json, tar, member))
            elif name == DOCKER:
                contents.docker = _docker_entries(await run(_json, tar, member))
            else:
                async with node.filling(f"tar-{name}-{unique}") as filling:
                    digest, size = await run(_copied, tar, member, filling)
                    await filling.commit(digest, size)
                contents.blobs[name] = Descriptor("", digest, size)
        await run(_drained, file)
    return contents


@contextlib.asynccontextmanager
async def _in_thread(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[IO[bytes], Run]]:
    """``source`` as a file, and a function that runs others in a thread which may read it. A failure of the source is the block's."""
    handover = Handover()
    pool = ThreadPoolExecutor(1, "import")  # of its own: it may wait for a slow client, and others would wait with it

    async def pump() -> None:
        try:
            async for data in source:
                await handover.put(data)
        finally:
            handover.end()

    async def run(work: Callable[..., T], *arguments: Any) -> T:
        return await threads.run(pool, functools.partial(work, *arguments), handover.stop)

    pumping = asyncio.ensure_future(pump())
    try:
        yield handover.file, run
        await pumping  # at its end, or it failed where the archive could have ended
    except Exception:
        # What the thread saw, an archive that ends early, is only how it saw it.
        if pumping.done() and not pumping.cancelled() and isinstance(failure := pumping.exception(), errors.NodeError):
            raise failure from None
        raise
    finally:
        pumping.cancel()
        await asyncio.wait((pumping,))
        pool.shutdown(wait=False)


@contextlib.contextmanager
def _readable(what: str = "") -> Iterator[None]:
    """In the thread: what a damaged archive raises, as an error of ours."""
    try:
        yield
    except errors.NodeError:
        raise
    except EOFError:
        raise errors.Unknown(f"{what}unexpected EOF") from None
    except tarfile.TarError as error:
        raise errors.Unknown(f"{what}unexpected EOF" if "unexpected end" in str(error) else "archive/tar: invalid tar header") from None
    except (ValueError, zlib.error, OSError) as error:
        raise errors.Unknown(f"{what}{error}") from None


def _opened(file: IO[bytes], compressed: bool) -> tarfile.TarFile | None:
    """The tar in ``file``; None if that is empty."""
    with _readable():
        plain = compression.decompressed(file) if compressed else compression.Ahead(file).file
        try:
            return tarfile.open(fileobj=plain, mode="r|", bufsize=_PIECE)  # nothing to close: its file is the pipe
        except tarfile.ReadError as error:
            if str(error) == "empty file":
                return None
            raise


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _readable():
        tar.members = []  # type: ignore[attr-defined]  # it would remember them all
        return tar.next()


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    with _readable():
        file = tar.extractfile(member)
        assert file is not None
        try:
            return json.JSONDecoder().raw_decode(file.read(oci.DOCUMENT_LIMIT).decode().lstrip())[0]
        except (ValueError, RecursionError) as error:
            raise errors.Unknown(f'untar "{member.name}": {error}') from None


def _copied(tar: tarfile.TarFile, member: tarfile.TarInfo, filling: Filling) -> tuple[str, int]:
    """Digest and size of a member whose bytes are in the ingest now."""
    hashing = hashlib.sha256()
    size = 0
    with _readable(f'failed to ingest "{member.name}": '):
        file = tar.extractfile(member)
        assert file is not None
        while piece := file.read(_PIECE):
            hashing.update(piece)
            size += len(piece)
            write(filling.fd, piece)
    if size != member.size:
        raise errors.Unknown(f'failed to ingest "{member.name}": unexpected EOF')
    filling.filled()
    return f"sha256:{hashing.hexdigest()}", size


def _drained(file: IO[bytes]) -> None:
    """Read what the client sends after the end of the tar, or it complains."""
    while file.read(_PIECE):
        continue


def _layout_version(found: Any) -> str:
    version = found.get("imageLayoutVersion") if isinstance(found, dict) else None
    return version if isinstance(version, str) else ""


def _docker_entries(found: Any) -> list[Any]:
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise errors.Unknown(f'untar manifest "{DOCKER}": not a list of objects')
    return found


# ---------------------------------------------------------------------------------------------- the index


async def index_of(contents: Contents, node: Node, *, compress: bool) -> Descriptor:
    """The descriptor of the archive's index, which is made if the archive has none. Unknown for what is no archive of images."""
    if contents.layout:
        if contents.layout != "1.0.0":
            raise errors.Unknown(f"unsupported OCI version {contents.layout}")
        index = contents.blobs.get(INDEX)
        if index is None:
            raise errors.Unknown("missing index.json in OCI layout 1.0.0")
        return replace(index, media_type=oci.INDEX)
    if contents.docker is None:
        raise errors.Unknown("unrecognized image format")
    for name, target in contents.links.items():
        if target not in contents.blobs:
            raise errors.Unknown(f'no target for symlink layer from "{name}" to "{target}"')
        contents.blobs[name] = contents.blobs[target]
    entries = [entry for found in contents.docker for entry in await _docker_image(found, contents.blobs, node, compress=compress)]
    return await written(oci.encoded({"schemaVersion": 2, "manifests": [oci.descriptor_to_json(entry) for entry in entries] or None}), oci.INDEX, node)


async def _docker_image(found: Mapping[str, Any], blobs: Mapping[str, Descriptor], node: Node, *, compress: bool) -> list[Descriptor]:
    """The manifest of one entry of ``manifest.json``, once for each of its names."""
    name = found.get("Config") or ""
    if name not in blobs:
        raise errors.Unknown(f'image config "{name}" not found')
    config = replace(blobs[name], media_type=oci.DOCKER_CONFIG)
    layers = await _docker_layers(_names(found, "Layers"), blobs, node, compress=compress)
    document = {"schemaVersion": 2, "mediaType": oci.DOCKER_MANIFEST, "config": oci.descriptor_to_json(config), "layers": [oci.descriptor_to_json(layer) for layer in layers]}
    manifest = await written(oci.encoded(document), oci.DOCKER_MANIFEST, node)
    manifest = replace(manifest, platform=(await config_of(node, config)).platform)
    full = [references.normalized(reference) for reference in _names(found, "RepoTags")]
    return [manifest.annotated({references.IMAGE_NAME: n, references.REF_NAME: references.for_oci(n)}) for n in full] or [manifest]


def _names(found: Mapping[str, Any], key: str) -> list[str]:
    value = found.get(key) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise errors.Unknown(f'untar manifest "{DOCKER}": {key} is not a list of names')
    return value


async def _docker_layers(files: Sequence[str], blobs: Mapping[str, Descriptor], node: Node, *, compress: bool) -> list[Descriptor]:
    """The layers' descriptors: where the node has a compressed form of a layer already, that one."""
    missing = next((name for name in files if name not in blobs), None)
    if missing is not None:
        raise errors.Unknown(f'failed to resolve layers: layer "{missing}" not found')
    layers = [blobs[name] for name in files]
    if layers:
        known = {info.labels[UNCOMPRESSED]: Descriptor("", str(info.digest), info.size) async for info in node.compressed(sorted({d.digest for d in layers}))}
        layers = [known.get(layer.digest, layer) for layer in layers]
    return [await _docker_layer(layer, node, compress=compress) for layer in layers]


async def _docker_layer(layer: Descriptor, node: Node, *, compress: bool) -> Descriptor:
    async with node.reading(layer.digest) as fd:
        head = await threads.to_thread(os.read, fd, compression.HEAD)
    if compression.of(head) is not None:
        return replace(layer, media_type=oci.DOCKER_LAYER_GZIP)  # for zstd too, as in containerd: whoever unpacks it looks at its bytes
    if not compress:
        return replace(layer, media_type=oci.DOCKER_LAYER)
    async with (node.reading(layer.digest) as fd, node.filling(f"compress-blob-{layer.digest.replace(':', '-')}-{os.urandom(4).hex()}") as filling):
        digest, size = await threads.to_thread(compression.gzipped, fd, filling.fd)
        filling.filled()
        await filling.commit(digest, size, {UNCOMPRESSED: layer.digest})
    return Descriptor(oci.DOCKER_LAYER_GZIP, digest, size)
