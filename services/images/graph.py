"""Walks through the documents of an image, and what they meet there: no more than can be wanted of one image.

A :class:`Graph` is what a destination wants of it: each document labelled with what it refers to, each child dropped that is not wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.images import documents, platforms
from services.images.converting import OCTET_STREAM
from services.images.oci import REFERENCES, Descriptor, is_config, is_index, is_layer, is_manifest, reference_labels
from services.images.platforms import Platform
from services.images.transfer import ImageStore, Node
from services.kit import errors, gojson

DEPTH = 32
"""Indexes in indexes: whoever walks may recurse. Two are in use, an index of indexes and its manifests."""

LAYERS = 500
"""Layers of an image. Docker makes 127 at most, and overlayfs mounts 500."""

_AT_ONCE = 2000
"""Labels that are written at once: metadata should not be busy with one call for long."""

_NOT_REAL = frozenset({"", "unknown"})
"""Operating systems of attestations, which are listed under the platform unknown/unknown."""

_OTHERS = 100
"""Platforms of which nothing is wanted that are remembered of an entry."""

_COMPARED = 300
"""Bytes of a document that take as long to read as a manifest to compare with others."""


class Walk:
    """A walk from one descriptor down. What is met on several ways is met again."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._met = 1
        self._depths: dict[str, int] = {}
        """How deep documents are, on the longest way so far, by digest."""

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The children as they stand in the document; nothing but manifests and indexes has any. Errors as ``documents.children`` has them; ResourceExhausted for indexes too deep in indexes."""
        depth = self._depths.get(descriptor.digest, 0)
        if depth > DEPTH:
            raise errors.ResourceExhausted(f"{descriptor.digest} is in {depth} indexes, each in the next (limit {DEPTH})")
        children = await documents.children(self._node, descriptor)
        for child in children:
            if is_index(child.media_type) or is_manifest(child.media_type):
                self._depths[child.digest] = max(self._depths.get(child.digest, 0), depth + 1)
        return children

    def follow(self, children: Sequence[Descriptor]) -> None:
        """These will be met. ResourceExhausted, in containerd's words, if they are too many with those before them."""
        self._met += len(children)
        if self._met > REFERENCES:
            raise errors.ResourceExhausted(f"too many descriptors (limit {REFERENCES})")


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
        """Whether any child was one: then the image may be an old one (``converting.py``)."""

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The wanted children of a manifest or an index; nothing else has any. NotFound if the document is not there."""
        return await self.wanted(descriptor, await self.all_children(descriptor))

    async def all_children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The children as they stand in the document. ResourceExhausted for more layers than an image may have."""
        children = await self._walk.children(descriptor)
        layers = sum(is_layer(child.media_type) for child in children)
        if layers > self._layers:
            raise errors.ResourceExhausted(f"manifest {descriptor.digest} has {layers} layers (limit {self._layers})")
        return children

    async def wanted(self, descriptor: Descriptor, children: list[Descriptor]) -> list[Descriptor]:
        """Label ``descriptor`` with all its children, so that none that is there is collected, and answer the wanted ones."""
        labels = list(reference_labels(children).items())
        for start in range(0, len(labels), _AT_ONCE):
            await self._node.label(descriptor.digest, dict(labels[start:start + _AT_ONCE]))
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
            children = await gojson.apart(_COMPARED * len(found), lambda: platforms.in_order(found, lambda child: child.platform, self._wanted))
            children = children[:self._store.manifest_limit]
        self.only_indexes &= len(children) == listed
        self._walk.follow(children)
        return children

    async def others(self, descriptor: Descriptor) -> list[Platform]:
        """What ``descriptor``, which was walked, is for, by what it or else its documents say, if none of it is wanted; of very many a part.

        Empty if one is wanted, and for what is for no platform, as artifacts are. NotFound for a document that is not there.
        """
        found: dict[Platform, None] = {}
        left = [descriptor]
        while left:
            each = left.pop()
            platform = each.platform
            if platform is None:
                children = await self._walk.children(each)
                if is_index(each.media_type):
                    left += reversed(children)
                    continue
                config = next((child for child in children if is_config(child.media_type)), None)
                if config is None:
                    continue
                platform = (await documents.config_of(self._node, config)).platform
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
