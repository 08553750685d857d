"""The program that unpacks layers: it waits, and forks workers.

    python -S -c 'from services.snapshots.diff.apply import main; main()' PARENT DIRECTORY LIMIT

PARENT is the pid that it must not outlive, DIRECTORY an empty directory for its workers to mount on, LIMIT the seconds
after which a worker that stands still is killed (``standstill.py``). Standard input is a socket of packets, each a
request or an answer; ``workers.py`` has the other end, and its words for them:

    apply ID detect|plain sync|nosync alone|whole SIZE MOUNT...   with files: where to answer, the blob, and, if the
    blob still grows, its news kill ID
    began                                                         the first that it says, once all its code is there
    ended ID STATUS                                               the answer to the first, once the worker is gone
    (STATUS is waitpid's) or has done its work (0)
    still ID                                                      the same, of a worker that was killed because it stood
    still

A *worker* inflates a layer, digests it, and makes the tree, with its target as its root directory. If it has to mount
that, it does so in a mount namespace of its own, so that all workers share DIRECTORY. ``alone``: the target is bound,
and will be the upper directory of an overlay whose layers below come later. What a worker answers, on the file for
that, is ``ok DIGEST SIZE CPU WAITED`` (of the uncompressed layer; microseconds of a processor, and without a byte to go
on with), or ``error TEXT``; alone, the directories that the layer uses and does not name follow, each after a zero
byte, for ``inherit.py``.

A blob that *grows* has SIZE bytes in the end. Its news are numbers of eight bytes, each telling how many are there by
now; their end before SIZE means that no more will come.

A worker is a process of its own (design, rule 8) because chroot, namespaces and umask are a process's, because several
run side by side, and because one that crashes fails one layer. It is forked, since a program takes 25 ms of a core to
start, as long as a small layer takes to unpack; this program has one thread and no gRPC, so that it may fork. A fork
and an end take 5 ms: so a worker that has unpacked a layer alone, and has nothing to get rid of but its root directory,
goes back to the node's and waits for another.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import time

from services.kit import inflate, tar
from services.oci.mounts import Mount
from services.snapshots.diff import mounts, standstill, stream
from services.snapshots.diff.extract import EntryError, Extractor
from services.snapshots.diff.mounted import Mounted
from services.snapshots.diff.mounts import MountError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.snapshots.diff.inherit import Unnamed

_LAYERS = 100
"""Unpacked by one worker: whatever they leave in its memory goes then."""

PACKET = 1 << 17
"""Bytes of a request at most: more than the kernel takes as options of a mount."""


def main() -> None:
    """Run as a program."""
    mounts.die_with_parent(int(sys.argv[1]))
    faulthandler.register(signal.SIGUSR1)  # the stack goes into the log of the service, and the worker goes on
    sys.setrecursionlimit(20_000)  # a name may have two thousand components
    os.umask(0)
    inflate.prepare()
    gc.freeze()
    # a worker makes no cycles worth looking for, and looking would copy the pages that it shares with this process
    gc.disable()
    requests = socket.socket(fileno=0)
    try:
        requests.send(b"began\0")
    except BrokenPipeError:
        return  # nobody wants it any more
    Waiting(requests, sys.argv[2], float(sys.argv[3])).wait()


class Worker:
    """A worker as the waiting process sees it. ``line`` leads to it; ``job`` is the id of what it does, "" if it
    waits; ``handed`` are the words and files of that until it has taken them.
    """

    __slots__ = ("handed", "job", "killed", "line", "pid", "still")

    def __init__(self, pid: int, line: socket.socket, job: str) -> None:
        self.pid = pid
        self.line = line
        self.job = job
        self.handed: tuple[Sequence[str], Sequence[int]] | None = None
        self.still: standstill.Still | None = None
        """While it works."""
        self.killed: float | None = None
        """When it was killed because it stood still, on the monotonic clock."""

    def kill(self) -> None:
        """With the keeper of its mounts, if it has one (``fuse.py``): the program that serves them may be what it
        waits for, and the kernel does not let go of who does.
        """
        self.let_go()
        os.killpg(self.pid, signal.SIGKILL)

    def let_go(self) -> None:
        """Of what it was handed."""
        if self.handed is not None:
            _close(self.handed[1])
            self.handed = None


class Waiting:
    """The process that waits, and its workers."""

    def __init__(self, requests: socket.socket, directory: str, limit: float) -> None:
        self._requests = requests
        self._directory = directory
        self._limit = limit
        self._looked = 0.0
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._workers: dict[int, Worker] = {}
        """By the file descriptor that becomes readable when the worker ends."""
        self._lines: dict[int, Worker] = {}
        """By the file descriptor that becomes readable when the worker has taken its work, or done it."""

    def wait(self) -> None:
        """Serve until the other end is closed; then whoever still works is killed."""
        every = standstill.look_every(self._limit)
        while True:
            ready = self._poll.poll(every * 1000 if any(worker.job for worker in self._workers.values()) else None)
            if time.monotonic() >= self._looked + every:
                self._look()
            if not ready:
                continue
            fd, _ = ready[0]  # one at a time: it may close a file that the others are about
            if fd in self._lines:
                self._said(self._lines[fd])
            elif fd in self._workers:
                self._ended(fd)
            elif not self._request():
                break
        for worker in self._workers.values():
            if worker.job:
                worker.kill()

    def _look(self) -> None:
        """Kill who stands still."""
        now = self._looked = time.monotonic()
        for worker in self._workers.values():
            if not worker.job:
                worker.still = None
            elif worker.killed is not None:
                if now > worker.killed + standstill.DYING:  # it is not to be ended; whoever waits for it is
                    self._tell(worker, None)
                    worker.job = ""
            else:
                worker.still = worker.still or standstill.Still(self._limit)
                if worker.still.seconds(worker.pid) >= self._limit:
                    worker.killed = now
                    worker.kill()

    def _request(self) -> bool:
        try:
            data, files, _, _ = socket.recv_fds(self._requests, PACKET, 3)
        except ConnectionResetError:  # the other end was closed with an answer unread
            return False
        if not data:
            return False
        what, job, *rest = data.decode("utf-8", "surrogateescape").split("\0")
        if what == "kill":
            for worker in self._workers.values():
                if worker.job == job:
                    worker.kill()
            return True
        idle = next((worker for worker in self._workers.values() if not worker.job and worker.killed is None), None)
        if idle is not None and self._reached(idle, data, files):
            idle.job, idle.handed, idle.still = job, (rest, files), None
        else:
            self._fork(job, rest, files)
        return True

    def _reached(self, idle: Worker, data: bytes, files: Sequence[int]) -> bool:
        """Give an idle worker more to do; False if it has died."""
        try:
            socket.send_fds(idle.line, [data], files)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _fork(self, job: str, rest: Sequence[str], files: Sequence[int]) -> None:
        """A worker for it, which takes the files over."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        waiting = os.getpid()
        pid = os.fork()
        os.setpgid(pid, pid)  # here and there: a group of its own before anybody kills it, and before it has a child
        if not pid:
            mounts.die_with_parent(waiting)
            self._requests.close()
            ours.close()
            for fd, worker in self._workers.items():
                os.close(fd)
                worker.line.close()
                worker.let_go()
            work(rest, files, theirs, self._directory)
        theirs.close()
        _close(files)
        fd = os.pidfd_open(pid)
        self._workers[fd] = self._lines[ours.fileno()] = Worker(pid, ours, job)
        self._poll.register(fd, select.POLLIN)
        self._poll.register(ours, select.POLLIN)

    def _said(self, worker: Worker) -> None:
        try:
            word = worker.line.recv(16)
        except ConnectionResetError:  # with a request unread
            word = b""
        if word == b"taken":
            worker.let_go()
        elif word:
            self._tell(worker, 0)
            worker.job = ""
        else:  # it ends; its status will tell how
            self._poll.unregister(worker.line)
            del self._lines[worker.line.fileno()]

    def _ended(self, fd: int) -> None:
        worker = self._workers.pop(fd)
        self._poll.unregister(fd)
        os.close(fd)
        while worker.line.fileno() in self._lines:
            self._said(worker)
        worker.line.close()
        _, status = os.waitpid(worker.pid, 0)
        if worker.handed is not None:  # killed while it waited
            self._fork(worker.job, *worker.handed)
        elif worker.job:
            self._tell(worker, status if worker.killed is None else None)

    def _tell(self, worker: Worker, status: int | None) -> None:
        """Its work is over; no ``status``: it stood still."""
        try:
            self._requests.send(
                (f"still\0{worker.job}" if status is None else f"ended\0{worker.job}\0{status}").encode()
            )
        except (BrokenPipeError, ConnectionResetError):
            return  # nobody is interested; the next look at the socket finds its end


def work(arguments: Sequence[str], files: Sequence[int], line: socket.socket, directory: str) -> None:
    """Be a worker; does not return."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for left in reversed(range(_LAYERS)):
        if not _worked(arguments, files, directory) or not left:
            break
        _close(files)
        os.fchdir(root)
        os.chroot(".")
        line.send(b"done")
        data, files, _, _ = socket.recv_fds(line, PACKET, 3)
        if not data:
            break
        line.send(b"taken")
        _, _, *arguments = data.decode("utf-8", "surrogateescape").split("\0")
    os._exit(0)  # a thread that still inflates is not waited for


def _worked(arguments: Sequence[str], files: Sequence[int], directory: str) -> bool:
    """Do what a request wants, and answer it; True if the process can do more. An exception that nobody expects
    ends it.
    """
    again = False
    try:
        answer = _apply(arguments, files[1:], directory)
        again = arguments[2] == "alone"
    except (EntryError, MountError, tar.TarError, inflate.CompressionError) as error:
        answer = _error(str(error))
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        answer = _error(f"{name}{mounts.words(error.errno) if error.errno else error}")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os.write(files[0], answer)
    return again


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _error(text: str) -> bytes:
    return f"error {text}".replace("\n", "\\n").encode("utf-8", "surrogateescape")


def _apply(arguments: Sequence[str], files: Sequence[int], directory: str) -> bytes:
    detect, sync, alone, size = arguments[:4]
    blob, *news = files
    before = time.process_time_ns()
    growing = stream.Growing(blob, news[0], int(size)) if news else None
    chunks, unnamed = unpack(
        mounts.from_arguments(arguments[4:]),
        directory,
        growing or blob,
        detect=detect == "detect",
        sync=sync == "sync",
        alone=alone == "alone",
    )
    waited = growing.waited if growing else 0
    answer = f"ok {chunks.digest} {chunks.size} {(time.process_time_ns() - before) // 1000} {waited // 1000}".encode()
    return b"\0".join((answer, *(each.encoded() for each in unnamed))) if alone == "alone" else answer


def unpack(
    target: Sequence[Mount], directory: str, source: int | stream.Growing, *, detect: bool, sync: bool, alone: bool
) -> tuple[stream.Digested, Iterable[Unnamed]]:
    """Apply the layer in ``source`` to ``target``: its digest and size, and the directories that it does not name.
    The process's root is another afterwards.
    """
    faults = os.open(asked, os.O_PATH | os.O_DIRECTORY) if (asked := os.environ.get("SPLITD_FAULTS")) else None
    chunks = stream.Digested(source, detect=detect)
    extractor, mounted = _enter(target, directory, alone=alone)
    tape = tar.Stream(chunks)
    extractor.extract(tar.Reader(tape))
    tape.drain()
    if faults is not None:
        _fault("diff.unpacked", faults)
        os.close(faults)
    if sync:
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        mounts.syncfs(fd)
        os.close(fd)
    if mounted is not None and mounted.served:
        mounted.end()
    return chunks, extractor.unnamed


def _enter(target: Sequence[Mount], directory: str, *, alone: bool) -> tuple[Extractor, Mounted | None]:
    """Make the target the root directory. An overlay is written to directly, in its upper directory; anything else
    is mounted.
    """
    if alone:
        (upper,) = target
        _change_root(upper.source)
        return Extractor(overlay="trusted.overlay."), None
    if len(target) == 1 and target[0].type == "overlay" and (upper_directory := target[0].option("upperdir")):
        lowers = []
        for lower in target[0].option("lowerdir").split(":"):
            try:
                lowers.append(os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
        _change_root(upper_directory)
        return Extractor(
            overlay="user.overlay." if "userxattr" in target[0].options else "trusted.overlay.", lowers=lowers
        ), None
    mounts.own_namespace()
    # No mounts at all: containerd unpacks into a directory that nobody sees, and so does this.
    mounted = Mounted(target or [Mount("tmpfs", "none")], directory)
    os.chroot(directory)
    os.chdir("/")
    return Extractor(), mounted


def _change_root(directory: str) -> None:
    mounts.own_root()
    os.chroot(directory)
    os.chdir("/")


def _fault(point: str, directory: int) -> None:
    """As kit.faults, whose directory cannot be found by name from here."""
    try:
        os.unlink(point, dir_fd=directory)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), 9)
