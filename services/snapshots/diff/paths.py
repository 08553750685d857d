"""Paths in a layer, resolved below a root as containerd resolves them.

Not quite as the kernel does in a chroot: a link's target is joined with the directory the link is in and cleaned as
text, before what it names is looked at. So ``a -> missing/../b`` leads to ``b``, and what does not exist yet is taken
for what its name says. Paths are absolute bytes, ``/`` being the root.
"""

from __future__ import annotations

import errno
import os
import stat

_LINKS = 255
"""More symbolic links on the way are a loop."""


class TooManyLinksError(OSError):
    """A path that leads in circles."""


def clean(path: bytes) -> bytes:
    """``path`` as an absolute one without empty, ``.`` and ``..`` components; the root is its own parent."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/" + b"/".join(parts)


def cleaned(path: bytes) -> bytes:
    """``path`` without empty, ``.`` and inner ``..`` components, as Go's filepath.Clean: one that is relative stays
    so, with its leading ``..``.
    """
    if path.startswith(b"/"):
        return clean(path)
    if b"/." not in path and b"//" not in path and not path.startswith(b".") and path:
        return path.rstrip(b"/")  # as nearly all are
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b".." and parts and parts[-1] != b"..":
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts) or b"."


class Resolver:
    """Resolves symbolic links below a directory, given as a file descriptor, or below the process's root.

    A relative path is not the same as an absolute one here: where its first component is a link, that link's target is
    not yet cleaned when it is followed.
    """

    __slots__ = ("_fd", "_walked")

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        self._walked = 0

    def lstat(self, path: bytes) -> os.stat_result:
        """Describe what an absolute path below the root names, a link as such."""
        if self._fd is None:
            return os.lstat(path)
        return os.stat(path[1:] or b".", dir_fd=self._fd, follow_symlinks=False)

    def open(self, path: bytes, flags: int) -> int:
        """Open a resolved path below the root."""
        if self._fd is None:
            return os.open(path, flags | os.O_NOFOLLOW)
        return os.open(path[1:] or b".", flags | os.O_NOFOLLOW, dir_fd=self._fd)

    def resolve(self, path: bytes) -> bytes:
        """Where ``path`` leads, every symbolic link in it followed, the last component's too."""
        if not path:
            return b"/"
        self._walked = 0
        while True:
            before = self._walked
            path = self._walk(path)
            if before == self._walked and path == (path := clean(path)):
                return path

    def _walk(self, path: bytes) -> bytes:
        """One step for each component: the links in it replaced by where they point, which may be links again."""
        first, *names = path.split(b"/")
        new = self._follow(first)[0] if first else b"/"  # not clean, if it is a relative path's link
        for name in names:
            if name:
                found, link = self._follow(new + b"/" + name)
                new = found if not link else clean(found if found.startswith(b"/") else new + b"/" + found)
        return new

    def _follow(self, path: bytes) -> tuple[bytes, bool]:
        if self._walked > _LINKS:
            raise TooManyLinksError(errno.ELOOP, "too many links")
        path = clean(path)
        if path == b"/":
            return path, False
        try:
            if not stat.S_ISLNK(self.lstat(path).st_mode):
                return path, False
        except FileNotFoundError:
            return path, False
        self._walked += 1
        return (os.readlink(path) if self._fd is None else os.readlink(path[1:], dir_fd=self._fd)), True
