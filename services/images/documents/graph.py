"""Walks through the documents of an image, and what they meet there: no more than can be wanted of one image.

A :class:`Graph` is what a destination wants of it: each document labelled with what it refers to, each child dropped
that is not wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from services.images.documents import blobs
from services.images.documents.legacy import OCTET_STREAM
from services.images.documents.manifests import REFERENCES, each_reference_label
from services.images.transfer import ImageStore, Node
from services.kit import errors, gojson
from services.kit.slices import Lane
from services.oci import platforms
from services.oci.descriptors import Descriptor
from services.oci.media_types import is_config, is_index, is_layer, is_manifest
from services.oci.platforms import Platform

DEPTH = 32
"""Indexes in indexes: whoever walks may recurse. Two are in use, an index of indexes and its manifests."""

LAYERS = 500
"""Layers of an image. Docker makes 127 at most, and overlayfs mounts 500."""

_AT_ONCE = 2000
"""Labels that are written at once: metadata should not be busy with one call for long."""

_MANY = 500

_NOT_REAL = frozenset({"", "unknown"})
"""Operating systems of attestations, which are listed under the platform unknown/unknown."""

_OTHERS = 100
"""Platforms of which nothing is wanted that are remembered of an entry."""

_COMPARED = 300
"""Bytes of a document that take as long to read as a manifest to compare with others."""


class _Met(NamedTuple):
    """A descriptor as far as what is below it depends on it: what else a document says of it is for whoever reads
    that document.
    """

    digest: str
    media_type: str
    size: int
    platform: Platform | None

    @classmethod
    def of(cls, descriptor: Descriptor) -> _Met:
        return cls(descriptor.digest, descriptor.media_type, descriptor.size, descriptor.platform)


class Walk:
    """A walk from one descriptor down. What is met on several ways is walked once (:meth:`first`) and counts as
    often as it is met: twenty indexes that name the next one twice are a million ways.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.lane = Lane()
        self._met = 1
        self._walked: set[_Met] = set()
        self._below: dict[_Met, list[_Met]] = {}
        """What documents were followed to."""
        self._ways: defaultdict[_Met, int] = defaultdict(int)
        """On how many ways, from the first descriptor, they were met so far."""
        self._depths: dict[_Met, int] = {}
        """How deep documents are, on the longest way so far."""

    async def pause(self, children: int) -> None:
        """Let others do something, where so many were looked at, and are again: that takes a millisecond for each
        thousand, or two.
        """
        if children > _MANY:
            await self.lane.turn()

    def first(self, descriptor: Descriptor) -> bool:
        """Whether this is the first time that it is asked about; else whoever walks has nothing left to do for it."""
        met = _Met.of(descriptor)
        if met in self._walked:
            return False
        self._walked.add(met)
        return True

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The children as they stand in the document; nothing but manifests and indexes has any. Errors as
        ``documents.children`` has them; ResourceExhausted for indexes too deep in indexes.
        """
        met = _Met.of(descriptor)
        self._check(met)
        children = await blobs.children(self._node, descriptor)
        self._deepen(
            [_Met.of(child) for child in children if is_index(child.media_type) or is_manifest(child.media_type)],
            self._depths.get(met, 0) + 1,
        )
        return children

    def _check(self, met: _Met) -> None:
        if (depth := self._depths.get(met, 0)) > DEPTH:
            raise errors.ResourceExhausted(f"{met.digest} is in {depth} indexes, each in the next (limit {DEPTH})")

    def _deepen(self, found: Sequence[_Met], depth: int) -> None:
        """These are so deep, at least; and so is what is below those that were followed already, and are not again."""
        left = [(met, depth) for met in found]
        while left:
            met, depth = left.pop()
            if depth > self._depths.get(met, 0):
                self._depths[met] = depth
                if met in self._below:
                    self._check(met)
                    left += [(each, depth + 1) for each in self._below[met]]

    def follow(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> None:
        """These, which ``descriptor`` names, will be met. ResourceExhausted, in containerd's words, if they are too
        many with those before them.
        """
        met = _Met.of(descriptor)
        self._below[met] = [_Met.of(child) for child in children]
        left = [(met, max(self._ways[met], 1))]
        while left:
            met, ways = left.pop()
            below = self._below[met]
            self._met += ways * len(below)
            if self._met > REFERENCES:
                raise errors.ResourceExhausted(f"too many descriptors (limit {REFERENCES})")
            for each in below:
                self._ways[each] += ways
            left += [(each, ways) for each in below if each in self._below]


class Graph:
    """What is below a descriptor, as far as ``store`` wants it. ``layers``: of one image, at most."""

    def __init__(self, node: Node, store: ImageStore, layers: int = LAYERS) -> None:
        self._node = node
        self._walk = Walk(node)
        self._layers = layers
        self._store = store
        self._wanted = platforms.wanted(store.platforms)
        self._fitting: dict[Platform, bool] = {}
        """Whether platforms that were met are wanted; an index has few, and may name each ten thousand times."""
        self.only_indexes = True
        """Whether all that was listed are indexes, and all of them wanted: then there is no image."""
        self.has_octet_stream = False
        """Whether any child was one: then the image may be an old one (``legacy.py``)."""

    def first(self, descriptor: Descriptor) -> bool:
        """As :meth:`Walk.first`."""
        return self._walk.first(descriptor)

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The wanted children of a manifest or an index; nothing else has any. NotFound if the document is not
        there.
        """
        return await self.wanted(descriptor, await self.all_children(descriptor))

    async def all_children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The children as they stand in the document. ResourceExhausted for more layers than an image may have."""
        children = await self._walk.children(descriptor)
        await self._walk.pause(len(children))
        layers = sum(is_layer(child.media_type) for child in children)
        if layers > self._layers:
            raise errors.ResourceExhausted(f"manifest {descriptor.digest} has {layers} layers (limit {self._layers})")
        return children

    async def wanted(self, descriptor: Descriptor, children: list[Descriptor]) -> list[Descriptor]:
        """Label ``descriptor`` with all its children, so that none that is there is collected, and answer the
        wanted ones.
        """
        labels: dict[str, str] = {}
        piece = self._walk.lane.slice()
        for key, value in each_reference_label(children):
            labels[key] = value
            if piece.over():
                await piece.next()
        left = iter(labels.items())
        while some := dict(islice(left, _AT_ONCE)):
            await self._node.label(descriptor.digest, some)
        self.has_octet_stream |= any(child.media_type == OCTET_STREAM for child in children)
        listed = len(children)
        self.only_indexes &= is_index(descriptor.media_type) and all(is_index(child.media_type) for child in children)
        if not self._store.all_metadata:
            children = [child for child in children if self._fits(child)]
        elif is_manifest(descriptor.media_type) and not self._fits(descriptor):
            children = [child for child in children if is_config(child.media_type)]
        if self._store.manifest_limit and is_index(descriptor.media_type):
            if not children:
                raise errors.NotFound("no match for platform in manifest")
            found = children
            children = await gojson.apart(
                _COMPARED * len(found), lambda: platforms.in_order(found, lambda child: child.platform, self._wanted)
            )
            children = children[: self._store.manifest_limit]
        self.only_indexes &= len(children) == listed
        await self._walk.pause(listed)
        self._walk.follow(descriptor, children)
        return children

    async def others(self, descriptor: Descriptor) -> list[Platform]:
        """What ``descriptor``, which was walked, is for, by what it or else its documents say, if none of it is wanted;
        of very many a part.

        Empty if one is wanted, and for what is for no platform, as artifacts are. NotFound for a document that is not
        there.
        """
        found: dict[Platform, None] = {}
        left, seen = [descriptor], set()
        while left:
            each = left.pop()
            if (met := _Met.of(each)) in seen:
                continue
            seen.add(met)
            platform = each.platform
            if platform is None:
                children = await self._walk.children(each)
                if is_index(each.media_type):
                    left += reversed(children)
                    continue
                config = next((child for child in children if is_config(child.media_type)), None)
                if config is None:
                    continue
                platform = (await blobs.config_of(self._node, config)).platform
            if self._wants(platform):
                return []
            if (each is descriptor or platform.os not in _NOT_REAL) and len(found) < _OTHERS:
                found[platform] = None
        return list(found)

    def _wants(self, platform: Platform) -> bool:
        if platform not in self._fitting:
            self._fitting[platform] = self._wanted.matches(platform)
        return self._fitting[platform]

    def _fits(self, descriptor: Descriptor) -> bool:
        return descriptor.platform is None or self._wants(descriptor.platform)
