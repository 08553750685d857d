"""The documents of an image as a destination wants them: each labelled with what it refers to, each child dropped that is not wanted."""

from __future__ import annotations

from services.images import platforms
from services.images.converting import OCTET_STREAM
from services.images.oci import Descriptor, children_in, is_config, is_index, is_manifest, reference_labels
from services.images.transfer import ImageStore, Node
from services.kit import errors


class Graph:
    """What is below a descriptor, as far as ``store`` wants it."""

    def __init__(self, node: Node, store: ImageStore) -> None:
        self._node = node
        self._store = store
        self._wanted = platforms.wanted(store.platforms)
        self.has_octet_stream = False
        """Whether any child was one: then the image may be an old one (``converting.py``)."""

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The wanted children of a manifest or an index; nothing else has any. NotFound if the document is not there."""
        return await self.wanted(descriptor, await self.all_children(descriptor))

    async def all_children(self, descriptor: Descriptor) -> list[Descriptor]:
        """The children as they stand in the document."""
        if not is_manifest(descriptor.media_type) and not is_index(descriptor.media_type):
            return []
        return children_in(await self._node.document(descriptor), descriptor)

    async def wanted(self, descriptor: Descriptor, children: list[Descriptor]) -> list[Descriptor]:
        """Label ``descriptor`` with all its children, so that none that is there is collected, and answer the wanted ones."""
        if children:
            await self._node.label(descriptor.digest, reference_labels(children))
        self.has_octet_stream |= any(child.media_type == OCTET_STREAM for child in children)
        if not self._store.all_metadata:
            children = [child for child in children if self._fits(child)]
        elif is_manifest(descriptor.media_type) and not self._fits(descriptor):
            children = [child for child in children if is_config(child.media_type)]
        if self._store.manifest_limit and is_index(descriptor.media_type):
            if not children:
                raise errors.NotFound("no match for platform in manifest")
            children = platforms.in_order(children, lambda child: child.platform, self._wanted)[:self._store.manifest_limit]
        return children

    def _fits(self, descriptor: Descriptor) -> bool:
        return descriptor.platform is None or self._wanted.matches(descriptor.platform)
