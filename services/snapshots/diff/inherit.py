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


class LinkError(OSError):
    """There is a symbolic link on the way to a directory."""


def inherit(upper: str, below: Sequence[str], unnamed: Iterable[bytes], *, links: bool = True) -> None:
    """Do it for the ``unnamed`` directories of the layer in the directory ``upper``, once those of all layers ``below``, topmost first, are complete.

    OSError for what is no directory, or is below what is none in one of those layers, as containerd has it. Not with ``links``: LinkError where one must be followed, which may take long.
    """
    with contextlib.ExitStack() as opened:
        lowers = [_open(opened, directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for directory in below]
        for path in unnamed:
            with contextlib.ExitStack() as inside:
                fd = _open(inside, upper, _DIRECTORY)
                for name in path.split(b"/")[1:]:  # no link on the way is followed: there is none, unless somebody put it there meanwhile
                    fd = _open(inside, name, _DIRECTORY, fd)
                inherited(fd, path, lowers, links=links)


def _open(opened: contextlib.ExitStack, path: str | bytes, flags: int, directory: int | None = None) -> int:
    fd = os.open(path, flags, dir_fd=directory)
    opened.callback(os.close, fd)
    return fd


def inherited(directory: int, path: bytes, lowers: Iterable[int], *, links: bool = True) -> bool:
    """Do it for an open ``directory``, which is ``path`` of its layer; False if no layer below has it, or the topmost that has something there has no directory."""
    for lower in lowers:
        try:
            try:
                source = _straight(lower, path)
            except LinkError:
                if not links:
                    raise
                source = _by_links(lower, path)
        except FileNotFoundError:
            continue
        if source is None:
            return False
        try:
            _copy(source, directory)
        finally:
            os.close(source)
        return True
    return False


def _straight(lower: int, path: bytes) -> int | None:
    """The directory ``path`` of a layer, opened; None if that is something else, LinkError if there is a link on the way."""
    at = lower
    names = path.split(b"/")[1:]
    for left, name in zip(reversed(range(len(names))), names, strict=True):
        try:
            inner = os.open(name, _DIRECTORY, dir_fd=at)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                raise LinkError(errno.ELOOP, "a link", path) from None
            if left:
                raise
            return None
        finally:
            if at != lower:
                os.close(at)
        at = inner
    return at


def _by_links(lower: int, path: bytes) -> int | None:
    """As :func:`_straight`, with links followed as containerd follows them."""
    resolver = Resolver(lower)
    found = resolver.resolve(path)
    if not stat.S_ISDIR(resolver.lstat(found).st_mode):
        return None
    return resolver.open(found, os.O_RDONLY | os.O_DIRECTORY)


def _copy(source: int, directory: int) -> None:
    info = os.fstat(source)
    os.chown(directory, info.st_uid, info.st_gid)
    os.chmod(directory, stat.S_IMODE(info.st_mode))
    for key in _xattrs(source):
        if not key.startswith("trusted."):
            _copy_xattr(source, key, directory)
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
