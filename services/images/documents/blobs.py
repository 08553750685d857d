"""Documents as blobs: existing ones are read, new ones are stored."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from services.images.concurrency import threads
from services.images.documents import manifests
from services.images.documents.manifests import Config
from services.images.documents.parser_program import read
from services.images.transfer import Node
from services.kit import errors
from services.oci import digests, media_types
from services.oci.descriptors import Descriptor


async def children(node: Node, descriptor: Descriptor) -> list[Descriptor]:
    """The children of a manifest or an index; nothing else has any. Errors are those of ``manifests.children_in``, and
    NotFound.
    """
    if not media_types.is_manifest(descriptor.media_type) and not media_types.is_index(descriptor.media_type):
        return []
    return await read(await node.document(descriptor), manifests.children_in, descriptor)


async def config_of(node: Node, descriptor: Descriptor) -> Config:
    """An image's config. Errors are those of ``Config.parse``, and NotFound."""
    return await read(await node.document(descriptor), Config.parse, descriptor.digest)


async def written(data: bytes, media_type: str, node: Node, labels: Mapping[str, str] = {}) -> Descriptor:
    """Store a document as a blob of the node."""
    descriptor = Descriptor(media_type, digests.digest_of(data), len(data))
    async with node.filling(f"manifest-{descriptor.digest}-{time.time_ns()}") as filling:
        await threads.to_thread(write, filling.fd, data)
        filling.filled()
        await filling.commit(descriptor.digest, descriptor.size, labels)
    return descriptor


def write(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``. ResourceExhausted if there is no room for it, Unknown if the disk fails otherwise."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise errors.of_system(error, "writing a blob") from None
