"""Stops every container of a node, through the node's own API, as a client would."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from api.containerd.types.task import task_pb2
from client.shown import complain
from services.kit import errors, rpc

TASKS = tasks_stubs.TASKS
NAMESPACES = namespaces_stubs.NAMESPACES
KILLED_SECONDS = 15.0
"""Seconds that a task may take to end after SIGKILL."""


@dataclass(frozen=True, slots=True)
class _Task:
    namespace: str
    container: str

    @property
    def headers(self) -> dict[str, str | bytes]:
        return {rpc.NAMESPACE: self.namespace}


async def stop_all(address: Path, grace: float, bundles: Path) -> int:
    """Stop and delete every task of every namespace, and return how many there were. Each task gets SIGTERM, and
    SIGKILL after ``grace`` seconds.

    The namespaces are those that metadata knows and those that have ``bundles``, since a task keeps running when the
    records of its container are lost or cannot be read.

    The restart monitor may start a container again meanwhile, so this repeats until none is left. FailedPrecondition
    names the tasks that did not end, and why. They do not keep other tasks running.
    """
    async with rpc.Channel(address, "gateway") as channel:
        tasks, namespaces = channel.client(TASKS), channel.client(NAMESPACES)
        stopped: set[_Task] = set()
        troubles: dict[_Task, str] = {}
        for _ in range(3):
            found = await _list(tasks, namespaces, bundles)
            if not found:
                return len(stopped)
            troubles.update(
                zip(found, await asyncio.gather(*(_trouble(tasks, task, grace) for task in found)), strict=True)
            )
            stopped.update(found)
        if left := await _list(tasks, namespaces, bundles):
            raise errors.FailedPrecondition(
                "still running: "
                + ", ".join(
                    f"{task.namespace}/{task.container}" + (f" ({why})" if (why := troubles.get(task)) else "")
                    for task in left
                )
            )
        return len(stopped)


async def _list(tasks: tasks_stubs.Tasks, namespaces: namespaces_stubs.Namespaces, bundles: Path) -> list[_Task]:
    names = {path.name for path in bundles.glob("*") if path.is_dir() and not path.name.startswith(".")}
    try:
        names |= {
            namespace.name for namespace in (await namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces
        }
    except errors.NodeError as error:
        complain(f"only namespaces that have tasks are searched: {error}")
    found = []
    for name in sorted(names):
        listed = await tasks.List(tasks_pb2.ListTasksRequest(), headers={rpc.NAMESPACE: name})
        found += [_Task(name, task.id or task.container_id) for task in listed.tasks]
    return found


async def _trouble(tasks: tasks_stubs.Tasks, task: _Task, grace: float) -> str:
    """Stop a task. The result is the reason if that failed, or an empty string."""
    try:
        await _stop(tasks, task, grace)
    except errors.NodeError as error:
        return str(error)
    return ""


async def _stop(tasks: tasks_stubs.Tasks, task: _Task, grace: float) -> None:
    state = await _state(tasks, task)
    if state == task_pb2.PAUSED:
        await tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=task.container), headers=task.headers)
    if state not in (None, task_pb2.STOPPED, task_pb2.CREATED) and grace > 0:
        await _kill(tasks, task, signal.SIGTERM, everyone=False)
        await _ended(tasks, task, grace)
    if await _state(tasks, task) not in (None, task_pb2.STOPPED):
        await _kill(tasks, task, signal.SIGKILL, everyone=True)
        await _ended(tasks, task, KILLED_SECONDS)
    try:
        await tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=task.container), headers=task.headers, timeout=60.0)
    except errors.NotFound:
        return  # its client deleted it first, as `ctr run --rm` does


async def _state(tasks: tasks_stubs.Tasks, task: _Task) -> int | None:
    """The task's state; None if the task is gone."""
    try:
        response = await tasks.Get(tasks_pb2.GetRequest(container_id=task.container), headers=task.headers)
    except errors.NotFound:
        return None
    return int(response.process.status)


async def _kill(tasks: tasks_stubs.Tasks, task: _Task, number: int, *, everyone: bool) -> None:
    request = tasks_pb2.KillRequest(container_id=task.container, signal=number, all=everyone)
    try:
        await tasks.Kill(request, headers=task.headers)
    except (errors.NotFound, errors.FailedPrecondition):
        return  # it has ended meanwhile


async def _ended(tasks: tasks_stubs.Tasks, task: _Task, seconds: float) -> None:
    """Wait until the task ends, for at most ``seconds``."""
    try:
        await tasks.Wait(tasks_pb2.WaitRequest(container_id=task.container), headers=task.headers, timeout=seconds)
    except (errors.NotFound, errors.DeadlineExceeded):
        return
