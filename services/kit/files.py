"""Writes files so that they survive a power cut; small ones so that it leaves either the old file or the new one,
whole. Workers import this, so it imports little.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2


def replace(path: Path, text: str) -> None:
    """Replace the file ``path`` by one with ``text``, durably. If the power is cut meanwhile, the old file stays. If
    this fails with OSError, as on a full disk, the old file stays too, and the unfinished new one is removed.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def start_writeback(fd: int, offset: int = 0, size: int = 0) -> None:
    """Start writing an open file to the disk, from ``offset`` on; all of it, or ``size`` bytes. A later fsync or syncfs
    waits for less, and reports failures.
    """
    _libc.sync_file_range(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def sync_directory(directory: str | Path) -> None:
    """Make the entries of ``directory`` survive a power cut: what was made, renamed or removed in it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
