"""Sending a layer's files to the disk while it is unpacked, so that its commit finds little left to wait for
(``durable.py``).

A large file begins its way by itself (sync_file_range). Small ones do not: each would be a request of its own, which
takes 50 µs of a processor where a syncfs, which writes neighbours as one, takes 15. So whenever many have gathered, a
thread sweeps up all that is written to the filesystem; nobody waits for it. What it cannot write the commit's syncfs is
told too: the kernel keeps an error for each open file that asks.
"""

from __future__ import annotations

import _thread  # threading is not there to be imported once the root directory is another
import os

from services.snapshots.diff.mounts import MountError, begin_writing, syncfs

LARGE = 1 << 20
"""Bytes of a file that is begun by itself."""
EACH = 8 << 20
"""Bytes of a file after which it is begun while it is written."""
_FILES = 3000
_BYTES = 32 << 20
"""Of small files: more are swept up."""


class Writeback:
    """Of the filesystem of ``/``, as the process has it."""

    def __init__(self) -> None:
        self._files = self._bytes = 0
        """Since the last sweep began."""
        self._sweeping = False

    def written(self, fd: int, size: int) -> None:
        """A file was written, which is still open."""
        if size >= LARGE:
            begin_writing(fd)
            return
        self._files += 1
        self._bytes += size
        if (self._files >= _FILES or self._bytes >= _BYTES) and not self._sweeping:
            self._files = self._bytes = 0
            self._sweeping = True
            # opened here: a worker that is done has another root
            _thread.start_new_thread(self._sweep, (os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),))

    def _sweep(self, fd: int) -> None:
        try:
            syncfs(fd)
        except MountError:
            return  # whoever waits for the files hears of it
        finally:
            os.close(fd)
            self._sweeping = False
