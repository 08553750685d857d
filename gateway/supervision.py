"""What supervisord says of a process: whether it was stopped on purpose.

Asked only when a service is not there. The gateway must also run without a supervisor (in tests, in the foreground): no answer means not stopped.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any

STOPPED, STOPPING, FATAL = 0, 40, 200


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=0.8)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Supervision:
    """The supervisor at ``socket_path``."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    async def stopped(self, program: str) -> bool:
        """Whether ``program`` was stopped by its operator, or given up by supervisord; within a second."""
        return await asyncio.to_thread(self._stopped, program)

    def _stopped(self, program: str) -> bool:
        try:
            connection = _UnixConnection(self._path)
            try:
                body = xmlrpc.client.dumps((program,), "supervisor.getProcessInfo")
                connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
                answer: Any = xmlrpc.client.loads(connection.getresponse().read().decode())[0][0]
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False
        return isinstance(answer, dict) and answer.get("state") in (STOPPED, STOPPING, FATAL)
