"""The suite of tasks on its two lives: the store in this process, and a served process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.containerd.types.runc.options import oci_pb2
from services.kit import errors, rpc
from services.kit.publisher import Publisher
from services.tasks.config import Config
from services.tasks.gateway import Gateway
from services.tasks.local import LocalTasks
from services.tasks.remote import RemoteTasks
from services.tasks.shim import Connection
from services.tasks.store import CreateOptions, Exit, Tasks
from services.tasks.task import Task
from tests.suites.tasks import TasksSuite, end, leftovers, shim_of, start
from tests.suites.tasks_node import NS, FakeGateway, alive, busybox, end_all
from tests.support import ServiceProcess, eventually_async

pytestmark = pytest.mark.root


@pytest.fixture
async def node(place: Path) -> AsyncIterator[FakeGateway]:
    async with FakeGateway(place / "s", busybox(place)) as gateway:
        try:
            yield gateway
            assert leftovers(gateway) == []
        finally:
            await asyncio.to_thread(end_all, gateway)


@contextlib.asynccontextmanager
async def local_tasks(
    node: FakeGateway, place: Path, config: Config = Config(), connection: type[Connection] = Connection
) -> AsyncIterator[LocalTasks]:
    async with (
        rpc.Channel(node.state / "internal.sock") as channel,
        Publisher(channel).running() as publisher,
        LocalTasks(place / "root", node.state, Gateway(channel, publisher), config, connection=connection) as tasks,
    ):
        yield tasks


@pytest.mark.once
class TestLocal(TasksSuite):
    @pytest.fixture
    async def tasks(self, node: FakeGateway, place: Path) -> AsyncIterator[Tasks]:
        async with local_tasks(node, place) as tasks:
            yield tasks

    async def test_what_a_client_names_is_not_kept(self, tasks: LocalTasks, node: FakeGateway) -> None:
        """Execs that are not there leave nothing behind, whatever is asked of them."""
        await start(tasks, node, "k", "sleep", "100")
        for n in range(20):
            for verb in (tasks.start, tasks.wait, tasks.get, tasks.close_stdin, tasks.delete_process):
                with pytest.raises(errors.NodeError, match="no-"):
                    await verb(NS, "k", f"no-{n}")
        (task,) = tasks._names.tasks.values()
        assert task.execs == {}
        await end(tasks, "k")

    async def test_nothing_waits_for_the_shim_of_a_task_that_is_gone(
        self, tasks: LocalTasks, node: FakeGateway
    ) -> None:
        """In a group it lives on, for the others."""
        group: dict[str, Any] = {"annotations": {"io.containerd.runc.v2.group": "g"}}
        await start(tasks, node, "g", "sleep", "100", **group)
        await eventually_async(lambda: asyncio.sleep(0, tasks._names.tasks[NS, "g"].has_pid), "its shim is not known")
        before = len(tasks._service.background)
        for n in range(3):
            await start(tasks, node, f"g{n}", "sleep", "100", **group)
            await eventually_async(
                lambda n=n: asyncio.sleep(0, tasks._names.tasks[NS, f"g{n}"].has_pid),  # type: ignore[misc]
                "its shim is not known",
            )
            await end(tasks, f"g{n}")
        await eventually_async(
            lambda: asyncio.sleep(0, len(tasks._service.background) == before), "something waits for ever"
        )
        await end(tasks, "g")

    async def test_a_shim_that_dies_while_it_is_connected_to_is_noticed(self, node: FakeGateway, place: Path) -> None:
        """A process that is dying takes connections as long as its socket is there."""
        connecting = asyncio.Event()

        class Dying(Connection):
            async def connect(self, timeout: float) -> None:
                if task is None:
                    await super().connect(timeout)
                else:
                    connecting.set()
                    await asyncio.wait_for(task.died.wait(), timeout)

        task: Task | None = None
        async with local_tasks(node, place, connection=Dying) as tasks:
            await start(tasks, node, "d", "sleep", "100")
            one = tasks._names.tasks[NS, "d"]
            await eventually_async(lambda: asyncio.sleep(0, one.has_pid), "its shim is not known")
            task = one
            assert task.connection is not None
            await task.connection.close()
            await asyncio.wait_for(connecting.wait(), 5)
            os.kill(shim_of(node, "d"), signal.SIGKILL)
            await node.topic("d", "/tasks/delete")

    async def test_a_shim_in_whose_group_a_task_is_being_created_is_not_killed(
        self, node: FakeGateway, place: Path
    ) -> None:
        """Where it does not end, since it is about to serve that one, when its last task is deleted."""
        slow, creating, runc = place / "slow", place / "creating", place / "runc"
        runc.write_text(f"""#!/bin/sh
for word; do
    [ "$word" != create ] || [ ! -e {slow} ] || touch {creating}
    while [ -e {creating} ] && [ -e {slow} ]; do sleep 0.05; done
done
exec {shutil.which("runc") or "/usr/sbin/runc"} "$@"
""")
        runc.chmod(0o755)
        group: dict[str, Any] = {
            "annotations": {"io.containerd.runc.v2.group": "g"},
            "options": oci_pb2.Options(binary_name=str(runc)),
        }
        made: list[asyncio.Task[int]] = []

        class Late(Connection):
            async def delete(self, exec_id: str, timeout: float) -> Exit:
                how = await super().delete(exec_id, timeout)
                if not made:
                    slow.touch()
                    made.append(asyncio.create_task(tasks.create(NS, "g2", CreateOptions(rootfs=(node.mount,)))))
                    await eventually_async(lambda: asyncio.sleep(0, creating.exists()), "it is not being created")
                return how

        async with local_tasks(node, place, Config(shutdown_timeout=1.0), connection=Late) as tasks:
            await start(tasks, node, "g1", "sleep", "100", **group)
            shim = shim_of(node, "g1")
            await eventually_async(
                lambda: asyncio.sleep(0, tasks._names.tasks[NS, "g1"].has_pid), "its shim is not known"
            )
            node.add("g2", "sleep", "100", **group)
            await end(tasks, "g1")
            assert alive(shim)
            slow.unlink()
            await asyncio.wait_for(made[0], 15)
            await tasks.start(NS, "g2")
            await end(tasks, "g2")

    async def test_a_shim_whose_program_does_not_end_is_ended(self, node: FakeGateway, place: Path) -> None:
        """Its start left it behind, and said nothing: when the create fails it has no container, and nobody else
        would end it.
        """
        program = place / "containerd-shim-runc-v2"
        program.write_text(f"""#!/bin/sh
for verb; do :; done
[ "$verb" = start ] || exec {shutil.which("containerd-shim-runc-v2")} "$@"
{shutil.which("containerd-shim-runc-v2")} "$@" >/dev/null
exec sleep 1000
""")
        program.chmod(0o755)
        async with local_tasks(node, place, Config(call_timeout=4.0)) as tasks:
            node.add("s", "sleep", "100", runtime=str(program))
            with pytest.raises(errors.DeadlineExceeded, match="start: not done after 4 s"):
                await tasks.create(NS, "s", CreateOptions(rootfs=(node.mount,)))
            assert leftovers(node) == []


class TestServed(TasksSuite):
    @pytest.fixture
    async def tasks(self, node: FakeGateway, place: Path) -> AsyncIterator[Tasks]:
        process = await asyncio.to_thread(ServiceProcess, "services.tasks", place / "root", node.state)
        try:
            async with rpc.Channel(node.state / "tasks.sock") as channel:
                yield RemoteTasks(channel)
        finally:
            await asyncio.to_thread(process.stop)
            assert "Traceback" not in process.text(), process.text()
