"""The blobs that this node is fetching from a registry: peers may read what has arrived of them.

Whoever fetches a blob opens its file here, and tells how many bytes are there without a gap, from the first on. Readers
wait for more. A fetch that begins again from its first byte, or is given up, breaks its readers off: the bytes that
they have may be wrong. Nothing here is verified; a reader checks the digest of the whole blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Iterator

from services.kit import errors
from services.oci.digests import Digest

MOST = 256
"""Blobs that may arrive at once; the pull engine fetches far fewer."""


class Part:
    """A blob that is arriving: ``have`` of its ``size`` bytes are there."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self.have = 0
        self.over = False
        """No more bytes will come: all are there, or the fetch has ended or begun again."""
        self._fd = fd
        self._received = 0
        self._alive = time.monotonic()
        self._changed = asyncio.Event()

    def grown(self, have: int, received: int = 0) -> None:
        """``have`` bytes are there without a gap, and ``received`` in all: if only that grows, the fetch is alive.
        Fewer than before: the fetch has begun again, and readers are broken off.
        """
        if have < self.have:
            self.end()
        elif not self.over and (have, received) != (self.have, self._received):
            self.have, self._received = min(have, self.size), received
            self._alive = time.monotonic()
            self.over = self.have == self.size
            self._tell()

    def end(self) -> None:
        """No more bytes will come."""
        self.over = True
        self._tell()
        self._close()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def beyond(self, at: int, patience: float) -> int:
        """The number of bytes that are there, once they are more than ``at``; fewer if the fetch is over, or if nothing
        at all came for ``patience`` seconds.
        """
        with contextlib.suppress(TimeoutError):
            while self.have <= at and not self.over:
                async with asyncio.timeout(self._alive + patience - time.monotonic()):
                    await self._changed.wait()
        return self.have

    @property
    def broken(self) -> bool:
        """Whether the fetch ended, or began again, before all bytes were there."""
        return self.over and self.have < self.size

    def opened(self) -> int:
        """A file descriptor for a reader, who closes it; NotFound if the fetch is over without all bytes."""
        if self._fd < 0:
            raise errors.NotFound("the fetch has ended")
        return os.dup(self._fd)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Arriving:
    """The blobs that are arriving, by digest."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        return iter(self._parts.items())

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, digest: str) -> Part | None:
        """The part of a blob that is there, if it is arriving."""
        return self._parts.get(digest)

    def begin(self, digest: Digest, path: str, size: int) -> Part:
        """A blob begins to arrive in the file ``path``. The caller calls :meth:`end` when that is over.

        AlreadyExists if it arrives already, ResourceExhausted for too many, InvalidArgument for a file that is none.
        """
        name = str(digest)
        if name in self._parts:
            raise errors.AlreadyExists(f"{name} is arriving already")
        if len(self._parts) >= MOST:
            raise errors.ResourceExhausted(f"{name}: {MOST} blobs are arriving already")
        if size < 1:
            raise errors.InvalidArgument(f"{name}: invalid size {size}")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            said = errors.words(error) if isinstance(error, OSError) else error
            raise errors.InvalidArgument(f"{name}: its file cannot be read: {said}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise errors.InvalidArgument(f"{name}: {path!r} is not a file")
        part = self._parts[name] = Part(fd, size)
        return part

    def end(self, digest: Digest) -> None:
        """It does not arrive any more, for whatever reason. Readers of one that is complete go on."""
        part = self._parts.pop(str(digest), None)
        if part is not None:
            part.end()
