"""The blobs that this node is fetching from a registry: peers may read what has arrived of them.

Whoever fetches a blob opens its file here, and tells how many bytes are there without a gap, from the first on. Readers
wait for more. A fetch that begins again from its first byte, or is given up, breaks its readers off: the bytes that
they have may be wrong. Nothing here is verified; a reader checks the digest of the whole blob.

A reader may come before the blob begins to arrive: the others learn that this node is to fetch it before its own
process does. So a blob can be *expected*.

Readers wait as long as the fetch shows signs of life: that bytes came, or that it has its turn among the node's fetches
still to come. Without one they wait as long as the longest pauses between signs lately suggest (``patience.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator

from services.fleet.patience import Patience
from services.kit import errors
from services.oci.digests import Digest

MOST = 256
"""Blobs that may arrive at once; the pull engine fetches far fewer."""
SILENCE, LONGEST = 3.0, 10.0
"""Seconds without a sign of life after which a registry is better: at least, and at most. A registry that pauses for
longer is in trouble.
"""


class Part:
    """A blob that is arriving: ``have`` of its ``size`` bytes are there."""

    def __init__(self, fd: int, size: int, patience: Patience) -> None:
        self.size = size
        self.have = 0
        self.over = False
        """No more bytes will come: all are there, or the fetch has ended or begun again."""
        self._fd = fd
        self._patience = patience
        self._received = 0
        self._sign = time.monotonic()
        """When the last sign of life came."""
        self._changed = asyncio.Event()

    def grown(self, have: int, received: int = 0) -> None:
        """``have`` bytes are there without a gap. ``received`` is another number at each sign of life. Fewer bytes than
        before: the fetch has begun again, and readers are broken off.
        """
        if have < self.have:
            self.end()
        elif not self.over and (have, received) != (self.have, self._received):
            self.have, self._received = min(have, self.size), received
            now = time.monotonic()
            self._patience.took(now - self._sign)
            self._sign = now
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

    async def beyond(self, at: int, seconds: float) -> int:
        """The number of bytes that are there, once they are more than ``at``; fewer if the fetch is over, if it shows
        no sign of life, or after ``seconds``.
        """
        end = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while self.have <= at and not self.over:
                async with asyncio.timeout(min(end, self._sign + self._patience.seconds) - time.monotonic()):
                    await self._changed.wait()
        return self.have

    @property
    def alive(self) -> bool:
        """Whether more bytes may come."""
        return not self.over and time.monotonic() < self._sign + self._patience.seconds

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
    """The blobs that are arriving, by digest. ``silence`` is the shortest one that counts, in seconds."""

    def __init__(self, silence: float = SILENCE) -> None:
        self._parts: dict[str, Part] = {}
        self._patience = Patience(silence, max(silence, LONGEST))
        self._expected: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        return iter(self._parts.items())

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, digest: str) -> Part | None:
        """The part of a blob that is there, if it is arriving."""
        return self._parts.get(digest)

    @contextlib.contextmanager
    def expected(self, digest: Digest) -> Iterator[None]:
        """The blob may begin to arrive during the block."""
        self._expected[str(digest)] += 1
        try:
            yield
        finally:
            self._expected[str(digest)] -= 1
            self._expected += Counter()  # without those that are 0
            self._tell()

    def expects(self, digest: str) -> bool:
        """Whether a blob is expected, and does not arrive yet."""
        return digest in self._expected and digest not in self._parts

    async def begun(self, digest: str, seconds: float) -> Part | None:
        """The part of a blob, once it arrives. None: it is not expected any more, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.expects(digest):
                    await self._changed.wait()
        return self._parts.get(digest)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

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
        part = self._parts[name] = Part(fd, size, self._patience)
        self._tell()
        return part

    def end(self, digest: Digest) -> None:
        """It does not arrive any more, for whatever reason. Readers of one that is complete go on."""
        part = self._parts.pop(str(digest), None)
        if part is not None:
            part.end()
