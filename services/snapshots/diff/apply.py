"""The program that unpacks layers: it waits for requests, and forks workers.

    python -S -c 'from services.snapshots.diff.apply import main; main()' PARENT DIRECTORY LIMIT

PARENT is the pid of the process that it must not outlive. DIRECTORY is an empty directory on which its workers mount.
LIMIT is the number of seconds without progress after which a worker is killed (``standstill.py``). Standard input is a
socket of packets; ``workers.py`` has the other end. Requests are:

    apply ID detect|plain sync|nosync alone|whole tar|image SIZE MOUNT...
                      with files: where to write the answer; the blob; and, if the blob is still growing, its news
    kill ID

Answers are:

    began             sent first, once all code is loaded
    ended ID STATUS SEEN
                      a worker has ended, with waitpid's STATUS, or has done its work (0); SEEN says what its time went
                      for (``blocked.Seen``)
    cut ID SEEN       a worker was killed, since that was asked for; it ends once the kernel lets it
    still ID SEEN     a worker was killed because it made no progress

A *worker* inflates a layer, digests it, and makes the tree, with its target as its root directory. If it has to mount
the target, it does so in a mount namespace of its own, so that all workers can share DIRECTORY. ``alone`` means that
the target is bound, and will be the upper directory of an overlay whose lower layers come later. An ``image`` is one
of EROFS, which only the snapshotter erofs takes. The worker's answer,
in the file for it, is ``ok DIGEST SIZE SPENT`` or ``error TEXT``. Digest and size are those of the uncompressed layer;
SPENT says what its time went for (``spent.py``). If ``alone``, the directories follow that the layer uses but does not
name, each after a zero byte, for ``inherit.py``.

A blob that *grows* will have SIZE bytes at the end. Its news are numbers of eight bytes, each the number of bytes that
are there by now. If they end before SIZE, no more bytes will come.

A worker is a process of its own (design, rule 8): chroot, namespaces and umask belong to a process, several workers run
side by side, and a crash fails only one layer. It is forked because starting a program takes 25 ms of a core, as long
as unpacking a small layer; this program has one thread and no gRPC, so it may fork. A fork and its end take 5 ms. So a
worker that has mounted nothing, and has to undo nothing but its chroot, returns to the node's root directory and waits
for the next layer.
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
from services.snapshots.diff import mounts, note, standstill, stream
from services.snapshots.diff.blocked import EVERY, Sampler
from services.snapshots.diff.extract import EntryError, Extractor
from services.snapshots.diff.mounted import Mounted, Prepared
from services.snapshots.diff.mounts import MountError
from services.snapshots.diff.spent import Account
from services.snapshots.erofs import place
from services.snapshots.erofs.image import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.snapshots.diff.inherit import Unnamed

_BINDING = frozenset(("bind", "rbind", "rw"))
"""Options of a mount that only binds."""
_LAYERS = 100
"""Layers that one worker unpacks; its memory is freed when it ends."""

_SWITCH = 0.0005
"""Seconds for which one thread of a worker keeps the interpreter from the other. The tree of an erofs layer is made
without system calls, and the thread that inflates needs the interpreter some ten times for each megabyte.
"""
PACKET = 1 << 17
"""Bytes of a request at most: more than the kernel takes as options of a mount."""


def main() -> None:
    """Run as a program."""
    mounts.die_with_parent(int(sys.argv[1]))
    faulthandler.register(signal.SIGUSR1)  # the stack goes into the service's log, and the worker goes on
    sys.setrecursionlimit(20_000)  # a name may have two thousand components
    os.umask(0)
    sys.setswitchinterval(_SWITCH)
    mounts.keep_freed_memory()
    inflate.prepare()
    gc.freeze()
    # Workers make few cycles, and a collection would copy the memory pages that they share with this process.
    gc.disable()
    requests = socket.socket(fileno=0)
    try:
        requests.send(b"began\0")
    except BrokenPipeError:
        return  # the service has gone
    Dispatcher(requests, sys.argv[2], float(sys.argv[3])).wait()


class Worker:
    """A worker, as the waiting process sees it. ``line`` is the socket to it. ``job`` is the id of its current request,
    "" if it is idle. ``handed`` has the words and files of a request until the worker has taken them.
    """

    __slots__ = ("handed", "job", "killed", "leaving", "line", "pid", "sampler", "still")

    def __init__(self, pid: int, line: socket.socket, job: str) -> None:
        self.pid = pid
        self.line = line
        self.job = job
        self.handed: tuple[Sequence[str], Sequence[int]] | None = None
        self.still: standstill.Watch | None = None
        """While the worker is busy."""
        self.killed: float | None = None
        """When it was killed because it made no progress, on the monotonic clock."""
        self.leaving = False
        """It has done its work, and takes no more."""
        self.sampler = Sampler(pid)
        """Of the current or the last request."""

    def kill(self) -> None:
        """Kill it with the keeper of its mounts, if it has one (``fuse.py``): the worker may be waiting for a program
        that serves them, and the kernel does not end a process that waits like that.
        """
        self.close_handed()
        os.killpg(self.pid, signal.SIGKILL)

    def close_handed(self) -> None:
        """Close the files of the request that it has not taken yet."""
        if self.handed is not None:
            _close(self.handed[1])
            self.handed = None


class Dispatcher:
    """The waiting process, and its workers."""

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
        """By the file descriptor that becomes readable when the worker has taken its request, or done it."""

    def wait(self) -> None:
        """Serve until the other end is closed; then kill the busy workers."""
        every = standstill.look_interval(self._limit)
        while True:
            pauses = [worker.sampler.pause() for worker in self._workers.values() if worker.job]
            ready = self._poll.poll(1000 * min(pauses) if pauses else None)
            self._sample()
            if time.monotonic() >= self._looked + every:
                self._kill_stuck()
            if not ready:
                continue
            fd, _ = ready[0]  # one at a time: handling it may close the files of the others
            if fd in self._lines:
                self._answered(self._lines[fd])
            elif fd in self._workers:
                self._ended(fd)
            elif not self._request():
                break
        for worker in self._workers.values():
            if worker.job:
                worker.kill()

    def _sample(self) -> None:
        """Take the samples that are due, and those that would be soon: one turn for all workers costs less."""
        for worker in self._workers.values():
            if worker.job and worker.sampler.pause() < EVERY / 2:
                worker.sampler.look()

    def _kill_stuck(self) -> None:
        """Kill workers that make no progress."""
        now = self._looked = time.monotonic()
        for worker in self._workers.values():
            if not worker.job:
                worker.still = None
            elif worker.killed is not None:
                if now > worker.killed + standstill.KILL_WAIT:  # it cannot be killed; its caller is answered
                    self._report(worker, None)
                    worker.job = ""
            else:
                worker.still = worker.still or standstill.Watch(self._limit)
                if worker.still.seconds(worker.pid) >= self._limit:
                    worker.killed = now
                    worker.kill()

    def _request(self) -> bool:
        try:
            data, files, _, _ = socket.recv_fds(self._requests, PACKET, 3)
        except ConnectionResetError:  # the other end was closed before it read all answers
            return False
        if not data:
            return False
        what, job, *rest = data.decode("utf-8", "surrogateescape").split("\0")
        if what == "kill":
            for worker in self._workers.values():
                if worker.job == job:
                    worker.kill()
                    self._send(f"cut\0{job}\0{worker.sampler.seen()}")
            return True
        idle = next((each for each in self._workers.values() if not (each.job or each.killed or each.leaving)), None)
        if idle is not None and self._send_to(idle, data, files):
            idle.job, idle.handed, idle.still = job, (rest, files), None
            idle.sampler.close()
            idle.sampler = Sampler(idle.pid)
        else:
            self._fork(job, rest, files)
        return True

    def _send_to(self, idle: Worker, data: bytes, files: Sequence[int]) -> bool:
        """Send an idle worker a request; False if it has died."""
        try:
            socket.send_fds(idle.line, [data], files)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _fork(self, job: str, rest: Sequence[str], files: Sequence[int]) -> None:
        """Fork a worker for a request. The files are closed here."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        waiting = os.getpid()
        pid = os.fork()
        # in both processes: it must have a group of its own before it is killed, and before it has a child
        os.setpgid(pid, pid)
        if not pid:
            mounts.die_with_parent(waiting)
            self._requests.close()
            ours.close()
            for fd, worker in self._workers.items():
                os.close(fd)
                worker.line.close()
                worker.sampler.close()
                worker.close_handed()
            work(rest, files, theirs, self._directory)
        theirs.close()
        _close(files)
        fd = os.pidfd_open(pid)
        self._workers[fd] = self._lines[ours.fileno()] = Worker(pid, ours, job)
        self._poll.register(fd, select.POLLIN)
        self._poll.register(ours, select.POLLIN)

    def _answered(self, worker: Worker) -> None:
        try:
            word = worker.line.recv(16)
        except ConnectionResetError:  # a request was not read
            word = b""
        if word == b"taken":
            worker.close_handed()
        elif word:
            self._report(worker, 0)
            worker.job, worker.leaving = "", word == b"last"
        else:  # it is ending; its status will tell how
            self._poll.unregister(worker.line)
            del self._lines[worker.line.fileno()]

    def _ended(self, fd: int) -> None:
        worker = self._workers.pop(fd)
        self._poll.unregister(fd)
        os.close(fd)
        while worker.line.fileno() in self._lines:
            self._answered(worker)
        worker.line.close()
        worker.sampler.seen()  # for the last time: its counters go with it
        worker.sampler.close()
        _, status = os.waitpid(worker.pid, 0)
        if worker.handed is not None:  # killed before it took the request
            self._fork(worker.job, *worker.handed)
        elif worker.job:
            self._report(worker, status if worker.killed is None else None)

    def _report(self, worker: Worker, status: int | None) -> None:
        """Report the end of a request; without ``status``, the worker made no progress."""
        how = f"still\0{worker.job}" if status is None else f"ended\0{worker.job}\0{status}"
        self._send(f"{how}\0{worker.sampler.seen()}")

    def _send(self, words: str) -> None:
        try:
            self._requests.send(words.encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # the service has gone; the next read of the socket finds its end


def work(arguments: Sequence[str], files: Sequence[int], line: socket.socket, directory: str) -> None:
    """Be a worker; does not return."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for left in reversed(range(_LAYERS)):
        goes_on = _carry_out(arguments, files, directory) and left
        _close(files)
        if not goes_on:
            if _in_place(mounts.from_arguments(arguments[5:]), alone=arguments[2] == "alone"):
                # said before the end: a thread that waits for the disk (writeback.py) may hold that for minutes
                line.send(b"last")
            break
        os.fchdir(root)
        os.chroot(".")
        line.send(b"done")
        data, files, _, _ = socket.recv_fds(line, PACKET, 3)
        if not data:
            break
        line.send(b"taken")
        _, _, *arguments = data.decode("utf-8", "surrogateescape").split("\0")
    os._exit(0)  # without waiting for a thread that still inflates


def _carry_out(arguments: Sequence[str], files: Sequence[int], directory: str) -> bool:
    """Carry out a request and answer it. True if the process can take another. An unexpected exception ends the
    process.
    """
    reusable = _is_reusable(mounts.from_arguments(arguments[5:]), alone=arguments[2] == "alone")  # in this root
    try:
        answer = _apply(arguments, files[1:], directory)
    except (EntryError, MountError, ImageError, tar.TarError, inflate.CompressionError) as error:
        answer = _error(str(error))
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        answer = _error(f"{name}{mounts.words(error.errno) if error.errno else error}")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    else:
        os.write(files[0], answer)
        return reusable
    os.write(files[0], answer)
    return False


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _error(text: str) -> bytes:
    return f"error {text}".replace("\n", "\\n").encode("utf-8", "surrogateescape")


def _apply(arguments: Sequence[str], files: Sequence[int], directory: str) -> bytes:
    detect, sync, alone, kind, size = arguments[:5]
    blob, *news = files
    account = Account()
    chunks, unnamed = unpack(
        mounts.from_arguments(arguments[5:]),
        directory,
        stream.Growing(blob, news[0], int(size), account) if news else blob,
        account,
        detect=detect == "detect",
        sync=sync == "sync",
        alone=alone == "alone",
        image=kind == "image",
    )
    answer = f"ok {chunks.digest} {chunks.size} {account.close()}".encode()
    return b"\0".join((answer, *(each.encoded() for each in unnamed))) if alone == "alone" else answer


def unpack(
    target: Sequence[Mount],
    directory: str,
    source: int | stream.Growing,
    account: Account,
    *,
    detect: bool,
    sync: bool,
    alone: bool,
    image: bool = False,
) -> tuple[stream.Digested, Iterable[Unnamed]]:
    """Apply the layer in ``source`` to ``target``. Returns its digest and size, and the directories that it does not
    name. Afterwards the process has another root directory.
    """
    faults = os.open(asked, os.O_PATH | os.O_DIRECTORY) if (asked := os.environ.get("SPLITD_FAULTS")) else None
    chunks = stream.Digested(source, account, detect=detect)
    if any("/" in each.type for each in target):  # as none of the usual
        mounts.unshare_mounts()
        prepared = Prepared(target, directory)
        target = prepared.left
    upper = _upper(target)
    if layer := _layer_of(upper or _bound(target)):
        lowers, lowest = _opened(target) if upper else (), not (upper or alone)
        if image:
            place.take_image(chunks, layer, digest=lambda: chunks.digest)
        else:
            place.unpack(chunks, upper or _bound(target), lowers, layer, lowest=lowest, digest=lambda: chunks.digest)
        if sync:
            _synced(layer)
        return chunks, ()  # its snapshotter knows what it does not name
    if image:
        raise MountError("a layer that is an EROFS image can be unpacked by the snapshotter erofs only")
    place_of_note = note.place_of(upper or _bound(target))
    extractor, mounted = _enter(target, directory, alone=alone)
    tape = tar.Stream(chunks)
    extractor.extract(tar.Reader(tape))
    tape.drain()
    if faults is not None:
        _fault("diff.unpacked", faults)
        os.close(faults)
    if place_of_note is not None:
        found = note.Note(chunks.digest, extractor.overlay or "", extractor.hides, extractor.unnamed)
        note.write(place_of_note, found)
        os.close(place_of_note)
    if sync:
        _synced("/")
    if mounted is not None and mounted.served:
        mounted.end()
    extractor.close()
    return chunks, extractor.unnamed


def _enter(target: Sequence[Mount], directory: str, *, alone: bool) -> tuple[Extractor, Mounted | None]:
    """Make the target the root directory. A layer for an overlay is written directly into its upper directory; any
    other target is mounted.
    """
    if alone:
        (upper,) = target
        _change_root(upper.source)
        return Extractor(overlay="trusted.overlay."), None
    if upper_directory := _upper(target):
        lowers = _opened(target)
        _change_root(upper_directory)
        return Extractor(
            overlay="user.overlay." if "userxattr" in target[0].options else "trusted.overlay.", lowers=lowers
        ), None
    if _needs_no_mount(target):
        _change_root(target[0].source)
        return Extractor(), None
    mounts.unshare_mounts()
    # Without mounts: like containerd, unpack into a directory that nobody sees.
    mounted = Mounted(target or [Mount("tmpfs", "none")], directory)
    os.chroot(directory)
    os.chdir("/")
    return Extractor(), mounted


def _upper(target: Sequence[Mount]) -> str:
    """The upper directory of an overlay, into which a layer is written directly; "" for other targets."""
    return target[0].option("upperdir") if len(target) == 1 and target[0].type == "overlay" else ""


def _bound(target: Sequence[Mount]) -> str:
    """The directory that the only mount binds; "" for other targets."""
    return target[0].source if len(target) == 1 and {"bind", "rbind"} & {target[0].type, *target[0].options} else ""


def _needs_no_mount(target: Sequence[Mount]) -> bool:
    """Whether the files are made right in a directory: the upper one of an overlay, or one that would only be bound."""
    if _upper(target):
        return True
    bound = _bound(target)
    return bool(bound) and not target[0].target and {*target[0].options} <= _BINDING and os.path.isdir(bound)


def _is_reusable(target: Sequence[Mount], *, alone: bool) -> bool:
    """Whether a worker can unpack other layers after this one."""
    return alone or (bool(_upper(target)) and not place.beside(_upper(target)))


def _layer_of(upper: str) -> str:
    """The directory into which a layer for ``upper`` goes as it is; "" if its files are made. MountError if one is
    there.
    """
    layer = place.beside(upper) if upper else ""
    if layer and (place.is_unpacked(layer) or place.is_taken(layer)):
        raise MountError(f"a layer was unpacked into {layer} already: commit it, and unpack the next one on top")
    return "" if layer and os.listdir(upper) else layer


def _opened(target: Sequence[Mount]) -> list[int]:
    """The lower directories of an overlay, topmost first."""
    lowers = []
    for lower in target[0].option("lowerdir").split(":"):
        try:
            lowers.append(os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
    return lowers


def _synced(directory: str) -> None:
    """Wait until everything on the file system of ``directory`` is on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mounts.syncfs(fd)
    finally:
        os.close(fd)


def _in_place(target: Sequence[Mount], *, alone: bool) -> bool:
    """Whether the files are in their place as soon as they are made. Other mounts end with the worker, and what they
    hold is written then.
    """
    return alone or bool(_upper(target)) or all({"bind", "rbind"} & {each.type, *each.options} for each in target)


def _change_root(directory: str) -> None:
    mounts.unshare_root()
    os.chroot(directory)
    os.chdir("/")


def _fault(point: str, directory: int) -> None:
    """As kit.faults, whose directory has no path below this root."""
    try:
        os.unlink(point, dir_fd=directory)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), 9)
