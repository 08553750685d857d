"""The suite of tasks on its two lives: the store in this process, and a served process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.kit import errors, rpc
from services.kit.publisher import Publisher
from services.tasks.gateway import Gateway
from services.tasks.local import LocalTasks
from services.tasks.remote import RemoteTasks
from services.tasks.store import Tasks
from tests.suites.tasks import TasksSuite, end, leftovers, start
from tests.suites.tasks_node import NS, FakeGateway, busybox, end_all
from tests.support import ServiceProcess

pytestmark = pytest.mark.root


@pytest.fixture
async def node(place: Path) -> AsyncIterator[FakeGateway]:
    async with FakeGateway(place / "s", busybox(place)) as gateway:
        try:
            yield gateway
            assert leftovers(gateway) == []
        finally:
            await asyncio.to_thread(end_all, gateway)


@pytest.mark.once
class TestLocal(TasksSuite):
    @pytest.fixture
    async def tasks(self, node: FakeGateway, place: Path) -> AsyncIterator[Tasks]:
        async with (
            rpc.Channel(node.state / "internal.sock") as channel, Publisher(channel).running() as publisher,
            LocalTasks(place / "root", node.state, Gateway(channel, publisher)) as tasks,
        ):
            yield tasks

    async def test_what_a_client_names_is_not_kept(self, tasks: LocalTasks, node: FakeGateway) -> None:
        """Execs that are not there leave nothing behind, whatever is asked of them."""
        await start(tasks, node, "k", "sleep", "100")
        for n in range(20):
            for verb in (tasks.start, tasks.wait, tasks.get, tasks.close_stdin, tasks.delete_process):
                with pytest.raises(errors.NodeError, match="no-"):
                    await verb(NS, "k", f"no-{n}")
        (task,) = tasks._tasks.values()
        assert task.execs == {}
        await end(tasks, "k")


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
