"""Tells systemd when the node can be called: sd_notify(3), from supervisord, which is the unit's main process.

The node is READY when the gateway of this supervisord listens on containerd.sock; calls wait for services that have not
begun by then. When the node ends it is STOPPING. Without NOTIFY_SOCKET, as on a terminal, nothing is sent. The
processes that supervisord starts must not have that variable: runc would take the socket for its container's.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from supervisor import events

from deploy.inside.wakeup import NoInterface

_CREDENTIALS = struct.Struct("3i")
GATEWAY = "gateway"


class Ready:
    """Looks at each turn of supervisord's loop, which asks :meth:`readable` then."""

    def __init__(self, supervisord: Any, address: str, notify: str) -> None:
        self._supervisord = supervisord
        self._address = address
        self._notify = "\0" + notify[1:] if notify.startswith("@") else notify
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._told = False

    def readable(self) -> bool:
        """Always false: nothing comes here."""
        if not self._told and self._listens():
            self._told = self._tell("READY=1")
        return False

    def writable(self) -> bool:
        return False

    def stopping(self, _event: Any) -> None:
        """Listens to supervisord's events."""
        self._tell("STOPPING=1")

    def _listens(self) -> bool:
        """Whether the listener is our gateway: a gateway whose supervisord was killed may just be ending."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            try:
                client.connect(self._address)
            except OSError:
                return False
            pid, _, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return any(
            group.processes[GATEWAY].pid == pid
            for group in self._supervisord.process_groups.values()
            if GATEWAY in group.processes
        )

    def _tell(self, word: str) -> bool:
        """Send a word to systemd. If that fails, log a line in supervisord's log and return False, so that it is tried
        again.
        """
        try:
            self.socket.sendto(word.encode(), self._notify)
        except OSError as error:
            self._supervisord.options.logger.warn(f"systemd cannot be told {word}: {error}")  # noqa: G010 (supervisord's own)
            return False
        return True


def make(supervisord: Any, *, address: str) -> NoInterface:
    """Called by supervisord once its options are read, before it starts anything."""
    if notify := os.environ.pop("NOTIFY_SOCKET", ""):
        ready = Ready(supervisord, address, notify)
        supervisord.options.get_socket_map()[ready.socket.fileno()] = ready
        events.subscribe(events.SupervisorStoppingEvent, ready.stopping)
    return NoInterface()
