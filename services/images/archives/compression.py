"""Compresses a layer: an archive may have it uncompressed, while the client wants it compressed."""

from __future__ import annotations

import hashlib
import os

from services.images.documents.blobs import write

_PIECE = 1 << 18


def gzipped(source: int, target: int) -> tuple[str, int]:
    """Compress everything from the file descriptor ``source`` into ``target``. Returns the digest and size of the
    result. ResourceExhausted if there is no room for it.
    """
    import zlib

    hashing = hashlib.sha256()
    size = 0
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)

    def put(data: bytes) -> None:
        nonlocal size
        hashing.update(data)
        size += len(data)
        write(target, data)

    while piece := os.read(source, _PIECE):
        put(packer.compress(piece))
    put(packer.flush())
    return f"sha256:{hashing.hexdigest()}", size
