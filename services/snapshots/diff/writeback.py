"""Writes a layer's files to the disk while it is unpacked, so that its commit has little left to wait for
(``durable.py``).

The writing of a large file is started on its own (sync_file_range). For small files, each such request takes 50 µs of a
processor, where a syncfs, which writes neighbours together, takes 15. So whenever enough of them have gathered, a
thread runs a syncfs, and no call waits for it. The commit's own syncfs reports the errors too: the kernel keeps an
error for each open file that asks.
"""

from __future__ import annotations

import _thread  # the module threading cannot be imported any more once the root directory is another
import os

from services.kit.files import start_writeback
from services.snapshots.diff.mounts import MountError, syncfs

LARGE = 1 << 20
"""Bytes from which the writing of a file is started on its own."""
EACH = 8 << 20
"""Bytes after which the writing of a file is started while more is written."""
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
