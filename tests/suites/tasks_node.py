"""Helpers of a tasks service's tests: the node around it, containers of busybox, and FIFOs to read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

from api.containerd.events import task_pb2 as events
from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.events.v1 import events_pb2, events_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.types.runc.options import oci_pb2
from services.content.remote import RemoteStore
from services.kit import errors, loops, rpc
from services.kit.any import pack, type_name
from services.oci.digests import Digest
from services.oci.mounts import Mount
from services.tasks.bundle import TASKS
from services.tasks.store import IO
from tests.suites.content import put
from tests.suites.events import publish
from tests.support import eventually, eventually_async, mounts_below, processes_naming

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RUNC = "io.containerd.runc.v2"
RESTART = "containerd.io/restart."
_MARKER = "/suite/subscribed"
_PATIENCE = 15.0
_numbers = itertools.count()


def busybox(directory: Path) -> Path:
    """Make a root filesystem with busybox and its commands."""
    root = directory / "busybox"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    return root


def spec(*args: str, terminal: bool = False, root: str = "rootfs", cgroup: str = "", **more: Any) -> dict[str, Any]:
    """Return an OCI spec that runs ``args`` in separate namespaces."""
    capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_SYS_CHROOT"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": root},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")],
        },
        **more,
    }


class TasksNode:
    """A node that has a tasks service, as ``channel`` reaches it: containers of a namespace of its own, the events
    about them, blobs. It keeps everything below ``home``, in ``r`` and ``s`` as its root and state, and runc's state in
    ``runc``; ``place`` is the test's own directory.

    ``records`` are the containers as they were added. Use as an async context manager: within, ``events`` are all that
    were published of tasks since, as topic and message, and a gateway that comes back is subscribed to again.
    """

    def __init__(self, channel: rpc.Channel, home: Path, place: Path, runc: Path | None = None) -> None:
        self.channel, self.home, self.place = channel, home, place
        self.state, self.root = home / "s", home / "r"
        self.runc = runc or self.state / "runc"
        self.ns = f"suite{next(_numbers)}"
        self.rootfs = busybox(place)
        self.records: dict[str, containers_pb2.Container] = {}
        self.events: list[tuple[str, Any]] = []
        self._markers: set[str] = set()
        self._headers = {rpc.NAMESPACE: self.ns}
        self._containers = channel.client(containers_stubs.CONTAINERS)
        self._events = channel.client(events_stubs.EVENTS)
        self._snapshots = channel.client(snapshots_stubs.SNAPSHOTS)
        self._leases = channel.client(leases_stubs.LEASES)
        self._content = RemoteStore(channel, self._headers)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(loops.running("the events", self._listen))

        async def subscribed() -> bool:
            await publish(self._events, _MARKER, events.TaskOOM(), self.ns)
            return _MARKER in self._markers

        await eventually_async(subscribed, "no event comes")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _listen(self) -> None:
        request = events_pb2.SubscribeRequest(filters=[f"namespace=={self.ns}"])
        while True:
            try:
                async for envelope in self._events.Subscribe(request, timeout=None):
                    if envelope.topic.startswith(_MARKER):
                        self._markers.add(envelope.topic)
                    elif envelope.topic.startswith("/tasks/"):
                        kind = getattr(events, type_name(envelope.event).rpartition(".")[2])
                        self.events.append((envelope.topic, kind.FromString(envelope.event.value)))
            except errors.Unavailable:
                await asyncio.sleep(0.05)

    # ------------------------------------------------------------------------------------------ containers

    def spec(self, name: str, *args: str, **how: Any) -> dict[str, Any]:
        """The OCI spec that :meth:`add` gives to a container."""
        return spec(*args, **{"cgroup": f"/splitd-test/{self.home.name}/{self.ns}/{name}", **how})

    async def add(
        self,
        name: str,
        *args: str,
        runtime: str = RUNC,
        options: oci_pb2.Options | None = None,
        written: bytes = b"",
        snapshot: str = "",
        labels: Mapping[str, str] = {},
        **how: Any,
    ) -> None:
        """Add a container's record, or replace the one of that name; ``written`` is its spec if :meth:`spec` is not
        wanted.
        """
        record = containers_pb2.Container(id=name, labels=labels)
        record.runtime.name = runtime
        record.spec.type_url = SPEC
        record.spec.value = written or json.dumps(self.spec(name, *args, **how)).encode()
        if self.runc != self.state / "runc":  # that of splitd's own tasks, if nobody says another
            options = options or oci_pb2.Options()
            options.root = options.root or str(self.runc)
        if options is not None:
            record.runtime.options.CopyFrom(pack(options))
        if snapshot:
            record.snapshotter, record.snapshot_key = "overlayfs", snapshot
        with contextlib.suppress(errors.NotFound):
            await self._containers.Delete(containers_pb2.DeleteContainerRequest(id=name), headers=self._headers)
        await self._containers.Create(
            containers_pb2.CreateContainerRequest(container=record), headers=self._headers, timeout=_PATIENCE
        )
        self.records[name] = record

    async def labels(self, name: str) -> dict[str, str]:
        """Return a container's labels."""
        request = containers_pb2.GetContainerRequest(id=name)
        return dict((await self._containers.Get(request, headers=self._headers)).container.labels)

    async def label(self, name: str, **labels: str) -> None:
        """Set labels of a container, given without their prefix ``containerd.io/restart.``"""
        request = containers_pb2.UpdateContainerRequest(container=containers_pb2.Container(id=name))
        for key, value in labels.items():
            request.container.labels[f"{RESTART}{key}"] = value
            request.update_mask.paths.append(f"labels.{RESTART}{key}")
        await self._containers.Update(request, headers=self._headers)

    @property
    def mount(self) -> Mount:
        """The root filesystem as a snapshotter would return it."""
        return Mount("bind", str(self.rootfs), ("rbind", "rw"))

    async def snapshot(self, *keys: str) -> None:
        """Prepare active snapshots of the root filesystem."""
        kept = {"containerd.io/gc.root": "test"}
        prepare = functools.partial(snapshots_pb2.PrepareSnapshotRequest, snapshotter="overlayfs", labels=kept)
        (mount,) = (await self._snapshots.Prepare(prepare(key="base"), headers=self._headers)).mounts
        shutil.copytree(self.rootfs, mount.source, symlinks=True, dirs_exist_ok=True)
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", key="base", name="busybox", labels=kept)
        await self._snapshots.Commit(commit, headers=self._headers)
        for key in keys:
            await self._snapshots.Prepare(prepare(key=key, parent="busybox"), headers=self._headers)

    # ------------------------------------------------------------------------------------------ events

    async def settled(self) -> None:
        """Until all has come that the gateway was told by now."""
        marker = f"{_MARKER}/{next(_numbers)}"
        await publish(self._events, marker, events.TaskOOM(), self.ns)
        await eventually_async(lambda: asyncio.sleep(0, marker in self._markers), "no event comes")

    def topics(self, name: str) -> list[str]:
        """Return the topics of the events about a container, in order."""
        return [topic for topic, event in self.events if event.container_id == name]

    def exits(self, name: str) -> list[events.TaskExit]:
        return [event for topic, event in self.events if topic == "/tasks/exit" and event.container_id == name]

    async def topic(self, name: str, topic: str, seconds: float = 15.0) -> Any:
        """Wait for the first event of a topic about a container."""

        async def seen() -> Any:
            return next((e for t, e in self.events if t == topic and e.container_id == name), None)

        return await eventually_async(seen, f"no {topic} of {name}: {self.events}", seconds)

    # ------------------------------------------------------------------------------------------ blobs

    async def blob(self, digest: str) -> bytes:
        """Return the bytes of a blob."""
        return b"".join([piece async for piece in self._content.read(Digest.parse(digest))])

    async def put(self, data: bytes) -> str:
        """Store a blob of ``data``; return its digest."""
        return str(await put(self._content, data, labels={"containerd.io/gc.root": "test"}))

    async def lease(self, name: str) -> None:
        """Create a lease of this name."""
        await self._leases.Create(leases_pb2.CreateRequest(id=name), headers=self._headers)

    async def leased(self, name: str) -> set[str]:
        """Return the digests of the blobs that a lease holds."""
        request = leases_pb2.ListResourcesRequest(id=name)
        found = (await self._leases.ListResources(request, headers=self._headers)).resources
        return {resource.id for resource in found if resource.type == "content"}

    # ------------------------------------------------------------------------------------------ processes

    def shims(self, name: str = "") -> list[int]:
        """Return the pids of the shims, of one task or all."""
        found, named = [], f"-id\0{name}\0" if name else "-id\0"
        for pid in processes_naming(self.home):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_text()
                if "containerd-shim" in line and f"-namespace\0{self.ns}\0" in line and named in line:
                    found.append(pid)
        return found


class Output:
    """FIFOs for a process, as a client makes them: ``stdout`` is read all the time, ``stdin`` is written on demand."""

    def __init__(self, directory: Path, name: str) -> None:
        self.stdin, self.stdout = str(directory / f"{name}.in"), str(directory / f"{name}.out")
        for path in (self.stdin, self.stdout):
            os.mkfifo(path)
        # Opened for both directions: this gives no end of file and no waiting for the other side.
        self._in = os.open(self.stdin, os.O_RDWR | os.O_NONBLOCK)
        self._out = os.open(self.stdout, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""

    def io(self, *, terminal: bool = False) -> IO:
        """Return the io of a create or exec call; stderr comes together with stdout. A terminal has no stderr:
        containerd's Go client nevertheless names a FIFO for it, which it never makes (its ``NewFIFOSetInDir``).
        """
        return IO(self.stdin, self.stdout, f"{self.stdout}-stderr" if terminal else self.stdout, terminal)

    def write(self, text: str) -> None:
        os.write(self._in, text.encode())

    def close_stdin(self) -> None:
        """Close our end of stdin."""
        os.close(self._in)
        self._in = -1

    def text(self) -> str:
        """Return all output so far."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._out, 65536):
                self._text += piece
        return self._text.decode()

    async def says(self, words: str, seconds: float = 15.0) -> None:
        async def said() -> bool:
            return words in self.text()

        await eventually_async(said, f"{words!r} was not written: {self.text()!r}", seconds)

    def close(self) -> None:
        for fd in (self._in, self._out):
            if fd >= 0:
                os.close(fd)


@contextlib.asynccontextmanager
async def output(directory: Path, name: str) -> AsyncIterator[Output]:
    made = Output(directory, name)
    try:
        yield made
    finally:
        made.close()


def alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int, seconds: float = 10.0) -> None:
    async def dead() -> bool:
        return not alive(pid)

    await eventually_async(dead, f"{pid} lives", seconds)


def contained(node: TasksNode) -> list[int]:
    """Return the pids of processes in containers of this node: they have its root filesystem as their own. (Their root
    directories are not looked at: one that a program serves which does not answer would hold the test for ever.)
    """
    found, rootfs = [], os.fsencode("/".join(("", *node.rootfs.parts[-2:])))
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and alive(int(entry.name)):
                mounts = [line.split()[3:5] for line in (entry / "mountinfo").read_bytes().splitlines()]
                if any(point == b"/" and source.endswith(rootfs) for source, point in mounts):
                    found.append(int(entry.name))
    return found


def leftovers(node: TasksNode) -> list[object]:
    """Return the remains of ended tasks: shims, mounts, bundles, runc's state."""
    return [
        *node.shims(),
        *mounts_below(node.state / TASKS / node.ns),
        *(node.state / TASKS).glob(f"{node.ns}/*"),
        *(node.root / TASKS).glob(f"{node.ns}/*"),
        *node.runc.glob(f"{node.ns}/*"),
        *(node.state / "tasks/exits").glob("*"),
        *(node.state / "tasks/sightings").glob("*"),
        *(node.state / "tasks/checkpoints").glob("*"),
    ]


def end_all(node: TasksNode) -> None:
    """End all shims and containers of this gateway after a test, including frozen ones."""

    def ended() -> bool:
        left = [*node.shims(), *contained(node)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            # the process is gone, or there are only cgroups of version 2, where the dead need not be thawed
            with contextlib.suppress(OSError):
                group = next(
                    (
                        line.split(":", 2)[2]
                        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
                        if ":freezer:" in line
                    ),
                    "/",
                )
                if group != "/":
                    Path(f"/sys/fs/cgroup/freezer{group}/freezer.state").write_text("THAWED")
        return not left

    eventually(ended, "a test's processes do not end")
    name = f"splitd-test/{node.home.name}"
    for groups in (Path("/sys/fs/cgroup") / name, *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        for group in sorted(groups.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):  # another test's, which are its own affair
                group.rmdir()


@contextlib.asynccontextmanager
async def tasks_node(socket: Path, home: Path, place: Path, runc: Path | None = None) -> AsyncIterator[TasksNode]:
    """A :class:`TasksNode` for one test; processes that the test leaves running are ended."""
    # containerd ends connections that are pinged
    async with (
        rpc.Channel(socket, pings="never" if runc else "calls") as channel,
        TasksNode(channel, home, place, runc) as node,
    ):
        try:
            yield node
            await eventually_async(lambda: asyncio.sleep(0, leftovers(node) == []), "something is left")
        finally:
            await asyncio.to_thread(end_all, node)
