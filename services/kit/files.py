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


def replace(path: Path | str, data: str | bytes, new: str = "") -> None:
    """Replace the file ``path`` by one with ``data``, durably. If the power is cut meanwhile, the old file stays. If
    this fails with OSError, as on a full disk, the old file stays too, and the unfinished new one is removed.

    ``new`` is the path of the unfinished one, on the same filesystem: else that of ``path`` with ``.new`` behind it.
    """
    new = new or f"{path}.new"
    try:
        with open(new, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        _remove(new)
        raise
    sync_directory(os.path.dirname(path) or ".")


def _remove(path: Path | str) -> None:
    """Remove a file, if it exists."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def start_writeback(fd: int, offset: int = 0, size: int = 0) -> None:
    """Start writing an open file to the disk, from ``offset`` on; all of it, or ``size`` bytes. A later fsync or syncfs
    waits for less, and reports failures.
    """
    _libc.sync_file_range(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def sync(path: Path | str) -> None:
    """Make a file and its name survive a power cut."""
    _sync(path, 0)
    sync_directory(os.path.dirname(path) or ".")


def sync_directory(directory: Path | str) -> None:
    """Make the entries of ``directory`` survive a power cut: what was made, renamed or removed in it."""
    _sync(directory, os.O_DIRECTORY)


def _sync(path: Path | str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
