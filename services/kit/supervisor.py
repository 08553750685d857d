"""Asks supervisord: one XML-RPC call over its unix socket, with a time limit (supervisor's own client has none)."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

ERRORS = (OSError, http.client.HTTPException, xmlrpc.client.Error)
"""Exceptions of a call: supervisord is not there, its answer is malformed, or it refuses (``xmlrpc.client.Fault``,
whose ``faultCode`` is one of supervisor.xmlrpc.Faults).
"""

_LONGEST = 16 << 20
"""Bytes of an answer."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(path: Path, method: str, *arguments: Any, timeout: float) -> Any:
    """Call ``supervisor.METHOD`` (or ``INTERFACE.METHOD``) of the supervisord at the socket ``path``. Each read and
    write may take ``timeout`` seconds. Blocks; raises :data:`ERRORS`.
    """
    connection = _Connection(path, timeout)
    try:
        connection.request(
            "POST",
            "/RPC2",
            xmlrpc.client.dumps(arguments, method if "." in method else f"supervisor.{method}"),
            {"Content-Type": "text/xml"},
        )
        said = connection.getresponse().read(_LONGEST)
    finally:
        connection.close()
    try:
        answer: Any = xmlrpc.client.loads(said.decode())[0][0]
    except (ExpatError, ValueError, LookupError) as error:
        raise xmlrpc.client.ResponseError(f"not an answer to {method}: {error}") from None
    return answer
