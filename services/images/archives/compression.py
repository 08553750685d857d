"""Compressing a layer: an archive may bring it uncompressed, and the client may want it compressed all the same."""

from __future__ import annotations

import hashlib
import os

from services.images.documents.blobs import write

_PIECE = 1 << 18


def gzipped(source: int, target: int) -> tuple[str, int]:
    """Compress all that the file descriptor ``source`` gives into ``target``; the digest and size of what was
    written. ResourceExhausted if there is no room for it.
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
