"""Finds the first hole in a file that is written in several places at once.

A hole is a range that nobody wrote, and for which a filesystem has no data. The content service uses this to say how
much of an ingest exists, and a transfer uses it to continue what a dead process left.
"""

from __future__ import annotations

import errno
import os


def without_holes(fd: int) -> int:
    """Bytes at the beginning of a file that were written without a gap. The last block before a hole may be half empty,
    so it does not count.
    """
    info = os.fstat(fd)
    if not info.st_size:
        return 0
    try:
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return info.st_size  # a filesystem that does not report holes; a gap will show in the digest
    return hole if hole >= info.st_size else max(0, hole - max(4096, info.st_blksize))
