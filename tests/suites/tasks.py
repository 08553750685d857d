"""The promises of every Tasks, on real shims and a real runc. The suite runs on the store itself and on the served
process.

The fixture ``tasks`` gives the implementation; ``node`` is the small gateway beside it, ``runtime`` the shim to use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.containerd.types.runc.options import oci_pb2
from services.kit import errors
from services.kit.any import pack
from services.oci.descriptors import Descriptor
from services.oci.opaque import Opaque
from services.tasks.bundle import TASKS
from services.tasks.store import IO, CreateOptions, Status, Tasks
from tests.suites.tasks_node import NS, FakeGateway, alive, contained, gone, output
from tests.support import eventually_async, freeze, mounts_below, processes_naming

LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def runtimes() -> list[str]:
    """Debian's shim, under the name that clients use, and those of SPLITD_TEST_SHIMS (paths, separated by colons)."""
    return ["io.containerd.runc.v2", *filter(None, os.environ.get("SPLITD_TEST_SHIMS", "").split(":"))]


def crun_beside(place: Path) -> Path:
    """crun, for use as a runtime's program. It takes a machine with both versions of cgroups for one with only the
    second; the first is hidden from it.
    """
    if not shutil.which("crun"):
        pytest.skip("crun is not installed")
    program = place / "crun-of-v1"
    program.write_text("""#!/bin/sh
[ -d /sys/fs/cgroup/unified ] || exec crun "$@"
exec unshare -m sh -c 'umount /sys/fs/cgroup/unified; exec crun "$@"' crun "$@"
""")
    program.chmod(0o755)
    return program


class Hindered:
    """A shim program whose ``delete`` can be made to hang, and a runc that can be removed."""

    def __init__(self, place: Path, runtime: str) -> None:
        self.runc, self.program, self._hangs = place / "runc", place / "containerd-shim-runc-v2", place / "hangs"
        self.runc.symlink_to(shutil.which("runc") or "/usr/sbin/runc")
        shim = shutil.which("containerd-shim-runc-v2") if runtime.startswith("io.") else runtime
        self.program.write_text(f"""#!/bin/sh
for verb; do :; done
[ "$verb" != delete ] || [ ! -e {self._hangs} ] || exec sleep 1000
exec {shim} "$@"
""")
        self.program.chmod(0o755)

    def hang(self) -> None:
        self._hangs.touch()

    def go_on(self) -> None:
        self._hangs.unlink()


def exec_spec(*args: str, terminal: bool = False) -> Opaque:
    return Opaque(
        "types.containerd.io/opencontainers/runtime-spec/1/Process",
        json.dumps(
            {"args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal, "user": {"uid": 0, "gid": 0}}
        ).encode(),
    )


def any_of(message: Any) -> Opaque:
    packed = pack(message)
    return Opaque(packed.type_url, packed.value)


async def listed_as(tasks: Tasks, wanted: Mapping[str, Status]) -> None:
    """Wait until the list has these tasks in these states: if the machine stops for longer than a shim may take, any of
    them is UNKNOWN for a moment.
    """

    async def there() -> bool:
        return {p.id: p.status for p in await tasks.list(NS)} == wanted

    await eventually_async(there, f"the list is not {wanted}")


async def in_status(tasks: Tasks, name: str, status: Status, exec_id: str = "") -> None:
    async def there() -> bool:
        return (await tasks.get(NS, name, exec_id)).status is status

    await eventually_async(there, f"{name} does not become {status.name}")


def shim_of(node: FakeGateway, name: str) -> int:
    """The pid of a task's shim."""
    found = [
        pid
        for pid in processes_naming(node.state)
        if f"-id\0{name}\0" in Path(f"/proc/{pid}/cmdline").read_text()
        and "containerd-shim" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert len(found) == 1, found
    return found[0]


def leftovers(node: FakeGateway) -> list[object]:
    """Remains of tasks that no longer exist: shims, mounts, bundles, runc's state."""
    root = node.state.parent / "root"
    return [
        *(pid for pid in processes_naming(node.state) if "containerd-shim" in Path(f"/proc/{pid}/cmdline").read_text()),
        *mounts_below(node.state),
        *(node.state / TASKS).glob("*/*"),
        *(root / TASKS).glob("*/*"),
        *(node.state / "runc").glob("*/*"),
        *(node.state / "tasks/exits").glob("*"),
        *(node.state / "tasks/sightings").glob("*"),
        *(node.state / "tasks/checkpoints").glob("*"),
    ]


async def start(
    tasks: Tasks,
    node: FakeGateway,
    name: str,
    *args: str,
    runtime: str = "io.containerd.runc.v2",
    io: IO = IO(),
    **how: Any,
) -> int:
    """A running task of a new container."""
    node.add(name, *args, runtime=runtime, **how)
    await tasks.create(NS, name, CreateOptions(io=io, rootfs=(node.mount,)))
    return await tasks.start(NS, name)


async def end(tasks: Tasks, name: str) -> None:
    """Kill and delete, as ``ctr tasks rm -f``."""
    try:
        await tasks.kill(NS, name, "", signal.SIGKILL, everything=True)
        await asyncio.wait_for(tasks.wait(NS, name), 15)
    except errors.NotFound:
        pass
    await tasks.delete(NS, name)


class TasksSuite:
    """The promises."""

    @pytest.fixture(params=runtimes(), ids=lambda r: "" if r.startswith("io.") else r.strip("/").replace("/", "-"))
    def runtime(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_a_task_lives_as_the_shim_says(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A task is CREATED, RUNNING, STOPPED with its exit status, and gone; four events come in this order, and
        nothing is left.
        """
        node.add("a", "sh", "-c", "read x; exit 7", runtime=runtime)
        async with output(node.state, "a") as o:
            pid = await tasks.create(NS, "a", CreateOptions(io=o.io(), rootfs=(node.mount,)))
            created = await tasks.get(NS, "a")
            assert (created.id, created.pid, created.status, created.io.stdout) == ("a", pid, Status.CREATED, o.stdout)
            waiting = asyncio.create_task(tasks.wait(NS, "a"))
            assert await tasks.start(NS, "a") == pid
            assert (await tasks.get(NS, "a")).status is Status.RUNNING
            assert [(p.id, p.pid) for p in await tasks.list(NS)] == [("a", pid)]
            assert await tasks.list("other") == []
            o.write("\n")
            exit_ = await asyncio.wait_for(waiting, 15)
        assert exit_.status == 7
        stopped = await tasks.get(NS, "a")
        assert (stopped.status, stopped.exit_status, stopped.exited_at) == (Status.STOPPED, 7, exit_.at)
        deleted = await tasks.delete(NS, "a")
        assert (deleted.status, deleted.at, deleted.pid) == (7, exit_.at, pid)
        with pytest.raises(errors.NotFound, match=r"^task a not found$"):
            await tasks.get(NS, "a")
        assert leftovers(node) == []
        await node.topic("a", "/tasks/delete")
        assert node.topics("a") == LIFE

    async def test_what_is_not_there_is_named(self, tasks: Tasks, node: FakeGateway) -> None:
        """Without a container the error is about the container, in metadata's words; without a task, about the task."""
        node.add("idle", "true")
        for verb in (tasks.start, tasks.get, tasks.delete, tasks.pause, tasks.resume, tasks.pids, tasks.wait):
            with pytest.raises(errors.NotFound, match=r'^container "none" in namespace "acc": not found$'):
                await verb(NS, "none")
            with pytest.raises(errors.NotFound, match=r"^task idle not found$"):
                await verb(NS, "idle")

    async def test_bundle_is_laid_out_as_containerds(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """config.json is the spec byte for byte; rootfs, work, log, shim-binary-path, bootstrap.json and the shim's
        files are where tools look.
        """
        pid = await start(tasks, node, "b", "sleep", "100", runtime=runtime)
        bundle = node.state / TASKS / NS / "b"
        assert (bundle / "config.json").read_bytes() == node.records[NS, "b"].spec.value
        assert os.stat(bundle).st_mode & 0o7777 == 0o700
        assert (bundle / "work").readlink() == node.state.parent / "root" / TASKS / NS / "b"
        assert (bundle / "init.pid").read_text() == str(pid)
        assert (bundle / "log").is_fifo()
        assert (bundle / "shim-binary-path").read_text() == (
            shutil.which("containerd-shim-runc-v2") if runtime.startswith("io.") else runtime
        )
        address = json.loads((bundle / "bootstrap.json").read_text())
        assert (address["protocol"], address["version"] in (2, 3)) == ("ttrpc", True)
        assert json.loads((bundle / "options.json").read_text())["root"] == str(node.state / "runc")
        assert (node.state / "runc" / NS / "b").is_dir()
        await end(tasks, "b")

    async def test_options_of_the_client_are_kept(self, tasks: Tasks, node: FakeGateway) -> None:
        """runc's options come from the create call, else from the container; only an empty root is filled in."""
        mine = node.state / "my-runc"
        node.add("o", "sleep", "100", options=oci_pb2.Options(no_new_keyring=True))
        await tasks.create(NS, "o", CreateOptions(rootfs=(node.mount,)))
        written = json.loads((node.state / TASKS / NS / "o/options.json").read_text())
        assert (written["no_new_keyring"], written["root"]) == (True, str(node.state / "runc"))
        await tasks.delete(NS, "o")
        await tasks.create(
            NS, "o", CreateOptions(rootfs=(node.mount,), options=any_of(oci_pb2.Options(root=str(mine))))
        )
        assert (mine / NS / "o").is_dir()
        assert "no_new_keyring" not in json.loads((node.state / TASKS / NS / "o/options.json").read_text())
        await tasks.delete(NS, "o")
        assert list(mine.glob("*/*")) == []

    async def test_a_task_is_made_once(self, tasks: Tasks, node: FakeGateway) -> None:
        """A second create, even at the same time, is AlreadyExists; after a delete the name is free at once."""
        node.add("once", "sleep", "100")
        made = await asyncio.gather(
            *(tasks.create(NS, "once", CreateOptions(rootfs=(node.mount,))) for _ in range(3)), return_exceptions=True
        )
        failed = [e for e in made if not isinstance(e, int)]
        assert [str(e) for e in failed] == ["task once: already exists"] * 2
        assert all(isinstance(e, errors.AlreadyExists) for e in failed)
        await tasks.delete(NS, "once")
        await tasks.create(NS, "once", CreateOptions(rootfs=(node.mount,)))
        await tasks.delete(NS, "once")

    async def test_unknown_runtimes_are_named(self, tasks: Tasks, node: FakeGateway) -> None:
        """The words are containerd's, and nothing is left."""
        for runtime, words in (
            (
                "io.containerd.nosuch.v9",
                r'runtime "io.containerd.nosuch.v9" binary not installed "containerd-shim-nosuch-v9": file does not exist$',
            ),
            ("/no/such/shim", r"invalid custom binary path: stat /no/such/shim: no such file or directory$"),
            (
                "odd",
                r"invalid runtime name odd, correct runtime name should be either format like `io.containerd.runc.v2` or a full path to the binary$",
            ),
        ):
            node.add("r", "true", runtime=runtime)
            with pytest.raises(errors.Unknown, match=f"^failed to start shim: failed to resolve runtime path: {words}"):
                await tasks.create(NS, "r", CreateOptions(rootfs=(node.mount,)))
        assert leftovers(node) == []

    async def test_runtime_of_the_call_wins(self, tasks: Tasks, node: FakeGateway) -> None:
        """The runtime path of a create call overrides the container's."""
        node.add("rp", "true", runtime="io.containerd.nosuch.v9")
        await tasks.create(NS, "rp", CreateOptions(rootfs=(node.mount,), runtime="/usr/bin/containerd-shim-runc-v2"))
        await tasks.delete(NS, "rp")

    async def test_bad_names_never_reach_the_disk(self, tasks: Tasks, node: FakeGateway) -> None:
        """A container id that is no identifier is InvalidArgument."""
        node.add("../evil", "true")
        with pytest.raises(errors.InvalidArgument, match=r"^invalid task id ../evil: identifier .* must match"):
            await tasks.create(NS, "../evil", CreateOptions(rootfs=(node.mount,)))
        assert leftovers(node) == []

    async def test_a_failed_create_leaves_nothing(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """runc's error is passed on; shim, mounts and bundle are gone; the name is free."""
        node.add("f", "no-such-program", runtime=runtime)
        with pytest.raises(errors.NodeError, match=r"^failed to create shim task: .*no-such-program"):
            await tasks.create(NS, "f", CreateOptions(rootfs=(node.mount,)))
        assert leftovers(node) == []
        node.add("f", "true", runtime=runtime)
        await tasks.create(NS, "f", CreateOptions(rootfs=(node.mount,)))
        await tasks.delete(NS, "f")

    async def test_id_mapped_mounts_are_not_ignored(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A runtime that does not announce support, such as Debian's runc 1.1, is refused such a spec, and nothing is
        left.
        """
        record = node.add("i", "true", runtime=runtime)
        spec = json.loads(record.spec.value)
        spec["mounts"].append({"destination": "/tmp", "type": "bind", "source": "/tmp", "options": ["rbind", "idmap"]})
        record.spec.value = json.dumps(spec).encode()
        with pytest.raises(
            errors.Unknown,
            match="^failed to validate OCI runtime features: (failed to run .*-info|idmap mounts not supported)",
        ):
            await tasks.create(NS, "i", CreateOptions(rootfs=(node.mount,)))
        assert leftovers(node) == []

    async def test_empty_rootfs_is_legal(self, tasks: Tasks, node: FakeGateway) -> None:
        """A spec whose root is a path needs no mounts."""
        await_pid = node.add("e", "true", root=str(node.rootfs))
        assert await_pid.id == "e"
        await tasks.create(NS, "e", CreateOptions())
        await tasks.start(NS, "e")
        assert (await asyncio.wait_for(tasks.wait(NS, "e"), 15)).status == 0
        await tasks.delete(NS, "e")
        assert (node.rootfs / "bin/sh").exists()

    async def test_a_running_task_is_not_deleted(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """The shim refuses, in its words, and the task goes on."""
        pid = await start(tasks, node, "d", "sleep", "100", runtime=runtime)
        with pytest.raises(errors.NodeError, match=r"^failed to delete task: cannot delete a running process"):
            await tasks.delete(NS, "d")
        assert (await tasks.get(NS, "d")).status is Status.RUNNING
        assert alive(pid)
        await end(tasks, "d")

    async def test_execs(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """An exec is added, started and waited for; its status is kept until it is deleted; ids are checked."""
        await start(tasks, node, "x", "sleep", "100", runtime=runtime)
        async with output(node.state, "x1") as o:
            await tasks.exec(NS, "x", "e1", exec_spec("sh", "-c", "echo hello; exit 9"), o.io())
            assert (await tasks.get(NS, "x", "e1")).status is Status.CREATED
            with pytest.raises(errors.AlreadyExists, match="e1"):
                await tasks.exec(NS, "x", "e1", exec_spec("true"), IO())
            waiting = asyncio.create_task(tasks.wait(NS, "x", "e1"))
            pid = await tasks.start(NS, "x", "e1")
            assert (await asyncio.wait_for(waiting, 15)).status == 9
            await o.says("hello\n")
        state = await tasks.get(NS, "x", "e1")
        assert (state.id, state.status, state.exit_status) == ("e1", Status.STOPPED, 9)
        how = await tasks.delete_process(NS, "x", "e1")
        assert (how.status, how.pid) == (9, pid)
        for verb in (tasks.get, tasks.start, tasks.wait, tasks.delete_process):
            with pytest.raises(errors.NotFound):
                await verb(NS, "x", "e1")
        with pytest.raises(errors.InvalidArgument, match=r"^exec id cannot be empty$"):
            await tasks.exec(NS, "x", "", exec_spec("true"), IO())
        with pytest.raises(errors.InvalidArgument, match=r"^invalid exec id a b: identifier"):
            await tasks.exec(NS, "x", "a b", exec_spec("true"), IO())
        with pytest.raises(errors.NodeError, match="no-such-program"):
            await tasks.exec(NS, "x", "e2", exec_spec("no-such-program"), IO())
            await tasks.start(NS, "x", "e2")
        await end(tasks, "x")
        await node.topic("x", "/tasks/delete")
        assert [
            t
            for t, e in node.events
            if e.container_id == "x" and (getattr(e, "exec_id", "") == "e1" or getattr(e, "id", "") == "e1")
        ] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]

    async def test_requests_are_checked_before_the_shim(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """Invalid payloads, options and stdio are InvalidArgument that names the field; nothing is left, and the task
        goes on. (A shim would also refuse these.)
        """
        missing = str(node.state / "missing")
        node.add("c", "true", runtime=runtime)
        for options, field in (
            (CreateOptions(io=IO("", missing, missing)), "stdout"),
            (CreateOptions(io=IO(missing, "/dev/null", "/dev/null")), "stdin"),
            (CreateOptions(io=IO("", "/dev/null", "")), "stderr"),
            (CreateOptions(options=Opaque("no.Such", b"\x08\x01")), "options"),
        ):
            with pytest.raises(errors.InvalidArgument, match=f"^{field}"):
                await tasks.create(NS, "c", replace(options, rootfs=(node.mount,)))
        with pytest.raises(errors.NotFound):
            await tasks.get(NS, "c")
        pid = await start(tasks, node, "q", "sleep", "100", runtime=runtime)
        for spec, io, field in (
            (Opaque("x", b""), IO(), "spec"),
            (exec_spec("true"), IO("", "/dev/null", missing), "stderr"),
            (exec_spec("true"), IO(terminal=True), "stdout"),
        ):
            with pytest.raises(errors.InvalidArgument, match=f"^{field}"):
                await tasks.exec(NS, "q", "e", spec, io)
        with pytest.raises(errors.InvalidArgument, match="^resources"):
            await tasks.update(NS, "q", Opaque("x", b""), {})
        for verb in (tasks.get, tasks.start, tasks.wait, tasks.delete_process):
            with pytest.raises(errors.NotFound):
                await verb(NS, "q", "e")
        with pytest.raises(errors.InvalidArgument, match="^exec id cannot be empty$"):
            await tasks.delete_process(NS, "q", "")
        assert (await tasks.get(NS, "q")).pid == pid
        await end(tasks, "q")

    async def test_signals(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A signal reaches the init; killing a stopped task is NotFound; with ``all``, execs die too, and that may be
        repeated.
        """
        await start(tasks, node, "k", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done", runtime=runtime)
        await tasks.exec(NS, "k", "e", exec_spec("sleep", "100"), IO())
        await tasks.start(NS, "k", "e")
        await tasks.kill(NS, "k", "e", signal.SIGINT, everything=False)
        assert (await asyncio.wait_for(tasks.wait(NS, "k", "e"), 15)).status == 128 + signal.SIGINT
        await tasks.kill(NS, "k", "", signal.SIGTERM, everything=False)
        assert (await asyncio.wait_for(tasks.wait(NS, "k"), 15)).status == 3
        with pytest.raises(errors.NotFound):
            await tasks.kill(NS, "k", "", signal.SIGTERM, everything=False)
        await tasks.delete(NS, "k")

        await start(tasks, node, "all", "sleep", "100", runtime=runtime)
        await tasks.exec(NS, "all", "e", exec_spec("sleep", "100"), IO())
        other = await tasks.start(NS, "all", "e")
        await tasks.kill(NS, "all", "", signal.SIGKILL, everything=True)
        assert (await asyncio.wait_for(tasks.wait(NS, "all"), 15)).status == 137
        assert (await asyncio.wait_for(tasks.wait(NS, "all", "e"), 15)).status == 137
        await gone(other)
        await tasks.kill(NS, "all", "", signal.SIGKILL, everything=True)
        with pytest.raises(errors.NotFound):
            await tasks.kill(NS, "all", "", signal.SIGKILL, everything=False)
        await tasks.delete(NS, "all")

    async def test_killing_everything_spares_who_shares_the_cgroup(self, tasks: Tasks, node: FakeGateway) -> None:
        """Clients put containers of the same name from two nodes into one cgroup; removing one by force does not affect
        the other, if they have pid namespaces.
        """
        shared = "/splitd-test/shared"
        await start(tasks, node, "mine", "sh", "-c", "sleep 100 & wait", cgroup=shared)
        other = await start(tasks, node, "other", "sleep", "100", cgroup=shared)
        await end(tasks, "mine")
        assert (await tasks.get(NS, "other")).status is Status.RUNNING
        assert alive(other)
        await end(tasks, "other")

    async def test_everything_without_a_pid_namespace(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """In the host's pid namespace the init's children do not die with it; a kill with ``all`` reaches them."""
        record = node.add("host", "sh", "-c", "sleep 100 & wait", runtime=runtime)
        spec = json.loads(record.spec.value)
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
        record.spec.value = json.dumps(spec).encode()
        await tasks.create(NS, "host", CreateOptions(rootfs=(node.mount,)))
        await tasks.start(NS, "host")

        async def both() -> bool:
            return len(await tasks.pids(NS, "host")) == 2

        await eventually_async(both)
        pids = [p.pid for p in await tasks.pids(NS, "host")]
        await end(tasks, "host")
        for pid in pids:
            await gone(pid)

    async def test_a_spec_with_more_than_is_known(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A client's own field in a spec, 3000 levels deep, does no harm: the task runs, and a kill with ``all`` ends
        it.
        """
        record = node.add("deep", "sleep", "100", runtime=runtime)
        record.spec.value = (
            record.spec.value.removesuffix(b"}")
            + b',"\\u0078-mine":'
            + b'{"a":[' * 1500
            + b'"\\ud800"'
            + b"]}" * 1500
            + b"}"
        )
        await tasks.create(NS, "deep", CreateOptions(rootfs=(node.mount,)))
        pid = await tasks.start(NS, "deep")
        await tasks.kill(NS, "deep", "", signal.SIGKILL, everything=True)
        assert (await asyncio.wait_for(tasks.wait(NS, "deep"), 15)).status == 137
        await gone(pid)
        await tasks.delete(NS, "deep")

    async def test_pause_and_resume(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A paused task is PAUSED and goes on when resumed; both have events."""
        await start(tasks, node, "p", "sleep", "100", runtime=runtime)
        await tasks.pause(NS, "p")
        assert (await tasks.get(NS, "p")).status is Status.PAUSED
        await tasks.resume(NS, "p")
        assert (await tasks.get(NS, "p")).status is Status.RUNNING
        await end(tasks, "p")
        await start(tasks, node, "frozen", "sleep", "100", runtime=runtime)
        await tasks.pause(NS, "frozen")
        await end(tasks, "frozen")
        await node.topic("p", "/tasks/delete")
        assert node.topics("p")[2:4] == ["/tasks/paused", "/tasks/resumed"]

    @pytest.mark.parametrize("everything", [True, False])
    async def test_a_paused_task_of_another_runtime_is_killed(
        self, tasks: Tasks, node: FakeGateway, runtime: str, place: Path, *, everything: bool
    ) -> None:
        """crun does not thaw what it kills: the task dies nevertheless, and others in its cgroup do not."""
        crun = oci_pb2.Options(binary_name=str(crun_beside(place)))
        other = await start(
            tasks, node, "beside", "sleep", "100", runtime=runtime, cgroup="/splitd-test/thawed", options=crun
        )
        await start(tasks, node, "paused", "sleep", "100", runtime=runtime, cgroup="/splitd-test/thawed", options=crun)
        await tasks.pause(NS, "paused")
        assert (await tasks.get(NS, "paused")).status is Status.PAUSED
        await tasks.kill(NS, "paused", "", signal.SIGKILL, everything=everything)
        assert (await asyncio.wait_for(tasks.wait(NS, "paused"), 15)).status == 137
        assert alive(other)  # before crun deletes its half, which kills everything in the cgroup
        await tasks.delete(NS, "paused")
        await end(tasks, "beside")

    async def test_closing_stdin_ends_what_reads_it(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """After close_stdin, and once the client has closed its own end, ``cat`` comes to the end of its input."""
        async with output(node.state, "c") as o:
            await start(tasks, node, "c", "cat", io=o.io(), runtime=runtime)
            o.write("through\n")
            await o.says("through\n")
            o.close_stdin()
            await tasks.close_stdin(NS, "c")
            assert (await asyncio.wait_for(tasks.wait(NS, "c"), 15)).status == 0
        await tasks.delete(NS, "c")

    async def test_who_asks_for_a_task_that_is_being_created_waits(
        self, tasks: Tasks, node: FakeGateway, runtime: str
    ) -> None:
        """State and CloseIO are called before Create is answered: they find the task, and it reads to the end of its
        input.
        """
        node.add("c", "cat", runtime=runtime)
        async with output(node.state, "c") as o:
            o.write("all\n")
            creating = asyncio.create_task(tasks.create(NS, "c", CreateOptions(io=o.io(), rootfs=(node.mount,))))
            await eventually_async(lambda: asyncio.sleep(0, (node.state / TASKS / NS / "c").exists()), "no bundle")
            closing = asyncio.create_task(tasks.close_stdin(NS, "c"))
            found = await tasks.get(NS, "c")
            assert (found.pid, found.status) == (await creating, Status.CREATED)
            o.close_stdin()
            await closing
            await tasks.start(NS, "c")
            await o.says("all\n")
            assert (await asyncio.wait_for(tasks.wait(NS, "c"), 15)).status == 0
        await tasks.delete(NS, "c")

    async def test_who_asks_for_a_task_that_cannot_be_created_is_told_so(self, tasks: Tasks, node: FakeGateway) -> None:
        """The caller gets NotFound."""
        node.add("c", "/nothing/there")
        creating = asyncio.create_task(tasks.create(NS, "c", CreateOptions(rootfs=(node.mount,))))
        await eventually_async(lambda: asyncio.sleep(0, (node.state / TASKS / NS / "c").exists()), "no bundle")
        with pytest.raises(errors.NotFound, match=r"^task c not found$"):
            await tasks.get(NS, "c")
        with pytest.raises(errors.NodeError):
            await creating

    async def test_a_terminal_has_its_size(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A terminal has the size that was last set, for the init and for an exec."""
        async with output(node.state, "t") as o, output(node.state, "te") as e:
            await start(tasks, node, "t", "sh", terminal=True, io=o.io(terminal=True), runtime=runtime)
            await tasks.resize(NS, "t", "", 101, 33)
            o.write("stty size\n")
            await o.says("33 101")
            await tasks.exec(NS, "t", "e", exec_spec("sh", terminal=True), e.io(terminal=True))
            await tasks.start(NS, "t", "e")
            await tasks.resize(NS, "t", "e", 77, 22)
            e.write("stty size\n")
            await e.says("22 77")
            await end(tasks, "t")

    async def test_pids_metrics_and_update(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """Pids are the kernel's; statistics have the shim's own type; a new limit is in force."""
        pid = await start(tasks, node, "m", "sh", "-c", "sleep 100 & wait", runtime=runtime)

        async def both() -> bool:
            return len(await tasks.pids(NS, "m")) == 2

        await eventually_async(both)
        assert pid in [p.pid for p in await tasks.pids(NS, "m")]
        (metric,) = await tasks.metrics(NS, ["id==m"])
        assert metric.id == "m"
        assert metric.data is not None
        assert metric.data.type_url.startswith("io.containerd.cgroups.v")
        assert await tasks.metrics(NS, ["id==other"]) == []
        with pytest.raises(errors.InvalidArgument):
            await tasks.metrics(NS, ["id==="])
        await tasks.update(
            NS,
            "m",
            Opaque("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", b'{"pids": {"limit": 77}}'),
            {},
        )
        group = next(
            line.split(":")[2]
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            if line.split(":")[1] in ("pids", "")
        )
        found = [Path(f"/sys/fs/cgroup{base}{group}/pids.max") for base in ("/pids", "")]
        assert next(f for f in found if f.exists()).read_text() == "77\n"
        await end(tasks, "m")

    async def test_a_dead_shim_takes_its_task_with_it(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """After kill -9 of the shim its processes die, waiters get 137, exit and deletion are published, nothing is
        left, and other tasks are not affected.
        """
        other = await start(tasks, node, "other", "sleep", "100", runtime=runtime)
        pid = await start(tasks, node, "s", "sleep", "100", runtime=runtime)
        await tasks.exec(NS, "s", "e", exec_spec("sleep", "100"), IO())
        exec_pid = await tasks.start(NS, "s", "e")
        waiting = [asyncio.create_task(tasks.wait(NS, "s")), asyncio.create_task(tasks.wait(NS, "s", "e"))]
        await asyncio.sleep(0)
        os.kill(shim_of(node, "s"), signal.SIGKILL)
        assert [(await asyncio.wait_for(w, 15)).status for w in waiting] == [137, 137]
        await gone(pid)
        await gone(exec_pid)
        deleted = await node.topic("s", "/tasks/delete")
        assert (deleted.pid, deleted.exit_status) == (pid, 137)
        assert {(e.id, e.pid, e.exit_status) for e in node.exits("s")} == {("s", pid, 137), ("e", exec_pid, 137)}

        async def away() -> bool:
            with pytest.raises(errors.NotFound, match=r"^task s not found$"):
                await tasks.get(NS, "s")
            return not (node.state / TASKS / NS / "s").exists()

        await eventually_async(away)
        assert not mounts_below(node.state / TASKS / NS / "s")
        assert not (node.state / "runc" / NS / "s").exists()
        assert (await tasks.get(NS, "other")).pid == other
        await tasks.create(NS, "s", CreateOptions(rootfs=(node.mount,)))
        await tasks.delete(NS, "s")
        await end(tasks, "other")

    @pytest.mark.parametrize("hindrance", ["runtime file gone", "runc gone", "bundle gone"])
    async def test_a_task_whose_cleaning_up_fails_is_not_forgotten(
        self, tasks: Tasks, node: FakeGateway, runtime: str, place: Path, hindrance: str
    ) -> None:
        """However the shim's program fails, the exit is published once its processes are dead, once; then nothing of
        the task is left, and the name is free.
        """
        shim = Hindered(place, runtime)
        pid = await start(
            tasks,
            node,
            "s",
            "sleep",
            "100",
            runtime=str(shim.program),
            options=oci_pb2.Options(binary_name=str(shim.runc)),
        )
        waiting = asyncio.create_task(tasks.wait(NS, "s"))
        await asyncio.sleep(0)
        bundle = node.state / TASKS / NS / "s"
        if hindrance == "runtime file gone":
            (bundle / "runtime").unlink()
        elif hindrance == "runc gone":
            shim.runc.unlink()
        else:
            for mount in mounts_below(bundle):
                subprocess.run(["umount", "-l", mount], check=True)
            shutil.rmtree(bundle)
        os.kill(shim_of(node, "s"), signal.SIGKILL)
        exit_ = await node.topic("s", "/tasks/exit", 30)
        assert (alive(pid), exit_.pid, exit_.exit_status) == (False, pid, 137)
        await node.topic("s", "/tasks/delete")
        assert (await asyncio.wait_for(waiting, 5)).status == 137
        await eventually_async(lambda: asyncio.sleep(0, leftovers(node) == []), "something is left")
        assert contained(node) == []
        assert len(node.exits("s")) == 1
        await start(tasks, node, "s", "true")
        await end(tasks, "s")

    async def test_a_silent_shim_is_only_slow(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """Calls to a shim that does not answer end at their deadline, and its task is listed as UNKNOWN; others answer
        meanwhile; afterwards everything is as before.
        """
        pid = await start(tasks, node, "h", "sleep", "100", runtime=runtime)
        await start(tasks, node, "i", "sleep", "100", runtime=runtime)
        shim = shim_of(node, "h")
        freeze(shim)
        try:
            hanging = asyncio.create_task(tasks.get(NS, "h"))
            assert (await asyncio.wait_for(tasks.get(NS, "i"), 1.5)).status is Status.RUNNING
            with pytest.raises(errors.DeadlineExceeded):
                await hanging
            await listed_as(tasks, {"h": Status.UNKNOWN, "i": Status.RUNNING})
        finally:
            os.kill(shim, signal.SIGCONT)
        await in_status(tasks, "h", Status.RUNNING)
        assert (await tasks.get(NS, "h")).pid == pid
        await end(tasks, "h")
        await end(tasks, "i")

    async def test_grouped_tasks_share_a_shim(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """Deleting one task of a group leaves the shim to the other; deleting the last ends it; killing the shim ends
        the whole group.
        """
        group: dict[str, Any] = {"annotations": {"io.containerd.runc.v2.group": "g1"}}
        await start(tasks, node, "g1", "sleep", "100", runtime=runtime, **group)
        pid = await start(tasks, node, "g2", "sleep", "100", runtime=runtime, **group)
        shim = shim_of(node, "g1")
        await end(tasks, "g1")
        assert alive(shim)
        assert (await tasks.get(NS, "g2")).pid == pid
        again = await start(tasks, node, "g1", "sleep", "100", runtime=runtime, **group)
        os.kill(shim, signal.SIGKILL)
        for name, was in (("g1", again), ("g2", pid)):
            await node.topic(name, "/tasks/delete")
            assert [e.exit_status for e in node.exits(name)][-1] == 137
            await gone(was)

        async def nothing() -> bool:
            return leftovers(node) == []

        await eventually_async(nothing)
        await start(tasks, node, "g1", "sleep", "100", runtime=runtime, **group)
        await end(tasks, "g1")
        assert leftovers(node) == []

    async def test_running_out_of_memory_is_told(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """A task that exceeds its memory limit is killed, 137, with an OOM event from the shim."""
        record = node.add(
            "oom", "sh", "-c", "sleep 0.3; dd if=/dev/zero of=/dev/null bs=64M count=1; exit 3", runtime=runtime
        )
        spec = json.loads(record.spec.value)
        spec["linux"]["resources"]["memory"] = {"limit": 16 << 20}
        record.spec.value = json.dumps(spec).encode()
        await tasks.create(NS, "oom", CreateOptions(rootfs=(node.mount,)))
        await tasks.start(NS, "oom")
        assert (await asyncio.wait_for(tasks.wait(NS, "oom"), 30)).status in (3, 137)
        await node.topic("oom", "/tasks/oom")
        await tasks.delete(NS, "oom")

    async def test_waiting_is_given_up_without_trace(self, tasks: Tasks, node: FakeGateway) -> None:
        """Fifty cancelled waits do not affect the task; the next one is answered."""
        await start(tasks, node, "w", "sleep", "100")
        waits = [asyncio.create_task(tasks.wait(NS, "w")) for _ in range(50)]
        await tasks.get(NS, "w")  # a later call was answered, so the waits have arrived
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        last = asyncio.create_task(tasks.wait(NS, "w"))
        await tasks.kill(NS, "w", "", signal.SIGKILL, everything=False)
        assert (await asyncio.wait_for(last, 15)).status == 137
        assert (await tasks.wait(NS, "w")).status == 137
        await tasks.delete(NS, "w")

    async def test_twenty_at_once(self, tasks: Tasks, node: FakeGateway, runtime: str) -> None:
        """Twenty tasks made, run and deleted at the same time each end with their own status."""

        async def one(number: int) -> int:
            name = f"n{number}"
            await start(tasks, node, name, "sh", "-c", f"exit {number}", runtime=runtime)
            status = (await asyncio.wait_for(tasks.wait(NS, name), 60)).status
            await tasks.delete(NS, name)
            return status

        assert await asyncio.gather(*map(one, range(20))) == list(range(20))
        assert leftovers(node) == []

    async def test_a_create_that_is_given_up_is_undone(self, tasks: Tasks, node: FakeGateway) -> None:
        """A caller that goes away during create leaves no task; the name can be used again."""
        node.add("g", "sleep", "100")
        making = asyncio.create_task(tasks.create(NS, "g", CreateOptions(rootfs=(node.mount,))))

        async with asyncio.timeout(15):
            while not (node.state / TASKS / NS / "g").exists():
                await asyncio.sleep(0)
        assert making.cancel()
        await asyncio.gather(making, return_exceptions=True)

        async def undone() -> bool:
            return leftovers(node) == []

        await eventually_async(undone, "something is left")
        await start(tasks, node, "g", "true")
        await end(tasks, "g")

    @pytest.mark.parametrize("removed", [False, True], ids=["", "removed"])
    async def test_a_create_that_waits_for_fifos_is_undone_when_it_is_given_up(
        self, tasks: Tasks, node: FakeGateway, runtime: str, *, removed: bool
    ) -> None:
        """Its client is killed before it has opened the FIFOs, and perhaps after removing them: the name is free within
        5 s, and nothing is left.
        """
        stdin, stdout, stderr = paths = [node.state / f"f.{stream}" for stream in ("in", "out", "err")]
        for path in paths:
            os.mkfifo(path)
        node.add("f", "sleep", "100", runtime=runtime)
        making = asyncio.create_task(
            tasks.create(NS, "f", CreateOptions(io=IO(str(stdin), str(stdout), str(stderr)), rootfs=(node.mount,)))
        )
        await eventually_async(
            lambda: asyncio.sleep(0, (node.state / TASKS / NS / "f/init.pid").exists()), "runc does not make it"
        )
        _, pending = await asyncio.wait({making}, timeout=0.5)
        assert pending, "the shim does not wait for its FIFOs"
        if removed:
            for path in paths:
                path.unlink()
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)

        async def made() -> int:
            try:
                return await tasks.create(NS, "f", CreateOptions(rootfs=(node.mount,)))
            except errors.AlreadyExists:
                return 0

        await eventually_async(made, "the name is not free", 5.0)
        await end(tasks, "f")
        assert leftovers(node) == []

    async def test_checkpoint(self, tasks: Tasks, node: FakeGateway, place: Path) -> None:
        """Two blobs, the image and the spec, are written under the caller's lease; with an image path there are none,
        and the image is in that path.

        CRIU does not run on every machine, so a runc that writes an image without it replaces it for this one
        operation.
        """
        runc = place / "runc-with-checkpoints"
        runc.write_text("""#!/bin/sh
for a; do
  case "$previous" in --image-path) image=$a;; esac
  case "$a" in checkpoint) verb=$a;; esac
  previous=$a
done
[ "$verb" = checkpoint ] || exec runc "$@"
echo memory > "$image/core-1.img"
""")
        runc.chmod(0o755)
        await start(tasks, node, "cp", "sleep", "100", options=oci_pb2.Options(binary_name=str(runc)))
        image, config = await tasks.checkpoint(NS, "cp", any_of(oci_pb2.CheckpointOptions()), lease="l1")
        assert image.media_type == "application/vnd.containerd.container.criu.checkpoint.criu.tar"
        assert config.media_type == "application/vnd.containerd.container.checkpoint.config.v1+proto"
        assert node.leases == ["l1", "l1"]
        assert node.blobs[config.digest] == node.records[NS, "cp"].spec.SerializeToString()
        assert b"memory" in node.blobs[image.digest]
        (place / "image").mkdir()
        assert (
            await tasks.checkpoint(NS, "cp", any_of(oci_pb2.CheckpointOptions(image_path=str(place / "image")))) == []
        )
        assert (place / "image/core-1.img").read_text() == "memory\n"
        await end(tasks, "cp")

    async def test_what_criu_says_is_passed_on(self, tasks: Tasks, node: FakeGateway) -> None:
        """Restoring from something that is no image fails with the shim's words, and leaves nothing."""
        node.add("bad", "true")
        node.blobs["sha256:0"] = bytes(10240)  # an empty tar
        with pytest.raises(errors.NodeError, match="criu|restore|checkpoint"):
            await tasks.create(
                NS,
                "bad",
                CreateOptions(
                    rootfs=(node.mount,),
                    checkpoint=Descriptor(
                        "application/vnd.containerd.container.criu.checkpoint.criu.tar", "sha256:0", 10240
                    ),
                ),
            )
            await tasks.start(NS, "bad")
        with contextlib.suppress(errors.NotFound):
            await tasks.delete(NS, "bad")
        assert leftovers(node) == []

    async def test_checkpoint_options_are_checked(self, tasks: Tasks, node: FakeGateway) -> None:
        """Options of another type are refused before the shim is called."""
        await start(tasks, node, "co", "sleep", "100")
        with pytest.raises(errors.Unknown, match=r"^invalid task checkpoint option for io.containerd.runc.v2$"):
            await tasks.checkpoint(NS, "co", any_of(oci_pb2.Options()))
        await end(tasks, "co")


__all__ = [
    "LIFE",
    "Hindered",
    "TasksSuite",
    "end",
    "exec_spec",
    "in_status",
    "leftovers",
    "listed_as",
    "shim_of",
    "start",
]
