"""The tasks service as a process: killed, restarted, and without its gateway for a while; containers are not
affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.containerd.types.runc.options import oci_pb2
from services.kit import errors, rpc
from services.tasks.bundle import TASKS
from services.tasks.remote import RemoteTasks
from services.tasks.store import IO, CreateOptions, Status
from tests.suites.tasks import LIFE, Hindered, end, exec_spec, in_status, listed_as, runtimes, shim_of, start
from tests.suites.tasks_node import RESTART, TasksNode, alive, gone, leftovers, output, tasks_node
from tests.support import ServiceProcess, eventually_async, freeze, mounts_below

pytestmark = pytest.mark.root

CONFIG = """
[tasks]
restart_interval = "1s"
load_timeout = "1s"
cleanup_timeout = "2s"
"""


class Service:
    """The process beside those of a node, and a client."""

    def __init__(self, node: TasksNode, gateway: ServiceProcess) -> None:
        self.node, self.gateway = node, gateway
        self.config, self.faults = node.place / "c.toml", node.place / "faults"
        self.config.write_text(CONFIG)
        self.faults.mkdir()
        self.channel = rpc.Channel(node.state / "tasks.sock")
        self.tasks = RemoteTasks(self.channel)

    async def open(self) -> None:
        self.process = await asyncio.to_thread(
            ServiceProcess,
            "services.tasks",
            self.node.root,
            self.node.state,
            config=self.config,
            env={"SPLITD_FAULTS": str(self.faults)},
        )

    async def close(self) -> None:
        await self.channel.close()
        await asyncio.to_thread(self.process.stop)
        assert "Traceback" not in self.process.text(), self.process.text()

    async def kill(self) -> None:
        await asyncio.to_thread(self.process.kill)

    async def again(self) -> None:
        """Start it after a kill."""
        await asyncio.to_thread(self.process.start)

    async def answering(self) -> None:
        async def there() -> bool:
            try:
                await self.tasks.list(self.node.ns)
            except errors.Unavailable:
                return False
            return True

        await eventually_async(there)


@pytest.fixture
async def service(gateway: ServiceProcess, others: Path, place: Path) -> AsyncIterator[Service]:
    async with tasks_node(others / "s/internal.sock", others, place) as node:
        made = Service(node, gateway)
        await made.open()
        try:
            yield made
        finally:
            await made.close()


async def test_killed_service_finds_every_shim_again(service: Service) -> None:
    """After kill -9 and a start the same pids run; terminals, execs and Wait work, and a log that filled up meanwhile
    is read again.
    """
    async with output(service.node.place, "one") as o:
        pid = await start(service.tasks, service.node, "one", "cat", io=o.io())
        other = await start(service.tasks, service.node, "two", "sleep", "100")
        await service.tasks.exec(service.node.ns, "two", "e", exec_spec("sleep", "100"), IO())
        inner = await service.tasks.start(service.node.ns, "two", "e")
        shims = [shim_of(service.node, n) for n in ("one", "two")]
        for _ in range(3):
            await service.kill()
            assert all(map(alive, [pid, other, inner, *shims]))
            await service.again()
            await service.answering()
            assert {p.id: (p.pid, p.status) for p in await service.tasks.list(service.node.ns)} == {
                "one": (pid, Status.RUNNING),
                "two": (other, Status.RUNNING),
            }
        o.write("still here\n")
        await o.says("still here\n")
        waiting = asyncio.create_task(service.tasks.wait(service.node.ns, "two", "e"))
        await service.tasks.kill(service.node.ns, "two", "e", signal.SIGKILL, everything=False)
        assert (await asyncio.wait_for(waiting, 15)).status == 137
        await end(service.tasks, service.node, "one")
        await end(service.tasks, service.node, "two")
    await service.node.topic("one", "/tasks/delete")
    assert service.node.topics("one") == LIFE


async def test_sigterm_leaves_the_shims_alone(service: Service) -> None:
    """A service that gets SIGTERM ends within seconds, with or without open Waits, and containers run on."""
    pid = await start(service.tasks, service.node, "p", "sleep", "100")
    waiting = asyncio.create_task(service.tasks.wait(service.node.ns, "p"))
    await service.tasks.get(service.node.ns, "p")  # a call after it was answered: the wait has come
    assert await asyncio.to_thread(service.process.stop) == 0
    with pytest.raises(errors.Unavailable):
        await waiting
    assert alive(pid)
    await service.again()
    await service.answering()
    assert (await service.tasks.get(service.node.ns, "p")).pid == pid
    await end(service.tasks, service.node, "p")


def _catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal, as a shell has. (The runtime that becomes it has handlers of
    its own.)
    """
    if Path(f"/proc/{pid}/comm").read_text() != "sh\n":
        return False
    caught = next(
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")
    )
    return bool(int(caught, 16) >> (number - 1) & 1)


async def test_exits_while_it_was_away_are_told_once(service: Service) -> None:
    """A task that ends while the service is down is STOPPED with its status afterwards; its exit has been published
    exactly once, by shim or service.
    """
    pid = await start(
        service.tasks, service.node, "gone", "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"
    )
    await service.kill()
    await eventually_async(lambda: asyncio.sleep(0, _catches(pid, signal.SIGTERM)), "the shell sets no trap")
    os.kill(pid, signal.SIGTERM)
    await gone(pid)
    await service.again()
    await service.answering()
    await in_status(service.tasks, service.node, "gone", Status.STOPPED)
    assert (await service.tasks.wait(service.node.ns, "gone")).status == 5
    await service.node.topic("gone", "/tasks/exit")
    for _ in range(2):  # what was told is not told again, to a gateway that does not know of it neither
        await service.kill()
        await asyncio.to_thread(service.gateway.kill)
        await asyncio.to_thread(service.gateway.start)
        await service.again()
        await service.answering()
    await service.node.settled()
    assert [e.exit_status for e in service.node.exits("gone")] == [5]
    assert (await service.tasks.delete(service.node.ns, "gone")).status == 5


async def test_exit_that_no_forward_brought_is_told(service: Service) -> None:
    """Gateway and service are both absent, and the shim's own report is lost: the service publishes the exit when both
    are back.
    """
    pid = await start(service.tasks, service.node, "lost", "sleep", "100")
    await service.kill()
    await asyncio.to_thread(service.gateway.kill)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    service.node.events.clear()  # as if the shim had given up
    await asyncio.to_thread(service.gateway.start)
    await service.again()
    event = await service.node.topic("lost", "/tasks/exit")
    assert (event.pid, event.exit_status) == (pid, 137)
    await end(service.tasks, service.node, "lost")
    await service.node.topic("lost", "/tasks/delete")
    assert len(service.node.exits("lost")) == 1


async def test_gateway_outage_loses_no_exit(service: Service) -> None:
    """An exit during the gateway's absence is published once when it is back."""
    pid = await start(service.tasks, service.node, "o", "sleep", "100")
    await asyncio.to_thread(service.gateway.kill)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    await asyncio.to_thread(service.gateway.start)
    assert (await service.node.topic("o", "/tasks/exit")).pid == pid
    await end(service.tasks, service.node, "o")
    await service.node.topic("o", "/tasks/delete", 25)
    assert len(service.node.exits("o")) == 1


async def test_shim_that_died_while_it_was_away(service: Service) -> None:
    """Shim and service are killed: the next start cleans up, and publishes the task's exit (137) and deletion."""
    pid = await start(service.tasks, service.node, "d", "sleep", "100")
    shim = shim_of(service.node, "d")
    await service.kill()
    os.kill(shim, signal.SIGKILL)
    await gone(shim)
    await service.again()
    deleted = await service.node.topic("d", "/tasks/delete")
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert [(e.pid, e.exit_status) for e in service.node.exits("d")] == [(pid, 137)]
    await gone(pid)
    with pytest.raises(errors.NotFound, match="task d not found"):
        await service.tasks.get(service.node.ns, "d")


async def test_a_task_that_cannot_be_looked_at_after_a_start(service: Service) -> None:
    """It is UNKNOWN, not forgotten: it cannot be created again; killing and deleting check it again at once and report
    the obstacle. Once that is gone, the task is there with its pid and exit.
    """
    tasks, node = service.tasks, service.node
    pid = await start(tasks, node, "u", "sleep", "100")
    other = await start(tasks, node, "other", "sleep", "100")
    await service.kill()
    program = node.state / TASKS / node.ns / "u" / "shim-binary-path"
    words = program.read_text()
    program.unlink()
    program.mkdir()  # as unreadable as a file on a bad disk
    await service.again()
    await service.answering()
    await listed_as(tasks, node, {"other": Status.RUNNING, "u": Status.UNKNOWN})
    assert (await tasks.get(node.ns, "u")).status is Status.UNKNOWN
    with pytest.raises(errors.AlreadyExists, match="^task u: already exists$"):
        await tasks.create(node.ns, "u", CreateOptions(rootfs=(node.mount,)))
    for refused in (
        tasks.kill(node.ns, "u", "", signal.SIGKILL, everything=True),
        tasks.delete(node.ns, "u"),
        tasks.pids(node.ns, "u"),
    ):
        with pytest.raises(
            errors.FailedPrecondition,
            match="task u: it may run, and what became of it cannot be found out: .*shim-binary-path",
        ):
            await refused
    assert alive(pid)
    assert (await tasks.get(node.ns, "other")).pid == other
    waiting = asyncio.create_task(tasks.wait(node.ns, "u"))
    program.rmdir()
    program.write_text(words)
    await tasks.kill(node.ns, "u", "", signal.SIGKILL, everything=False)
    assert (await asyncio.wait_for(waiting, 15)).status == 137
    await gone(pid)
    await in_status(tasks, node, "u", Status.STOPPED)
    assert (await tasks.delete(node.ns, "u")).pid == pid
    await end(tasks, node, "other")
    await node.topic("u", "/tasks/delete")
    assert len(node.exits("u")) == 1


async def test_a_shim_whose_address_cannot_be_read(service: Service) -> None:
    """Its task may run, and ends only by a client's call: until its address can be read it is UNKNOWN."""
    tasks, node = service.tasks, service.node
    pid = await start(tasks, node, "u", "sleep", "100")
    await service.kill()
    bundle = node.state / TASKS / node.ns / "u"
    address = (bundle / "bootstrap.json").read_text()
    (bundle / "bootstrap.json").write_text("{")
    (bundle / "address").unlink(missing_ok=True)
    (node.state / "tasks/sightings" / f"{node.ns}:u").unlink()
    await service.again()
    await service.answering()
    await listed_as(tasks, node, {"u": Status.UNKNOWN})
    with pytest.raises(
        errors.FailedPrecondition, match=r"task u: it may run, .*bootstrap\.json: no address of a shim is in it"
    ):
        await tasks.delete(node.ns, "u")
    assert alive(pid)
    (bundle / "bootstrap.json").write_text(address)
    await tasks.kill(node.ns, "u", "", signal.SIGKILL, everything=False)
    await gone(pid)
    await in_status(tasks, node, "u", Status.STOPPED)
    assert (await tasks.delete(node.ns, "u")).pid == pid


@pytest.mark.parametrize("runtime", runtimes())
async def test_remains_of_a_dead_shim_are_shown_until_they_are_gone(
    service: Service, place: Path, runtime: str
) -> None:
    """While its program's delete hangs, the task is UNKNOWN, cannot be created again, and no event of it is published;
    deleting it cleans up.
    """
    shim, tasks, node = Hindered(place, runtime), service.tasks, service.node
    pid = await start(
        tasks, node, "s", "sleep", "100", runtime=str(shim.program), options=oci_pb2.Options(binary_name=str(shim.runc))
    )
    shim.hang()
    os.kill(shim_of(node, "s"), signal.SIGKILL)
    await listed_as(tasks, node, {"s": Status.UNKNOWN})
    with pytest.raises(errors.AlreadyExists, match="^task s: already exists$"):
        await tasks.create(node.ns, "s", CreateOptions(rootfs=(node.mount,)))
    await node.settled()
    assert "/tasks/delete" not in node.topics("s")
    assert (node.state / TASKS / node.ns / "s").exists()
    await tasks.delete(node.ns, "s")
    await gone(pid)
    await node.topic("s", "/tasks/delete")
    assert [e.exit_status for e in node.exits("s")] == [137]
    await eventually_async(lambda: asyncio.sleep(0, leftovers(node) == []), "something is left")


@pytest.mark.parametrize("runtime", runtimes())
async def test_killed_while_it_cleans_up(service: Service, place: Path, runtime: str) -> None:
    """Shims die, their program's delete hangs, one bundle is gone, the service is killed: the next ones clean up, and
    publish each task's end once.
    """
    shim, tasks, node = Hindered(place, runtime), service.tasks, service.node
    names = ["hangs", "lost"]
    pids = [
        await start(
            tasks,
            node,
            n,
            "sleep",
            "100",
            runtime=str(shim.program),
            options=oci_pb2.Options(binary_name=str(shim.runc)),
        )
        for n in names
    ]
    shim.hang()
    shims = [shim_of(node, n) for n in names]
    await service.kill()
    _remove_bundle(node, "lost")
    for pid in shims:
        os.kill(pid, signal.SIGKILL)
    await service.again()
    await service.answering()
    await listed_as(tasks, node, dict.fromkeys(names, Status.UNKNOWN))
    await service.kill()
    await service.again()
    for name, pid in zip(names, pids, strict=True):
        assert (await node.topic(name, "/tasks/delete")).pid == pid
        await gone(pid)
    await eventually_async(lambda: asyncio.sleep(0, leftovers(node) == []), "something is left")
    assert [[e.exit_status for e in node.exits(n)] for n in names] == [[137], [137]]


@pytest.mark.parametrize("runtime", runtimes())
@pytest.mark.parametrize("away", [True, False])
async def test_a_bundle_that_was_removed(service: Service, runtime: str, *, away: bool) -> None:
    """The task runs on, is known to the next service too, and ends as any other."""
    pid = await start(service.tasks, service.node, "b", "sleep", "100", runtime=runtime)
    if away:
        await service.kill()
    _remove_bundle(service.node, "b")
    if away:
        await service.again()
    await service.answering()
    await in_status(service.tasks, service.node, "b", Status.RUNNING)
    await end(service.tasks, service.node, "b")
    await gone(pid)


def _remove_bundle(node: TasksNode, name: str) -> None:
    bundle = node.state / TASKS / node.ns / name
    for mount in mounts_below(bundle):
        subprocess.run(["umount", "-l", mount], check=True)
    shutil.rmtree(bundle)


@pytest.mark.parametrize("point", ["tasks.bundle-made", "tasks.shim-running", "tasks.shim-started"])
async def test_half_made_tasks_are_cleaned(service: Service, point: str) -> None:
    """The service is killed in the middle of a create: after the next start no shim, mount or bundle is left, others go
    on, and the name can be used.
    """
    other = await start(service.tasks, service.node, "other", "sleep", "100")
    await service.node.add("half", "sleep", "100")
    (service.faults / point).touch()
    with pytest.raises(errors.Unavailable):
        await service.tasks.create(service.node.ns, "half", CreateOptions(rootfs=(service.node.mount,)))
    assert not (service.faults / point).exists()
    await service.again()
    await service.answering()

    async def clean() -> bool:
        return not (service.node.state / TASKS / service.node.ns / "half").exists() and len(service.node.shims()) == 1

    await eventually_async(clean, "half a task is left")
    await service.node.settled()
    assert "half" not in {e.container_id for _, e in service.node.events if e.DESCRIPTOR.name != "TaskDelete"}
    assert (await service.tasks.get(service.node.ns, "other")).pid == other
    await start(service.tasks, service.node, "half", "sleep", "100")
    await end(service.tasks, service.node, "half")
    await end(service.tasks, service.node, "other")


async def test_a_hung_shim_does_not_hold_up_the_start(service: Service) -> None:
    """With a stopped shim the service starts in seconds, serves the others and keeps the task, which is usable when the
    shim goes on.
    """
    pid = await start(service.tasks, service.node, "hung", "sleep", "100")
    await start(service.tasks, service.node, "fine", "sleep", "100")
    shim = shim_of(service.node, "hung")
    freeze(shim)
    try:
        await service.kill()
        await service.again()
        async with asyncio.timeout(5):
            await service.answering()
        await listed_as(service.tasks, service.node, {"hung": Status.UNKNOWN, "fine": Status.RUNNING})
    finally:
        os.kill(shim, signal.SIGCONT)
    await in_status(service.tasks, service.node, "hung", Status.RUNNING)
    waiting = asyncio.create_task(service.tasks.wait(service.node.ns, "hung"))
    os.kill(pid, signal.SIGKILL)
    assert (await asyncio.wait_for(waiting, 15)).status == 137
    await end(service.tasks, service.node, "hung")
    await end(service.tasks, service.node, "fine")


async def test_an_exit_that_a_slow_shim_could_not_tell(service: Service) -> None:
    """The task ended while the service was absent, its exit was not received, and its shim does not answer when the
    service is back: the exit is published when the shim answers.
    """
    pid = await start(service.tasks, service.node, "slow", "sleep", "100")
    shim = shim_of(service.node, "slow")
    await service.kill()
    os.kill(pid, signal.SIGKILL)
    await service.node.topic("slow", "/tasks/exit")
    await asyncio.to_thread(service.gateway.kill)  # with it goes all that was told
    await asyncio.to_thread(service.gateway.start)
    service.node.events.clear()
    freeze(shim)
    try:
        await service.again()
        await service.answering()
        await listed_as(service.tasks, service.node, {"slow": Status.UNKNOWN})
        await service.node.settled()
        assert service.node.exits("slow") == []
    finally:
        os.kill(shim, signal.SIGCONT)
    event = await service.node.topic("slow", "/tasks/exit")
    assert (event.pid, event.exit_status) == (pid, 137)
    await end(service.tasks, service.node, "slow")
    await service.node.topic("slow", "/tasks/delete")
    assert len(service.node.exits("slow")) == 1


async def test_a_task_that_is_not_yet_looked_at_is_there_all_the_same(service: Service) -> None:
    """Shims that do not answer delay the search for others beyond the wait at the start: meanwhile a running task is
    listed and found, and cannot be created again.
    """
    service.config.write_text(f"{CONFIG}load_parallel = 1\n")
    hung = [f"h{n}" for n in range(4)]
    for name in hung:
        await start(service.tasks, service.node, name, "sleep", "100")
    pid = await start(service.tasks, service.node, "z", "sleep", "100")
    shims = [shim_of(service.node, name) for name in hung]
    for shim in shims:
        freeze(shim)
    try:
        await service.kill()
        await service.again()
        listing = asyncio.create_task(service.tasks.list(service.node.ns))
        with pytest.raises(errors.AlreadyExists, match="^task z: already exists$"):
            await service.tasks.create(service.node.ns, "z", CreateOptions(rootfs=(service.node.mount,)))
        assert alive(pid)
        listed = {p.id: p.status for p in await listing}
        assert sorted(listed) == [*hung, "z"]
        assert listed["z"] in (Status.UNKNOWN, Status.RUNNING)
        assert (await service.tasks.get(service.node.ns, "z")).pid == pid
    finally:
        for shim in shims:
            os.kill(shim, signal.SIGCONT)
    for name in (*hung, "z"):
        await in_status(service.tasks, service.node, name, Status.RUNNING)
        await end(service.tasks, service.node, name)


@contextlib.asynccontextmanager
async def hung_at_its_end(service: Service, name: str) -> AsyncIterator[int]:
    """The task ``name`` has ended, and its shim hangs once it has deleted it; the deletion is answered. Yields the
    shim's pid.
    """
    pid = await start(service.tasks, service.node, name, "sleep", "100")
    shim = shim_of(service.node, name)
    waiting = asyncio.create_task(service.tasks.wait(service.node.ns, name))
    os.kill(pid, signal.SIGKILL)
    await waiting
    (service.faults / "tasks.deleted").write_text("sleep 2")
    deleting = asyncio.create_task(service.tasks.delete(service.node.ns, name))
    await eventually_async(
        lambda: asyncio.sleep(0, not (service.faults / "tasks.deleted").exists()), "the task is not deleted"
    )
    await asyncio.to_thread(freeze, shim)
    try:
        assert (await asyncio.wait_for(deleting, 15)).status == 137
        yield shim
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(shim, signal.SIGCONT)


async def test_a_shim_that_does_not_end_is_killed_when_its_task_is_deleted(service: Service) -> None:
    """It hangs once it has deleted the task. The deletion is answered at once, and the task is not there. A task of the
    same name begins once nothing of the shim is left, and the deletion is published.
    """
    async with hung_at_its_end(service, "hung") as shim:
        with pytest.raises(errors.NotFound, match=r"^task hung not found$"):
            await service.tasks.get(service.node.ns, "hung")
        with pytest.raises(errors.NotFound, match=r"task hung not found$"):
            await service.tasks.delete(service.node.ns, "hung")
        assert await service.tasks.list(service.node.ns) == []
        await start(service.tasks, service.node, "hung", "sleep", "100")
        assert not alive(shim)
    await service.node.topic("hung", "/tasks/delete")
    assert service.node.topics("hung")[: len(LIFE)] == LIFE
    await end(service.tasks, service.node, "hung")
    await eventually_async(lambda: asyncio.sleep(0, leftovers(service.node) == []), "something is left")


async def test_a_deletion_that_was_answered_outlives_the_service(service: Service) -> None:
    """The service is killed while a shim hangs whose task is deleted. The next one does not take the task for one that
    is there.
    """
    async with hung_at_its_end(service, "gone") as shim:
        await service.kill()
        os.kill(shim, signal.SIGCONT)
        await service.again()
        await service.answering()
        with pytest.raises(errors.NotFound, match=r"^task gone not found$"):
            await service.tasks.get(service.node.ns, "gone")
        assert await service.tasks.list(service.node.ns) == []
        await start(service.tasks, service.node, "gone", "sleep", "100")
    await end(service.tasks, service.node, "gone")
    assert [e.exit_status for e in service.node.exits("gone")] == [137, 137]
    await eventually_async(lambda: asyncio.sleep(0, leftovers(service.node) == []), "something is left")


async def test_a_service_that_stops_ends_the_shims_of_deleted_tasks_first(service: Service) -> None:
    """So that the next one need not do it."""
    pid = await start(service.tasks, service.node, "last", "sleep", "100")
    shim = shim_of(service.node, "last")
    os.kill(pid, signal.SIGKILL)
    await service.tasks.wait(service.node.ns, "last")
    (service.faults / "tasks.deleted").write_text("sleep 1")
    deleting = asyncio.create_task(service.tasks.delete(service.node.ns, "last"))
    await eventually_async(
        lambda: asyncio.sleep(0, not (service.faults / "tasks.deleted").exists()), "the task is not deleted"
    )
    await asyncio.gather(deleting, asyncio.to_thread(service.process.stop))
    assert not alive(shim)
    assert leftovers(service.node) == []
    await service.again()
    await service.answering()


async def test_twenty_tasks_are_found_again_at_once(service: Service) -> None:
    """All are known when the service answers."""
    names = [f"n{i}" for i in range(20)]
    pids = dict(
        zip(
            names,
            await asyncio.gather(*(start(service.tasks, service.node, n, "sleep", "100") for n in names)),
            strict=True,
        )
    )
    await service.kill()
    await service.again()
    await service.answering()
    assert {p.id: p.pid for p in await service.tasks.list(service.node.ns)} == pids
    await asyncio.gather(*(end(service.tasks, service.node, n) for n in names))


async def test_restart_policies(service: Service) -> None:
    """always is restarted and counted, on-failure:1 once, unless-stopped not if it was stopped on purpose; stopped
    stays stopped.
    """
    # where a cleanup fails for want of time, as it may in the 2 s of the other tests, a restart is tried and counted again
    service.config.write_text('[tasks]\nrestart_interval = "1s"\ncleanup_timeout = "20s"\n')
    await service.kill()
    await service.again()
    await service.answering()
    node, tasks = service.node, service.tasks
    log = node.place / "log.txt"
    await node.snapshot("always", "failing", "kept")
    pid = await start(tasks, node, "always", "sh", "-c", "echo started; sleep 100", snapshot="always")
    await start(tasks, node, "failing", "sh", "-c", "exit 1", snapshot="failing")
    await start(tasks, node, "kept", "sleep", "100", snapshot="kept")
    # now that they run: what is created only is not what "running" wants
    for name, labels in (
        ("always", {"status": "running", "loguri": f"file://{log}"}),
        ("failing", {"status": "running", "policy": "on-failure:1"}),
        ("kept", {"status": "running", "policy": "unless-stopped", "explicitly-stopped": "true"}),
    ):
        await node.label(name, **labels)
    os.kill(pid, signal.SIGKILL)
    await tasks.kill(node.ns, "kept", "", signal.SIGKILL, everything=False)

    async def back() -> bool:
        try:
            process = await tasks.get(node.ns, "always")
        except errors.NotFound:
            return False
        return process.pid != pid and process.status is Status.RUNNING

    await eventually_async(back, "not restarted")
    assert (await node.labels("always"))[f"{RESTART}count"] == "1"

    async def logged() -> bool:
        return log.exists() and "started" in log.read_text()

    await eventually_async(logged, "the log uri was not used")

    async def given_up() -> bool:
        return [e.exit_status for e in node.exits("failing")] == [1, 1]

    await eventually_async(given_up)
    assert (await node.labels("failing"))[f"{RESTART}count"] == "1"
    assert (await tasks.get(node.ns, "kept")).status is Status.STOPPED
    await node.label("always", status="stopped")

    async def stopped() -> bool:
        try:
            await tasks.get(node.ns, "always")
        except errors.NotFound:
            return True
        return False

    await eventually_async(stopped, "not stopped")
    assert [e.exit_status for e in node.exits("failing")] == [1, 1]
    await tasks.delete(node.ns, "failing")
    await tasks.delete(node.ns, "kept")
