"""System calls of the workers, with the words of containerd's errors: an own mount namespace, mount, syncfs. Also
mounts as program arguments. :mod:`~services.snapshots.diff.mounted` makes the mounts.

A worker mounts in its own namespace, so that no mount of its outlives it, however it ends. The module is small and
quick to import, since each worker imports it.
"""

from __future__ import annotations

import ctypes
import errno
import os

from services.kit import mounting
from services.oci.mounts import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_libc = ctypes.CDLL(None, use_errno=True)

_NEWNS, _NEWPID, _FS = 0x00020000, 0x20000000, 0x00000200
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
_KEPT = 32 << 20
"""Bytes that malloc may have free at the end of its heap, and of a piece of memory that is taken from it: the most that
it allows.
"""


class MountError(Exception):
    """A mount that cannot be made; the text is for the client. ``errno`` is the kernel's, if it was asked."""

    errno = 0


def to_arguments(mounts: Iterable[Mount]) -> list[str]:
    """Mounts as arguments of a program; :func:`from_arguments` reads them."""
    found: list[str] = []
    for m in mounts:
        found += ["mount", m.type, m.source, m.target, str(len(m.options)), *m.options]
    return found


def from_arguments(arguments: Sequence[str]) -> list[Mount]:
    """The mounts that :func:`to_arguments` encoded."""
    found: list[Mount] = []
    at = 0
    while at < len(arguments):
        end = at + 5 + int(arguments[at + 4])
        found.append(Mount(arguments[at + 1], arguments[at + 2], tuple(arguments[at + 5 : end]), arguments[at + 3]))
        at = end
    return found


def read_only(mounts: Iterable[Mount]) -> list[Mount]:
    """The same trees, mounted read-only. An overlay's upper directory becomes its topmost lower one, also where the
    overlay is still to be prepared (``oci/prepared.py``).
    """
    found = []
    for m in mounts:
        if m.type.rpartition("/")[2] != "overlay":
            found.append(Mount(m.type, m.source, (*(o for o in m.options if o not in ("ro", "rw")), "ro"), m.target))
            continue
        upper = m.option("upperdir")
        options = [o for o in m.options if not o.startswith(("upperdir=", "workdir=", "uidmap=", "gidmap="))]
        if upper:
            options = [f"lowerdir={upper}:{o[9:]}" if o.startswith("lowerdir=") else o for o in options]
        found.append(Mount(m.type, m.source, tuple(options), m.target))
    return found


def unshare_root() -> None:
    """Give this thread a root directory of its own, so that a chroot does not affect other threads: these export spans
    by paths of the node, not of a layer.
    """
    _check(_libc.unshare(_FS), "unshare")


def unshare_mounts() -> None:
    """As :func:`unshare_root`, and enter a new mount namespace. Unmounts outside are still received, so that no volume
    is kept busy.
    """
    _check(_libc.unshare(_NEWNS), "unshare")
    mount("", "/", "", mounting.REC | mounting.SLAVE, "")


def fork_pid_namespace() -> int:
    """fork(); the child becomes the first process of a PID namespace. When it ends, the kernel kills all processes in
    that namespace. Not for processes with threads.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.unshare(_NEWPID), "unshare")
    pid = os.fork()
    if pid:
        _check(_libc.setns(own, _NEWPID), "setns")  # otherwise this process could start no more threads
    os.close(own)
    return pid


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """The system call. MountError if the options are longer than the kernel takes."""
    try:
        mounting.mount(source, target, fstype, flags, data)
    except mounting.OptionsTooLongError as error:
        raise MountError(error.strerror) from None
    except OSError as error:
        raise _refused(
            f'mount source: "{source}", target: "{target}", fstype: {fstype}, flags: {flags}, data: "{data}", err: ',
            error.errno or 0,
        ) from None


def unmount_all(directory: str) -> None:
    """Unmount everything that is mounted on a directory."""
    while True:
        try:
            mounting.unmount(directory, mounting.DETACH)
        except OSError as error:
            if error.errno == errno.EINVAL:  # nothing is mounted there any more
                return
            raise _refused(f"unmount {directory}: ", error.errno or 0) from None


def syncfs(fd: int) -> None:
    """Write all data of the filesystem of ``fd`` to its disk."""
    _check(_libc.syncfs(fd), "syncfs")


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, in one heap. The chunks of a layer come and go, and the kernel would have to clear
    new pages for each.
    """
    for parameter, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, _KEPT), (_MMAP_THRESHOLD, _KEPT)):
        _libc.mallopt(parameter, value)


def die_with_parent(parent: int) -> None:
    """Let SIGKILL end this process when the process ``parent``, which started it, ends, or has ended already."""
    _libc.prctl(1, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def words(number: int) -> str:
    """An errno in the words of Go, and so of containerd."""
    text = os.strerror(number)
    return text[:1].lower() + text[1:]


def _check(result: int, what: str) -> None:
    if result:
        raise _refused(f"{what}: ", ctypes.get_errno())


def _refused(what: str, number: int) -> MountError:
    """The error of a call that the kernel refused, with its errno."""
    error = MountError(what + words(number))
    error.errno = number
    return error
