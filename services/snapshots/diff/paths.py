"""Paths in a layer, resolved below a root as containerd resolves them.

This differs from the kernel's way in a chroot. A link's target is joined with the directory of the link and cleaned as
text before it is looked up. So ``a -> missing/../b`` leads to ``b``, and a path that does not exist yet is taken
literally. Paths are absolute bytes; ``/`` is the root.
"""

from __future__ import annotations

import errno
import os
import stat

_LINKS = 255
"""Symbolic links in one path; more count as a loop."""
_DOTS = (b".", b"..")


class TooManyLinksError(OSError):
    """A path with too many symbolic links: a loop, or one of many paths that take too long."""


def clean(path: bytes) -> bytes:
    """``path`` made absolute, without empty, ``.`` and ``..`` components; the root is its own parent."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/" + b"/".join(parts)


def go_clean(path: bytes) -> bytes:
    """``path`` without empty, ``.`` and inner ``..`` components, as by Go's filepath.Clean. A relative path stays
    relative and keeps its leading ``..``.
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


class Steps:
    """How many components of paths may still be looked up, by all resolvers that share this; ``more`` are added with
    each path. Fifty million take some seconds. Without a bound, one path of two thousand components with a chain of
    links at its end would take minutes.
    """

    __slots__ = ("left", "more")

    def __init__(self, left: int = 50_000_000, more: int = 10_000) -> None:
        self.left = left
        self.more = more


class Resolver:
    """Resolves symbolic links below a directory, given as a file descriptor, or below the process's root.

    Relative paths are resolved differently here: if their first component is a link, its target is followed before it
    is cleaned.
    """

    __slots__ = ("_fd", "_steps", "_walked")

    def __init__(self, fd: int | None = None, steps: Steps | None = None) -> None:
        self._fd = fd
        self._steps = steps or Steps()
        self._walked = 0

    def lstat(self, path: bytes) -> os.stat_result:
        """The status of an absolute path below the root; a link is not followed."""
        if self._fd is None:
            return os.lstat(path)
        return os.stat(path[1:] or b".", dir_fd=self._fd, follow_symlinks=False)

    def open(self, path: bytes, flags: int) -> int:
        """Open a resolved path below the root."""
        if self._fd is None:
            return os.open(path, flags | os.O_NOFOLLOW)
        return os.open(path[1:] or b".", flags | os.O_NOFOLLOW, dir_fd=self._fd)

    def resolve(self, path: bytes) -> bytes:
        """``path`` with every symbolic link followed, the last component's too. TooManyLinksError."""
        if not path:
            return b"/"
        self._walked = 0
        self._steps.left += self._steps.more
        while True:
            before = self._walked
            path = self._walk(path)
            if before == self._walked and path == (path := clean(path)):
                return path

    def _walk(self, path: bytes) -> bytes:
        """One pass over the components: each link is replaced by its target, which may contain links again."""
        first, *names = path.split(b"/")
        new, link = self._follow(clean(first)) if first else (b"/", False)
        is_clean = not link and new != b"/"  # the target of a relative path's first link is not
        for name in names:
            if name:
                below = new + b"/" + name
                found, link = self._follow(below if is_clean and name not in _DOTS else clean(below))
                new = found if not link else clean(found if found.startswith(b"/") else new + b"/" + found)
                is_clean = new != b"/"
        return new

    def _follow(self, path: bytes) -> tuple[bytes, bool]:
        """The target of the link at a clean path, and True; or the path itself."""
        self._steps.left -= path.count(b"/")
        if self._walked > _LINKS or self._steps.left < 0:
            raise TooManyLinksError(errno.ELOOP, "too many links")
        if path == b"/":
            return path, False
        target = self.link(path)
        if target is None:
            return path, False
        self._walked += 1
        return target, True

    def link(self, path: bytes) -> bytes | None:
        """The target of a symbolic link; None if ``path`` is something else, or nothing."""
        try:
            if not stat.S_ISLNK(self.lstat(path).st_mode):
                return None
        except FileNotFoundError:
            return None
        return os.readlink(path) if self._fd is None else os.readlink(path[1:], dir_fd=self._fd)
