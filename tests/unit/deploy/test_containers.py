"""Stopping all containers of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.namespaces.v1 import namespaces_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from api.containerd.types.task import task_pb2
from deploy import containers
from services.kit import errors, rpc
from services.kit.rpc import Call


class Tasks:
    """Some running tasks of one namespace; ``hung`` ones do not answer."""

    SERVICE = containers.TASKS

    def __init__(self, *names: str, hung: str = "") -> None:
        self.states = dict.fromkeys(names, task_pb2.RUNNING)
        self.hung = hung

    def _at(self, request: Any) -> str:
        name: str = request.container_id
        if name == self.hung:
            raise errors.Unavailable(f"the shim of task {name} does not answer")
        if name not in self.states:
            raise errors.NotFound(f"task {name}")
        return name

    async def List(self, request: Any, call: Call) -> tasks_pb2.ListTasksResponse:
        return tasks_pb2.ListTasksResponse(
            tasks=[
                task_pb2.Process(id=name, status=task_pb2.UNKNOWN if name == self.hung else state)
                for name, state in self.states.items()
            ]
        )

    async def Get(self, request: Any, call: Call) -> tasks_pb2.GetResponse:
        return tasks_pb2.GetResponse(process=task_pb2.Process(status=self.states[self._at(request)]))

    async def Kill(self, request: Any, call: Call) -> Empty:
        self.states[self._at(request)] = task_pb2.STOPPED
        return Empty()

    async def Wait(self, request: Any, call: Call) -> tasks_pb2.WaitResponse:
        self._at(request)
        return tasks_pb2.WaitResponse()

    async def Delete(self, request: Any, call: Call) -> tasks_pb2.DeleteResponse:
        del self.states[self._at(request)]
        return tasks_pb2.DeleteResponse()


class Namespaces:
    SERVICE = containers.NAMESPACES
    damaged = False

    async def List(self, request: Any, call: Call) -> namespaces_pb2.ListNamespacesResponse:
        if self.damaged:
            raise errors.DataLoss("metadata store: metadata.db is damaged")
        return namespaces_pb2.ListNamespacesResponse(namespaces=[namespaces_pb2.Namespace(name="n")])


@pytest.fixture
async def tasks(place: Path) -> AsyncIterator[Tasks]:
    tasks = Tasks("a", "b", "c")
    async with rpc.serving(place / "s", [tasks, Namespaces()], grace=0.1):
        yield tasks


async def test_all_are_stopped(tasks: Tasks, place: Path) -> None:
    """They are counted too."""
    assert await containers.stop_all(place / "s", 1.0, place / "bundles") == 3
    assert tasks.states == {}


async def test_one_that_does_not_answer_keeps_no_other_running(tasks: Tasks, place: Path) -> None:
    """It is named with the reason."""
    tasks.hung = "a"
    with pytest.raises(
        errors.FailedPrecondition, match="^still running: n/a \\(the shim of task a does not answer: unavailable\\)"
    ):
        await containers.stop_all(place / "s", 1.0, place / "bundles")
    assert list(tasks.states) == ["a"]


async def test_tasks_without_records_are_stopped_too(
    tasks: Tasks, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """metadata need not know a namespace that has bundles, and need not be able to list any."""
    monkeypatch.setattr(Namespaces, "damaged", True)
    assert await containers.stop_all(place / "s", 1.0, place / "bundles") == 0
    (place / "bundles" / "n").mkdir(parents=True)
    assert await containers.stop_all(place / "s", 1.0, place / "bundles") == 3
    assert "metadata.db is damaged" in capsys.readouterr().err
