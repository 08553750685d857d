"""The images of a node, for a client: their records, and what is there of each, for which platforms, and unpacked by
which snapshotters.

What is there is told by the content of the namespace, which is listed once for all images, and by their documents.
Nothing is asked of registries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from api.containerd.services.images.v1 import images_pb2, images_stubs
from services.content.remote import RemoteStore
from services.content.store import Info
from services.images import transfer_convert as convert
from services.images.documents import manifests
from services.images.transfer import Image
from services.kit import errors
from services.kit.rpc import Channel
from services.oci import media_types, references
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest
from services.oci.platforms import Platform
from services.snapshots.remote import RemoteSnapshotter

IMAGES = images_stubs.IMAGES

_SNAPSHOT = "containerd.io/gc.ref.snapshot."
"""Label of a config's blob: the snapshotter's name behind it, the topmost chain id as its value."""
_AT_ONCE = 16
"""Images that are looked into at once."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What an image is for one platform: a manifest that is there."""

    digest: str
    platform: Platform
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""
    absent: frozenset[str]
    """Digests of the layers, and of the config, whose blobs are not there."""
    unpacked: tuple[str, ...]
    """Names of the snapshotters that have all layers."""

    @property
    def usable(self) -> bool:
        """Whether a container can be made of it: its blobs are there, or its snapshots."""
        return self.config.digest not in self.absent and (bool(self.unpacked) or not self.absent)


@dataclass(frozen=True, slots=True)
class Described:
    """An image. Times are nanoseconds since the epoch, of its record."""

    image: Image
    created_at: int
    updated_at: int
    size: int = 0
    """Bytes of those of its blobs that are there."""
    variants: tuple[Variant, ...] = ()
    offered: tuple[Platform, ...] = ()
    """The platforms that its index names, there or not; empty where it is no index."""
    trouble: str = ""
    """Why it could not be looked into, such as a document that is malformed."""


@dataclass(slots=True)
class _Found:
    """What a walk has met."""

    blobs: dict[str, int] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    offered: list[Platform] = field(default_factory=list)


class Images:
    """The images of one namespace of the node behind ``channel``; ``headers`` name it."""

    def __init__(self, channel: Channel, headers: Mapping[str, str | bytes]) -> None:
        self._channel = channel
        self._headers = dict(headers)
        self._images = channel.client(IMAGES)
        self._content = RemoteStore(channel, headers)

    async def find(self, name: str, *others: str) -> str:
        """The name under which there is an image: ``name`` itself, whatever it looks like, the full form of it, or one
        of ``others``. NotFound names the full form; InvalidArgument where there is none.
        """
        if name and await self._is_there(name):
            return name
        full = full_name(name)
        for each in dict.fromkeys((full, *others)):
            if each != name and await self._is_there(each):
                return each
        raise errors.NotFound(f"image {full}")

    async def _is_there(self, name: str) -> bool:
        try:
            await self._images.Get(images_pb2.GetImageRequest(name=name), headers=self._headers)
        except errors.NotFound:
            return False
        return True

    async def delete(self, name: str, *, sync: bool) -> None:
        """Delete a record; with ``sync`` return when what only it kept is collected, however long that takes.
        NotFound.
        """
        await self._images.Delete(
            images_pb2.DeleteImageRequest(name=name, sync=sync), headers=self._headers, timeout=None if sync else -1.0
        )

    async def names(self) -> list[str]:
        """The names of all, in their order."""
        return sorted(record.name for record in await self._listed())

    async def describe(self, *names: str) -> list[Described]:
        """These images in their order, or all in the order of their names. NotFound."""
        records = {record.name: record for record in await self._listed()}
        if missing := [name for name in names if name not in records]:
            raise errors.NotFound(f"image {missing[0]}")
        blobs = {str(info.digest): info async for info in self._content.list()}
        turn = asyncio.Semaphore(_AT_ONCE)

        async def described(record: images_pb2.Image) -> Described:
            async with turn:
                return await self._described(record, blobs)

        return list(await asyncio.gather(*(described(records[name]) for name in names or sorted(records))))

    async def _listed(self) -> list[images_pb2.Image]:
        return list((await self._images.List(images_pb2.ListImagesRequest(), headers=self._headers)).images)

    async def _described(self, record: images_pb2.Image, blobs: Mapping[str, Info]) -> Described:
        image = convert.image_from_pb(record)
        found, trouble = _Found(), ""
        try:
            await self._walk(image.target, blobs, found)
        except errors.NodeError as error:
            trouble = str(error)
        return Described(
            image,
            record.created_at.ToNanoseconds(),
            record.updated_at.ToNanoseconds(),
            sum(found.blobs.values()),
            tuple(found.variants),
            tuple(found.offered),
            trouble,
        )

    async def _walk(self, root: Descriptor, blobs: Mapping[str, Info], found: _Found) -> None:
        """All below ``root``, as its documents name it. Whoever may write to the node made them: so it does not
        recurse, and meets no more than a transfer would.
        """
        left, met = [root], 1
        while left:
            descriptor = left.pop()
            info = blobs.get(descriptor.digest)
            if info is None or descriptor.digest in found.blobs:
                continue
            found.blobs[descriptor.digest] = info.size
            if not (media_types.is_manifest(descriptor.media_type) or media_types.is_index(descriptor.media_type)):
                continue
            children = manifests.children_in(await self._document(info), descriptor)
            if (met := met + len(children)) > manifests.REFERENCES:
                raise errors.ResourceExhausted(f"too many descriptors (limit {manifests.REFERENCES})")
            if media_types.is_index(descriptor.media_type):
                found.offered += [
                    child.platform for child in children if child.platform is not None and _is_real(child.platform)
                ]
            left += reversed(children)
            config = next((child for child in children if media_types.is_config(child.media_type)), None)
            if media_types.is_manifest(descriptor.media_type) and config is not None:
                found.variants.append(
                    await self._variant(descriptor, config, [child for child in children if child is not config], blobs)
                )

    async def _variant(
        self, manifest: Descriptor, config: Descriptor, layers: list[Descriptor], blobs: Mapping[str, Info]
    ) -> Variant:
        absent = frozenset(each.digest for each in (config, *layers) if each.digest not in blobs)
        platform, unpacked = manifest.platform or Platform(), list[str]()
        if config.digest not in absent:
            platform = manifests.Config.parse(await self._document(blobs[config.digest]), config.digest).platform
            for key, chain_id in blobs[config.digest].labels.items():
                if key.startswith(_SNAPSHOT) and await self._is_snapshot(key.removeprefix(_SNAPSHOT), chain_id):
                    unpacked.append(key.removeprefix(_SNAPSHOT))
        return Variant(manifest.digest, platform, config, tuple(layers), absent, tuple(sorted(unpacked)))

    async def _is_snapshot(self, snapshotter: str, key: str) -> bool:
        try:
            await RemoteSnapshotter(self._channel, snapshotter=snapshotter, headers=self._headers).stat(key)
        except (errors.NotFound, errors.InvalidArgument):  # InvalidArgument: the node has no such snapshotter any more
            return False
        return True

    async def _document(self, info: Info) -> bytes:
        if info.size > manifests.DOCUMENT_LIMIT:
            raise errors.ResourceExhausted(f"document {info.digest} is larger than {manifests.DOCUMENT_LIMIT} bytes")
        return b"".join([piece async for piece in self._content.read(Digest.parse(str(info.digest)))])

    async def ingests(self) -> dict[str, int]:
        """Bytes of what earlier transfers have begun to fetch, by ref."""
        return {status.ref: status.offset for status in await self._content.list_statuses()}


def full_name(name: str) -> str:
    """The full form of a name (``docker.io/library/busybox:latest`` of ``busybox``), of a tag and a digest with the
    digest alone; InvalidArgument names what is none.
    """
    return _of_name(references.normalized, name)


def complete_name(name: str) -> str:
    """As :func:`full_name`, with both the tag and the digest."""
    return _of_name(references.complete, name)


def _of_name(form: Callable[[str], str], name: str) -> str:
    try:
        return form(name)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument.verbatim(f"{name}: {error}") from None


def platforms_of(variants: Iterable[Variant]) -> list[str]:
    """The platforms of what is usable, in their order."""
    return list(
        dict.fromkeys(str(variant.platform) for variant in variants if variant.usable and _is_real(variant.platform))
    )


def _is_real(platform: Platform) -> bool:
    """Attestations are listed under the platform unknown/unknown."""
    return platform.os not in ("", "unknown")
