"""All background tasks and threads are started by kit/loops.py, so that none fails silently."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.unit.deploy.test_imports import TOP, python_files

ALLOWED = {
    "loops.py": "the one place",
    "eager.py": "goes on with a coroutine that has begun, which no other task can; whoever begins it keeps the task",
    "stream.py": (
        "of a program that has no asyncio: every failure of what reads ahead is raised by whoever takes what it read"
    ),
    "writeback.py": "of a program that has no asyncio: one call of the kernel, whose failure another one is told too",
}
"""Files that make tasks or threads themselves, with the reason."""

MAKERS = {"ensure_future", "create_task", "Task", "TaskGroup", "Thread", "Timer", "start_new_thread"}


def bare(source: str) -> list[int]:
    """Return the lines that make a task or a thread. A name that is imported from our own code does not count."""
    found: list[int] = []
    if not any(maker in source for maker in MAKERS):
        return found
    tree = ast.parse(source)
    ours = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("services.")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in ours):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else node.func.id
                if isinstance(node.func, ast.Name)
                else ""
            )
            if name in MAKERS:
                found.append(node.lineno)
    return found


def made(path: Path) -> list[str]:
    return [f"{path.relative_to(TOP)}:{line}" for line in bare(path.read_text())]


def test_tasks_and_threads_are_made_in_one_place() -> None:
    """The caller of kit/loops.py decides where the failure is reported."""
    strays = [place for path in python_files() if path.name not in ALLOWED for place in made(path)]
    assert not strays, f"use services/kit/loops.py: {strays}"


def test_no_exception_is_left_that_is_none() -> None:
    """A file that does not make any is not listed."""
    assert {path.name for path in python_files() if made(path)} == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "asyncio.ensure_future(x)",
        "ensure_future(x)",
        "asyncio.create_task(x)",
        "self._loop.create_task(x)",
        "asyncio.Task(x)",
        "threading.Thread(target=x).start()",
    ],
)
def test_whatever_makes_one_is_seen(line: str) -> None:
    """This holds for each name."""
    assert bare(f"def f():\n    y = {line}\n") == [2]
