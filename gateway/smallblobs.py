"""The gateway keeps the bytes of small blobs: manifests and configurations, which clients read over and over.

``ctr run`` reads ten such blobs. Each Read is a call to metadata (may the namespace have the blob?) and another one to
the raw store. A blob's digest says what its bytes are, for ever, so the second call need not be made again, whatever
raw store is behind the hop. metadata is asked each time, unless it would answer as before (:mod:`gateway.remembered`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from services.oci.digests import ALGORITHMS

LARGEST = 64 << 10
"""Bytes of a blob, at most: manifests have up to some 10 KB, configurations of large images some 50."""
LIMIT = 4 << 20
"""Bytes of all of them together, at most."""


class SmallBlobs:
    """Blobs by digest: those that were read last."""

    def __init__(self, *, largest: int = LARGEST, limit: int = LIMIT) -> None:
        self.largest = largest
        self._limit = limit
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def get(self, digest: str) -> bytes | None:
        """The blob, if it is kept."""
        found = self._blobs.get(digest)
        if found is not None:
            self._blobs.move_to_end(digest)
        return found

    def put(self, digest: str, data: bytes) -> bool:
        """Keep a blob. False if these are not its bytes: they are not kept then."""
        if len(data) > self.largest or not _is(digest, data):
            return False
        if digest not in self._blobs:
            self._blobs[digest] = data
            self._size += len(data)
        while self._size > self._limit:
            self._size -= len(self._blobs.popitem(last=False)[1])
        return True


def _is(digest: str, data: bytes) -> bool:
    algorithm, _, encoded = digest.partition(":")
    return algorithm in ALGORITHMS and hashlib.new(algorithm, data).hexdigest() == encoded
