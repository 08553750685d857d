"""The processes of the node are forked all at once when supervisord begins, each before it is started.

supervisord works from one start of a process to the next: it opens a log, makes pipes, writes lines. It writes into 1.5
MB of its memory in that time, and a copy that was made before shares none of that with one that is made after. So the
copies are made first, one right after the other. Each waits for its files, and then does what a child does that
supervisord has just forked.

A process that is started again, or whose copy is gone, is forked as before.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from supervisor.options import ServerOptions
from supervisor.process import Subprocess
from supervisor.supervisord import Supervisor

from deploy.inside.copies import Copies
from deploy.inside.logs import complain
from services.kit import version

_FILES = ("child_stdin", "child_stdout", "child_stderr")
"""supervisord's names of a child's ends of the pipes."""


class Seeds:
    """The copies that wait, by the names of the processes that they are to be."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._waiting: dict[str, tuple[int, socket.socket]] = {}
        self.starting: Any = None
        """The process that supervisord starts now."""

    def plant(self, processes: list[Any]) -> None:
        """Fork a copy for each. The copies do not return from this."""
        if not self._copies.unchanged():
            return
        version.revision()  # what each of them would read all files for
        commands = [process.get_execv_args() for process in processes]
        for process, command in zip(processes, commands, strict=True):
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                pid = os.fork()
            except OSError:  # supervisord forks it when it starts it, and says then what is wrong
                ours.close()
                its.close()
                return
            if not pid:
                self.let_go()
                ours.close()
                self._copies.sure = True
                _grow(process, its, command)
            its.close()
            self._waiting[process.config.name] = pid, ours

    def fork(self) -> int:
        """Replaces ``os.fork`` in supervisord: a copy that waits gets the files of the process that is started, and
        goes on. Returns its pid; of a new copy if none waits, and in that 0.
        """
        process = self.starting
        pid, ours = self._waiting.pop(process.config.name if process is not None else "", (0, None))
        if ours is not None:
            files = [process.pipes[name] for name in _FILES if process.pipes[name] is not None]
            with ours:
                try:
                    socket.send_fds(ours, [b"grow"], files)
                except OSError:  # somebody has killed it
                    return os.fork()
            return pid
        return os.fork()

    def let_go(self) -> None:
        """End the copies that still wait, or, in a copy, forget the others."""
        for _, ours in self._waiting.values():
            ours.close()
        self._waiting.clear()


def _grow(process: Any, its: socket.socket, command: tuple[str, list[str]]) -> None:
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
