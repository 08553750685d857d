"""What a directory has that a layer uses and does not name: what it has in the layers below.

That is its owner, mode, times and extended attributes (but ``trusted.*``, which are overlayfs's own), from the topmost layer that has the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from services.snapshots.diff.paths import Resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def inherit(upper: str, below: Sequence[str], unnamed: Iterable[bytes]) -> None:
    """Do it for the ``unnamed`` directories of the layer in the directory ``upper``, once those of all layers ``below``, topmost first, are complete. OSError for what is no directory, or
    is below what is none in one of those layers, as containerd has it.
    """
    with contextlib.ExitStack() as opened:
        lowers = [Resolver(_open(opened, directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) for directory in below]
        for path in unnamed:
            with contextlib.ExitStack() as inside:
                fd = _open(inside, upper, _DIRECTORY)
                for name in path.split(b"/")[1:]:  # no link on the way is followed: there is none, unless somebody put it there meanwhile
                    fd = _open(inside, name, _DIRECTORY, fd)
                inherited(fd, path, lowers)


def _open(opened: contextlib.ExitStack, path: str | bytes, flags: int, directory: int | None = None) -> int:
    fd = os.open(path, flags, dir_fd=directory)
    opened.callback(os.close, fd)
    return fd


def inherited(directory: int, path: bytes, lowers: Iterable[Resolver]) -> bool:
    """Do it for an open ``directory``, which is ``path`` of its layer; False if no layer below has it, or the topmost that has something there has no directory."""
    for lower in lowers:
        found = lower.resolve(path)
        try:
            info = lower.lstat(found)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(info.st_mode):
            return False
        _copy(lower, found, info, directory)
        return True
    return False


def _copy(lower: Resolver, found: bytes, info: os.stat_result, directory: int) -> None:
    os.chown(directory, info.st_uid, info.st_gid)
    os.chmod(directory, stat.S_IMODE(info.st_mode))
    source = lower.open(found, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for key in _xattrs(source):
            if not key.startswith("trusted."):
                _copy_xattr(source, key, directory)
    finally:
        os.close(source)
    os.utime(directory, ns=(info.st_atime_ns, info.st_mtime_ns))


def _xattrs(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return []
        raise


def _copy_xattr(source: int, key: str, directory: int) -> None:
    try:
        os.setxattr(directory, key, os.getxattr(source, key), os.XATTR_CREATE)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA, errno.EEXIST):
            raise
