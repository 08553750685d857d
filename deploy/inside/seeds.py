"""The processes of the node are forked all at once when supervisord begins, each before it is started.

A page that every process has written to, and so has a copy of, is left to the one that loaded the modules, which does
not need it: some 8 MB. So supervisord does not load them. It forks a *nursery*, which loads them, forks a copy for each
process, and ends. The copies are supervisord's children then, since it adopts them (PR_SET_CHILD_SUBREAPER).

They are forked one right after the other, since whoever writes to his memory meanwhile shares less with those that come
after. Each waits for its files, and then does what a child does that supervisord has just forked.

When a process is started again, or its copy is gone, supervisord loads the modules after all, for good, and forks it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from supervisor.options import ServerOptions
from supervisor.process import Subprocess
from supervisor.supervisord import Supervisor

from deploy.inside import mapped
from deploy.inside.copies import Copies, tidy
from deploy.inside.logs import complain
from services.kit import version

_FILES = ("child_stdin", "child_stdout", "child_stderr")
"""supervisord's names of a child's ends of the pipes."""
_PID = struct.Struct("i")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Seeds:
    """The copies that wait, by the names of the processes that they are to be."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._waiting: dict[str, tuple[int, socket.socket]] = {}
        self.starting: Any = None
        """The process that supervisord starts now."""

    def plant(self, processes: list[Any]) -> None:
        """Fork a copy for each. The copies do not return from this. If that fails, processes are forked, or executed,
        when they are started.
        """
        try:
            pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in processes]
            told, tells = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            complain(f"processes cannot be forked in advance: {error}")
            return
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        tidy()
        gc.freeze()  # a collection would write to what the copies share with this process
        parent = os.getpid()
        with _adopting(), open(told, "rb") as pids:
            try:
                nursery = os.fork()
            except OSError as error:
                complain(f"processes cannot be forked in advance: {error}")
                os.close(tells)
                return
            if not nursery:
                pids.close()
                for each in ours:
                    each.close()
                self._nurse(processes, theirs, tells, parent)
            os.close(tells)
            for each in theirs:
                each.close()
            found = [pid for (pid,) in _PID.iter_unpack(pids.read())]
            os.waitpid(nursery, 0)
        for process, pid, each in zip(processes, found, ours, strict=False):
            self._waiting[process.config.name] = pid, each
        for each in ours[len(found) :]:
            each.close()

    def _nurse(self, processes: list[Any], theirs: list[socket.socket], tells: int, parent: int) -> NoReturn:
        """Load the modules, fork the copies and tell their pids. This does not return."""
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            if os.getppid() == parent and self._copies.load():
                version.revision()  # what each of them would read all files for
                commands = [process.get_execv_args() for process in processes]
                for process, its, command in zip(processes, theirs, commands, strict=True):
                    pid = os.fork()
                    if not pid:
                        for each in theirs:
                            if each is not its:
                                each.close()
                        os.close(tells)  # the last: when all have, none has the socket of another
                        self._copies.sure = True
                        _grow(process, its, command)
                    os.write(tells, _PID.pack(pid))
        except Exception as error:
            complain(f"processes cannot be forked in advance: {error!r}")
        finally:
            os._exit(0)

    def fork(self) -> int:
        """Replaces ``os.fork`` in supervisord: a copy that waits gets the files of the process that is started, and
        goes on. Returns its pid; of a new copy if none waits, and in that 0.
        """
        process = self.starting
        pid, ours = self._waiting.pop(process.config.name if process is not None else "", (0, None))
        if ours is not None:
            files = [process.pipes[name] for name in _FILES if process.pipes[name] is not None]
            with ours, contextlib.suppress(OSError):  # somebody has killed it
                socket.send_fds(ours, [b"grow"], files)
                return pid
        self._copies.load()
        return os.fork()

    def let_go(self) -> None:
        """End the copies that still wait."""
        for _, ours in self._waiting.values():
            ours.close()
        self._waiting.clear()


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Within the block, this process gets the children of its children that end. Not for longer: shims, whose parents
    end too, are init's.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _grow(process: Any, its: socket.socket, command: tuple[str, list[str]]) -> NoReturn:
    """Wait, in a copy, and then become the process. This does not return."""
    try:
        word, files, _, _ = socket.recv_fds(its, 16, len(_FILES))
        if word:
            process.pipes = dict(zip(_FILES, [*files, None, None], strict=False))
            process._spawn_as_child(*command)
    except Exception as error:
        complain(f"{process.config.name} cannot be started: {error!r}")
    finally:
        os._exit(127)


def install(copies: Copies) -> None:
    """Let supervisord do so. Called before its main function."""
    seeds = Seeds(copies)
    Supervisor.runforever = _planting(Supervisor.runforever, seeds)
    Subprocess.spawn = _noting(Subprocess.spawn, seeds)
    ServerOptions.fork = lambda _options: seeds.fork()


def _planting(runforever: Callable[[Any], None], seeds: Seeds) -> Callable[[Any], None]:
    def run(supervisord: Any) -> None:
        groups = sorted(supervisord.process_groups.values())
        seeds.plant([each for group in groups for each in group.processes.values() if each.config.autostart])
        with contextlib.suppress(OSError):
            mapped.let_go()
        try:
            runforever(supervisord)
        finally:
            seeds.let_go()

    return run


def _noting(spawn: Callable[[Any], Any], seeds: Seeds) -> Callable[[Any], Any]:
    def begin(process: Any) -> Any:
        seeds.starting = process
        try:
            return spawn(process)
        finally:
            seeds.starting = None

    return begin
