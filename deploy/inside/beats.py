"""The watchdog's contact with the world, inside supervisord: the socket to which processes send their beats,
supervisord's own table of processes, and /proc.

Over XML-RPC ``watchdog.getStatus`` tells what it knows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor import events
from supervisor.states import ProcessStates

from deploy.inside.watchdog import Child, Kills, Limits, Watchdog
from services.kit import version
from services.kit.heartbeat import STOPPING

_CODE = version.supervisors()
_CREDENTIALS = struct.Struct("3i")
_AT_ONCE = 100
"""Beats that are read in one turn of supervisord's loop."""
_ALIVE = (ProcessStates.STARTING, ProcessStates.RUNNING, ProcessStates.STOPPING)


class Proc:
    """The kernel's view of processes."""

    def state(self, pid: int) -> str:
        """The state from /proc/PID/stat, which is behind the name; the name may hold anything."""
        try:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
        except (OSError, IndexError):
            return ""

    def waits_in(self, pid: int) -> str:
        """From /proc/PID/wchan, which is "0" if the process runs."""
        try:
            return Path(f"/proc/{pid}/wchan").read_text().strip("0\n")
        except OSError:
            return ""

    def signal(self, pid: int, number: int) -> None:
        """Send a signal. A child that has died and was not waited for takes signals too, and does nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Beats:
    """The socket at ``path``, as supervisord's loop watches it. The loop asks :meth:`readable` at each turn; that is
    when the watchdog looks.
    """

    def __init__(self, supervisord: Any, path: str, limits: Limits) -> None:
        self._supervisord = supervisord
        self._watchdog = Watchdog(limits, Proc(), self._say)
        self._ended: dict[str, int] = {}
        self._failed = False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(path)
        os.chmod(path, 0o600)

    # called by supervisord's loop

    def readable(self) -> bool:
        """Always true. An exception here would end supervisord, and with it the node."""
        try:
            self._watchdog.look(time.monotonic(), time.time(), self._children())
            self._failed = False
        except Exception as error:
            self._fail(error)
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        """Read all beats that were sent."""
        for _ in range(_AT_ONCE):
            try:
                word, ancillary, _, _ = self.socket.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == _CREDENTIALS.size:
                    self._watchdog.heard(_CREDENTIALS.unpack(data)[0], serving=word != STOPPING)

    def handle_error(self) -> None:
        """Called in an except block, when :meth:`handle_read_event` failed. The next beat tries again."""
        self._fail(sys.exc_info()[1])

    def ended(self, event: Any) -> None:
        """Listens to supervisord's events: a process has ended by itself, and is started again."""
        name = event.process.config.name
        self._ended[name] = self._ended.get(name, 0) + 1

    # the watchdog's actions

    def _children(self) -> Iterator[Child]:
        for group in self._supervisord.process_groups.values():
            for name, process in group.processes.items():
                if process.pid and process.get_state() in _ALIVE:
                    yield Child(name, process.pid, process.get_state() == ProcessStates.STOPPING)

    def _process(self, name: str) -> Any:
        return next(
            (group.processes[name] for group in self._supervisord.process_groups.values() if name in group.processes),
            None,
        )

    def _say(self, name: str, words: str) -> None:
        """Log into supervisord's log and into the process's own, where its stacks will be."""
        self._supervisord.options.logger.warn(f"watchdog: {name}: {words}")  # noqa: G010 (supervisord's own)
        process = self._process(name)
        for dispatcher in process.dispatchers.values() if process is not None else ():
            if (childlog := getattr(dispatcher, "childlog", None)) is not None:
                childlog.info(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} WARNING watchdog: {words}\n".encode())

    def _fail(self, error: BaseException | None) -> None:
        if not self._failed:
            self._failed = True
            self._supervisord.options.logger.critical(f"watchdog: {error!r}")

    def status(self) -> list[dict[str, Any]]:
        """For each process: how often it ended by itself, how long it has been silent (0.0 if no longer than allowed),
        how many of its name were killed, and why and when the last one was.
        """
        found = []
        for name in sorted({name for group in self._supervisord.process_groups.values() for name in group.processes}):
            kills = self._watchdog.kills.get(name, Kills())
            found.append(
                {
                    "name": name,
                    "ended": self._ended.get(name, 0),
                    "silent": round(self._watchdog.late(name), 1),
                    "killed": kills.count,
                    "why": kills.why,
                    "at": kills.at,
                }
            )
        return found


class Interface:
    """The methods of the XML-RPC interface."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats

    def getStatus(self) -> list[dict[str, Any]]:
        """See :meth:`Beats.status`."""
        return self._beats.status()

    def getCode(self) -> str:
        """A digest of the code that this supervisord was started with."""
        return _CODE


def make(supervisord: Any, *, socket: str, silence: str, start: str, beat: str) -> Interface:
    """Called by supervisord once its options are read, before it starts anything. The last three are seconds; ``inf``
    turns the watchdog off.
    """
    beats = Beats(supervisord, socket, Limits(float(silence), float(start), float(beat)))
    supervisord.options.get_socket_map()[beats.socket.fileno()] = beats
    events.subscribe(events.ProcessStateExitedEvent, beats.ended)
    return Interface(beats)
