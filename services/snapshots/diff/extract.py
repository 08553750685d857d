"""Unpacks a layer's entries onto a tree, by containerd's rules.

The tree is this process's root directory (chroot), so nothing outside can be reached, whatever a layer contains. Within
it, :mod:`~services.snapshots.diff.paths` resolves names and links in containerd's way. A *whiteout* is an entry
``.wh.NAME``: the layer deletes NAME of the layers below. ``.wh..wh..opq`` is an *opaque* marker: the layer deletes
everything that the layers below have in its directory. Their effect depends on the target:

- On a plain tree (*naive*), the named files are removed. An opaque marker spares what this layer has unpacked, wherever
  the marker stands in the layer.
- On an overlay's upper directory they become overlay's own: a character device 0:0, and the xattr
  ``trusted.overlay.opaque`` of the directory (``user.overlay.opaque`` if the overlay is mounted with userxattr). A
  parent directory that the layer does not name is created with its attributes in the layers below.

In one case containerd loses a file of the layer itself, and this code does not: an opaque marker also spares entries in
directories that the layer does not name.
"""

from __future__ import annotations

import errno
import os
import stat

from services.kit import tar
from services.kit.files import start_writeback
from services.kit.inflate import CompressionError
from services.snapshots.diff.inherit import DEFAULT_ACL, PATHS, UNNAMED, Unnamed, inherited, xattrs
from services.snapshots.diff.mounts import words
from services.snapshots.diff.paths import Resolver, Steps, clean, go_clean
from services.snapshots.diff.writeback import EACH, Writeback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_NO_NAMES = (b"", b".", b"..")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_PATH_MAX = 4095
"""Bytes of a path that the kernel takes."""
_PARENTS = 4096
"""Directories that are remembered, so that the next entry's need not be looked up."""
KEPT, _NAME, _HASH = 512 << 20, 350, 100
"""Bytes kept in memory for the entries of a layer, at most; for a name, beside its own; for a hash."""
LATEST = (1 << 63) - 1
"""Nanoseconds since 1970. Times out of this range, or before 1970, are replaced by 1970, as in containerd."""


class EntryError(Exception):
    """An entry that cannot be unpacked; the text names it."""


class Extractor:
    """Extracts entries onto the tree at the process's root directory.

    ``overlay`` is the prefix of overlay's xattrs (``trusted.overlay.`` or ``user.overlay.``) if the tree is an upper
    directory, and None if whiteouts are to be carried out. ``lowers`` are file descriptors of the lower directories,
    topmost first. If they are not known yet, :func:`.inherit.inherit` is called later.
    """

    def __init__(
        self, *, overlay: str | None = None, lowers: Sequence[int] = (), kept: int = KEPT, paths: int = PATHS
    ) -> None:
        """``kept``: bytes that may be kept in memory; ``paths``: bytes of paths of unnamed directories."""
        self._unnamed: dict[bytes, Unnamed] = {}
        """By path, in the order in which they were made."""
        self._paths_left, self._kept_left = paths, kept
        """How much is left of these."""
        self._overlay = self.overlay = overlay
        self._lowers = lowers
        self._steps = Steps()
        self._here = Resolver(steps=self._steps)
        self._writeback = Writeback()
        self.hides = False
        """Whiteouts or opaque markers came."""
        self._plain = (
            overlay is not None
            and not os.getegid()
            and not os.geteuid()
            and not os.stat("/").st_mode & stat.S_ISGID
            and not os.listdir("/")
            and DEFAULT_ACL not in xattrs("/")
        )
        """New files belong to root and have exactly the mode that they are made with. A set-group-id bit or a default
        ACL of a directory ends that. Most upper directories begin empty.
        """
        self._parents: dict[bytes, bytes] = {}
        """From a directory as an entry names it to its resolved path, without a trailing slash; the directory exists.
        Emptied whenever a directory or link is removed, and when it is full.
        """
        self._straight: set[bytes] = set()
        """Absolute paths of existing directories without a link in them. Without this, a name of two thousand
        components would take as many system calls, each on a path with all components before it.
        """
        self._directories: dict[bytes, tuple[tuple[int, int], bool]] = {}
        """Times by name, in the order in which they were last set; and whether there is no link in the name."""
        self._turned = False
        """A directory or a link was removed, so a name may lead to another directory now."""
        self._unpacked: set[int] = set()
        """Hashes of paths: a layer may have millions of paths, of up to 4 KiB each."""
        self._holding: set[bytes] = {b""}
        """Directories with unpacked entries somewhere below them."""
        self._cleared: set[bytes] = set()
        """Directories that have nothing of the layers below any more. So each is looked through once, however many
        opaque markers there are.
        """

    def close(self) -> None:
        """Close the lower directories. The object is of no use afterwards."""
        for lower in self._lowers:
            os.close(lower)

    @property
    def unnamed(self) -> list[Unnamed]:
        """The directories that were made for entries in them, and that the layer did not name at that time. They take
        their attributes from the layers below, if those have them.
        """
        return list(self._unnamed.values())

    def extract(self, reader: tar.Reader) -> None:
        """Unpack all entries of a stream. EntryError or TarError leaves the tree as it is then."""
        last: bytes | None = None
        try:
            while (entry := reader.next()) is not None:
                last = entry.name
                try:
                    self._entry(entry, reader)
                except OSError as error:
                    raise EntryError(f"{quoted(entry.name)}: {words_of(error)}") from None
        except (tar.TarError, CompressionError) as error:
            raise EntryError(f"{error} (at or after {quoted(last)})" if last is not None else str(error)) from None
        self._finish()

    def _finish(self) -> None:
        """Set the times of directories last, since making files in them changes these."""
        for name, (when, straight) in self._directories.items():
            try:
                where = self._resolved(name) if self._turned or not straight else b"/" + name.lstrip(b"/")
                os.utime(where, ns=when, follow_symlinks=False)
            except OSError as error:
                raise EntryError(f"{quoted(name)}: failed to set times: {words_of(error)}") from None

    def _entry(self, entry: tar.Entry, reader: tar.Reader) -> None:
        raw = entry.name.rstrip(b"/")
        cut = raw.rfind(b"/") + 1
        directory, base = raw[:cut], raw[cut:]
        parent = self._parents.get(directory) if base not in _NO_NAMES else None
        if parent is None:
            name = go_clean(raw)
            cut = name.rfind(b"/") + 1
            if name[cut:] in _NO_NAMES:
                return  # the root itself
            parent = self._enter(name[:cut])
            if name[cut:] == base:
                self._remember(directory, parent)  # for the next entry there
            base = name[cut:]
        path = parent + b"/" + base
        if base.startswith(WHITEOUT):
            self._whiteout(entry, parent, base)
            return
        kind = entry.type
        if kind in (tar.REG, tar.GNU_SPARSE):
            self._regular(entry, reader, path)
        elif kind == tar.DIR:
            self._directory(entry, path)
            self._remember(raw + b"/", path)
        elif kind == tar.PAX_GLOBAL:
            self._clear(path)
            return
        else:
            self._special(entry, path)
        if self._overlay is None:
            self._unpacked.add(hash(path))
            self._keep(path, 0)
            if parent not in self._holding:
                self._hold(parent)

    # ------------------------------------------------------------------------ kinds of entries

    def _regular(self, entry: tar.Entry, reader: tar.Reader, path: bytes) -> None:
        mode = entry.mode & 0o7777
        try:
            fd = os.open(path, _NEW_FILE, mode & 0o777)
        except FileExistsError:
            self._clear(path)
            fd = os.open(path, _NEW_FILE, mode & 0o777)
        try:
            if entry.sparse is not None:
                _write_sparse(fd, entry, reader)
            elif (data := reader.buffered()) is not None or entry.size <= 1 << 18:
                if data is None:
                    data = reader.whole()
                if data:
                    _write(fd, data)
            else:
                begun = done = 0
                for piece in reader.data():
                    _write(fd, piece)
                    done += len(piece)
                    if done - begun >= EACH:
                        start_writeback(fd)
                        begun = done
            if not self._plain or entry.uid or entry.gid:
                os.fchown(fd, _id(entry.uid), _id(entry.gid))
            if attributes := entry.records and entry.xattrs():
                _set_xattrs(entry, fd)
            if not self._plain or attributes or mode & ~0o777:
                os.fchmod(fd, mode)
            os.utime(fd, ns=times(entry))
            self._writeback.written(fd, entry.size)
        finally:
            os.close(fd)

    def _directory(self, entry: tar.Entry, path: bytes) -> None:
        mode = entry.mode & 0o7777
        merged = False
        try:
            os.mkdir(path, mode & 0o777)
        except FileExistsError:
            merged = self._clear(path, keep_directory=True)
            if not merged:
                os.mkdir(path, mode & 0o777)
        if merged or not self._plain or entry.uid or entry.gid:
            os.chown(path, _id(entry.uid), _id(entry.gid), follow_symlinks=False)
        attributes = entry.records and entry.xattrs()
        if mode & stat.S_ISGID or attributes:
            self._plain = False
        if attributes:
            _set_xattrs(entry, path)
        if merged or not self._plain or mode & ~0o777:
            os.chmod(path, mode)
        name, when = go_clean(entry.name), times(entry)
        straight = path == b"/" + name.lstrip(b"/")
        if not straight:
            os.utime(path, ns=when, follow_symlinks=False)
        if self._directories.pop(name, None) is None:
            self._keep(name, _NAME + len(name))
        self._directories[name] = when, straight
        if merged and (made := self._unnamed.get(path)) is not None:
            self._unnamed[path] = made._replace(named=True)

    def _special(self, entry: tar.Entry, path: bytes) -> None:
        kind = entry.type
        mode = entry.mode & 0o7777
        if kind == tar.SYMLINK:
            try:
                os.symlink(entry.linkname, path)
            except FileExistsError:
                self._clear(path)
                os.symlink(entry.linkname, path)
        elif kind == tar.LINK:
            self._clear(path)
            os.link(self._link_target(entry.linkname), path)
        elif kind in (tar.CHAR, tar.BLOCKDEV, tar.FIFO):
            self._clear(path)
            check_device(entry)
            what = {tar.CHAR: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[kind]
            os.mknod(path, mode | what, device(entry.major, entry.minor))
        else:
            raise EntryError(f"{quoted(entry.name)}: unhandled tar header type {kind[0]}")
        if kind == tar.LINK or not self._plain or entry.uid or entry.gid:
            os.chown(path, _id(entry.uid), _id(entry.gid), follow_symlinks=False)
        if entry.records:
            _set_xattrs(entry, path)
        # a hard link to a symbolic link, which has no mode
        if kind != tar.SYMLINK and (kind != tar.LINK or not stat.S_ISLNK(os.lstat(path).st_mode)):
            os.chmod(path, mode)
        os.utime(path, ns=times(entry), follow_symlinks=False)

    def _link_target(self, linkname: bytes) -> bytes:
        """The path of a hard link's target. The last component is not followed: a link to a symbolic link is that
        link.
        """
        directory, slash, base = linkname.rpartition(b"/")
        return clean(self._resolved(directory + slash) + b"/" + base)

    def _whiteout(self, entry: tar.Entry, parent: bytes, base: bytes) -> None:
        self.hides = True
        if base == OPAQUE:
            if self._overlay is not None:
                os.setxattr(parent or b"/", f"{self._overlay}opaque", b"y")
            else:
                self._make_opaque(parent)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise EntryError(f"invalid whiteout name: {os.fsdecode(base)}: invalid archive")
        path = parent + b"/" + hidden
        try:
            if self._overlay is not None:
                os.mknod(path, stat.S_IFCHR, 0)
                os.chown(path, _id(entry.uid), _id(entry.gid))
            else:
                self._remove(path)
        except OSError as error:
            raise EntryError(f"failed to convert whiteout file {quoted(entry.name)}: {words_of(error)}") from None

    # ------------------------------------------------------------------------ directories

    def _enter(self, directory: bytes) -> bytes:
        """The resolved path of an entry's directory, which is created if it does not exist."""
        path = self._resolved(directory)
        if path == b"/":
            path = b""
        else:
            self._make_parents(path)
        self._remember(directory, path)
        return path

    def _remember(self, directory: bytes, path: bytes) -> None:
        if len(self._parents) >= _PARENTS:
            self._parents.clear()
        self._parents[directory] = path

    def _resolved(self, directory: bytes) -> bytes:
        """The resolved path of a directory. A name without links is returned unchanged."""
        path = clean(directory)
        if path != b"/" + directory.strip(b"/"):
            return self._here.resolve(directory)
        if len(path) > _PATH_MAX:  # before all of its prefixes are made
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        new = []
        known = path
        while len(known) > 1 and known not in self._straight:
            new.append(known)
            known = known[: known.rfind(b"/")]
        if len(self._straight) + len(new) > _PARENTS:
            self._straight.clear()
        for each in reversed(new):
            try:
                mode = os.lstat(each).st_mode
            except FileNotFoundError:
                break
            if not stat.S_ISDIR(mode):
                return self._here.resolve(directory)
            self._straight.add(each)
        return path

    def _make_parents(self, path: bytes) -> None:
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        except FileNotFoundError:
            pass
        missing = [path]
        above = path[: path.rfind(b"/")]
        while above and not os.path.lexists(above):
            missing.append(above)
            above = above[: above.rfind(b"/")]
        for new in reversed(missing):
            os.mkdir(new, 0o755)
            os.chmod(new, 0o755)  # noqa: S103 - without the set-group-id bit that it may have from its parent
            outer = self._unnamed.get(new[: new.rfind(b"/")])
            self._unnamed[new] = Unnamed(new, inside=outer is not None and not outer.named)
            self._paths_left -= len(new)
            check_unnamed(len(self._unnamed), self._paths_left, new)
            if self._lowers:
                self._inherited(new)

    def _inherited(self, path: bytes) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if inherited(fd, path, self._lowers, self._steps):
                self._plain = False  # it may hand down more than its mode shows
        finally:
            os.close(fd)

    def _keep(self, name: bytes, size: int) -> None:
        """Count what is kept in memory. EntryError if that is too much."""
        self._kept_left -= size
        if self._kept_left < _HASH * len(self._unpacked):
            raise EntryError(f"the layer has too many directories and files to remember them (at {quoted(name)})")

    def _hold(self, directory: bytes) -> None:
        while directory not in self._holding:
            self._holding.add(directory)
            self._keep(directory, _NAME + len(directory))
            directory = directory[: directory.rfind(b"/")]

    # ------------------------------------------------------------------------ removing

    def _clear(self, path: bytes, *, keep_directory: bool = False) -> bool:
        """Remove what is in an entry's place; True if a directory stays, since the entry is one too."""
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return False
        if keep_directory and stat.S_ISDIR(mode):
            return True
        self._remove(path, mode)
        return False

    def _remove(self, path: bytes, mode: int | None = None) -> None:
        if mode is None:
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                return
        if stat.S_ISDIR(mode):
            self._remove_tree(path)
        else:
            os.unlink(path)
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._parents.clear()
            self._turned = True

    def _remove_tree(self, path: bytes) -> None:
        with os.scandir(path) as found:
            children = [(e.name, e.is_dir(follow_symlinks=False)) for e in found]
        for name, is_directory in children:  # not paths: each may have four thousand bytes
            child = path + b"/" + name
            if is_directory:
                self._remove_tree(child)
            else:
                os.unlink(child)
        os.rmdir(path)
        self._unnamed.pop(path, None)
        self._straight.discard(path)

    def _make_opaque(self, directory: bytes) -> None:
        """Carry out an opaque marker on a plain tree."""
        above = directory
        while above not in self._cleared:
            if not above:
                self._remove_lower(directory)
                return
            above = above[: above.rfind(b"/")]

    def _remove_lower(self, directory: bytes) -> None:
        """Remove everything that this layer has not unpacked."""
        self._cleared.add(directory)
        with os.scandir(directory or b"/") as found:
            children = [(e.name, e.is_dir(follow_symlinks=False)) for e in found]
        for name, is_directory in children:  # not paths, as above
            path = directory + b"/" + name
            if hash(path) not in self._unpacked and path not in self._holding:
                self._remove(path)
            elif is_directory and path not in self._cleared:
                self._remove_lower(path)


# ---------------------------------------------------------------------------------------------- attributes


def _write(fd: int, data: bytes | memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        data = data[done:]
        done = os.write(fd, data)


def _write_sparse(fd: int, entry: tar.Entry, reader: tar.Reader) -> None:
    """Write only the data; holes stay holes."""
    assert entry.sparse is not None
    pieces = reader.data()
    piece: bytes | memoryview = b""
    for offset, length in entry.sparse:
        os.lseek(fd, offset, os.SEEK_SET)
        left = length
        while left:
            piece = piece or next(pieces)
            _write(fd, piece[:left])
            piece, left = piece[left:], left - min(left, len(piece))
    os.ftruncate(fd, entry.size)


def check_unnamed(count: int, left: int, path: bytes) -> None:
    """EntryError if a layer leaves more directories unnamed than others are told of: ``count``, and ``left`` bytes are
    left for their paths.
    """
    if count > UNNAMED or left < 0:
        raise EntryError(
            f"the layer leaves more than {UNNAMED} directories unnamed, or {PATHS >> 20} MiB of their paths (at "
            f"{quoted(path)})"
        )


def times(entry: tar.Entry) -> tuple[int, int]:
    """Access and modification time. Like in containerd's reader, the access time is at least the modification time."""
    modified = entry.modified
    accessed = modified if entry.accessed is None or entry.accessed < modified else entry.accessed
    return (accessed if 0 <= accessed <= LATEST else 0), (modified if 0 <= modified <= LATEST else 0)


def _id(number: int) -> int:
    """A user or group id as the system call takes it: 32 bits; all bits set mean none."""
    number &= 0xFFFFFFFF
    return -1 if number == 0xFFFFFFFF else number


def check_device(entry: tar.Entry) -> None:
    """EntryError if the number of a device does not fit into 32 bits each."""
    if not (0 <= entry.major < 1 << 32 and 0 <= entry.minor < 1 << 32):
        raise EntryError(
            f"device number {entry.major}:{entry.minor} for {quoted(entry.name)} out of range: invalid archive"
        )


def device(major: int, minor: int) -> int:
    """Linux's 32-bit encoding. Bits that do not fit are cut off, as by the kernel."""
    return (major & 0xFFF) << 8 | minor & 0xFF | (minor & 0xFFF00) << 12


def _set_xattrs(entry: tar.Entry, target: int | bytes) -> None:
    """Set all xattrs but ``trusted.*``, which would control overlayfs. Those that the filesystem lacks are left out."""
    for key, value in entry.xattrs():
        if key.startswith(b"trusted."):
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, key, value)
            else:
                os.setxattr(target, key, value, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                continue
            if (
                error.errno == errno.EPERM
                and key.startswith(b"user.")
                and entry.type not in (tar.REG, tar.GNU_SPARSE, tar.DIR)
            ):
                continue  # user.* is for files and directories only
            raise EntryError(
                f"failed to setxattr {quoted(entry.name)} for key {quoted(key)}: {words_of(error)}"
            ) from None


def quoted(name: bytes) -> str:
    """A name in quotes, on one line. It needs no codec that would have to be imported: in a chroot the library is out
    of reach.
    """
    text = name.decode("utf-8", "backslashreplace").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text) + '"'


def words_of(error: OSError) -> str:
    return words(error.errno) if error.errno else str(error)
