"""Parts of the task service that need no shim."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.kit import errors
from services.tasks import dead_shim, local
from services.tasks.bundle import Address, Bundle
from services.tasks.store import Exit


def test_what_the_system_said_is_told_in_gos_words() -> None:
    """Behind what was being done, and with the path; an error of ours keeps its class."""
    with pytest.raises(errors.Unknown) as caught, local._prefixed("failed to start shim: "):
        os.stat("/Absent/program")
    assert str(caught.value) == "failed to start shim: /Absent/program: no such file or directory"
    with (
        pytest.raises(errors.NotFound, match="^failed to delete task: task a: not found$"),
        local._prefixed("failed to delete task: "),
    ):
        raise errors.NotFound("task a")


@pytest.mark.parametrize(
    "failure", [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files")]
)
async def test_cleaning_up_is_tried_again_whatever_it_fails_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """A task that is neither forgotten nor tried again would be there for ever, and its name taken."""
    told: list[str] = []
    node = SimpleNamespace(exited=lambda *_: told.append("exit"), deleted=lambda *_: told.append("delete"))

    async def delete(_timeout: float) -> Exit:
        return Exit(137, 1, 7)

    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(None)
    (bundle.path / "init.pid").write_text("7")
    tasks = local.LocalTasks(place / "root", place / "state", node)
    for directory in (tasks._sightings, tasks._exits, tasks._checkpoints):
        directory.mkdir(parents=True)
    task = local._Task(bundle, SimpleNamespace(path="/bin/shim", delete=delete))  # type: ignore[arg-type]
    failures = [failure]

    def end(*_: object) -> list[int]:
        if failures:
            raise failures.pop()
        return []

    monkeypatch.setattr(dead_shim, "end", end)
    await asyncio.wait_for(tasks._bury(task), 10)
    assert told == ["exit", "delete"]
    assert task.attempts == 1
    assert task.gone
    assert not bundle.path.exists()


async def test_a_shim_is_followed_again_whatever_fails_at_first(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection was lost, and there are no descriptors for a moment: nobody else would hear of its death."""
    tasks = local.LocalTasks(place / "root", place / "state", SimpleNamespace())
    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(None)
    bundle.write_address(Address("ttrpc", "unix:///nowhere", 3))
    task = local._Task(bundle, SimpleNamespace(path="/bin/shim"))  # type: ignore[arg-type]
    failing = [OSError(errno.EMFILE, "too many open files"), ZeroDivisionError("unthought of")]

    async def connect_pids(_timeout: float) -> tuple[int, int]:
        if len(failing) == 1:
            raise failing.pop()
        return os.getpid(), 0

    async def connect(task: Any, *_: object) -> None:
        if len(failing) == 2:
            raise failing.pop()
        task.connection = SimpleNamespace(connect_pids=connect_pids)

    tasks._connect = connect  # type: ignore[method-assign, assignment]
    try:
        await asyncio.wait_for(tasks._recover(task), 15)
        assert task.has_pid
        assert task.shim_pid == os.getpid()
        assert not failing
    finally:
        await tasks._background.cancel()
        task.close()
    assert "connecting to the shim of" in caplog.text
    assert "for its pid" in caplog.text
