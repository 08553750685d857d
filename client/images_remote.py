"""The images of a node, for a client: their records, which blobs of each exist, for which platforms, and which
snapshotters have them unpacked.

The content of the namespace is listed once for all images, and their documents are read. Registries are not asked.
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
from services.kit.timestamps import time_from_pb
from services.oci import media_types, references
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest
from services.oci.platforms import Platform
from services.snapshots.remote import RemoteSnapshotter

IMAGES = images_stubs.IMAGES

_SNAPSHOT = "containerd.io/gc.ref.snapshot."
"""The label of a config's blob; the snapshotter's name is appended. Its value is the topmost chain id."""
_AT_ONCE = 16
"""Images that are examined at once."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An image for one platform: a manifest that the node has."""

    digest: str
    platform: Platform
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""
    absent: frozenset[str]
    """Digests of layers, and of the config, whose blobs the node does not have."""
    unpacked: tuple[str, ...]
    """Names of the snapshotters that have all layers."""

    @property
    def usable(self) -> bool:
        """Whether a container can be made of it: the node has the config, and either all layers or their snapshots."""
        return self.config.digest not in self.absent and (bool(self.unpacked) or not self.absent)


@dataclass(frozen=True, slots=True)
class Described:
    """An image. Times are those of its record, in nanoseconds since the epoch."""

    image: Image
    created_at: int
    updated_at: int
    size: int = 0
    """Bytes of its blobs that the node has."""
    variants: tuple[Variant, ...] = ()
    offered: tuple[Platform, ...] = ()
    """The platforms that its index names, whether the node has them or not; empty if it is no index."""
    trouble: str = ""
    """Why the image could not be examined, for example because a document is malformed."""


@dataclass(slots=True)
class _Found:
    """The findings of a walk."""

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
        """The name of an existing image: ``name`` unchanged, or its full form, or one of ``others``. If none exists,
        NotFound names the full form; InvalidArgument if there is no full form.
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
        """Delete a record. With ``sync``, return when everything that only it used is collected, however long that
        takes. Raises NotFound.
        """
        await self._images.Delete(
            images_pb2.DeleteImageRequest(name=name, sync=sync), headers=self._headers, timeout=None if sync else -1.0
        )

    async def names(self) -> list[str]:
        """The names of all images, sorted."""
        return sorted(record.name for record in await self._listed())

    async def describe(self, *names: str) -> list[Described]:
        """These images in the given order, or all images sorted by name. Raises NotFound."""
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
            time_from_pb(record.created_at),
            time_from_pb(record.updated_at),
            sum(found.blobs.values()),
            tuple(found.variants),
            tuple(found.offered),
            trouble,
        )

    async def _walk(self, root: Descriptor, blobs: Mapping[str, Info], found: _Found) -> None:
        """Walk all documents below ``root``. Any client of the node may have written them, so this does not recurse,
        and accepts no more descriptors than a transfer would.
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
        # InvalidArgument: the node does not have this snapshotter any more
        except (errors.NotFound, errors.InvalidArgument):
            return False
        return True

    async def _document(self, info: Info) -> bytes:
        if info.size > manifests.DOCUMENT_LIMIT:
            raise errors.ResourceExhausted(f"document {info.digest} is larger than {manifests.DOCUMENT_LIMIT} bytes")
        return b"".join([piece async for piece in self._content.read(Digest.parse(str(info.digest)))])

    async def ingests(self) -> dict[str, int]:
        """The blobs that earlier transfers have begun to fetch: their bytes so far, by ref."""
        return {status.ref: status.offset for status in await self._content.list_statuses()}


def full_name(name: str) -> str:
    """The full form of a name: ``docker.io/library/busybox:latest`` for ``busybox``. If it has a tag and a digest, the
    digest stays. InvalidArgument names what is no reference.
    """
    return _of_name(references.normalized, name)


def complete_name(name: str) -> str:
    """Like :func:`full_name`, but with both the tag and the digest."""
    return _of_name(references.complete, name)


def _of_name(form: Callable[[str], str], name: str) -> str:
    try:
        return form(name)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument.verbatim(f"{name}: {error}") from None


def platforms_of(variants: Iterable[Variant]) -> list[str]:
    """The platforms of the usable variants, in order."""
    return list(
        dict.fromkeys(str(variant.platform) for variant in variants if variant.usable and _is_real(variant.platform))
    )


def _is_real(platform: Platform) -> bool:
    """False for attestations, which are listed under the platform unknown/unknown."""
    return platform.os not in ("", "unknown")
