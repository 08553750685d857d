"""What is in a file that is filled in several places at once: the bytes before its first hole.

A hole is what nobody wrote, and in which a filesystem has no data. The content service says by it how much of an ingest
is there, and a transfer goes on by it with what a process that died has left.
"""

from __future__ import annotations

import errno
import os


def without_holes(fd: int) -> int:
    """Bytes at the beginning of a file that were written without a gap. The last block before a hole may be half
    empty, so it does not count.
    """
    info = os.fstat(fd)
    if not info.st_size:
        return 0
    try:
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return info.st_size  # a filesystem that does not tell; a gap will show in the digest
    return hole if hole >= info.st_size else max(0, hole - max(4096, info.st_blksize))
