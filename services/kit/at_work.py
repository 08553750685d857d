"""What the threads of a process do just now: which of them work, or wait in the kernel for a disk, for which file, and
whether that disk moves.

The kernel tells all of it (/proc/PID/task, proc(5)), so no code that uses a disk has to say so. A thread works if it
runs or could run (state R). It waits for a disk in state D, or in a system call on a file; a file system that a program
serves (FUSE) is waited for in state S. The disk of a file moves if its block device has finished requests since the
last look (/sys/dev/block, Documentation/block/stat.rst). If the file is not known, as in a rename, the disks of this
process's own directories count (:func:`owns`); of another process, that of its root directory, if it has one of its
own.

A look asks no file system for anything: one that does not answer would hold whoever looks as well. So a file's mount
comes from /proc/PID/fdinfo and mountinfo, and stat(2) is called only where that is in this kernel.
"""

from __future__ import annotations

import _thread  # the module threading is not for workers (services/snapshots/diff), nor is typing
import contextlib
import os
import stat
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ON_FILES = {
    "x86_64": {0: "read", 1: "write", 17: "pread", 18: "pwrite", 74: "fsync", 75: "fdatasync", 77: "ftruncate",
               217: "getdents", 277: "sync_file_range", 285: "fallocate", 306: "syncfs"},
    "aarch64": {46: "ftruncate", 47: "fallocate", 61: "getdents", 63: "read", 64: "write", 67: "pread", 68: "pwrite",
                82: "fsync", 83: "fdatasync", 84: "sync_file_range", 267: "syncfs"},
}.get(os.uname().machine, {})  # fmt: skip
"""System calls whose first argument is an open file, by number."""
_ON_NAMES = {
    "x86_64": {2: "open", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 257: "openat",
               258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat"},
    "aarch64": {34: "mkdirat", 35: "unlinkat", 37: "linkat", 38: "renameat", 56: "openat", 276: "renameat2"},
}.get(os.uname().machine, {})  # fmt: skip
"""Others that wait for disks. The kernel does not tell for which."""
_AFAR = ("nfs", "fuse", "cifs", "smb", "9p", "ceph", "afs")
"""Beginnings of the names of file systems that are behind a network or a program."""
_IN_MEMORY = ("tmpfs", "devtmpfs", "ramfs")
_FRESH = 0.05
"""Seconds for which a look is not repeated: a thousand calls may want one at once."""


class Working(namedtuple("Working", "name doing counters")):  # noqa: PYI024 see above
    """A thread that works or waits for a disk. Two looks at one are equal if nothing has moved in between."""

    __slots__ = ()
    name: str
    doing: str
    """Such as "fdatasync of /var/lib/x.db-wal"; empty if it runs."""
    counters: tuple[bytes, ...]
    """Its processor time and context switches, and what its disk has done so far."""


Signs = dict[int, Working]
"""The threads at work, by thread id."""


class Mount(namedtuple("Mount", "device kind source")):  # noqa: PYI024 see above
    """A mounted file system, as proc_pid_mountinfo(5) describes it. Nothing is known of one with empty fields."""

    __slots__ = ()
    device: str
    """The numbers of its device, such as "254:0"."""
    kind: str
    source: str

    @property
    def here(self) -> bool:
        """Whether it lies on a device or in memory alone, so that stat(2) of an open file does not wait for others."""
        return self.kind in _IN_MEMORY or (self.source.startswith("/dev/") and not self.kind.startswith(_AFAR))

    def done(self) -> bytes:
        """What its disk has done so far, as text that changes with each finished request. It stays empty for a file
        system behind a network or a program; of a disk that is not known, it is what all disks have done.
        """
        with contextlib.suppress(OSError):
            return _finished(f"/sys/dev/block/{self.device}/stat")
        if self.kind.startswith(_AFAR):
            return b""
        if self.source.startswith("/dev/"):  # btrfs has device numbers of its own
            with contextlib.suppress(OSError):
                return _finished(f"/sys/class/block/{os.path.basename(os.path.realpath(self.source))}/stat")
        return of_all()


_own: set[Mount] = set()
"""Where the process's own directories are."""
_last: tuple[float, int, Signs] = (-1.0, 0, {})


def owns(fd: int) -> None:
    """Note that an open directory is one of this process's own."""
    _own.add(mount_of("/proc/self", fd))


def signs() -> Signs:
    """The threads of this process that are at work, without the caller's."""
    global _last
    now, own = time.monotonic(), _thread.get_native_id()
    if now > _last[0] + _FRESH or _last[1] != own:
        _last = now, own, _look("self", own)
    return _last[2]


def waits(pid: int) -> bytes:
    """What the disks have done so far for which the threads of another process wait now; empty if none does."""
    return b" ".join(each.counters[-1] for each in _look(str(pid), 0).values() if each.doing)


def moved(before: Signs, now: Signs) -> bool:
    """Whether a thread that is at work has moved, or its disk has, between two looks."""
    return any(before.get(number) != thread for number, thread in now.items())


def described(found: Signs) -> str:
    """What the threads at work do, for a message."""
    if not found:
        return "nothing of it is at work"
    return ", ".join(
        f"thread {each.name} waits in {each.doing}, and the disk does not move"
        if each.doing
        else f"thread {each.name} runs"
        for each in found.values()
    )


def _look(process: str, own: int) -> Signs:
    found: Signs = {}
    for task in os.listdir(f"/proc/{process}/task"):
        if int(task) == own:
            continue
        at = f"/proc/{process}/task/{task}"
        with contextlib.suppress(OSError, IndexError):  # it has ended
            head, _, rest = _read(f"{at}/stat").rpartition(b")")
            fields = rest.split()
            wait = _disk_wait(at, fields[0])
            if wait is not None:
                name = head.partition(b"(")[2].decode("utf-8", "replace")
                found[int(task)] = Working(name, wait[0], (*fields[11:13], _switches(at), wait[1]))
    return found


def _switches(task: str) -> bytes:
    lines = _read(f"{task}/status").splitlines()
    return b" ".join(line.split()[1] for line in lines if b"ctxt_switches" in line)


def _disk_wait(task: str, state: bytes) -> tuple[str, bytes] | None:
    """What a thread waits for, and what that disk has done so far; empty if it works. None if it does neither."""
    if state == b"R":
        return "", b""
    if state not in (b"D", b"S"):
        return None
    number = -1
    with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
        call = _read(f"{task}/syscall").split()
        number = int(call[0])
        if number in _ON_FILES:
            fd = int(call[1], 16)
            file = os.readlink(f"{task}/fd/{fd}")
            mount = mount_of(task, fd)
            if file.startswith("/") and not (mount.here and _is_special(f"{task}/fd/{fd}")):
                return f"{_ON_FILES[number]} of {file}", mount.done()
    if state != b"D":
        return None
    return _ON_NAMES.get(number, "a system call"), b",".join(mount.done() for mount in _disks(task))


def _is_special(file: str) -> bool:
    """Whether an open file is neither a regular one nor a directory, such as a FIFO or a terminal."""
    mode = os.stat(file).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _disks(task: str) -> Iterable[Mount]:
    """Where the disks are for which a thread may be waiting."""
    if task.startswith("/proc/self/"):
        return _own
    root = os.readlink(f"{task}/root")
    if root == "/":
        return ()
    # its own list has only what is below its root directory, so not where that is an ordinary directory
    found = [mount for point, _, mount in _mounts(task) if point == "/"]
    found = found or [
        mount
        for point, _, mount in sorted(_mounts("/proc/self"), key=lambda each: len(each[0]))
        if root == point or root.startswith(f"{point.rstrip('/')}/")
    ]
    return found[-1:]


def mount_of(process: str, fd: int) -> Mount:
    """Where the file lies that a process has open. ``process``: its directory in /proc, or that of a thread."""
    number = next(line.split()[1] for line in _read(f"{process}/fdinfo/{fd}").splitlines() if line[:7] == b"mnt_id:")
    for each in (process, "/proc/self"):  # a process in a chroot has few in its list
        for _, found, mount in _mounts(each):
            if found == number:
                return mount
    return Mount("", "", "")


def _mounts(process: str) -> Iterable[tuple[str, bytes, Mount]]:
    """Mount point, mount id and mount of each that a process sees, the later ones over the earlier."""
    for line in _read(f"{process}/mountinfo").splitlines():
        mount, _, about = line.partition(b" - ")
        number, _, device, _, point, *_ = mount.split(b" ")
        kind, source, *_ = about.split(b" ")
        yield _unescaped(point), number, Mount(device.decode(), kind.decode(), _unescaped(source))


def _unescaped(field: bytes) -> str:
    """A field of mountinfo, in which white space and backslashes are octal numbers."""
    first, *others = os.fsdecode(field).split("\\")
    return first + "".join(chr(int(each[:3], 8)) + each[3:] for each in others)


def _finished(path: str) -> bytes:
    """Requests and sectors that were read and written, from a device's statistics."""
    return b" ".join(_read(path).split()[:8:2])


def of_all() -> bytes:
    """What all disks have done so far, as text that changes with each finished request."""
    return b"\n".join(b" ".join(line.split()[3:10:2]) for line in _read("/proc/diskstats").splitlines())


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
