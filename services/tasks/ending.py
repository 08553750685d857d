"""Ending a shim that lives: its task is deleted, or its create is undone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os

from services.kit import errors, tracing
from services.tasks.bundle import Address, Bundle
from services.tasks.burial import ENDING, Burial
from services.tasks.names import Names
from services.tasks.service import Service
from services.tasks.task import Task

log = logging.getLogger(__name__)

_GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
"""Annotations by which runc's shim serves several tasks from one process, in its order."""


class Ending:
    """Ends the shims of one service."""

    def __init__(self, service: Service, names: Names, burial: Burial) -> None:
        self._service, self._names, self._burial = service, names, burial

    async def end(self, task: Task) -> bool:
        """Ask the shim of a task that is ENDING to end, wait for that, and kill a shim that does not end. A shim that
        serves other tasks stays. Return whether it stays, or ended by itself and so left nothing.
        """
        with tracing.span("tasks.shim.end", task=str(task)):
            return await self._end(task)

    async def _end(self, task: Task) -> bool:
        connection, seconds = task.connection, self._service.config.shutdown_timeout
        if connection is not None:
            try:
                async with asyncio.timeout(seconds):
                    try:
                        with tracing.expecting(errors.Unavailable):  # a shim may end before it has answered
                            await connection.shutdown(seconds)
                    except errors.Unavailable as error:
                        log.debug("shim of %s: %s", task, error)
                    if not self._is_shared(task):
                        await (task.died.wait() if task.has_pid else connection.closed())
                return True
            except (errors.NodeError, TimeoutError) as error:
                log.warning("the shim of %s did not shut down: %s", task, error if str(error) else "timed out")
        if self._is_shared(task):
            return True
        if task.kill_shim():
            log.warning("the shim of %s does not end: killing it", task)
            try:
                await asyncio.wait_for(task.died.wait(), ENDING)
            except TimeoutError:
                log.error("the shim of %s (pid %d) was killed, and is there still", task, task.shim_pid)
        return False

    async def abandon(self, task: Task) -> None:
        """Undo a create: end the shim, and remove everything that shim and task left."""
        task.ends()
        if (connection := task.connection) is not None:
            seconds = self._service.config
            with contextlib.suppress(errors.NodeError, OSError):
                pid, _ = await connection.connect_pids(seconds.state_timeout)
                task.follow_pid(pid)
            with contextlib.suppress(errors.NodeError):
                await connection.delete("", seconds.cleanup_timeout)
            await self.end(task)
        await self.clear_away(task)

    async def clear_away(self, task: Task) -> None:
        """Forget a task whose shim has ended, and remove everything that it left. If that fails the shim is buried, and
        the name is taken until that is done.
        """
        if (
            (task.bundle.path.exists() or task.seen)
            and await self._burial.clean(task) is None
            and await self._burial.clean(task) is None
        ):
            self._burial.begin(task, told=False)
            return
        await self._burial.forget(task)

    async def sweep(self, task: Task) -> None:
        """Undo a create that was interrupted. Its shim may run although its address was not written: the socket path
        of runc's shim can be computed.
        """
        for address in (
            task.bundle.readable_address(),
            task.seen.address if task.seen else None,
            self._expected_address(task.bundle),
        ):
            if address is not None:
                with contextlib.suppress(errors.NodeError):
                    await task.connect(address, 1.0)
                    break
        await self.abandon(task)

    def _is_shared(self, task: Task) -> bool:
        """Return whether the shim serves another task that is known, is being created, or is still being loaded."""
        own, path = task.readable_address(), task.bundle.path
        others = [
            *(known.readable_address() for known in self._names.with_shims() if known is not task),
            *(bundle.readable_address() for bundle in self._names.found.values() if bundle.path != path),
        ]
        return own is not None and own.address in {other.address for other in others if other is not None}

    def _expected_address(self, bundle: Bundle) -> Address | None:
        annotations = bundle.spec().get("annotations") or {}
        if any(group in annotations for group in _GROUPS):
            return None  # the socket may be that of another task's shim
        gateway = self._service.environment.grpc_address
        digest = hashlib.sha256(f"{gateway}/{bundle.namespace}/{bundle.id}".encode()).hexdigest()
        path = f"/run/containerd/s/{digest}"
        return Address("ttrpc", f"unix://{path}", 3) if os.path.exists(path) else None
