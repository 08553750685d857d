"""Documents that are made here, stored as blobs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from services.images import oci, threads
from services.images.oci import Descriptor
from services.images.transfer import Node
from services.kit import errors


async def written(data: bytes, media_type: str, node: Node, labels: Mapping[str, str] = {}) -> Descriptor:
    """A document as a blob of the node."""
    descriptor = Descriptor(media_type, oci.digest_of(data), len(data))
    async with node.filling(f"manifest-{descriptor.digest}-{time.time_ns()}") as filling:
        await threads.to_thread(write, filling.fd, data)
        filling.filled()
        await filling.commit(descriptor.digest, descriptor.size, labels)
    return descriptor


def write(fd: int, data: bytes) -> None:
    """All of ``data``. ResourceExhausted if there is no room for it."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view):]
    except OSError as error:
        raise errors.ResourceExhausted(f"writing a blob: {error.strerror}") from None
