"""Walks through the documents of an image, and the limits on what they may meet.

A :class:`Graph` finds what a destination wants of an image: it labels each document with its children and drops the
children that are not wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from services.images.documents import blobs
from services.images.documents.legacy import OCTET_STREAM
from services.images.documents.limits import LAYERS
from services.images.documents.manifests import REFERENCES, each_reference_label
from services.images.transfer import ImageStore, Node
from services.kit import errors, gojson
from services.kit.slices import Lane
from services.oci import platforms
from services.oci.descriptors import Descriptor
from services.oci.media_types import is_config, is_index, is_layer, is_manifest
from services.oci.platforms import Platform

DEPTH = 32
"""Levels of nested indexes: a walk may recurse. Two are in use, an index of indexes and its manifests."""

_AT_ONCE = 2000
"""Labels that are set in one call: metadata should not be busy with one call for long."""

_MANY = 500

_NOT_REAL = frozenset({"", "unknown"})
"""Operating systems of attestations, which are listed under the platform unknown/unknown."""

_OTHERS = 100
"""Unwanted platforms that are remembered for an entry."""

_COMPARED = 300
"""Bytes of a document that take as long to read as it takes to compare a manifest with others."""


class _Met(NamedTuple):
    """The fields of a descriptor that decide what is below it; its other fields matter only to readers of the
    document.
    """

    digest: str
    media_type: str
    size: int
    platform: Platform | None

    @classmethod
    def of(cls, descriptor: Descriptor) -> _Met:
        return cls(descriptor.digest, descriptor.media_type, descriptor.size, descriptor.platform)


class Walk:
    """A walk from one descriptor downwards. A document that is met on several ways is walked once (:meth:`first`), but
    counts each time: twenty indexes that each name the next one twice are a million ways.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.lane = Lane()
        self._met = 1
        self._walked: set[_Met] = set()
        self._below: dict[_Met, list[_Met]] = {}
        """The followed children of each document."""
        self._ways: defaultdict[_Met, int] = defaultdict(int)
        """The number of ways from the first descriptor to each document, so far."""
        self._depths: dict[_Met, int] = {}
        """The depth of each document, on the longest way so far."""

    async def pause(self, children: int) -> None:
        """Let other calls run if there are many ``children``: looking at a thousand of them takes a millisecond or
        two.
        """
        if children > _MANY:
            await self.lane.turn()

    def first(self, descriptor: Descriptor) -> bool:
        """Whether this is the first call for the descriptor; if not, the walk has nothing left to do for it."""
        met = _Met.of(descriptor)
        if met in self._walked:
            return False
        self._walked.add(met)
        return True

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The children in the document; only manifests and indexes have any. Errors are those of ``blobs.children``;
        ResourceExhausted for indexes that are nested too deeply.
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
        """These documents are at least so deep, and so are those below them that were followed already and will not be
        again.
        """
        left = [(met, depth) for met in found]
        while left:
            met, depth = left.pop()
            if depth > self._depths.get(met, 0):
                self._depths[met] = depth
                if met in self._below:
                    self._check(met)
                    left += [(each, depth + 1) for each in self._below[met]]

    def follow(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> None:
        """Count these children of ``descriptor``. ResourceExhausted, in containerd's words, if there are too many
        together with the earlier ones.
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
    """The documents below a descriptor, as far as ``store`` wants them. ``layers``: the limit for one image."""

    def __init__(self, node: Node, store: ImageStore, layers: int = LAYERS) -> None:
        self._node = node
        self._walk = Walk(node)
        self._layers = layers
        self._store = store
        self._wanted = platforms.wanted(store.platforms)
        self._fitting: dict[Platform, bool] = {}
        """Whether platforms are wanted; an index has few platforms, and may name each ten thousand times."""
        self.only_indexes = True
        """Whether everything listed is an index, and wanted: then there is no image."""
        self.has_octet_stream = False
        """Whether any child has the media type of an octet stream: then the image may be an old one (``legacy.py``)."""

    def first(self, descriptor: Descriptor) -> bool:
        """As :meth:`Walk.first`."""
        return self._walk.first(descriptor)

    async def all_children(self, descriptor: Descriptor) -> list[Descriptor]:
        """All children in the document. ResourceExhausted for more layers than an image may have."""
        children = await self._walk.children(descriptor)
        await self._walk.pause(len(children))
        layers = sum(is_layer(child.media_type) for child in children)
        if layers > self._layers:
            raise errors.ResourceExhausted(f"manifest {descriptor.digest} has {layers} layers (limit {self._layers})")
        return children

    async def wanted(self, descriptor: Descriptor, children: list[Descriptor]) -> list[Descriptor]:
        """:meth:`label` with all children, and return those that are :meth:`chosen`."""
        await self.label(descriptor, children)
        return await self.chosen(descriptor, children)

    async def label(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> None:
        """Label the blob of ``descriptor`` with all its children, so that none is collected."""
        labels: dict[str, str] = {}
        piece = self._walk.lane.slice()
        for key, value in each_reference_label(children):
            labels[key] = value
            if piece.over():
                await piece.next()
        left = iter(labels.items())
        while some := dict(islice(left, _AT_ONCE)):
            await self._node.label(descriptor.digest, some)

    async def chosen(self, descriptor: Descriptor, children: list[Descriptor]) -> list[Descriptor]:
        """Those of all ``children`` that the store wants. NotFound where it wants one, and there is none."""
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
        """The platforms of ``descriptor``, which was walked, according to it or to its documents, if none of them is
        wanted; of very many, a part.

        Empty if one is wanted, and for something without a platform, such as artifacts. NotFound for a document that
        does not exist.
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
