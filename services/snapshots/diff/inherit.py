"""The attributes of directories that a layer uses but does not name: they take them from the layers below.

These are owner, mode, times and extended attributes (except ``trusted.*``, which are overlayfs's), of the topmost layer
that has the directory. If no layer has it, the directory is 0755 and belongs to root, or to the group of its parent if
that has the set-group-id bit: mkdir does so, and containerd leaves it (pkg/archive/tar.go, mkparent).

A layer that is unpacked *alone*, before the layers below it are known, makes such directories as root's and notes them
(:class:`Unnamed`). Later, :func:`inherit` gives them their attributes. It cannot do this for default ACLs, which affect
everything that is made in a directory: it then says so, and the layer must be unpacked again, on the layers below it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import namedtuple

from services.snapshots.diff.paths import Resolver, Steps, TooManyLinksError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from services.snapshots.diff.listings import Listings

_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


_LOOKUPS, _STEPS = 200_000, 2_000_000
"""Components of paths that are looked up in layers to compare these, and to follow links there: some tenths of a second
each.
"""
LONG = 5_000_000
"""Lookups, ten seconds of a processor, from which on a layer is unpacked on those below it, by a worker: that can be
killed.
"""
UNNAMED, PATHS = 250_000, 32 << 20
"""Directories that a layer may leave unnamed, and bytes of their paths: they are kept in memory, also by the services
that are told of them. One entry can have two thousand above it, with four megabytes of paths.
"""


class LinkError(OSError):
    """There is a symbolic link in the path of a directory."""


class DefaultAclError(Exception):
    """A directory of the layers below has an ACL that files made in it should have inherited."""


class Unnamed(namedtuple("Unnamed", ("path inside named"), defaults=(False, False))):  # noqa: PYI024 typing's would bring re into each worker
    """A directory that a layer made because entries are in it."""

    __slots__ = ()
    path: bytes
    """Absolute; the layer is the root."""
    inside: bool
    """The parent, when this directory was made, was also one that the layer had not named: the parent may hand down its
    group, if the layers below say so.
    """
    named: bool
    """An entry named the directory later. It has that entry's attributes; extended attributes of the layers below are
    added.
    """

    def encoded(self) -> bytes:
        """The bytes that :meth:`parse` reads; they contain no zero byte."""
        return b"%d%s" % (self.inside + 2 * self.named, self.path)

    @classmethod
    def parse(cls, encoded: bytes) -> Unnamed:
        """Parse the output of :meth:`encoded`."""
        flags = int(encoded[:1])
        return cls(encoded[1:], inside=bool(flags & 1), named=bool(flags & 2))


def inherit(
    upper: str,
    below: Sequence[str],
    unnamed: Iterable[Unnamed],
    *,
    links: bool = True,
    listings: Listings | None = None,
) -> None:
    """Give the ``unnamed`` directories of the layer in the directory ``upper`` their attributes, in the order in which
    they were made. The layers ``below``, topmost first, must be complete. ``listings`` know some of their directories.

    OSError, with the path in the layer, if a path is no directory, or is below something that is none, in one of those
    layers, as in containerd. Without ``links``, LinkError if a link must be followed, which may take long.
    DefaultAclError if it is too late.
    """
    handed: dict[bytes, int] = {}
    """The group that a directory of ``unnamed`` hands down."""
    steps = Steps(more=1000)
    with contextlib.ExitStack() as opened:
        lowers = _Lowers(opened, below, listings)
        for each in unnamed:
            path = each.path
            with contextlib.ExitStack() as inner, _naming(path):
                fd = _open(inner, upper, _DIRECTORY)
                # without following links: there are none, unless somebody made one meanwhile
                for name in path.split(b"/")[1:]:
                    fd = _open(inner, name, _DIRECTORY, fd)
                handed.pop(path, None)
                source = topmost(path, lowers.having(path), links=links, steps=steps)
                if source is not None:
                    inner.callback(os.close, source)
                    _copy_late(source, fd, named=each.named)
                    info = os.fstat(source)
                    if info.st_mode & stat.S_ISGID:
                        handed[path] = info.st_gid
                elif each.inside and not each.named and (group := handed.get(path[: path.rfind(b"/")])) is not None:
                    os.chown(fd, -1, group)


class _Lowers:
    """Layers, topmost first, each of which is opened when it is looked into."""

    def __init__(self, opened: contextlib.ExitStack, directories: Sequence[str], listings: Listings | None) -> None:
        self._opened = opened
        self._directories = directories
        self._listings = listings
        self._fds: dict[str, int] = {}

    def having(self, path: bytes) -> Iterator[int]:
        """Those that may have something at ``path``."""
        for directory in self._directories:
            if self._listings is not None and self._listings.lacks(directory, path):
                continue
            if directory not in self._fds:
                self._fds[directory] = _open(self._opened, directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            yield self._fds[directory]


def alike(unnamed: Sequence[Unnamed], one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the ``unnamed`` directories of a layer have the same attributes on the layers in the directories ``one``
    as on those in ``other``; topmost first. False where that would take long to say. OSError.
    """
    if lookups(unnamed, len(one) + len(other)) > _LOOKUPS:
        return False
    steps = Steps(_STEPS, more=0)
    with contextlib.ExitStack() as opened:
        both = [
            [_open(opened, directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for directory in each]
            for each in (one, other)
        ]
        try:
            return all(
                _handed_down(each.path, both[0], steps) == _handed_down(each.path, both[1], steps) for each in unnamed
            )
        except (NotADirectoryError, LinkError, TooManyLinksError):  # whoever unpacks it gets the error
            return False


def lookups(unnamed: Iterable[Unnamed], layers: int) -> int:
    """Components that are looked up to find directories in so many layers, at most, where there are no links."""
    return layers * sum(each.path.count(b"/") for each in unnamed)


def _handed_down(path: bytes, lowers: Sequence[int], steps: Steps) -> object:
    """Everything that a directory gets from the layers below, but for the time of the last access."""
    source = topmost(path, lowers, links=True, steps=steps)
    if source is None:
        return None
    try:
        info = os.fstat(source)
        attributes = {key: os.getxattr(source, key) for key in xattrs(source)}
        return info.st_uid, info.st_gid, info.st_mode, info.st_mtime_ns, attributes
    finally:
        os.close(source)


@contextlib.contextmanager
def _naming(path: bytes) -> Iterator[None]:
    """Errors of system calls name ``path``, not their argument: that is a part of the path, or a directory of the
    node.
    """
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def _open(opened: contextlib.ExitStack, path: str | bytes, flags: int, directory: int | None = None) -> int:
    fd = os.open(path, flags, dir_fd=directory)
    opened.callback(os.close, fd)
    return fd


def inherited(directory: int, path: bytes, lowers: Iterable[int], steps: Steps) -> bool:
    """Give the open, just made ``directory`` the attributes of ``path`` in the layers below. False if no layer has it,
    or the topmost that has ``path`` has something else there.
    """
    source = topmost(path, lowers, links=True, steps=steps)
    if source is None:
        return False
    try:
        _copy(source, directory)
    finally:
        os.close(source)
    return True


def topmost(path: bytes, lowers: Iterable[int], *, links: bool, steps: Steps) -> int | None:
    """The directory ``path`` of the topmost layer that has anything there, opened. None if that is no directory, or
    there is none. ``steps`` bounds the following of links.
    """
    for lower in lowers:
        try:
            return in_layer(path, lower, links=links, steps=steps)
        except FileNotFoundError:
            continue
    return None


def in_layer(path: bytes, lower: int, *, links: bool, steps: Steps) -> int | None:
    """The directory ``path`` of one layer, opened. None if it is something else; FileNotFoundError."""
    try:
        return _straight(lower, path)
    except LinkError:
        if not links:
            raise
        return _by_links(lower, path, steps)


def _straight(lower: int, path: bytes) -> int | None:
    """The directory ``path`` of a layer, opened. None if it is something else, LinkError if there is a link in the
    path.
    """
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


def _by_links(lower: int, path: bytes, steps: Steps) -> int | None:
    """As :func:`_straight`, with links followed as containerd follows them."""
    resolver = Resolver(lower, steps)
    found = resolver.resolve(path)
    if not stat.S_ISDIR(resolver.lstat(found).st_mode):
        return None
    return resolver.open(found, os.O_RDONLY | os.O_DIRECTORY)


def _copy(source: int, directory: int) -> None:
    info = os.fstat(source)
    os.chown(directory, info.st_uid, info.st_gid)
    os.chmod(directory, stat.S_IMODE(info.st_mode))
    for key in xattrs(source):
        _copy_xattr(source, key, directory)
    os.utime(directory, ns=(info.st_atime_ns, info.st_mtime_ns))


def _copy_late(source: int, directory: int, *, named: bool) -> None:
    """As :func:`_copy`, for a directory that already has files in it."""
    keys = xattrs(source)
    if DEFAULT_ACL in keys or (named and _ACL in keys):
        raise DefaultAclError
    if not named:
        _copy(source, directory)
        return
    for key in keys:
        _copy_xattr(source, key, directory)


def xattrs(file: int | str) -> list[str]:
    """The names of a file's extended attributes, except overlayfs's."""
    try:
        return [key for key in os.listxattr(file) if not key.startswith("trusted.")]
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
