"""A client that misbehaves: HTTP/2 on a plain socket, frame by frame, from this thread. For the loads of ``bench.load``
and of tests/node/test_node_under_load.py.

It sends only what it is told to (and acknowledges SETTINGS and pings when it reads), and reads only when it is told to.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from services.wire import frames, messages
from services.wire.connection import Connection
from services.wire.events import Event, Opened, Trailers
from services.wire.headers import Head
from services.wire.limits import Limits
from services.wire.requests import request_block
from services.wire.streams import Stream

T = TypeVar("T")

GREETING = frames.PREFACE + frames.settings({}) + frames.frame(frames.SETTINGS, frames.ACK, 0)
"""Everything that a client must send. The acknowledgement is for the SETTINGS that a server sends at once."""
VERSION = "/containerd.services.version.v1.Version/Version"


class Raw:
    """One connection; a context manager that closes it."""

    def __init__(self, path: Path | None, *, greet: bool = True, window: int | None = None) -> None:
        """``greet``: send preface and SETTINGS. ``window`` in them is what each stream may send us. Without a path it
        sends nothing.
        """
        self.socket = socket.socket(socket.AF_UNIX)
        if path is not None:
            self.socket.connect(str(path))
        self.events: list[Event] = []
        """What the server did, as far as it was read."""
        self.hung_up = False
        limits = Limits() if window is None else Limits(window=window, window_most=window)
        self.connection = Connection(client=True, limits=limits)
        if greet and path is not None:
            self.flush()

    def say(self, data: bytes) -> bool:
        """Send bytes, however long that takes; False if the server closed the connection."""
        self.socket.settimeout(30)
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def flush(self) -> bool:
        """Send what the protocol has to send."""
        return self.say(b"".join(self.connection.take()))

    def open(self, path: str, *, namespace: str = "default") -> Stream:
        """The HEADERS of a new call; :meth:`flush` sends them."""
        return self.connection.open(request_block(path, (("containerd-namespace", namespace),), None), None)

    def call(self, path: str, message: bytes = b"", *, namespace: str = "default") -> Stream:
        """The whole request of a unary call; :meth:`flush` sends it."""
        stream = self.open(path, namespace=namespace)
        self.connection.send(stream, messages.prefix(message), message, end=True)
        return stream

    def resets(self, count: int, path: str, message: bytes = b"") -> None:
        """``count`` requests, each reset at once; :meth:`flush` sends them."""
        for _ in range(count):
            self.connection.reset(self.call(path, message), frames.Code.CANCEL)

    def read(self, seconds: float = 0.0) -> list[Event]:
        """Read what has come, for at most ``seconds``. Acknowledgements are sent."""
        if self.hung_up:
            return []
        self.socket.settimeout(max(seconds, 1e-6))
        try:
            data = self.socket.recv(1 << 20)
        except TimeoutError:
            return []
        except ConnectionResetError:
            data = b""
        self.hung_up = not data
        events = self.connection.receive(data)
        self.events += events
        if self.connection.pending:
            self.flush()
        return events

    def until(self, found: Callable[[Self], T], seconds: float = 10.0) -> T:
        """Read until ``found`` returns something. AssertionError if that takes too long, or cannot happen any more."""
        end = time.monotonic() + seconds
        while not (answer := found(self)):
            left = end - time.monotonic()
            assert left > 0, f"not within {seconds:g}s; it did {self.events[-5:]}"
            assert not self.hung_up, f"the server hung up; it did {self.events[-5:]}"
            self.read(left)
        return answer

    def of(self, kind: type[T]) -> list[T]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def statuses(self) -> list[Head]:
        """The trailers of the calls that have ended."""
        return [
            event.head
            for event in self.events
            if isinstance(event, Trailers) or (isinstance(event, Opened) and event.end)
        ]

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def idle(path: Path, count: int) -> contextlib.ExitStack:
    """Connections that greet and then send nothing. The stack closes them."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(path))
            connection.sendall(GREETING)
        return stack.pop_all()
