"""Layers compressed: for archives whose layers are not, where the client wants it."""

from __future__ import annotations

import hashlib
import os

_PIECE = 1 << 18


def gzipped(source: int, target: int) -> tuple[str, int]:
    """Compress all that the file descriptor ``source`` gives into ``target``; the digest and size of what was written."""
    import zlib

    hashing = hashlib.sha256()
    size = 0
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)

    def put(data: bytes) -> None:
        nonlocal size
        hashing.update(data)
        size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view):]

    while piece := os.read(source, _PIECE):
        put(packer.compress(piece))
    put(packer.flush())
    return f"sha256:{hashing.hexdigest()}", size
