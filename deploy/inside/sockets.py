"""Makes supervisord's own sockets in STATE again if they were removed. Otherwise no ``splitd`` command would reach it
any more. (services/kit/sockets.py does the same for the services.)
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from deploy.inside.beats import Beats
from deploy.inside.wakeup import NoInterface

LOOK = 1.0
"""Seconds from one look to the next."""


class Kept:
    """Looks at each turn of supervisord's loop, which asks :meth:`readable` then."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord
        self._looked = 0.0
        self._said = ""
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        """A pipe from which nothing is ever read; the loop asks only objects that have a file."""

    def readable(self) -> bool:
        """Always false: nothing comes here. An exception would end supervisord."""
        if time.monotonic() >= self._looked + LOOK:
            self._looked = time.monotonic()
            for listening, path in self._listening():
                try:
                    self._look(listening, path)
                except OSError as error:
                    self._say(f"a socket of supervisord was removed, and cannot be made again: {error}")
        return False

    def writable(self) -> bool:
        return False

    def _listening(self) -> list[tuple[socket.socket, Path]]:
        """The sockets of the XML-RPC servers and of the watchdog. supervisord binds the former under another name and
        links that to this one.
        """
        servers = [
            (server.socket, Path(config["file"]))
            for config, server in getattr(self._supervisord.options, "httpservers", ())
        ]
        others = [
            each.socket for each in self._supervisord.options.get_socket_map().values() if isinstance(each, Beats)
        ]
        return servers + [(each, Path(os.fsdecode(each.getsockname()))) for each in others]

    def _look(self, listening: socket.socket, path: Path) -> None:
        if path.exists():
            return
        again(listening, path)
        self._said = ""
        self._say(f"the socket {path} was removed, and is made again")

    def _say(self, words: str) -> None:
        if words != self._said:
            self._supervisord.options.logger.warn(words)  # noqa: G010 (supervisord's own)
            self._said = words


def again(listening: socket.socket, path: Path) -> None:
    """Make a new socket at ``path``, under the file descriptor of the one that listens there, since poll finds a file
    by its number.
    """
    mask = os.umask(0o077 if listening.type == socket.SOCK_STREAM else 0o177)  # the mode that they were made with
    try:
        with socket.socket(socket.AF_UNIX, listening.type | socket.SOCK_NONBLOCK) as new:
            new.setsockopt(
                socket.SOL_SOCKET, socket.SO_PASSCRED, listening.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
            )
            new.bind(str(path))
            if listening.type == socket.SOCK_STREAM:
                new.listen(1024)
            os.dup2(new.fileno(), listening.fileno(), inheritable=False)
    finally:
        os.umask(mask)


def make(supervisord: Any) -> NoInterface:
    """Called by supervisord once its options are read, before it starts anything."""
    kept = Kept(supervisord)
    supervisord.options.get_socket_map()[kept.reader] = kept
    return NoInterface()
