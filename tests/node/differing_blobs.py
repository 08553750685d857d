"""The example content store with three differences on purpose: what it reads begins otherwise, an ingest's total is one
more, and blobs of odd size are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from examples.blobs import Blobs, Ingest
from splitd import errors, service
from splitd.content import Digest, Status


class OddIngest(Ingest):
    def commit(self, size: int, expected: Digest | None, labels: Mapping[str, str]) -> Digest:
        if self.offset % 2:
            raise errors.FailedPrecondition("an odd size")
        return super().commit(size, expected, labels)


class Differing(Blobs):
    def read(self, digest: Digest, offset: int, size: int) -> Iterator[bytes]:
        for piece in super().read(digest, offset, size):
            yield bytes([piece[0] ^ 1]) + piece[1:] if offset == 0 else piece

    def status(self, ref: str) -> Status:
        found = super().status(ref)
        return dataclasses.replace(found, total=found.total + 1)

    def writer(self, ref: str, total: int, expected: Digest | None) -> OddIngest:
        if expected and self.path(expected).exists():
            raise errors.AlreadyExists(f"content {expected}")
        with self.refs.taking(ref):
            return OddIngest(self, ref, total, expected)


if __name__ == "__main__":
    service.main(Differing)
