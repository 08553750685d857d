"""The system calls that workers need: a mount namespace of their own, mount, syncfs; and mounts as arguments.
:mod:`~services.snapshots.diff.mounted` makes the mounts.

A worker mounts in its own namespace, so nothing it mounts outlives it, however it ends. Small and quick to import,
since each worker does.
"""

from __future__ import annotations

import ctypes
import errno
import os

from services.oci.mounts import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

RDONLY, NOSUID, NODEV, NOEXEC, SYNCHRONOUS, REMOUNT, MANDLOCK, DIRSYNC = 1, 2, 4, 8, 16, 32, 64, 128
NOATIME, NODIRATIME, BIND, REC, SILENT = 1024, 2048, 4096, 16384, 32768
UNBINDABLE, PRIVATE, SLAVE, SHARED, RELATIME, STRICTATIME = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 24
_DETACH = 2
_SYNC_FILE_RANGE_WRITE = 2
_NEWNS, _NEWPID, _FS = 0x00020000, 0x20000000, 0x00000200

OPTIONS_LIMIT = 4095
"""Bytes of options that mount(2) takes: a page with its end. It cuts off the rest without a word, and an overlay
may then be mounted read-only, with a part of its layers.
"""


class MountError(Exception):
    """A mount that cannot be made; the text is for the client."""


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
        found.append(Mount(arguments[at + 1], arguments[at + 2], tuple(arguments[at + 5 : end]), arguments[at + 3]))
        at = end
    return found


def read_only(mounts: Iterable[Mount]) -> list[Mount]:
    """The same trees without the means to change them; an overlay's upper directory becomes its topmost lower one."""
    found = []
    for m in mounts:
        if m.type != "overlay":
            found.append(Mount(m.type, m.source, (*(o for o in m.options if o not in ("ro", "rw")), "ro"), m.target))
            continue
        upper = m.option("upperdir")
        options = [o for o in m.options if not o.startswith(("upperdir=", "workdir=", "uidmap=", "gidmap="))]
        if upper:
            options = [f"lowerdir={upper}:{o[9:]}" if o.startswith("lowerdir=") else o for o in options]
        found.append(Mount(m.type, m.source, tuple(options), m.target))
    return found


def own_root() -> None:
    """Let this thread have a root directory of its own, so that a chroot is not one for the others: spans are
    exported by names of the node, not of a layer.
    """
    _check(_libc.unshare(_FS), "unshare")


def own_namespace() -> None:
    """As :func:`own_root`, and leave the mount namespace of whoever started this process. Unmounts out there still
    come in, so that no one's volume is kept busy.
    """
    _check(_libc.unshare(_NEWNS), "unshare")
    mount("", "/", "", REC | SLAVE, "")


def fork_first() -> int:
    """fork(), the child being the first process of a PID namespace: when it ends the kernel kills all that are in
    that. Not with threads.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.unshare(_NEWPID), "unshare")
    pid = os.fork()
    if pid:
        _check(_libc.setns(own, _NEWPID), "setns")  # or there could be no more threads
    os.close(own)
    return pid


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """The system call; of more options than the kernel takes it is not made."""
    options = os.fsencode(data)
    if len(options) > OPTIONS_LIMIT:
        raise MountError(
            f"mount options is too long: {len(options)} bytes for {target} (the kernel takes {OPTIONS_LIMIT})"
        )
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), options or None
    )
    if done:
        number = ctypes.get_errno()
        raise MountError(
            f'mount source: "{source}", target: "{target}", fstype: {fstype}, flags: {flags}, data: "{data}", err: '
            f"{words(number)}"
        )


def unmount_all(directory: str) -> None:
    """Unmount what is on a directory, one upon the other."""
    while not _libc.umount2(os.fsencode(directory), _DETACH):
        continue
    if (number := ctypes.get_errno()) != errno.EINVAL:
        raise MountError(f"unmount {directory}: {words(number)}")


def syncfs(fd: int) -> None:
    """All that is written to the filesystem that ``fd`` is on reaches its disk."""
    _check(_libc.syncfs(fd), "syncfs")


def begin_writing(fd: int) -> None:
    """Have what was written to an open file begin its way to the disk, so that a syncfs waits for less. A failure
    is that syncfs's to tell.
    """
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
