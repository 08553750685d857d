"""Tells systemd when the node can be called: sd_notify(3), from supervisord, which is the unit's main process.

It is ready when the gateway of this supervisord listens on containerd.sock: what else has not begun by then is waited
for by its callers. One that ends is STOPPING. Without NOTIFY_SOCKET, as on a terminal, nobody is told. What supervisord
starts must not have that variable: runc would take the socket for its container's.
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
    """What supervisord's loop asks at each turn, which is when this looks."""

    def __init__(self, supervisord: Any, address: str, notify: str) -> None:
        self._supervisord = supervisord
        self._address = address
        self._notify = "\0" + notify[1:] if notify.startswith("@") else notify
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._told = False

    def readable(self) -> bool:
        """No: nothing comes here."""
        if not self._told and self._listens():
            self._told = self._tell("READY=1")
        return False

    def writable(self) -> bool:
        return False

    def stopping(self, _event: Any) -> None:
        """Of supervisord's events."""
        self._tell("STOPPING=1")

    def _listens(self) -> bool:
        """Whether it is our gateway that does: one whose supervisord was killed may just be ending."""
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
        """False, and a line in supervisord's log, if it could not be told; it is tried again."""
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
