"""The suite of tasks in each environment: the store in this process, its process through the node's gateway, and
Debian's containerd, to check the suite itself.
"""

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

from api.containerd.types import introspection_pb2
from api.containerd.types.runc.options import oci_pb2
from services.kit import errors
from services.kit.publisher import Publisher
from services.oci.mounts import Mount
from services.oci.prepared import ALLOWED
from services.snapshots.erofs.place import write_index
from services.snapshots.erofs.written import collect
from services.tasks.config import Config
from services.tasks.gateway import Gateway
from services.tasks.local import LocalTasks
from services.tasks.remote import RemoteTasks
from services.tasks.roots import Roots
from services.tasks.shim import Connection
from services.tasks.store import Container, CreateOptions, Exit, Tasks
from services.tasks.task import Task
from tests.suites.tasks import TasksSuite, end, runtimes, shim_of, start
from tests.suites.tasks_node import RUNC, TasksNode, alive, leftovers, tasks_node
from tests.support import eventually_async

pytestmark = pytest.mark.root


@contextlib.asynccontextmanager
async def local(
    node: TasksNode, config: Config = Config(), connection: type[Connection] = Connection
) -> AsyncIterator[LocalTasks]:
    """The store in this process, in the place of a node's."""
    async with (
        Publisher(node.channel).running() as publisher,
        LocalTasks(node.root, node.state, Gateway(node.channel, publisher), config, connection=connection) as tasks,
    ):
        yield tasks


@pytest.mark.once
class TestLocal(TasksSuite):
    """The store."""

    @pytest.fixture
    async def node(self, others: Path, place: Path) -> AsyncIterator[TasksNode]:
        async with tasks_node(others / "s/internal.sock", others, place) as node:
            yield node

    @pytest.fixture
    async def tasks(self, node: TasksNode) -> AsyncIterator[Tasks]:
        async with local(node) as tasks:
            yield tasks

    async def test_names_from_clients_are_not_kept(self, tasks: LocalTasks, node: TasksNode) -> None:
        """Execs that do not exist leave nothing behind, for any call."""
        await start(tasks, node, "k", "sleep", "100")
        for n in range(20):
            for verb in (tasks.start, tasks.wait, tasks.get, tasks.close_stdin, tasks.delete_process):
                with pytest.raises(errors.NodeError, match="no-"):
                    await verb(node.ns, "k", f"no-{n}")
        (task,) = tasks._names.tasks.values()
        assert task.execs == {}
        await end(tasks, node, "k")

    async def test_a_root_file_system_of_images(self, tasks: LocalTasks, node: TasksNode, place: Path) -> None:
        """runc's shim mounts an overlay on layers that are mounted for it; they go with the task. A shim that mounts
        such images itself gets them as they are.
        """
        layer, own = place / "layer", place / "own"
        for directory in (layer, own / "fs", own / "work"):
            directory.mkdir(parents=True)
        with (layer / "data").open("w+b") as data:
            tree, size = collect(str(node.rootfs), data.fileno())
        write_index(tree, str(layer), size)
        image = Mount("erofs", f"{layer}/index", ("ro", "loop", f"device={layer}/data"))
        options = (f"upperdir={own}/fs", f"workdir={own}/work", "lowerdir={{ mount 0 }}")
        rootfs = (image, Mount("format/mkdir/overlay", "overlay", options))
        await node.add("i", "sh", "-c", "echo written >/etc/written && exec sleep 100")
        await tasks.create(node.ns, "i", CreateOptions(rootfs=rootfs))
        await tasks.start(node.ns, "i")
        await eventually_async(lambda: asyncio.sleep(0, (own / "fs/etc/written").exists()), "it does not run")
        await end(tasks, node, "i")
        await eventually_async(lambda: asyncio.sleep(0, leftovers(node) == []), "something is left")

        info = introspection_pb2.RuntimeInfo(annotations={ALLOWED: "mkdir/*,format/*,erofs"}).SerializeToString()
        (place / "info").write_bytes(info)
        program = place / "containerd-shim-own-v1"
        shim = shutil.which("containerd-shim-runc-v2")
        program.write_text(f'#!/bin/sh\n[ "$1" = -info ] && exec cat {place}/info\nexec {shim} "$@"\n')
        program.chmod(0o755)
        with pytest.raises(errors.NodeError, match="failed to mount rootfs component"):
            await tasks.create(node.ns, "i", CreateOptions(rootfs=rootfs, runtime=str(program)))
        assert leftovers(node) == []

    async def test_nothing_waits_for_the_shim_of_a_task_that_is_gone(self, tasks: LocalTasks, node: TasksNode) -> None:
        """The shim lives on for the other tasks of its group."""
        group: dict[str, Any] = {"annotations": {"io.containerd.runc.v2.group": "g"}}
        await start(tasks, node, "g", "sleep", "100", **group)
        await eventually_async(
            lambda: asyncio.sleep(0, tasks._names.tasks[node.ns, "g"].has_pid), "its shim is not known"
        )
        before = len(tasks._service.background)
        for n in range(3):
            await start(tasks, node, f"g{n}", "sleep", "100", **group)
            await eventually_async(
                lambda n=n: asyncio.sleep(0, tasks._names.tasks[node.ns, f"g{n}"].has_pid),  # type: ignore[misc]
                "its shim is not known",
            )
            await end(tasks, node, f"g{n}")
        await eventually_async(
            lambda: asyncio.sleep(0, len(tasks._service.background) == before), "something waits for ever"
        )
        await end(tasks, node, "g")

    async def test_a_shim_that_dies_while_it_is_connected_to_is_noticed(self, node: TasksNode) -> None:
        """A process that is dying accepts connections as long as its socket exists."""
        connecting = asyncio.Event()

        class Dying(Connection):
            async def connect(self, timeout: float) -> None:
                if task is None:
                    await super().connect(timeout)
                else:
                    connecting.set()
                    await asyncio.wait_for(task.died.wait(), timeout)

        task: Task | None = None
        async with local(node, connection=Dying) as tasks:
            await start(tasks, node, "d", "sleep", "100")
            one = tasks._names.tasks[node.ns, "d"]
            await eventually_async(lambda: asyncio.sleep(0, one.has_pid), "its shim is not known")
            task = one
            assert task.connection is not None
            await task.connection.close()
            await asyncio.wait_for(connecting.wait(), 5)
            os.kill(shim_of(node, "d"), signal.SIGKILL)
            await node.topic("d", "/tasks/delete")

    async def test_a_shim_in_whose_group_a_task_is_being_created_is_not_killed(
        self, node: TasksNode, place: Path
    ) -> None:
        """Its last task is deleted, but it does not end, since it is about to serve the new one."""
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
                    made.append(asyncio.create_task(tasks.create(node.ns, "g2", CreateOptions(rootfs=(node.mount,)))))
                    await eventually_async(lambda: asyncio.sleep(0, creating.exists()), "it is not being created")
                return how

        async with local(node, Config(shutdown_timeout=1.0), connection=Late) as tasks:
            await start(tasks, node, "g1", "sleep", "100", **group)
            shim = shim_of(node, "g1")
            await eventually_async(
                lambda: asyncio.sleep(0, tasks._names.tasks[node.ns, "g1"].has_pid), "its shim is not known"
            )
            await node.add("g2", "sleep", "100", **group)
            await end(tasks, node, "g1")
            assert alive(shim)
            slow.unlink()
            await asyncio.wait_for(made[0], 15)
            await tasks.start(node.ns, "g2")
            await end(tasks, node, "g2")

    async def test_a_shim_whose_program_does_not_end_is_ended(self, node: TasksNode, place: Path) -> None:
        """Its start left it behind without an answer: after the failed create it has no container, and no other code
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
        async with local(node, Config(call_timeout=4.0)) as tasks:
            await node.add("s", "sleep", "100", runtime=str(program))
            with pytest.raises(errors.DeadlineExceeded, match="start: not done after 4 s"):
                await tasks.create(node.ns, "s", CreateOptions(rootfs=(node.mount,)))
            assert leftovers(node) == []

    async def test_a_deletion_does_not_wait_for_the_disk(self, tasks: LocalTasks, node: TasksNode) -> None:
        """What waits to be written below the root file system is written when an overlay is unmounted for the last
        time: that comes behind the answer, and only a task of the same name waits for it.
        """
        written = asyncio.Event()
        held: list[int] = []

        async def let_go(root: int) -> None:
            held.append(root)
            await written.wait()
            await Roots().let_go(root)

        tasks._burial._let_go = let_go
        snapshot = node.root / f"snapshot-{node.ns}"
        for name in ("upper", "work"):
            (snapshot / name).mkdir(parents=True)
        dirs = f"workdir={snapshot / 'work'}", f"upperdir={snapshot / 'upper'}", f"lowerdir={node.rootfs}"
        options = CreateOptions(rootfs=(Mount("overlay", "overlay", (*dirs, "index=off")),))
        await node.add("o", "sh", "-c", "echo said >/file")
        await tasks.create(node.ns, "o", options)
        await tasks.start(node.ns, "o")
        await asyncio.wait_for(tasks.wait(node.ns, "o"), 15)
        await asyncio.wait_for(tasks.delete(node.ns, "o"), 15)
        await self.nothing_left(node)
        await eventually_async(lambda: asyncio.sleep(0, held), "it is not let go of")
        assert os.stat("file", dir_fd=held[0]).st_size == len("said\n")
        with pytest.raises(errors.NotFound, match=r"^task o not found$"):
            await tasks.get(node.ns, "o")
        again = asyncio.create_task(tasks.create(node.ns, "o", options))
        other = await start(tasks, node, "other", "sleep", "100")
        assert alive(other)
        assert not again.done()
        written.set()
        assert await asyncio.wait_for(again, 15)
        await end(tasks, node, "other")
        tasks._burial._let_go = Roots().let_go
        await tasks.delete(node.ns, "o")
        await asyncio.wait_for(tasks._names.settled((node.ns, "o")), 15)
        shutil.rmtree(snapshot)

    async def test_bad_names_never_reach_the_disk(
        self, tasks: LocalTasks, node: TasksNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A container id that is no identifier is InvalidArgument, even if there is a record of it."""

        async def container(_: Gateway, namespace: str, name: str) -> Container:
            return Container(name, RUNC)

        monkeypatch.setattr(Gateway, "container", container)
        with pytest.raises(errors.InvalidArgument, match=r"^invalid task id ../evil: identifier .* must match"):
            await tasks.create(node.ns, "../evil", CreateOptions(rootfs=(node.mount,)))
        assert leftovers(node) == []


class TestGateway(TasksSuite):
    """python -m services.tasks, through the gateway."""

    @pytest.fixture
    async def node(self, served: Path, place: Path) -> AsyncIterator[TasksNode]:
        async with tasks_node(served / "s/containerd.sock", served, place) as node:
            yield node

    @pytest.fixture
    async def tasks(self, node: TasksNode) -> Tasks:
        tasks = RemoteTasks(node.channel)

        async def found() -> bool:
            try:
                return list(await tasks.list(node.ns)) == []
            except errors.Unavailable:
                return False

        await eventually_async(found, "the gateway does not find the process, which began after it")
        return tasks


@pytest.mark.once
class TestContainerd(TasksSuite):
    """Debian's containerd."""

    containerd = True

    @pytest.fixture
    def runtime(self) -> str:
        """Its own shim only: 1.6 does not understand what later ones print."""
        return runtimes()[0]

    @pytest.fixture
    async def node(self, debian: Path, place: Path) -> AsyncIterator[TasksNode]:
        async with tasks_node(debian / "c.sock", debian, place, debian / "runc") as node:
            yield node

    @pytest.fixture
    async def tasks(self, node: TasksNode) -> Tasks:
        return RemoteTasks(node.channel)
