"""mount(2), umount2(2) and statfs(2), which Python does not have. Workers import this, so it imports little."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

RDONLY, NOSUID, NODEV, NOEXEC, SYNCHRONOUS, REMOUNT, MANDLOCK, DIRSYNC = 1, 2, 4, 8, 16, 32, 64, 128
NOATIME, NODIRATIME, BIND, REC, SILENT = 1024, 2048, 4096, 16384, 32768
UNBINDABLE, PRIVATE, SLAVE, SHARED, RELATIME, STRICTATIME = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 24
DETACH = 2
"""MNT_DETACH: what is still used is unmounted when it is no longer used."""

OPTIONS_LIMIT = 4095
"""Bytes of options that mount(2) takes: a page with its terminator. The kernel silently cuts off the rest; an overlay
may then be mounted read-only, with some of its layers.
"""

EROFS, OVERLAY, TMPFS = 0xE0F5E1E2, 0x794C7630, 0x01021994
"""Types of file systems, as :func:`type_of` tells them."""

_STATFS = 512
"""Bytes that hold a struct statfs on every architecture; its first word is the type."""
_libc = ctypes.CDLL(None, use_errno=True)


class OptionsTooLongError(OSError):
    """More than ``OPTIONS_LIMIT`` bytes of options."""


def mount(source: str, target: str | Path, fstype: str, flags: int, options: str) -> None:
    """The system call; ``options`` are separated by commas. OptionsTooLongError; another OSError
    with ``source`` as its file name.
    """
    data = os.fsencode(options)
    if len(data) > OPTIONS_LIMIT:
        raise OptionsTooLongError(
            errno.E2BIG, f"mount options is too long: {len(data)} bytes for {target} (the kernel takes {OPTIONS_LIMIT})"
        )
    if _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data or None):
        raise _failed(source)


def unmount(target: str | Path, flags: int = 0) -> None:
    """The system call, for the topmost mount on ``target``. OSError: EINVAL if nothing is mounted there, EBUSY if
    somebody uses it.
    """
    if _libc.umount2(os.fsencode(target), flags):
        raise _failed(target)


def type_of(place: int | str | Path) -> int:
    """The type of the file system that a path or an open file lies on. OSError."""
    buffer = ctypes.create_string_buffer(_STATFS)
    if _libc.fstatfs(place, buffer) if isinstance(place, int) else _libc.statfs(os.fsencode(place), buffer):
        raise _failed(place)
    (found,) = struct.unpack_from("=Q" if ctypes.sizeof(ctypes.c_long) == 8 else "=I", buffer.raw)
    return int(found) & 0xFFFFFFFF


def _failed(place: int | str | Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), None if isinstance(place, int) else str(place))
