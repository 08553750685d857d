"""Mounts as values, and what the workers do with them: a mount namespace of their own, the mount system call, containerd's rules for options.

A worker mounts in its own namespace, so nothing it mounts outlives it, however it ends. Small and quick to import, since each worker does.
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.snapshots.diff.fuse import Keeper

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

RDONLY, NOSUID, NODEV, NOEXEC, SYNCHRONOUS, REMOUNT, MANDLOCK, DIRSYNC = 1, 2, 4, 8, 16, 32, 64, 128
NOATIME, NODIRATIME, BIND, REC, SILENT = 1024, 2048, 4096, 16384, 32768
UNBINDABLE, PRIVATE, SLAVE, SHARED, RELATIME, STRICTATIME = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 24
_DETACH = 2
_SYNC_FILE_RANGE_WRITE = 2
_NEWNS, _NEWPID, _FS = 0x00020000, 0x20000000, 0x00000200

_FLAGS: dict[str, tuple[bool, int]] = {
    "async": (False, SYNCHRONOUS), "atime": (False, NOATIME), "bind": (True, BIND), "dev": (False, NODEV), "diratime": (False, NODIRATIME),
    "dirsync": (True, DIRSYNC), "exec": (False, NOEXEC), "mand": (True, MANDLOCK), "noatime": (True, NOATIME), "nodev": (True, NODEV),
    "nodiratime": (True, NODIRATIME), "noexec": (True, NOEXEC), "nomand": (False, MANDLOCK), "norelatime": (False, RELATIME),
    "nostrictatime": (False, STRICTATIME), "nosuid": (True, NOSUID), "rbind": (True, BIND | REC), "relatime": (True, RELATIME),
    "remount": (True, REMOUNT), "ro": (True, RDONLY), "rw": (False, RDONLY), "strictatime": (True, STRICTATIME), "suid": (False, NOSUID),
    "sync": (True, SYNCHRONOUS),
}
"""fstab's options that are flags of mount(2): whether they set or clear, and what."""

OPTIONS_LIMIT = 4095
"""Bytes of options that mount(2) takes: a page with its end. It cuts off the rest without a word, and an overlay may then be mounted read-only, with a part of its layers."""

_ROOM = 512
"""Bytes less than that at which lower directories are given relative to what they have in common, as by containerd."""


class MountError(Exception):
    """A mount that cannot be made; the text is for the client."""


class Mount:
    """containerd.types.Mount."""

    __slots__ = ("options", "source", "target", "type")

    def __init__(self, type: str, source: str, target: str = "", options: Iterable[str] = ()) -> None:  # noqa: A002
        self.type = type
        self.source = source
        self.target = target
        self.options = list(options)

    def option(self, name: str) -> str:
        """The value of the last option ``name=value``, or an empty string."""
        return next((o[len(name) + 1:] for o in reversed(self.options) if o.startswith(f"{name}=")), "")


def to_arguments(mounts: Iterable[Mount]) -> list[str]:
    """Mounts as arguments of a program; :func:`from_arguments` reads them."""
    found: list[str] = []
    for m in mounts:
        found += ["mount", m.type, m.source, m.target, str(len(m.options)), *m.options]
    return found


def from_arguments(arguments: Sequence[str]) -> list[Mount]:
    """The mounts in what :func:`to_arguments` made."""
    found: list[Mount] = []
    at = 0
    while at < len(arguments):
        end = at + 5 + int(arguments[at + 4])
        found.append(Mount(arguments[at + 1], arguments[at + 2], arguments[at + 3], arguments[at + 5:end]))
        at = end
    return found


def read_only(mounts: Iterable[Mount]) -> list[Mount]:
    """The same trees without the means to change them; an overlay's upper directory becomes its topmost lower one."""
    found = []
    for m in mounts:
        if m.type != "overlay":
            found.append(Mount(m.type, m.source, m.target, [*(o for o in m.options if o not in ("ro", "rw")), "ro"]))
            continue
        upper = m.option("upperdir")
        options = [o for o in m.options if not o.startswith(("upperdir=", "workdir=", "uidmap=", "gidmap="))]
        if upper:
            options = [f"lowerdir={upper}:{o[9:]}" if o.startswith("lowerdir=") else o for o in options]
        found.append(Mount(m.type, m.source, m.target, options))
    return found


def own_root() -> None:
    """Let this thread have a root directory of its own, so that a chroot is not one for the others: spans are exported by names of the node, not of a layer."""
    _check(_libc.unshare(_FS), "unshare")


def own_namespace() -> None:
    """As :func:`own_root`, and leave the mount namespace of whoever started this process. Unmounts out there still come in, so that no one's volume is kept busy."""
    _check(_libc.unshare(_NEWNS), "unshare")
    mount("", "/", "", REC | SLAVE, "")


def fork_first() -> int:
    """fork(), the child being the first process of a PID namespace: when it ends the kernel kills all that are in that. Not with threads."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.unshare(_NEWPID), "unshare")
    pid = os.fork()
    if pid:
        _check(_libc.setns(own, _NEWPID), "setns")  # or there could be no more threads
    os.close(own)
    return pid


class Mounted:
    """Mounts on ``directory``, made one after the other, each on its target below it. Those that a program serves are there as long as this is."""

    def __init__(self, mounts: Iterable[Mount], directory: str) -> None:
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # of this namespace
        self._directory = directory
        self._keeper: Keeper | None = None
        for m in mounts:
            self._mount(m, _target(m, directory))

    def _mount(self, m: Mount, target: str) -> None:
        if "loop" in m.options:
            from services.snapshots.diff.loop import attached

            options = [o for o in m.options if o not in ("loop", "direct-io")]
            with attached(m.source, read_only=read_only_option(options), direct="direct-io" in m.options) as device:
                _mount_one(Mount(m.type, device, m.target, options), target)
            return
        if not m.type.startswith(("fuse.", "fuse3.")):
            _mount_one(m, target)
            return
        if self._keeper is None:
            from services.snapshots.diff.fuse import Keeper

            self._keeper = Keeper()
        self._keeper.mount(m, target)

    @property
    def served(self) -> bool:
        """Whether a program serves any of it: then :meth:`end` is needed, for all that was written to be where it belongs."""
        return self._keeper is not None

    def end(self) -> None:
        """Unmount all, and wait for the programs that served it. Whoever calls it has nothing open in there; the root directory is the one that it was before."""
        os.fchdir(self._root)
        os.chroot(".")
        while not _libc.umount2(os.fsencode(self._directory), _DETACH):
            continue  # one upon the other
        if (number := ctypes.get_errno()) != errno.EINVAL:
            raise MountError(f"unmount {self._directory}: {words(number)}")
        if self._keeper is not None:
            self._keeper.end()


def _target(m: Mount, directory: str) -> str:
    if not m.target:
        return directory
    from services.snapshots.diff.paths import Resolver

    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return directory + os.fsdecode(Resolver(fd).resolve(os.fsencode(m.target)))
    finally:
        os.close(fd)


def read_only_option(options: Iterable[str]) -> bool:
    """Whether options ask for a read-only mount: the last of ``ro`` and ``rw`` counts."""
    return next((o == "ro" for o in reversed(list(options)) if o in ("ro", "rw")), False)


def _mount_one(m: Mount, target: str) -> None:
    flags, data = 0, []
    options = [o for o in m.options if o not in ("volatile", "fsync=volatile")] if m.type == "overlay" else m.options
    cwd = ""
    if m.type == "overlay" and sum(len(os.fsencode(o)) for o in options) > OPTIONS_LIMIT - _ROOM:
        cwd, options = _compact(options)
    for o in options:
        if o.startswith("X-containerd."):
            raise MountError(f'internal mount option "{o}" was not consumed by the mount manager')
        if o.startswith(("uidmap=", "gidmap=")):
            raise MountError(f"mount option {o}: not implemented")
        if o in _FLAGS:
            sets, flag = _FLAGS[o]
            flags = flags | flag if sets else flags & ~flag
        else:
            data.append(o)
    back = os.open(".", os.O_PATH | os.O_DIRECTORY) if cwd else -1
    try:
        if cwd:
            os.chdir(cwd)
        mount(m.source, target, m.type, flags, ",".join(data))
        if flags & (BIND | RDONLY) == BIND | RDONLY:
            mount("", target, "", flags | REMOUNT, "")  # a bind mount gets its flags only when it is remounted
    finally:
        if cwd:
            os.fchdir(back)
            os.close(back)


def _compact(options: list[str]) -> tuple[str, list[str]]:
    """Many lower directories as paths relative to what they have in common, which is to be the working directory of the mount."""
    at = next((i for i, o in enumerate(options) if o.startswith("lowerdir=")), -1)
    lowers = options[at][9:].split(":") if at >= 0 else []
    common = os.path.commonpath(lowers) if len(lowers) > 1 and all(lower.startswith("/") for lower in lowers) else ""
    if common in ("", "/") or any(len(lower) <= len(common) + 1 or not lower.startswith(f"{common}/") for lower in lowers):  # as they are spelled
        return "", options
    short = ":".join(lower[len(common) + 1:] for lower in lowers)
    return common, [*options[:at], *options[at + 1:], f"lowerdir={short}"]


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """The system call; of more options than the kernel takes it is not made."""
    options = os.fsencode(data)
    if len(options) > OPTIONS_LIMIT:
        raise MountError(f"mount options is too long: {len(options)} bytes for {target} (the kernel takes {OPTIONS_LIMIT})")
    done = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), options or None)
    if done:
        number = ctypes.get_errno()
        raise MountError(f'mount source: "{source}", target: "{target}", fstype: {fstype}, flags: {flags}, data: "{data}", err: {words(number)}')


def syncfs(fd: int) -> None:
    """All that is written to the filesystem that ``fd`` is on reaches its disk."""
    _check(_libc.syncfs(fd), "syncfs")


def begin_writing(fd: int) -> None:
    """Have what was written to an open file begin its way to the disk, so that a syncfs waits for less. A failure is that syncfs's to tell."""
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def die_with_parent(parent: int) -> None:
    """End this process by SIGKILL when the process ``parent`` that started it ends, even if it has already."""
    _libc.prctl(1, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def words(number: int) -> str:
    """An errno as Go, and so containerd, words it."""
    text = os.strerror(number)
    return text[:1].lower() + text[1:]


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise MountError(f"{what}: {words(number)}")
