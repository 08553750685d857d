"""Writes a layer's files to the disk while it is unpacked, so that its commit has little left to wait for
(``durable.py``).

The writing of a large file is started on its own (sync_file_range). For small files, each such request takes 50 µs of a
processor, where a syncfs, which writes neighbours together, takes 15. So whenever enough of them have gathered, a
thread runs a syncfs, and no call waits for it. The commit's own syncfs reports the errors too: the kernel keeps an
error for each open file that asks.

A write that was started may come no further than the memory of a device: a disk's cache, or the file behind a loop
device. Only a sync brings it to the disk, and has to wait for all that is there. So a layer that is one file is synced
while it grows.

Such a file is not read from memory afterwards, since the snapshotter erofs mounts it for direct reading. What is on the
disk makes room for what comes: on a virtual machine whose host takes free memory back, new pages are dear (ADR 23).
"""

from __future__ import annotations

import _thread  # the module threading cannot be imported any more once the root directory is another
import os

from services.kit.files import start_writeback
from services.snapshots.diff.mounts import MountError, syncfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = 1 << 20
"""Bytes from which the writing of a file is started on its own."""
EACH = 8 << 20
"""Bytes after which the writing of a file is started while more is written."""
SYNCED = 128 << 20
"""Bytes of a file that is a layer, after which it is synced while more is written. A loop device takes nothing else
while it is synced, so a quarter of this made a layer of 1 GiB slower.
"""
_FILES = 3000
_BYTES = 32 << 20
"""Numbers of small files and of their bytes that trigger a syncfs."""


class Writeback:
    """Writeback for the filesystem of ``/`` in this process."""

    def __init__(self) -> None:
        self._files = self._bytes = 0
        """Since the last syncfs began."""
        self._sweeping = False

    def written(self, fd: int, size: int) -> None:
        """Note that a file, still open, was written."""
        if size >= LARGE:
            start_writeback(fd)
            return
        self._files += 1
        self._bytes += size
        if (self._files >= _FILES or self._bytes >= _BYTES) and not self._sweeping:
            self._files = self._bytes = 0
            self._sweeping = True
            # opened here: a worker that is done changes its root
            _thread.start_new_thread(self._sweep, (os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),))

    def _sweep(self, fd: int) -> None:
        try:
            syncfs(fd)
        except MountError:
            return  # the caller that waits for the files gets the error
        finally:
            os.close(fd)
            self._sweeping = False


class Trail:
    """Writeback for the open file ``fd`` while it grows. Its writer waits for none of it: one thread starts the
    writing, which waits where the device has much to do, and another one syncs. What is on the disk leaves memory.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = _thread.allocate_lock()
        self._grown = self._asked = 0
        """Bytes of the file whose writing is to be started, and that are to be synced."""
        self._begun = self._synced = 0
        """Those for which that has begun."""
        self._beginning = self._syncing = False
        """A thread does that."""

    def grown(self, size: int) -> None:
        """Note that the file has ``size`` bytes."""
        if size - self._grown >= EACH:
            with self._lock:
                self._grown, started, self._beginning = size, self._beginning, True
            if not started:
                self._start(self._begin)
        if size - self._asked >= SYNCED:
            self._ask(size)

    def ended(self, size: int) -> None:
        """Note that the file has all its ``size`` bytes. The last ones are on their way while its index is made."""
        if size - self._asked >= LARGE:
            self._ask(size)

    def _ask(self, size: int) -> None:
        with self._lock:
            self._asked, started, self._syncing = size, self._syncing, True
        if not started:
            self._start(self._sync)

    def _start(self, work: Callable[[int], None]) -> None:
        # a file of its own: the writer closes the other one
        _thread.start_new_thread(work, (os.dup(self._fd),))

    def _begin(self, fd: int) -> None:
        try:
            while True:
                with self._lock:
                    start, size = self._begun, self._grown - self._begun
                    if not size:
                        self._beginning = False
                        return
                    self._begun = self._grown
                start_writeback(fd, start, size)
        finally:
            os.close(fd)

    def _sync(self, fd: int) -> None:
        try:
            while True:
                with self._lock:
                    if self._synced == self._asked:
                        self._syncing = False
                        return
                    size = self._synced = self._asked
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)
        except OSError:
            return  # the commit's syncfs gets the error too; this disk is asked no more
        finally:
            os.close(fd)
