"""Reads one blob in pieces. It blocks: ``local`` calls it in threads."""

from __future__ import annotations

import os

from services.kit import errors
from services.oci.digests import Digest


class BlobReader:
    """An open blob, read from front to back, and closed at the end. It can still be read if it is deleted meanwhile."""

    def __init__(self, path: str, digest: Digest, offset: int, size: int, most: int) -> None:
        """NotFound; OutOfRange, in containerd's words, for an ``offset`` past the end. A ``size`` of 0, or one that
        reaches past the end, means to the end.
        """
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None
        length = os.fstat(self._fd).st_size
        self._at = max(offset, 0)
        if self._at > length:
            os.close(self._fd)
            raise errors.OutOfRange.verbatim(f"read past object length {length} bytes")
        self.left = length - self._at
        if 0 < size < self.left:
            self.left = size
        self._first: bytes | None = self.next(most)

    def first(self) -> bytes:
        """The first piece, once."""
        piece, self._first = self._first, None
        return piece or b""

    def next(self, most: int) -> bytes:
        """The next piece, of at most ``most`` bytes; empty at the end. The blob is closed after the last piece and
        after a failure.
        """
        try:
            piece = os.pread(self._fd, min(self.left, most), self._at) if self.left else b""
            if not piece and self.left:
                raise errors.DataLoss(f"a blob ended {self.left} bytes early")
        except (OSError, errors.DataLoss):
            self.close()
            raise
        self._at += len(piece)
        self.left -= len(piece)
        if not self.left:
            self.close()
        return piece

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """May be called again. Closing a deleted blob frees its bytes, which takes a while."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
