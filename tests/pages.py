"""What a process serves over HTTP on a unix socket, and how tests read it."""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any


class _Unix(http.client.HTTPConnection):
    """An HTTP connection over the unix socket ``path`` to what the client calls ``host``."""

    def __init__(self, path: Path, host: str) -> None:
        super().__init__(host)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def asked(path: Path, page: str, host: str = "localhost") -> tuple[int, Any]:
    """Return status and content of a page: of JSON what it says, of others the bytes."""
    connection = _Unix(path, host)
    try:
        connection.request("GET", page)
        response = connection.getresponse()
        status, kind, body = response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()
    return status, json.loads(body) if kind == "application/json" else body


def series(text: str) -> dict[str, float]:
    """The value of each series of a page of metrics, by its name and labels as they are written."""
    return {f[1]: float(f[2]) for line in text.splitlines() if (f := re.fullmatch(r"([^#].*) (\S+)", line))}
