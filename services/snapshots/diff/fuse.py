"""Mounts of types ``fuse.NAME`` and ``fuse3.NAME``. The programs ``mount.fuse`` and ``mount.fuse3`` make them, as for
containerd (core/mount/mount_linux.go), by starting NAME, which serves the files.

NAME goes into the background, in a session of its own, and keeps the worker's mount namespace alive. So neither would
end if the worker were killed. Therefore all such programs run below a *keeper*: a process that the worker starts as the
first of a PID namespace. The keeper ends when the worker does, for whatever reason; the kernel then kills all other
processes in that namespace.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

from services.oci.mounts import Mount
from services.snapshots.diff import mounts

HELPERS = {"fuse.": "mount.fuse", "fuse3.": "mount.fuse3"}
"""The helper programs, by the first part of a mount's type; the rest is the file system's own type."""

_PACKET = 1 << 17
"""Bytes of a helper's arguments, at most."""
_OUTPUT = 1 << 12
"""Bytes of a helper's output that are kept."""
_MOUNTING = 60.0
"""Seconds that a helper may take."""
_ENDING = 20.0
"""Seconds that the programs may take to end once their mounts are gone."""


class Keeper:
    """The keeper, as the worker sees it. Make it before the worker has threads or another root directory."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = mounts.fork_pid_namespace()
        if not self._pid:
            try:
                _keep(theirs)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(0)
        theirs.close()
        self._line.settimeout(_MOUNTING)

    def mount(self, mount: Mount, target: str) -> None:
        """Let the helper make the mount. MountError with the helper's output."""
        kind = next(kind for kind in HELPERS if mount.type.startswith(kind))
        command = [
            HELPERS[kind],
            mount.source,
            target,
            *(word for option in mount.options for word in ("-o", option)),
            "-t",
            mount.type.removeprefix(kind),
        ]
        what = f"mount helper [{' '.join(command)}]"
        data = "\0".join(command).encode("utf-8", "surrogateescape")
        if len(data) > _PACKET:
            raise mounts.MountError(f"mount options is too long: {len(data)} bytes for {target}")
        try:
            self._line.sendall(data)
            status, _, said = self._line.recv(_PACKET).partition(b" ")
        except TimeoutError:
            raise mounts.MountError(f"{what}: not done after {_MOUNTING:g} s") from None
        if status != b"0":
            words = " ".join(said.decode("utf-8", "backslashreplace").split())
            raise mounts.MountError(f'{what} failed: "{words}": exit status {status.decode()}')

    def end(self) -> None:
        """Wait, once nothing is mounted any more, until the programs have ended: only then has all data reached its
        destination.
        """
        self._line.settimeout(_ENDING)
        with contextlib.suppress(TimeoutError):
            self._line.sendall(b"end")
            self._line.recv(1)
        self._line.close()
        os.waitpid(self._pid, 0)


def _keep(line: socket.socket) -> None:
    """Be the keeper. Returns when the worker has ended, or has asked for the end and no other program is left."""
    for fd in map(int, os.listdir("/proc/self/fd")):  # the worker's answers must not be kept open when it has ended
        if fd not in (2, line.fileno()):
            with contextlib.suppress(OSError):
                os.close(fd)
    while os.open("/dev/null", os.O_RDWR) < 2:
        continue
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    poll = select.poll()
    for fd in (line.fileno(), woken):
        poll.register(fd, select.POLLIN)
    helper, output, said, ending = 0, -1, b"", False
    while True:
        for fd, _ in poll.poll():
            if fd == line.fileno():
                data = line.recv(_PACKET)
                if not data:
                    return
                if data == b"end":
                    ending = True
                else:
                    helper, output = _run(data.split(b"\0"))
                    said = b""
                    poll.register(output, select.POLLIN)
            elif fd == woken:
                os.read(woken, 1 << 10)
            elif data := os.read(fd, _OUTPUT):  # up to the end: a program in the background may still write something
                said = (said + data)[:_OUTPUT]
            else:
                poll.unregister(fd)
                os.close(fd)
                output = -1 if fd == output else output
        ended, left = _ended()
        if helper in ended:
            if output >= 0:
                with contextlib.suppress(BlockingIOError):
                    said = (said + os.read(output, _OUTPUT))[:_OUTPUT]
            line.sendall(b"%d " % ended[helper] + said)
            helper = 0
        if ending and not left:
            return


def _run(command: list[bytes]) -> tuple[int, int]:
    """Start a helper. Returns its pid, and the pipe with its output."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(writing, True)
    pid = os.fork()
    if not pid:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for fd, what in ((0, os.open("/dev/null", os.O_RDONLY)), (1, writing), (2, writing)):
                os.dup2(what, fd)
            path = ":".join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))
            os.execvpe(command[0], command, {**os.environ, "PATH": path})
        except OSError as error:
            os.write(2, b"%s: %s" % (command[0], mounts.words(error.errno or 0).encode()))
        finally:
            os._exit(127)
    os.close(writing)
    return pid, reading


def _ended() -> tuple[dict[int, int], bool]:
    """The exit codes of children that have ended, and whether any are left. Orphans become this process's children."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if not pid:
            return ended, True
        ended[pid] = os.waitstatus_to_exitcode(status)
