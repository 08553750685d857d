"""The tree of a layer, from its tar stream, as :class:`services.snapshots.diff.extract.Extractor` would make it in an
empty upper directory of an overlay; but in memory, and of the files' data only where they are in the stream.

Where that class asks the kernel, this one does what the kernel would do: it follows links, refuses long names, keeps
access control lists and modes in step (acl(5)), and drops a file's capabilities when its owner is set.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from _weakref import proxy

from services.kit import tar
from services.snapshots.diff import extract
from services.snapshots.diff.extract import EntryError
from services.snapshots.diff.inherit import PATHS, Unnamed
from services.snapshots.diff.paths import Resolver, Steps, clean, go_clean
from services.snapshots.erofs.image import NAME, Node, prefix_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.snapshots.erofs.below import Below

_PATH_MAX = 4095
"""Bytes of a path that the kernel takes."""
ENTRIES, BYTES = 1_000_000, 256 << 20
"""Entries of a layer, with the directories that it does not name, and bytes of their names, links and attributes, at
most: the tree is in memory, with some 700 bytes for an entry.
"""
EACH = 160
"""Bytes for an attribute, or a piece of a sparse file, beside its own."""
_LINKS = 40
"""Symbolic links in one path that the kernel follows."""
_NO_NAMES = (b"", b".", b"..")
_PARENTS = 4096
"""Directories that are remembered, so that the next entry's need not be looked up."""
_ID = 0xFFFFFFFF
"""The bits of an owner's number; all set mean that it is not to be changed."""
_TYPE = {tar.DIR: stat.S_IFDIR, tar.SYMLINK: stat.S_IFLNK, tar.CHAR: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK,
         tar.FIFO: stat.S_IFIFO}  # fmt: skip
_ACCESS, _DEFAULT, _CAPABILITY = b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"
_NAMELESS = (b"user.", b"security.")
"""Names of attributes that are only the beginning of one: the kernel knows them, and refuses them."""
_NOBODY = b"\xff" * 4
_OPAQUE = b"trusted.overlay.opaque"
_ACL_VERSION = b"\2\0\0\0"
_ACE = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


class LayerTree:
    """A layer, once :meth:`read` has returned."""

    def __init__(self, *, lowest: bool = False, below: Below | None = None, steps: Steps | None = None) -> None:
        """``lowest``: there are no layers below, so nothing is left of whiteouts. ``below`` says what the layers below
        have, if they are known. ``steps`` bounds the following of links.
        """
        self.root = _new(stat.S_IFDIR | 0o755)
        self.whiteouts = False
        """It had some."""
        self.patchable = True
        """Were it made again over layers below that give its unnamed directories no extended attributes, only the
        inodes of these directories would differ.
        """
        self._lowest = lowest
        self._below = below
        self._entries = self._bytes = 0
        self._unnamed: dict[bytes, Unnamed] = {}
        self._paths_left = PATHS
        """Bytes that are left for their paths."""
        self._groups: dict[bytes, int] = {}
        """The groups of unnamed directories that have them from others, by path."""
        self._resolver = _InMemory(self, steps)
        self._parents: dict[bytes, tuple[bytes, Node]] = {}
        """From a directory as an entry names it to its path, and itself. Emptied whenever a directory or a link is
        removed, and when it is full.
        """
        self._directories: dict[bytes, int] = {}
        """Times by name, in the order in which they were last set."""
        self._turned = False
        """A name may lead to another directory in the end than it did before: links are in the way, or a directory or a
        link was removed.
        """

    @property
    def unnamed(self) -> list[Unnamed]:
        """The directories that were made for entries in them, and that the layer did not name at that time."""
        return list(self._unnamed.values())

    def group(self, unnamed: Unnamed) -> int:
        """The group that an unnamed directory has if the layers below say nothing about it, nor about the one in which
        it is.
        """
        return self._groups.get(unnamed.path, 0)

    def read(self, reader: tar.Reader) -> None:
        """Take all entries of a stream. EntryError names the entry that is not possible."""
        last: bytes | None = None
        try:
            while (entry := reader.next()) is not None:
                last = entry.name
                if self._usual(entry, reader):
                    continue
                self._count(entry)
                try:
                    self._entry(entry, reader)
                except OSError as error:
                    raise EntryError(f"{extract.quoted(entry.name)}: {extract.words_of(error)}") from None
        except tar.TarError as error:
            raise EntryError(
                f"{error} (at or after {extract.quoted(last)})" if last is not None else str(error)
            ) from None
        if not self._turned:
            return
        for path, modified in self._directories.items():
            try:
                self._existing(self._resolved(path)).modified = modified
            except OSError as error:
                raise EntryError(f"{extract.quoted(path)}: failed to set times: {extract.words_of(error)}") from None

    def _count(self, entry: tar.Entry) -> None:
        size = len(entry.name) + len(entry.linkname)
        if entry.sparse:
            size += EACH * len(entry.sparse)
        if entry.records:
            size += sum(EACH + len(key) + len(value) for key, value in entry.xattrs())
        self._take(entry.name, 1, size)

    def _take(self, name: bytes, entries: int, size: int) -> None:
        """Count what is kept in memory for an entry."""
        self._entries += entries
        self._bytes += size
        if self._entries > ENTRIES or self._bytes > BYTES:
            raise EntryError(
                f"more than {ENTRIES} entries, or {BYTES >> 20} MiB of names and attributes, which an erofs layer "
                f"cannot have: use another snapshotter (at {extract.quoted(name)})"
            )

    # ------------------------------------------------------------------------ entries

    def _usual(self, entry: tar.Entry, reader: tar.Reader) -> bool:
        """Take an entry that is a new file, directory or symbolic link in a directory that is known, where nothing
        needs a closer look; False if it is anything else. :meth:`_count` and :meth:`_entry` would do the same.
        """
        kind, uid, gid, modified, linkname = entry.type, entry.uid, entry.gid, entry.modified, entry.linkname
        name = entry.name if kind != tar.DIR else entry.name.rstrip(b"/")
        cut = name.rfind(b"/") + 1
        base = name[cut:]
        found = self._parents.get(name[:cut])
        if found is None or base.startswith(extract.WHITEOUT) or base in _NO_NAMES or len(base) > NAME:
            return False
        above, parent = found
        children = parent.children
        if (
            children is None
            or base in children
            or parent.xattrs
            or len(above) + len(base) >= _PATH_MAX
            or not (0 <= uid < _ID and 0 <= gid < _ID)
            or entry.sparse is not None
            or (entry.records and entry.xattrs())
        ):
            return False
        if not 0 <= modified <= extract.LATEST:
            modified = 0
        if kind == tar.REG:
            children[base] = node = Node(stat.S_IFREG | entry.mode & 0o7777, uid, gid, modified)
            if size := entry.size:
                node.size = size
                node.place = reader.offset()
        elif kind == tar.DIR:
            children[base] = node = Node(stat.S_IFDIR | entry.mode & 0o7777, uid, gid, modified)
            node.children = {}
            node.links = 2
            parent.links += 1
            self._named(go_clean(entry.name), b"", modified)
            self._remember(name + b"/", (above + b"/" + base, node))
        elif kind == tar.SYMLINK and 0 < len(linkname) <= _PATH_MAX:
            children[base] = node = Node(stat.S_IFLNK | 0o777, uid, gid, modified)
            node.target = linkname
        else:
            return False
        self._entries += 1
        self._bytes += len(entry.name) + len(linkname)
        if self._entries > ENTRIES or self._bytes > BYTES:
            self._take(entry.name, 0, 0)  # raises
        return True

    def _entry(self, entry: tar.Entry, reader: tar.Reader) -> None:
        name = go_clean(entry.name)
        cut = name.rfind(b"/")
        base = name[cut + 1 :]
        if base in _NO_NAMES:
            return  # the root itself
        directory = name[: cut + 1]
        above, parent = found = self._parents.get(directory) or self._enter(directory)
        raw = entry.name.rstrip(b"/")
        cut = raw.rfind(b"/") + 1
        if raw[cut:] == base:  # for the next one there, which need not be cleaned
            self._remember(raw[:cut], found)
        path = above + b"/" + base
        if base.startswith(extract.WHITEOUT):
            self._whiteout(entry, path, parent, base)
            return
        _check(path, base)
        children = parent.children
        assert children is not None
        old = children.get(base)
        kind = entry.type
        if kind == tar.DIR and old is not None and old.children is not None:
            self._attributes(entry, old)
            if path in self._unnamed and _ID in (entry.uid & _ID, entry.gid & _ID):
                self.patchable = False  # it keeps an owner of the layers below
            self._named(name, path, old.modified)
            return
        if old is not None:
            self._remove(path, parent, base)
        if kind in (tar.REG, tar.GNU_SPARSE):
            node = _new(stat.S_IFREG)
            node.size = entry.size
            _set_data(node, entry, reader.offset())
        elif kind == tar.PAX_GLOBAL:
            return
        elif kind == tar.LINK:
            node = self._linked(entry)
        else:
            node = _special(entry)
        if _DEFAULT in (parent.xattrs or ()) and kind != tar.LINK:
            self._hand_down(path, parent, node)
        children[base] = node
        if kind == tar.DIR:
            parent.links += 1
            node.links = 2
        self._attributes(entry, node)
        if kind == tar.DIR:
            self._named(name, b"", node.modified)

    def _named(self, name: bytes, merged: bytes, modified: int) -> None:
        """Note that an entry names a directory; ``merged`` is its path if it was there before."""
        self._directories.pop(name, None)
        self._directories[name] = modified
        if merged and (made := self._unnamed.get(merged)) is not None:
            self._unnamed[merged] = made._replace(named=True)

    def _linked(self, entry: tar.Entry) -> Node:
        directory, slash, base = entry.linkname.rpartition(b"/")
        node = self._existing(clean(self._resolved(directory + slash) + b"/" + base))
        if node.children is not None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        node.links += 1
        return node

    def _attributes(self, entry: tar.Entry, node: Node) -> None:
        if entry.uid & _ID != _ID:
            node.uid = entry.uid & _ID
        if entry.gid & _ID != _ID:
            node.gid = entry.gid & _ID
        if node.xattrs and node.children is None:
            node.xattrs.pop(_CAPABILITY, None)
        if entry.records:
            _set_xattrs(entry, node)
        if not stat.S_ISLNK(node.mode):
            _chmod(node, entry.mode & 0o7777)
        node.modified = extract.times(entry)[1]

    def _whiteout(self, entry: tar.Entry, path: bytes, parent: Node, base: bytes) -> None:
        self.whiteouts = True
        if base == extract.OPAQUE:
            if self._lowest:
                return
            parent.xattrs = {**(parent.xattrs or {}), _OPAQUE: b"y"}
            return
        hidden = base[len(extract.WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise EntryError(f"invalid whiteout name: {os.fsdecode(base)}: invalid archive")
        try:
            _check(path[: -len(base)] + hidden, hidden)
            assert parent.children is not None
            if self._lowest:
                if hidden in parent.children:
                    self._remove(path[: -len(base)] + hidden, parent, hidden)
                return
            if hidden in parent.children:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        except OSError as error:
            raise EntryError(
                f"failed to convert whiteout file {extract.quoted(entry.name)}: {extract.words_of(error)}"
            ) from None
        node = parent.children[hidden] = _new(stat.S_IFCHR)
        node.uid, node.gid = (0 if number & _ID == _ID else number & _ID for number in (entry.uid, entry.gid))

    # ------------------------------------------------------------------------ directories

    def _enter(self, directory: bytes) -> tuple[bytes, Node]:
        """The path of an entry's directory, without a trailing slash, and itself; it is made if it does not exist."""
        path = self._resolved(directory)
        found = (b"", self.root) if path == b"/" else (path, self._made(path))
        if path != b"/" + directory.strip(b"/"):
            self._turned = True
        self._remember(directory, found)
        return found

    def _remember(self, directory: bytes, found: tuple[bytes, Node]) -> None:
        if len(self._parents) >= _PARENTS:
            self._parents.clear()
        self._parents[directory] = found

    def _resolved(self, directory: bytes) -> bytes:
        path = clean(directory)
        if path != b"/" + directory.strip(b"/"):
            return self._resolver.resolve(directory)
        if len(path) > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        node = self.root
        for part in path.split(b"/"):
            if part:
                if node.children is None:
                    return self._resolver.resolve(directory)
                inner = node.children.get(part)
                if inner is None:
                    return path
                node = inner
        return path if node.children is not None else self._resolver.resolve(directory)

    def _made(self, path: bytes) -> Node:
        """The directory at a resolved path, which has no links. What is missing is made."""
        _check(path, b"")
        node, at = self.root, b""
        for name in path.split(b"/")[1:]:
            if len(name) > NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
            if node.children is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            inner = node.children.get(name)
            node = self._unnamed_directory(at, node, name) if inner is None else inner
            at += b"/" + name
        if node.children is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node

    def _unnamed_directory(self, above: bytes, parent: Node, name: bytes) -> Node:
        new = above + b"/" + name
        self._take(new, 1, len(new))
        node = _new(stat.S_IFDIR | 0o755)
        if parent.mode & stat.S_ISGID:
            node.gid = parent.gid
        if _DEFAULT in (parent.xattrs or ()):
            self._hand_down(new, parent, node)
            _chmod(node, 0o755)
        assert parent.children is not None
        parent.children[name] = node
        parent.links += 1
        outer = self._unnamed.get(above)
        self._unnamed[new] = made = Unnamed(new, inside=outer is not None and not outer.named)
        self._paths_left -= len(new)
        extract.check_unnamed(len(self._unnamed), self._paths_left, new)
        self._groups.pop(new, None)
        if node.gid and not made.inside:
            self._groups[new] = node.gid
        if node.xattrs:
            self.patchable = False
        if self._below is not None and (found := self._below(new)) is not None:
            node.mode, node.uid, node.gid, node.modified = found[:4]
            node.xattrs = dict(found.xattrs)
            self._take(new, 0, sum(EACH + len(key) + len(value) for key, value in node.xattrs.items()))
        return node

    def _existing(self, path: bytes) -> Node:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def find(self, path: bytes) -> Node | None:
        """What is at an absolute path; None if there is nothing. Links in it are followed as the kernel does, but for
        the last component.
        """
        if len(path) > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        trail, node, followed = [self.root], self.root, 0
        waiting = [part for part in reversed(path.split(b"/")) if part]
        while waiting:
            part = waiting.pop()
            if part == b".":
                continue
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                node = trail[-1]
                continue
            if len(part) > NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
            if trail[-1].children is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            inner = trail[-1].children.get(part)
            if inner is None:
                return None
            if waiting and stat.S_ISLNK(inner.mode):
                followed += 1
                if followed > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if inner.target.startswith(b"/"):
                    del trail[1:]
                waiting += [part for part in reversed(inner.target.split(b"/")) if part]
                continue
            node = inner
            trail.append(inner)
        return node

    def _hand_down(self, path: bytes, parent: Node, node: Node) -> None:
        """Give a new inode what its directory's default access control list says."""
        if stat.S_ISLNK(node.mode):
            return
        assert parent.xattrs is not None
        value = parent.xattrs[_DEFAULT]
        self._take(path, 0, 2 * len(value))
        node.xattrs = {}
        if len(_acl(value)) > 3:
            node.xattrs[_ACCESS] = value
        if node.children is not None:
            node.xattrs[_DEFAULT] = value

    # ------------------------------------------------------------------------ removing

    def _remove(self, path: bytes, parent: Node, base: bytes) -> None:
        assert parent.children is not None
        node = parent.children.pop(base)
        if node.children is not None:
            parent.links -= 1
            for inner, below in _walk(path, node):
                if below.children is None:
                    below.links -= 1
                else:
                    self._unnamed.pop(inner, None)
        else:
            node.links -= 1
        if node.children is not None or stat.S_ISLNK(node.mode):
            self._parents.clear()
            self._turned = True


class _InMemory(Resolver):
    """Resolves links of a tree in memory."""

    __slots__ = ("_tree",)

    def __init__(self, tree: LayerTree, steps: Steps | None) -> None:
        super().__init__(steps=steps)
        # which has this: a cycle would keep it, and a worker collects none
        self._tree: LayerTree = proxy(tree)

    def link(self, path: bytes) -> bytes | None:
        node = self._tree.find(path)
        return node.target if node is not None and stat.S_ISLNK(node.mode) else None


def _new(mode: int) -> Node:
    node = Node(mode)
    if stat.S_ISDIR(mode):
        node.children = {}
        node.links = 2
    return node


def _check(path: bytes, base: bytes) -> None:
    if len(base) > NAME or len(path) > _PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)


def _walk(path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """A directory and everything below it. Paths are made one by one: each may have four thousand bytes."""
    yield path, node
    waiting = [(path, iter((node.children or {}).items()))]
    while waiting:
        path, entries = waiting[-1]
        for name, inner in entries:
            yield (below := path + b"/" + name), inner
            if inner.children:
                waiting.append((below, iter(inner.children.items())))
                break
        else:
            waiting.pop()


def _special(entry: tar.Entry) -> Node:
    kind = _TYPE.get(entry.type)
    if kind is None:
        raise EntryError(f"{extract.quoted(entry.name)}: unhandled tar header type {entry.type[0]}")
    node = _new(kind)
    if entry.type == tar.SYMLINK:
        if not entry.linkname:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if len(entry.linkname) > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        node.mode |= 0o777
        node.target = entry.linkname
    elif entry.type in (tar.CHAR, tar.BLOCKDEV, tar.FIFO):
        extract.check_device(entry)
        if entry.type != tar.FIFO:
            node.device = extract.device(entry.major, entry.minor)
    return node


def _set_data(node: Node, entry: tar.Entry, place: int) -> None:
    if entry.sparse is None:
        node.place = place if entry.size else -1
        return
    pieces = []
    for offset, length in entry.sparse:
        if length:
            pieces.append((offset, place, length))
        place += length
    node.pieces = pieces


# ---------------------------------------------------------------------------------------------- attributes


def _set_xattrs(entry: tar.Entry, node: Node) -> None:
    """As the Extractor, and the kernel, set them."""
    given = entry.xattrs()
    if not given:
        return
    node.xattrs = xattrs = dict(node.xattrs or {})
    for key, value in given:
        if key.startswith(b"trusted."):
            continue
        try:
            _check_lengths(key, value)
            if key not in _NAMELESS and prefix_of(key) is None:
                continue
            if key.startswith(b"user.") and not (stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode)):
                continue
            found = _accepted(key, value, node)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                continue
            raise EntryError(
                f"failed to setxattr {extract.quoted(entry.name)} for key {extract.quoted(key)}: "
                f"{extract.words_of(error)}"
            ) from None
        xattrs.pop(key, None)
        if found is not None:
            xattrs[key] = found


def _check_lengths(key: bytes, value: bytes) -> None:
    """What the kernel looks at first."""
    if not 0 < len(key) <= 255:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    if len(value) >= 1 << 16:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def _accepted(key: bytes, value: bytes, node: Node) -> bytes | None:
    """The value that the kernel stores; None if it stores none."""
    if key in _NAMELESS:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if key == _CAPABILITY:
        revision = value[1:4], len(value)
        if (
            revision not in ((b"\0\0\2", 20), (b"\0\0\3", 24)) or value[0] > 1 or value[20:] == _NOBODY
        ):  # what capability(7) calls version 2, and 3 with its user, and the flag "effective"
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if key not in (_ACCESS, _DEFAULT):
        return value
    shape = _shape(value)
    if stat.S_ISLNK(node.mode):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if key == _DEFAULT and node.children is None:
        if shape:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return None
    entries = _acl(value)
    return value if len(entries) > (3 if key == _ACCESS else 0) else None


def _shape(value: bytes) -> list[tuple[int, int, int]]:
    """What may be the entries of an access control list. An OSError says that it is none."""
    if not value:
        return []
    if len(value) >= 4 and value[:4] != _ACL_VERSION:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    entries = list(_ACE.iter_unpack(value[4:])) if len(value) % 8 == 4 else None
    if entries is None or not {_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER}.issuperset(e[0] for e in entries):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return entries


def _acl(value: bytes) -> list[tuple[int, int, int]]:
    """The entries of an access control list. An OSError says that it is none."""
    entries = _shape(value)
    tags = [tag for tag, _, _ in entries]
    if entries and (
        tags != sorted(tags)
        or any(permissions > 7 for _, permissions, _ in entries)
        or any(tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER))
        or tags.count(_MASK) > 1
        or (_MASK not in tags and len(tags) > 3)
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return entries


def _chmod(node: Node, mode: int) -> None:
    """Set the permissions, and those in the access control list with them."""
    node.mode = node.mode & 0o170000 | mode
    if node.xattrs and _ACCESS in node.xattrs:
        entries = _acl(node.xattrs[_ACCESS])
        group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
        bits = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
        node.xattrs[_ACCESS] = _ACL_VERSION + b"".join(
            _ACE.pack(tag, bits.get(tag, permissions), who) for tag, permissions, who in entries
        )
