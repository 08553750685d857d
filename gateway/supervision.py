"""supervisord knows whether a process was stopped on purpose.

It is asked only while a service is not there. The gateway must also run without a supervisor (in tests, in the
foreground): no answer means not stopped.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.kit import supervisor

STOPPED, STOPPING, FATAL = 0, 40, 200


class Supervision:
    """The supervisor at ``socket_path``."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    async def stopped(self, program: str) -> bool:
        """Whether the operator stopped ``program``, or supervisord has given it up; answers within a second."""
        return await asyncio.to_thread(self._stopped, program)

    def _stopped(self, program: str) -> bool:
        try:
            answer = supervisor.call(self._path, "getProcessInfo", program, timeout=0.8)
        except supervisor.ERRORS:
            return False
        return isinstance(answer, dict) and answer.get("state") in (STOPPED, STOPPING, FATAL)
