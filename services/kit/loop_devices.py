"""Mounts with the option ``loop``: a loop device makes a disk of their source, a file. containerd's blockfile and erofs
snapshotters answer such mounts. Workers import this, so it imports little.

The device is *autocleared*: the kernel detaches it when its last user is gone, so that no worker leaves one behind,
however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CONTROL = "/dev/loop-control"
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_CONFIG = struct.Struct("=II 5Q 4I 64s 160x 64x")
"""struct loop_config of linux/loop.h: the file, the block size, loop_info64, and reserved bytes."""
_TRIES = 100
"""Attempts: a free device may be taken by another process a moment later."""


@contextlib.contextmanager
def attached(file: str, *, read_only: bool, direct: bool = False) -> Iterator[str]:
    """The path of a loop device of ``file``, which exists as long as the block or a mount of it. An OSError's
    ``filename`` says which file failed.
    """
    device = _attach(file, (_READ_ONLY if read_only else 0) | _AUTOCLEAR | (_DIRECT_IO if direct else 0))
    try:
        yield os.readlink(f"/proc/self/fd/{device}")
    finally:
        os.close(device)


@contextlib.contextmanager
def attached_image(file: str, options: Sequence[str], *, direct: bool = False) -> Iterator[tuple[str, tuple[str, ...]]]:
    """As :func:`attached`, of an EROFS image and its ``device=`` options, each of which names a file, too."""
    with contextlib.ExitStack() as held:

        def device(path: str) -> str:
            return held.enter_context(attached(path, read_only=True, direct=direct))

        image = device(file)
        begin = "device="
        yield image, tuple(begin + device(o.removeprefix(begin)) if o.startswith(begin) else o for o in options)


def _attach(file: str, flags: int) -> int:
    mode = (os.O_RDONLY if flags & _READ_ONLY else os.O_RDWR) | os.O_CLOEXEC
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        backing = os.open(file, mode)
        try:
            config = _CONFIG.pack(backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(file)[:63])
            for left in reversed(range(_TRIES)):
                device = os.open(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}", mode)
                try:
                    fcntl.ioctl(device, _CONFIGURE, config)
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY or not left:
                        raise OSError(error.errno, os.strerror(error.errno or 0), file) from None
                    time.sleep(0.001)
                    continue
                return device
        finally:
            os.close(backing)
    finally:
        os.close(control)
    raise AssertionError
