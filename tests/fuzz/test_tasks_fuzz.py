"""Random clients of tasks whose shims answer late, lose connections and die at any moment.

Whatever the order, each task ends once: it is cleaned up at most once, its end is reported once, and no connection,
claim, file or background work is left. No event meets a state for which the table of a task's life has no row.

``make fuzz`` runs it for a twentieth of its time, from a random seed; here 6 rounds are run, from the seed that a
failure prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.kit import errors
from services.tasks.bundle import TASKS, Address
from services.tasks.burial import Burial
from services.tasks.config import Config
from services.tasks.local import LocalTasks
from services.tasks.store import Container, Exit, Process, Status
from services.tasks.task import Life, Task
from tests.support import eventually_async

SEED = 20261129
NAMES = ("a", "b", "c", "d")
SECONDS = Config(shutdown_timeout=0.05, load_timeout=0.5, cleanup_timeout=0.2)


class Shim:
    """One task's shim, in this process. With a ``process`` it has that pid, which ends when the shim dies."""

    def __init__(self, chance: random.Random, process: asyncio.subprocess.Process | None) -> None:
        self.chance, self.process = chance, process
        self.is_alive = self.has_task = True
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.connections: set[Connection] = set()

    def die(self) -> None:
        self.is_alive = False
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        for connection in list(self.connections):
            connection.end()

    def end_task(self, status: int) -> None:
        if not self.exit.done():
            self.exit.set_result(Exit(status, 1))

    async def pause(self) -> None:
        """Let other tasks run first, or not."""
        for _ in range(self.chance.choice((0, 0, 1, 2, 5))):
            await asyncio.sleep(0)
        if self.chance.random() < 0.2:
            await asyncio.sleep(self.chance.random() * 0.01)

    def soon(self, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self.chance.random() * 0.01, what)

    async def delete(self, _timeout: float) -> Exit:
        """The shim's program cleans up."""
        await self.pause()
        self.end_task(137)
        if self.chance.random() < 0.3:
            raise errors.Unknown("the program failed")
        return Exit(137, 1, 7)


class Connection:
    """A connection to the shim of the task's name."""

    shims: dict[str, Shim]

    def __init__(self, address: Address, namespace: str, name: str, on_close: Callable[[], None]) -> None:
        self.address, self.shim = address, self.shims[name]
        self.version = self.shim.chance.choice((2, 3))
        self._on_close, self._ended = on_close, asyncio.Event()

    def end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self.shim.connections.discard(self)
            self._on_close()

    async def connect(self, _timeout: float) -> None:
        await self.shim.pause()
        self._check()
        if not self.shim.is_alive:
            if self.shim.chance.random() < 0.8:
                raise errors.Unavailable("nobody listens") from ConnectionRefusedError()
            self.shim.soon(self.end)  # a process that is dying accepts connections
        self.shim.connections.add(self)
        await self.shim.pause()
        self._check()

    async def close(self) -> None:
        await self.shim.pause()
        self.end()
        await self.shim.pause()

    async def closed(self) -> None:
        await self._ended.wait()

    def _check(self) -> None:
        if self._ended.is_set():
            raise errors.Unavailable("ttrpc: closed")

    async def _answer(self, answer: Callable[[], Any]) -> Any:
        """Answer a request; the answer may be lost on its way, after the request had its effect."""
        await self.shim.pause()
        self._check()
        result = answer()
        await self.shim.pause()
        if self.shim.chance.random() < 0.5:
            self._check()
        if isinstance(result, Exception):
            raise result
        return result

    async def connect_pids(self, _timeout: float) -> tuple[int, int]:
        if self.shim.chance.random() < 0.1:
            raise errors.DeadlineExceeded("it is slow")
        process = self.shim.process
        found: tuple[int, int] = await self._answer(lambda: (process.pid if process is not None else 0, 7))
        return found

    async def state(self, _exec_id: str, _timeout: float) -> Process:
        status = Status.STOPPED if self.shim.exit.done() else Status.RUNNING
        found: Process = await self._answer(
            lambda: Process("", 7, status) if self.shim.has_task else errors.NotFound("process")
        )
        return found

    async def kill(self, *_: object) -> None:
        await self._answer(lambda: self.shim.end_task(137))

    async def delete(self, _exec_id: str, _timeout: float) -> Exit:
        def answer() -> Exit | Exception:
            if not self.shim.has_task:
                return errors.NotFound("process")
            if not self.shim.exit.done():
                return errors.FailedPrecondition("cannot delete a running process")
            self.shim.has_task = False
            if self.shim.chance.random() < 0.2:
                self.shim.soon(self.shim.die)
            return self.shim.exit.result()

        how: Exit = await self._answer(answer)
        return how

    async def shutdown(self, _timeout: float) -> None:
        def answer() -> None:
            if self.shim.chance.random() < 0.9:
                self.shim.soon(self.shim.die)

        await self._answer(answer)

    async def wait(self, _exec_id: str) -> Exit:
        await self.shim.pause()
        self._check()
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait((self.shim.exit, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not self.shim.exit.done():
            self._check()
        return self.shim.exit.result()


class Node:
    """The rest of the node, which works."""

    reachable = True

    def exited(self, *_: object) -> None:
        """Exits may be published twice."""

    deleted = exited

    async def container(self, _namespace: str, name: str) -> Container:
        return Container(name, "io.containerd.runc.v2")


async def client(tasks: LocalTasks, name: str, chance: random.Random) -> None:
    """Make some requests, none of which may hang."""

    async def wait() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(tasks.wait("n", name), 0.02)

    for _ in range(chance.randrange(6)):
        await asyncio.sleep(chance.random() * 0.01)
        requests: list[Callable[[], Any]] = [
            lambda: tasks.delete("n", name),
            lambda: tasks.kill("n", name, "", 9, everything=False),
            lambda: tasks.get("n", name),
            lambda: tasks.list("n"),
            wait,
        ]
        with contextlib.suppress(errors.NodeError):
            async with asyncio.timeout(30):
                await chance.choice(requests)()


async def mishaps(shim: Shim) -> None:
    for _ in range(shim.chance.randrange(4)):
        await asyncio.sleep(shim.chance.random() * 0.02)
        shim.chance.choice((shim.cut, shim.cut, shim.die, lambda: shim.end_task(3)))()


async def lives(place: Path, chance: random.Random) -> None:
    """Run four tasks, from their registration until all are gone."""
    buried: list[str] = []
    gone: list[str] = []
    kind = type("Connection", (Connection,), {"shims": {}})
    tasks = LocalTasks(
        place / "root",
        place / "state",
        Node(),  # type: ignore[arg-type]
        SECONDS,
        on_gone=lambda _namespace, name: gone.append(name),
        connection=kind,
    )

    class Counted(Burial):
        def begin(self, task: Task, *, told: bool = True) -> None:
            buried.append(task.name)
            super().begin(task, told=told)

    service, names = tasks._service, tasks._names
    tasks._burial = Counted(service, names, end=lambda _seen, _seconds: [])
    tasks._ending._burial = tasks._loading._burial = tasks._burial
    async with contextlib.AsyncExitStack() as stack:
        shims: list[Shim] = []
        await stack.enter_async_context(tasks)
        for name in NAMES:
            process = None
            if chance.random() < 0.6:
                process = await asyncio.create_subprocess_exec("sleep", "100")
                stack.push_async_callback(process.wait)
            shims.append(shim := Shim(chance, process))
            stack.callback(shim.die)
            kind.shims[name] = shim  # type: ignore[attr-defined]
            bundle, address = service.bundle("n", name), Address("ttrpc", f"unix:///{name}", 3)
            bundle.create(None)
            bundle.write_address(address)
            (bundle.path / "init.pid").write_text("7")
            task = Task(bundle, SimpleNamespace(path="/bin/shim", delete=shim.delete), service)  # type: ignore[arg-type]
            if chance.random() < 0.8:
                await task.connect(address, 1.0)
            names.tasks[task.key] = task
            task.follow(tasks._burial.begin)
            task.watch(task.init)
        made = list(names.tasks.values())
        await asyncio.gather(
            *(client(tasks, chance.choice(NAMES), chance) for _ in range(8)), *(mishaps(shim) for shim in shims)
        )
        for name, shim in zip(NAMES, shims, strict=True):
            with contextlib.suppress(errors.NodeError):
                await tasks.kill("n", name, "", 9, everything=False)
                await tasks.delete("n", name)
            if ("n", name) in names.tasks:  # an answer was lost
                shim.die()
        await asyncio.wait_for(tasks._endings.wait(), 30)
        await eventually_async(lambda: asyncio.sleep(0, not names.tasks), f"they are not gone: {names.tasks}", 30)
        await asyncio.wait_for(service.background.wait(), 30)
        assert sorted(gone) == list(NAMES)
        assert sorted(set(buried)) == sorted(buried)
        assert [task.life for task in made] == [Life.GONE] * len(made)
        assert [(task.connection, task._pidfd) for task in made] == [(None, -1)] * len(made)
        assert [shim.connections for shim in shims] == [set()] * len(shims)
        assert not any(names.is_taken(("n", name)) for name in NAMES)
        for directory in (service.state / TASKS / "n", service.root / TASKS / "n", service.state / "tasks/exits"):
            assert list(directory.iterdir()) == []


async def test_tasks_end_once_whatever_happens(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0")) / 20
    first = int(os.environ.get("FUZZ_SEED", SEED))
    seed = first
    while seed < first + 6 or time.monotonic() < end:
        print(f"FUZZ_SEED={seed}")
        await lives(place / str(seed), random.Random(seed))
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
        seed += 1
