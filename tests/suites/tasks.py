"""The contract of Tasks, on real shims and a real runc.

A life of the interface is a fixture ``tasks``; ``node`` is the rest of the node, ``runtime`` the shim to use.
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
from tests.suites.tasks_node import TasksNode, alive, contained, gone, leftovers, output
from tests.support import eventually_async, freeze, mounts_below

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


async def listed_as(tasks: Tasks, node: TasksNode, wanted: Mapping[str, Status]) -> None:
    """Wait until the list has these tasks in these states: if the machine stops for longer than a shim may take, any of
    them is UNKNOWN for a moment.
    """

    async def there() -> bool:
        return {p.id: p.status for p in await tasks.list(node.ns)} == wanted

    await eventually_async(there, f"the list is not {wanted}")


async def in_status(tasks: Tasks, node: TasksNode, name: str, status: Status, exec_id: str = "") -> None:
    async def there() -> bool:
        return (await tasks.get(node.ns, name, exec_id)).status is status

    await eventually_async(there, f"{name} does not become {status.name}")


def shim_of(node: TasksNode, name: str) -> int:
    """The pid of a task's shim."""
    (found,) = node.shims(name)
    return found


async def start(
    tasks: Tasks,
    node: TasksNode,
    name: str,
    *args: str,
    runtime: str = "io.containerd.runc.v2",
    io: IO = IO(),
    **how: Any,
) -> int:
    """A running task of a new container."""
    await node.add(name, *args, runtime=runtime, **how)
    await tasks.create(node.ns, name, CreateOptions(io=io, rootfs=(node.mount,)))
    return await tasks.start(node.ns, name)


async def end(tasks: Tasks, node: TasksNode, name: str) -> None:
    """Kill and delete, as ``ctr tasks rm -f``."""
    try:
        await tasks.kill(node.ns, name, "", signal.SIGKILL, everything=True)
        await asyncio.wait_for(tasks.wait(node.ns, name), 15)
    except errors.NotFound:
        pass
    await tasks.delete(node.ns, name)


class TasksSuite:
    """The promises."""

    containerd = False
    """Whether it is containerd's own service. Where that does otherwise, and we on purpose do not, a test says so."""

    def only_ours(self, instead: str) -> None:
        """Skip the rest on containerd, which does this ``instead``."""
        if self.containerd:
            pytest.skip(f"containerd: {instead}")

    async def nothing_left(self, node: TasksNode) -> None:
        """Of the tasks that were deleted, a moment after that was answered: then their shims have ended."""
        await eventually_async(lambda: asyncio.sleep(0, leftovers(node) == []), "something is left")

    @pytest.fixture(params=runtimes(), ids=lambda r: "" if r.startswith("io.") else r.strip("/").replace("/", "-"))
    def runtime(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_a_task_lives_as_the_shim_says(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A task is CREATED, RUNNING, STOPPED with its exit status, and gone; four events come in this order, and
        nothing is left.
        """
        await node.add("a", "sh", "-c", "read x; exit 7", runtime=runtime)
        async with output(node.place, "a") as o:
            pid = await tasks.create(node.ns, "a", CreateOptions(io=o.io(), rootfs=(node.mount,)))
            created = await tasks.get(node.ns, "a")
            assert (created.id, created.pid, created.status, created.io.stdout) == ("a", pid, Status.CREATED, o.stdout)
            waiting = asyncio.create_task(tasks.wait(node.ns, "a"))
            assert await tasks.start(node.ns, "a") == pid
            assert (await tasks.get(node.ns, "a")).status is Status.RUNNING
            assert [(p.id, p.pid) for p in await tasks.list(node.ns)] == [("a", pid)]
            assert await tasks.list("other") == []
            o.write("\n")
            exit_ = await asyncio.wait_for(waiting, 15)
        assert exit_.status == 7
        stopped = await tasks.get(node.ns, "a")
        assert (stopped.status, stopped.exit_status, stopped.exited_at) == (Status.STOPPED, 7, exit_.at)
        deleted = await tasks.delete(node.ns, "a")
        assert (deleted.status, deleted.at, deleted.pid) == (7, exit_.at, pid)
        with pytest.raises(errors.NotFound, match=r"^task a not found$"):
            await tasks.get(node.ns, "a")
        await self.nothing_left(node)
        await node.topic("a", "/tasks/delete")
        assert node.topics("a") == LIFE

    async def test_an_error_names_the_missing_container_or_task(self, tasks: Tasks, node: TasksNode) -> None:
        """Without a container the error is about the container, in metadata's words; without a task, about the task."""
        await node.add("idle", "true")
        for verb in (tasks.start, tasks.get, tasks.delete, tasks.pause, tasks.resume, tasks.pids, tasks.wait):
            with pytest.raises(errors.NotFound, match=f'^container "none" in namespace "{node.ns}": not found$'):
                await verb(node.ns, "none")
            with pytest.raises(errors.NotFound, match=r"^task idle not found$"):
                await verb(node.ns, "idle")

    async def test_bundle_is_laid_out_as_containerds(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """config.json is the spec byte for byte; rootfs, work, log, shim-binary-path, bootstrap.json and the shim's
        files are where tools look.
        """
        pid = await start(tasks, node, "b", "sleep", "100", runtime=runtime)
        bundle = node.state / TASKS / node.ns / "b"
        assert (bundle / "config.json").read_bytes() == node.records["b"].spec.value
        assert os.stat(bundle).st_mode & 0o7777 == 0o700
        assert (bundle / "work").readlink() == node.root / TASKS / node.ns / "b"
        assert (bundle / "init.pid").read_text() == str(pid)
        assert (bundle / "log").is_fifo()
        assert (bundle / "shim-binary-path").read_text() == (
            shutil.which("containerd-shim-runc-v2") if runtime.startswith("io.") else runtime
        )
        if not self.containerd:  # 1.6 has the address alone, in a file of that name
            address = json.loads((bundle / "bootstrap.json").read_text())
            assert (address["protocol"], address["version"] in (2, 3)) == ("ttrpc", True)
        assert json.loads((bundle / "options.json").read_text())["root"] == str(node.runc)
        assert (node.runc / node.ns / "b").is_dir()
        await end(tasks, node, "b")

    async def test_options_of_the_client_are_kept(self, tasks: Tasks, node: TasksNode) -> None:
        """runc's options come from the create call, else from the container; only an empty root is filled in."""
        mine = node.place / "my-runc"
        await node.add("o", "sleep", "100", options=oci_pb2.Options(no_new_keyring=True))
        await tasks.create(node.ns, "o", CreateOptions(rootfs=(node.mount,)))
        written = json.loads((node.state / TASKS / node.ns / "o/options.json").read_text())
        assert (written["no_new_keyring"], written["root"]) == (True, str(node.runc))
        await tasks.delete(node.ns, "o")
        await tasks.create(
            node.ns, "o", CreateOptions(rootfs=(node.mount,), options=any_of(oci_pb2.Options(root=str(mine))))
        )
        assert (mine / node.ns / "o").is_dir()
        assert "no_new_keyring" not in json.loads((node.state / TASKS / node.ns / "o/options.json").read_text())
        await tasks.delete(node.ns, "o")
        assert list(mine.glob("*/*")) == []

    async def test_a_task_is_made_once(self, tasks: Tasks, node: TasksNode) -> None:
        """A second create, even at the same time, is AlreadyExists; after a delete the name is free at once."""
        await node.add("once", "sleep", "100")
        await tasks.create(node.ns, "once", CreateOptions(rootfs=(node.mount,)))
        with pytest.raises(errors.AlreadyExists, match="^task once: already exists$"):
            await tasks.create(node.ns, "once", CreateOptions(rootfs=(node.mount,)))
        await tasks.delete(node.ns, "once")
        self.only_ours("of creates at the same time, one fails on the other's directory")
        made = await asyncio.gather(
            *(tasks.create(node.ns, "once", CreateOptions(rootfs=(node.mount,))) for _ in range(3)),
            return_exceptions=True,
        )
        failed = [e for e in made if not isinstance(e, int)]
        assert [str(e) for e in failed] == ["task once: already exists"] * 2
        assert all(isinstance(e, errors.AlreadyExists) for e in failed)
        await tasks.delete(node.ns, "once")

    async def test_unknown_runtimes_are_named(self, tasks: Tasks, node: TasksNode) -> None:
        """The words are containerd's, and nothing is left."""
        for runtime, words in (
            (
                "io.containerd.nosuch.v9",
                r'runtime "io.containerd.nosuch.v9" binary not installed "containerd-shim-nosuch-v9": file does not exist$',
            ),
            ("/no/such/shim", r"invalid custom binary path: stat /no/such/shim: no such file or directory$"),
            (
                "odd",
                r"invalid runtime name odd, correct runtime name should be either format like `io.containerd.runc.v[12]` or a full path to the binary$",
            ),
        ):
            await node.add("r", "true", runtime=runtime)
            with pytest.raises(errors.Unknown, match=f"^failed to start shim: failed to resolve runtime path: {words}"):
                await tasks.create(node.ns, "r", CreateOptions(rootfs=(node.mount,)))
        await self.nothing_left(node)

    async def test_runtime_of_the_call_wins(self, tasks: Tasks, node: TasksNode) -> None:
        """The runtime path of a create call overrides the container's."""
        await node.add("rp", "true", runtime="io.containerd.nosuch.v9")
        await tasks.create(
            node.ns, "rp", CreateOptions(rootfs=(node.mount,), runtime="/usr/bin/containerd-shim-runc-v2")
        )
        await tasks.delete(node.ns, "rp")

    async def test_a_failed_create_leaves_nothing(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """runc's error is passed on; shim, mounts and bundle are gone; the name is free."""
        await node.add("f", "no-such-program", runtime=runtime)
        with pytest.raises(errors.NodeError, match=r"^failed to create shim task: .*no-such-program"):
            await tasks.create(node.ns, "f", CreateOptions(rootfs=(node.mount,)))
        await self.nothing_left(node)
        await node.add("f", "true", runtime=runtime)
        await tasks.create(node.ns, "f", CreateOptions(rootfs=(node.mount,)))
        await tasks.delete(node.ns, "f")

    async def test_id_mapped_mounts_are_not_ignored(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A runtime that does not announce support, such as Debian's runc 1.1, is refused such a spec, and nothing is
        left.
        """
        self.only_ours("1.6 does not look, 2.1 leaves mounts behind")
        spec = node.spec("i", "true")
        spec["mounts"].append({"destination": "/tmp", "type": "bind", "source": "/tmp", "options": ["rbind", "idmap"]})
        await node.add("i", written=json.dumps(spec).encode(), runtime=runtime)
        with pytest.raises(
            errors.Unknown,
            match="^failed to validate OCI runtime features: (failed to run .*-info|idmap mounts not supported)",
        ):
            await tasks.create(node.ns, "i", CreateOptions(rootfs=(node.mount,)))
        await self.nothing_left(node)

    async def test_empty_rootfs_is_legal(self, tasks: Tasks, node: TasksNode) -> None:
        """A spec whose root is a path needs no mounts."""
        await node.add("e", "true", root=str(node.rootfs))
        await tasks.create(node.ns, "e", CreateOptions())
        await tasks.start(node.ns, "e")
        assert (await asyncio.wait_for(tasks.wait(node.ns, "e"), 15)).status == 0
        await tasks.delete(node.ns, "e")
        assert (node.rootfs / "bin/sh").exists()

    async def test_a_running_task_is_not_deleted(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """The shim refuses, in its words, and the task goes on."""
        pid = await start(tasks, node, "d", "sleep", "100", runtime=runtime)
        with pytest.raises(errors.NodeError, match=r"^failed to delete task: cannot delete a running process"):
            await tasks.delete(node.ns, "d")
        assert (await tasks.get(node.ns, "d")).status is Status.RUNNING
        assert alive(pid)
        await end(tasks, node, "d")

    async def test_execs(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """An exec is added, started and waited for; its status is kept until it is deleted; ids are checked."""
        await start(tasks, node, "x", "sleep", "100", runtime=runtime)
        async with output(node.place, "x1") as o:
            await tasks.exec(node.ns, "x", "e1", exec_spec("sh", "-c", "echo hello; exit 9"), o.io())
            assert (await tasks.get(node.ns, "x", "e1")).status is Status.CREATED
            with pytest.raises(errors.AlreadyExists, match="e1"):
                await tasks.exec(node.ns, "x", "e1", exec_spec("true"), IO())
            waiting = asyncio.create_task(tasks.wait(node.ns, "x", "e1"))
            pid = await tasks.start(node.ns, "x", "e1")
            assert (await asyncio.wait_for(waiting, 15)).status == 9
            await o.says("hello\n")
        state = await tasks.get(node.ns, "x", "e1")
        assert (state.id, state.status, state.exit_status) == ("e1", Status.STOPPED, 9)
        how = await tasks.delete_process(node.ns, "x", "e1")
        assert (how.status, how.pid) == (9, pid)
        for verb in (tasks.get, tasks.start, tasks.wait, tasks.delete_process):
            with pytest.raises(errors.NotFound):
                await verb(node.ns, "x", "e1")
        with pytest.raises(errors.InvalidArgument, match=r"^exec id cannot be empty$"):
            await tasks.exec(node.ns, "x", "", exec_spec("true"), IO())
        with pytest.raises(errors.InvalidArgument, match=r"^invalid exec id a b: identifier"):
            await tasks.exec(node.ns, "x", "a b", exec_spec("true"), IO())
        with pytest.raises(errors.NodeError, match="no-such-program"):
            await tasks.exec(node.ns, "x", "e2", exec_spec("no-such-program"), IO())
            await tasks.start(node.ns, "x", "e2")
        await end(tasks, node, "x")
        await node.topic("x", "/tasks/delete")
        assert [
            t
            for t, e in node.events
            if e.container_id == "x" and (getattr(e, "exec_id", "") == "e1" or getattr(e, "id", "") == "e1")
        ] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]

    async def test_requests_are_checked_before_the_shim(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """Invalid payloads, options and stdio are InvalidArgument that names the field; nothing is left, and the task
        goes on. (A shim would also refuse these.)
        """
        self.only_ours("it asks the shim, which refuses in words of its own")
        missing = str(node.place / "missing")
        await node.add("c", "true", runtime=runtime)
        for options, field in (
            (CreateOptions(io=IO("", missing, missing)), "stdout"),
            (CreateOptions(io=IO(missing, "/dev/null", "/dev/null")), "stdin"),
            (CreateOptions(io=IO("", "/dev/null", "")), "stderr"),
            (CreateOptions(options=Opaque("no.Such", b"\x08\x01")), "options"),
        ):
            with pytest.raises(errors.InvalidArgument, match=f"^{field}"):
                await tasks.create(node.ns, "c", replace(options, rootfs=(node.mount,)))
        with pytest.raises(errors.NotFound):
            await tasks.get(node.ns, "c")
        pid = await start(tasks, node, "q", "sleep", "100", runtime=runtime)
        for spec, io, field in (
            (Opaque("x", b""), IO(), "spec"),
            (exec_spec("true"), IO("", "/dev/null", missing), "stderr"),
            (exec_spec("true"), IO(terminal=True), "stdout"),
        ):
            with pytest.raises(errors.InvalidArgument, match=f"^{field}"):
                await tasks.exec(node.ns, "q", "e", spec, io)
        with pytest.raises(errors.InvalidArgument, match="^resources"):
            await tasks.update(node.ns, "q", Opaque("x", b""), {})
        for verb in (tasks.get, tasks.start, tasks.wait, tasks.delete_process):
            with pytest.raises(errors.NotFound):
                await verb(node.ns, "q", "e")
        with pytest.raises(errors.InvalidArgument, match="^exec id cannot be empty$"):
            await tasks.delete_process(node.ns, "q", "")
        assert (await tasks.get(node.ns, "q")).pid == pid
        await end(tasks, node, "q")

    async def test_signals(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A signal reaches the init; killing a stopped task is NotFound; with ``all``, execs die too, and that may be
        repeated.
        """
        await start(tasks, node, "k", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done", runtime=runtime)
        await tasks.exec(node.ns, "k", "e", exec_spec("sleep", "100"), IO())
        await tasks.start(node.ns, "k", "e")
        await tasks.kill(node.ns, "k", "e", signal.SIGINT, everything=False)
        assert (await asyncio.wait_for(tasks.wait(node.ns, "k", "e"), 15)).status == 128 + signal.SIGINT
        await tasks.kill(node.ns, "k", "", signal.SIGTERM, everything=False)
        assert (await asyncio.wait_for(tasks.wait(node.ns, "k"), 15)).status == 3
        with pytest.raises(errors.NotFound):
            await tasks.kill(node.ns, "k", "", signal.SIGTERM, everything=False)
        await tasks.delete(node.ns, "k")

        await start(tasks, node, "all", "sleep", "100", runtime=runtime)
        await tasks.exec(node.ns, "all", "e", exec_spec("sleep", "100"), IO())
        other = await tasks.start(node.ns, "all", "e")
        await tasks.kill(node.ns, "all", "", signal.SIGKILL, everything=True)
        assert (await asyncio.wait_for(tasks.wait(node.ns, "all"), 15)).status == 137
        assert (await asyncio.wait_for(tasks.wait(node.ns, "all", "e"), 15)).status == 137
        await gone(other)
        await tasks.kill(node.ns, "all", "", signal.SIGKILL, everything=True)
        with pytest.raises(errors.NotFound):
            await tasks.kill(node.ns, "all", "", signal.SIGKILL, everything=False)
        await tasks.delete(node.ns, "all")

    async def test_killing_everything_spares_others_in_the_cgroup(self, tasks: Tasks, node: TasksNode) -> None:
        """Clients put containers of the same name from two nodes into one cgroup; removing one by force does not affect
        the other, if they have pid namespaces.
        """
        self.only_ours("all that is in the cgroup is killed")
        shared = "/splitd-test/shared"
        await start(tasks, node, "mine", "sh", "-c", "sleep 100 & wait", cgroup=shared)
        other = await start(tasks, node, "other", "sleep", "100", cgroup=shared)
        await end(tasks, node, "mine")
        assert (await tasks.get(node.ns, "other")).status is Status.RUNNING
        assert alive(other)
        await end(tasks, node, "other")

    async def test_everything_without_a_pid_namespace(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """In the host's pid namespace the init's children do not die with it; a kill with ``all`` reaches them."""
        spec = node.spec("host", "sh", "-c", "sleep 100 & wait")
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
        await node.add("host", written=json.dumps(spec).encode(), runtime=runtime)
        await tasks.create(node.ns, "host", CreateOptions(rootfs=(node.mount,)))
        await tasks.start(node.ns, "host")

        async def both() -> bool:
            return len(await tasks.pids(node.ns, "host")) == 2

        await eventually_async(both)
        pids = [p.pid for p in await tasks.pids(node.ns, "host")]
        await end(tasks, node, "host")
        for pid in pids:
            await gone(pid)

    async def test_a_spec_with_more_than_is_known(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A client's own field in a spec, 3000 levels deep, does no harm: the task runs, and a kill with ``all`` ends
        it.
        """
        known = json.dumps(node.spec("deep", "sleep", "100")).encode().removesuffix(b"}")
        more = b',"\\u0078-mine":' + b'{"a":[' * 1500 + b'"\\ud800"' + b"]}" * 1500 + b"}"
        await node.add("deep", written=known + more, runtime=runtime)
        await tasks.create(node.ns, "deep", CreateOptions(rootfs=(node.mount,)))
        pid = await tasks.start(node.ns, "deep")
        await tasks.kill(node.ns, "deep", "", signal.SIGKILL, everything=True)
        assert (await asyncio.wait_for(tasks.wait(node.ns, "deep"), 15)).status == 137
        await gone(pid)
        await tasks.delete(node.ns, "deep")

    async def test_pause_and_resume(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A paused task is PAUSED and goes on when resumed; both have events."""
        await start(tasks, node, "p", "sleep", "100", runtime=runtime)
        await tasks.pause(node.ns, "p")
        assert (await tasks.get(node.ns, "p")).status is Status.PAUSED
        await tasks.resume(node.ns, "p")
        assert (await tasks.get(node.ns, "p")).status is Status.RUNNING
        await end(tasks, node, "p")
        await start(tasks, node, "frozen", "sleep", "100", runtime=runtime)
        await tasks.pause(node.ns, "frozen")
        await end(tasks, node, "frozen")
        await node.topic("p", "/tasks/delete")
        assert node.topics("p")[2:4] == ["/tasks/paused", "/tasks/resumed"]

    @pytest.mark.parametrize("everything", [True, False])
    async def test_a_paused_task_of_another_runtime_is_killed(
        self, tasks: Tasks, node: TasksNode, runtime: str, place: Path, *, everything: bool
    ) -> None:
        """crun does not thaw what it kills: the task dies nevertheless, and others in its cgroup do not."""
        self.only_ours("the killed one stays frozen, or all that is in its cgroup is killed")
        crun = oci_pb2.Options(binary_name=str(crun_beside(place)))
        other = await start(
            tasks, node, "beside", "sleep", "100", runtime=runtime, cgroup="/splitd-test/thawed", options=crun
        )
        await start(tasks, node, "paused", "sleep", "100", runtime=runtime, cgroup="/splitd-test/thawed", options=crun)
        await tasks.pause(node.ns, "paused")
        assert (await tasks.get(node.ns, "paused")).status is Status.PAUSED
        await tasks.kill(node.ns, "paused", "", signal.SIGKILL, everything=everything)
        assert (await asyncio.wait_for(tasks.wait(node.ns, "paused"), 15)).status == 137
        assert alive(other)  # until crun deletes its half: it kills all that is in the cgroup
        await tasks.delete(node.ns, "paused")
        await end(tasks, node, "beside")

    async def test_closing_stdin_ends_the_reader(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """After close_stdin, and once the client has closed its own end, ``cat`` comes to the end of its input."""
        async with output(node.place, "c") as o:
            await start(tasks, node, "c", "cat", io=o.io(), runtime=runtime)
            o.write("through\n")
            await o.says("through\n")
            o.close_stdin()
            await tasks.close_stdin(node.ns, "c")
            assert (await asyncio.wait_for(tasks.wait(node.ns, "c"), 15)).status == 0
        await tasks.delete(node.ns, "c")

    async def test_calls_wait_for_a_task_that_is_being_created(
        self, tasks: Tasks, node: TasksNode, runtime: str
    ) -> None:
        """State and CloseIO are called before Create is answered: they find the task, and it reads to the end of its
        input.
        """
        self.only_ours("it may answer that there is no container yet")
        await node.add("c", "cat", runtime=runtime)
        async with output(node.place, "c") as o:
            o.write("all\n")
            creating = asyncio.create_task(tasks.create(node.ns, "c", CreateOptions(io=o.io(), rootfs=(node.mount,))))
            await eventually_async(lambda: asyncio.sleep(0, (node.state / TASKS / node.ns / "c").exists()), "no bundle")
            closing = asyncio.create_task(tasks.close_stdin(node.ns, "c"))
            found = await tasks.get(node.ns, "c")
            assert (found.pid, found.status) == (await creating, Status.CREATED)
            o.close_stdin()
            await closing
            await tasks.start(node.ns, "c")
            await o.says("all\n")
            assert (await asyncio.wait_for(tasks.wait(node.ns, "c"), 15)).status == 0
        await tasks.delete(node.ns, "c")

    async def test_calls_for_a_task_whose_creation_fails_are_not_found(self, tasks: Tasks, node: TasksNode) -> None:
        """The caller gets NotFound."""
        self.only_ours("it answers that there is no container yet")
        await node.add("c", "/nothing/there")
        creating = asyncio.create_task(tasks.create(node.ns, "c", CreateOptions(rootfs=(node.mount,))))
        await eventually_async(lambda: asyncio.sleep(0, (node.state / TASKS / node.ns / "c").exists()), "no bundle")
        with pytest.raises(errors.NotFound, match=r"^task c not found$"):
            await tasks.get(node.ns, "c")
        with pytest.raises(errors.NodeError):
            await creating

    async def test_a_terminal_has_its_size(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A terminal has the size that was last set, for the init and for an exec."""
        async with output(node.place, "t") as o, output(node.place, "te") as e:
            await start(tasks, node, "t", "sh", terminal=True, io=o.io(terminal=True), runtime=runtime)
            await tasks.resize(node.ns, "t", "", 101, 33)
            o.write("stty size\n")
            await o.says("33 101")
            await tasks.exec(node.ns, "t", "e", exec_spec("sh", terminal=True), e.io(terminal=True))
            await tasks.start(node.ns, "t", "e")
            await tasks.resize(node.ns, "t", "e", 77, 22)
            e.write("stty size\n")
            await e.says("22 77")
            await end(tasks, node, "t")

    async def test_pids_metrics_and_update(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """Pids are the kernel's; statistics have the shim's own type; a new limit is in force."""
        pid = await start(tasks, node, "m", "sh", "-c", "sleep 100 & wait", runtime=runtime)

        async def both() -> bool:
            return len(await tasks.pids(node.ns, "m")) == 2

        await eventually_async(both)
        assert pid in [p.pid for p in await tasks.pids(node.ns, "m")]
        (metric,) = await tasks.metrics(node.ns, ["id==m"])
        assert metric.id == "m"
        assert metric.data is not None
        assert metric.data.type_url.startswith("io.containerd.cgroups.v")
        assert await tasks.metrics(node.ns, ["id==other"]) == []
        with pytest.raises(
            errors.Unknown if self.containerd else errors.InvalidArgument, match="parse error: .* invalid argument$"
        ):
            await tasks.metrics(node.ns, ["id==="])
        await tasks.update(
            node.ns,
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
        await end(tasks, node, "m")

    async def test_a_dead_shim_takes_its_task_with_it(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """After kill -9 of the shim its processes die, waiters get 137, exit and deletion are published, nothing is
        left, and other tasks are not affected.
        """
        self.only_ours("who waits is told that a connection is closed")
        other = await start(tasks, node, "other", "sleep", "100", runtime=runtime)
        pid = await start(tasks, node, "s", "sleep", "100", runtime=runtime)
        await tasks.exec(node.ns, "s", "e", exec_spec("sleep", "100"), IO())
        exec_pid = await tasks.start(node.ns, "s", "e")
        waiting = [asyncio.create_task(tasks.wait(node.ns, "s")), asyncio.create_task(tasks.wait(node.ns, "s", "e"))]
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
                await tasks.get(node.ns, "s")
            return not (node.state / TASKS / node.ns / "s").exists()

        await eventually_async(away)
        assert not mounts_below(node.state / TASKS / node.ns / "s")
        assert not (node.runc / node.ns / "s").exists()
        assert (await tasks.get(node.ns, "other")).pid == other
        await tasks.create(node.ns, "s", CreateOptions(rootfs=(node.mount,)))
        await tasks.delete(node.ns, "s")
        await end(tasks, node, "other")

    @pytest.mark.parametrize("hindrance", ["runtime file gone", "runc gone", "bundle gone"])
    async def test_a_task_whose_cleaning_up_fails_is_not_forgotten(
        self, tasks: Tasks, node: TasksNode, runtime: str, place: Path, hindrance: str
    ) -> None:
        """However the shim's program fails, the exit is published once its processes are dead, once; then nothing of
        the task is left, and the name is free.
        """
        self.only_ours("the exit is told though processes live, and things are left")
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
        waiting = asyncio.create_task(tasks.wait(node.ns, "s"))
        await asyncio.sleep(0)
        bundle = node.state / TASKS / node.ns / "s"
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
        await end(tasks, node, "s")

    async def test_a_silent_shim_is_only_slow(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A task whose shim does not answer is UNKNOWN, there and in the list; others answer meanwhile; afterwards
        all is as before.
        """
        pid = await start(tasks, node, "h", "sleep", "100", runtime=runtime)
        await start(tasks, node, "i", "sleep", "100", runtime=runtime)
        shim = shim_of(node, "h")
        freeze(shim)
        try:
            hanging = asyncio.create_task(tasks.get(node.ns, "h"))
            assert (await asyncio.wait_for(tasks.get(node.ns, "i"), 1.5)).status is Status.RUNNING
            assert (await hanging).status is Status.UNKNOWN
            await listed_as(tasks, node, {"h": Status.UNKNOWN, "i": Status.RUNNING})
        finally:
            os.kill(shim, signal.SIGCONT)
        await in_status(tasks, node, "h", Status.RUNNING)
        assert (await tasks.get(node.ns, "h")).pid == pid
        await end(tasks, node, "h")
        await end(tasks, node, "i")

    async def test_grouped_tasks_share_a_shim(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """Deleting one task of a group leaves the shim to the other; deleting the last ends it; killing the shim ends
        the whole group.
        """
        group: dict[str, Any] = {"annotations": {"io.containerd.runc.v2.group": "g1"}}
        await start(tasks, node, "g1", "sleep", "100", runtime=runtime, **group)
        pid = await start(tasks, node, "g2", "sleep", "100", runtime=runtime, **group)
        shim = shim_of(node, "g1")
        await end(tasks, node, "g1")
        assert alive(shim)
        assert (await tasks.get(node.ns, "g2")).pid == pid
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
        await end(tasks, node, "g1")
        await self.nothing_left(node)

    async def test_running_out_of_memory_is_told(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """A task that exceeds its memory limit is killed, 137, with an OOM event from the shim."""
        spec = node.spec("oom", "sh", "-c", "sleep 0.3; dd if=/dev/zero of=/dev/null bs=64M count=1; exit 3")
        spec["linux"]["resources"]["memory"] = {"limit": 16 << 20}
        await node.add("oom", written=json.dumps(spec).encode(), runtime=runtime)
        await tasks.create(node.ns, "oom", CreateOptions(rootfs=(node.mount,)))
        await tasks.start(node.ns, "oom")
        assert (await asyncio.wait_for(tasks.wait(node.ns, "oom"), 30)).status in (3, 137)
        await node.topic("oom", "/tasks/oom")
        await tasks.delete(node.ns, "oom")

    async def test_waiting_is_given_up_without_trace(self, tasks: Tasks, node: TasksNode) -> None:
        """Fifty cancelled waits do not affect the task; the next one is answered."""
        await start(tasks, node, "w", "sleep", "100")
        waits = [asyncio.create_task(tasks.wait(node.ns, "w")) for _ in range(50)]
        await tasks.get(node.ns, "w")  # a call after them was answered: they have come
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        last = asyncio.create_task(tasks.wait(node.ns, "w"))
        await tasks.kill(node.ns, "w", "", signal.SIGKILL, everything=False)
        assert (await asyncio.wait_for(last, 15)).status == 137
        assert (await tasks.wait(node.ns, "w")).status == 137
        await tasks.delete(node.ns, "w")

    async def test_twenty_at_once(self, tasks: Tasks, node: TasksNode, runtime: str) -> None:
        """Twenty tasks made, run and deleted at the same time each end with their own status."""

        async def one(number: int) -> int:
            name = f"n{number}"
            await start(tasks, node, name, "sh", "-c", f"exit {number}", runtime=runtime)
            status = (await asyncio.wait_for(tasks.wait(node.ns, name), 60)).status
            await tasks.delete(node.ns, name)
            return status

        assert await asyncio.gather(*map(one, range(20))) == list(range(20))
        await self.nothing_left(node)

    async def test_a_create_that_is_given_up_is_undone(self, tasks: Tasks, node: TasksNode) -> None:
        """A caller that goes away during create leaves no task; the name can be used again."""
        await node.add("g", "sleep", "100")
        making = asyncio.create_task(tasks.create(node.ns, "g", CreateOptions(rootfs=(node.mount,))))

        async with asyncio.timeout(15):
            while not (node.state / TASKS / node.ns / "g").exists():
                await asyncio.sleep(0)
        assert making.cancel()
        await asyncio.gather(making, return_exceptions=True)

        async def undone() -> bool:
            return leftovers(node) == []

        await eventually_async(undone, "something is left")
        await start(tasks, node, "g", "true")
        await end(tasks, node, "g")

    @pytest.mark.parametrize("removed", [False, True], ids=["", "removed"])
    async def test_a_create_that_waits_for_fifos_is_undone_when_it_is_given_up(
        self, tasks: Tasks, node: TasksNode, runtime: str, *, removed: bool
    ) -> None:
        """Its client is killed before it has opened the FIFOs, and perhaps after removing them: the name is free within
        5 s, and nothing is left.
        """
        self.only_ours("the bundle stays, and the name is taken for ever")
        stdin, stdout, stderr = paths = [node.place / f"f.{stream}" for stream in ("in", "out", "err")]
        for path in paths:
            os.mkfifo(path)
        await node.add("f", "sleep", "100", runtime=runtime)
        making = asyncio.create_task(
            tasks.create(node.ns, "f", CreateOptions(io=IO(str(stdin), str(stdout), str(stderr)), rootfs=(node.mount,)))
        )
        await eventually_async(
            lambda: asyncio.sleep(0, (node.state / TASKS / node.ns / "f/init.pid").exists()), "runc does not make it"
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
                return await tasks.create(node.ns, "f", CreateOptions(rootfs=(node.mount,)))
            except errors.AlreadyExists:
                return 0

        await eventually_async(made, "the name is not free", 5.0)
        await end(tasks, node, "f")
        await self.nothing_left(node)

    async def test_checkpoint(self, tasks: Tasks, node: TasksNode, place: Path) -> None:
        """Two blobs, the image and the spec, are written under the caller's lease; with an image path none, and the
        image is there.

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
        await node.lease("l1")
        image, config = await tasks.checkpoint(node.ns, "cp", any_of(oci_pb2.CheckpointOptions()), lease="l1")
        assert image.media_type == "application/vnd.containerd.container.criu.checkpoint.criu.tar"
        assert config.media_type == "application/vnd.containerd.container.checkpoint.config.v1+proto"
        assert await node.leased("l1") == {image.digest, config.digest}
        assert await node.blob(config.digest) == node.records["cp"].spec.SerializeToString()
        assert b"memory" in await node.blob(image.digest)
        (place / "image").mkdir()
        assert (
            await tasks.checkpoint(node.ns, "cp", any_of(oci_pb2.CheckpointOptions(image_path=str(place / "image"))))
            == []
        )
        assert (place / "image/core-1.img").read_text() == "memory\n"
        await end(tasks, node, "cp")

    async def test_criu_errors_are_passed_on(self, tasks: Tasks, node: TasksNode) -> None:
        """Restoring from something that is no image fails with the shim's words, and leaves nothing."""
        await node.add("bad", "true")
        image = await node.put(bytes(10240))  # an empty tar
        with pytest.raises(errors.NodeError, match="criu|restore|checkpoint"):
            await tasks.create(
                node.ns,
                "bad",
                CreateOptions(
                    rootfs=(node.mount,),
                    checkpoint=Descriptor(
                        "application/vnd.containerd.container.criu.checkpoint.criu.tar", image, 10240
                    ),
                ),
            )
            await tasks.start(node.ns, "bad")
        with contextlib.suppress(errors.NotFound):
            await tasks.delete(node.ns, "bad")
        await self.nothing_left(node)

    async def test_checkpoint_options_are_checked(self, tasks: Tasks, node: TasksNode) -> None:
        """Options of another type are refused before the shim is called."""
        await start(tasks, node, "co", "sleep", "100")
        with pytest.raises(errors.Unknown, match=r"^invalid task checkpoint option for io.containerd.runc.v2$"):
            await tasks.checkpoint(node.ns, "co", any_of(oci_pb2.Options()))
        await end(tasks, node, "co")


__all__ = ["LIFE", "Hindered", "TasksSuite", "end", "exec_spec", "in_status", "listed_as", "shim_of", "start"]
