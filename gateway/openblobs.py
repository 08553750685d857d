"""The gateway has the files of those blobs open that clients read piece by piece: bulk bytes go by file, so a piece
need not come through the content service.

``docker save`` reads a layer in thousands of pieces of 32 KiB, each a Read of its own. metadata says whether the
namespace has the blob, and is asked each time that it might say otherwise (:mod:`gateway.remembered`); while it looks,
the piece is read. The content service is asked once for many Reads where the file is, behind the first of them, which
is answered as any other. A piece is taken only if the kernel has it in memory (RWF_NOWAIT): the loop never waits for a
disk. All other pieces the content service reads, in its threads; after that the kernel has them, and those that follow.

A blob that was deleted is no longer read, and its file is closed after a moment, so that the disk gets its space back.
All files are closed when the content service comes back or is replaced: it may be another one, with its files
elsewhere, or with none. A content service without LocalFiles is not asked again, nor one whose file system cannot say
what is in memory (tmpfs).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.kit import errors, loops

log = logging.getLogger(__name__)

LARGEST = 256 << 10
"""Bytes of a piece, at most. Longer ones are streams, which hold up the writer of a slow reader."""
LIMIT = 64
"""Files that are open at once, at most: those that were read last."""
IDLE = 2.0
"""Seconds for which a file that nobody reads stays open."""

Locate = Callable[[str], Awaitable[str]]
"""Answers the path of a blob's file; NodeError if there is none, Unimplemented if there never will be."""


@dataclass(slots=True)
class _File:
    fd: int
    size: int
    used: float


class OpenBlobs:
    """Open files by digest. Used on one loop; :meth:`clear` closes all. ``flags`` are those of preadv2(2)."""

    def __init__(self, *, limit: int = LIMIT, idle: float = IDLE, flags: int = os.RWF_NOWAIT) -> None:
        self._flags = flags
        self._limit = limit
        self._idle = idle
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._closing: asyncio.TimerHandle | None = None
        self._offered = True

    def clear(self) -> None:
        """Close all, and forget what the content service offers."""
        for task in self._opening.values():
            task.cancel()
        self._opening.clear()
        while self._files:
            os.close(self._files.popitem()[1].fd)
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._offered = True

    def size(self, digest: str) -> int:
        """Bytes of a blob whose file is open, else 0."""
        file = self._files.get(digest)
        return 0 if file is None else file.size

    def read(self, digest: str, offset: int, size: int, before: bytes = b"") -> bytearray | None:
        """``before`` and the bytes of a piece; None if they cannot be had at once."""
        file = self._files.get(digest)
        if file is None:
            return None
        wanted = max(min(size, file.size - offset), 0)
        piece = bytearray(len(before) + wanted)
        piece[: len(before)] = before
        try:
            if not os.fstat(file.fd).st_nlink:  # deleted, and if it is there again then as another file
                self._close(digest)
                return None
            file.used = asyncio.get_running_loop().time()
            self._files.move_to_end(digest)
            return (
                piece if os.preadv(file.fd, [memoryview(piece)[len(before) :]], offset, self._flags) == wanted else None
            )
        except BlockingIOError:
            return None
        except OSError as error:  # if the disk is broken, the content service says how
            log.info("pieces of %s are not read here: %s", digest, error)
            self._offered = self._offered and error.errno != errno.EOPNOTSUPP
            self._close(digest)
            return None

    def open(self, digest: str, size: int, locate: Locate) -> None:
        """Open the file of a blob of ``size`` bytes, behind the caller's back."""
        if (
            self._offered
            and digest not in self._files
            and digest not in self._opening
            and len(self._opening) < self._limit
        ):
            self._opening[digest] = task = loops.aside(f"the opening of {digest}", self._open(digest, size, locate))
            task.add_done_callback(lambda _: self._opened(digest, task))

    def _opened(self, digest: str, task: asyncio.Task[None]) -> None:
        if self._opening.get(digest) is task:
            del self._opening[digest]

    async def _open(self, digest: str, size: int, locate: Locate) -> None:
        try:
            path = await locate(digest)
        except errors.Unimplemented:
            self._offered = False
            return
        except errors.NodeError as error:
            log.debug("the file of %s is not known: %s", digest, error)
            return
        opening = asyncio.get_running_loop().run_in_executor(None, _file_of, path, size)
        try:
            fd = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise
        if fd is None:
            return
        self._files[digest] = _File(fd, size, asyncio.get_running_loop().time())
        if len(self._files) > self._limit:
            self._close(next(iter(self._files)))
        if self._closing is None:
            self._close_later()

    def _close(self, digest: str) -> None:
        os.close(self._files.pop(digest).fd)

    def _close_later(self) -> None:
        self._closing = asyncio.get_running_loop().call_later(self._idle / 2, self._close_idle)

    def _close_idle(self) -> None:
        self._closing = None
        since = asyncio.get_running_loop().time() - self._idle
        for digest in [digest for digest, file in self._files.items() if file.used <= since]:
            self._close(digest)
        if self._files:
            self._close_later()


def _file_of(path: str, size: int) -> int | None:
    """An open file of ``size`` bytes; None if ``path`` is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        log.info("pieces of %s are not read here: %s", path, error)
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size == size:
        return fd
    os.close(fd)
    log.warning("%s is not a file of %d bytes, which its blob has", path, size)
    return None


def _close_late(opening: asyncio.Future[int | None]) -> None:
    if not opening.cancelled() and opening.exception() is None and (fd := opening.result()) is not None:
        os.close(fd)
