"""The surroundings of a tasks service, for its tests: a small gateway that answers from memory, containers of busybox,
and FIFOs to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from api.containerd.events import task_pb2 as events
from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.events.v1 import events_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.services.ttrpc.events.v1 import events_stubs as ttrpc_events_stubs
from api.containerd.types import mount_pb2
from services.kit import errors, filters, rpc, ttrpc
from services.kit.any import type_name
from services.oci.mounts import Mount
from services.tasks.store import IO
from tests.support import eventually, eventually_async, processes_naming

NS = "acc"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RUNC = "io.containerd.runc.v2"


def busybox(directory: Path) -> Path:
    """A root filesystem with busybox and its names."""
    root = directory / "busybox"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    return root


def spec(*args: str, terminal: bool = False, root: str = "rootfs", cgroup: str = "", **more: Any) -> dict[str, Any]:
    """An OCI spec that runs ``args`` in namespaces of its own."""
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


class FakeGateway:
    """internal.sock and containerd.sock.ttrpc of a node, with the services that tasks calls. ``events`` are all events
    that came, as topic and message.
    """

    def __init__(self, state: Path, rootfs: Path) -> None:
        self.state = state
        self.rootfs = rootfs
        self.records: dict[tuple[str, str], containers_pb2.Container] = {}
        self.events: list[tuple[str, Any]] = []
        self.doubles: list[tuple[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self.leases: list[str] = []
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        await self._stack.enter_async_context(
            rpc.serving(
                self.state / "internal.sock",
                [_Containers(self), _Namespaces(self), _Snapshots(self), _Content(self), _Events(self)],
                grace=0.1,
            )
        )
        await self._stack.enter_async_context(
            ttrpc.serving(self.state / "containerd.sock.ttrpc", [_TtrpcEvents(self)], grace=0.1)
        )

    async def stop(self) -> None:
        await self._stack.aclose()

    async def __aenter__(self) -> FakeGateway:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def add(
        self,
        name: str,
        *args: str,
        runtime: str = RUNC,
        namespace: str = NS,
        labels: dict[str, str] | None = None,
        options: Message | None = None,
        **how: Any,
    ) -> containers_pb2.Container:
        """Add a container's record."""
        how.setdefault("cgroup", f"/splitd-test/{self.state.parent.name}/{namespace}/{name}")
        record = containers_pb2.Container(id=name, labels=labels or {}, snapshotter="overlayfs", snapshot_key=name)
        record.runtime.name = runtime
        record.spec.type_url = SPEC
        record.spec.value = json.dumps(spec(*args, **how)).encode()
        if options is not None:
            record.runtime.options.type_url = options.DESCRIPTOR.full_name
            record.runtime.options.value = options.SerializeToString()
        self.records[namespace, name] = record
        return record

    @property
    def mount(self) -> Mount:
        """The root filesystem as a snapshotter would describe it."""
        return Mount("bind", str(self.rootfs), ("rbind", "rw"))

    def topics(self, name: str) -> list[str]:
        """Topics of the events about a container, in their order."""
        return [topic for topic, event in self.events if event.container_id == name]

    def exits(self, name: str) -> list[events.TaskExit]:
        return [event for topic, event in self.events if topic == "/tasks/exit" and event.container_id == name]

    async def topic(self, name: str, topic: str, seconds: float = 15.0) -> Any:
        """Wait for the first event of a topic about a container."""

        async def seen() -> Any:
            return next((e for t, e in self.events if t == topic and e.container_id == name), None)

        return await eventually_async(seen, f"no {topic} of {name}: {self.events}", seconds)

    def receive(self, envelope: Any) -> Empty:
        message = getattr(events, type_name(envelope.event).rpartition(".")[2]).FromString(envelope.event.value)
        if envelope.topic in ("/tasks/exit", "/tasks/delete") and any(
            t == envelope.topic and (e.container_id, e.id, e.pid) == (message.container_id, message.id, message.pid)
            for t, e in self.events
        ):
            self.doubles.append((envelope.topic, message))
        else:
            self.events.append((envelope.topic, message))
        return Empty()


class _Part:
    def __init__(self, gateway: FakeGateway) -> None:
        self.gateway = gateway


class _Containers(_Part):
    SERVICE = containers_stubs.CONTAINERS

    async def Get(self, request, call):
        record = self.gateway.records.get((call.namespace, request.id))
        if record is None:
            raise errors.NotFound(f'container "{request.id}" in namespace "{call.namespace}"')
        return containers_pb2.GetContainerResponse(container=record)

    async def List(self, request, call):
        wanted = filters.parse(request.filters)
        found = [
            r
            for (ns, _), r in self.gateway.records.items()
            if ns == call.namespace
            and wanted.match(
                lambda path, r=r: filters.of_map(path[1:], r.labels) if path[0] == "labels" else ("", False)  # type: ignore[misc]
            )
        ]
        return containers_pb2.ListContainersResponse(containers=found)

    async def Update(self, request, call):
        record = self.gateway.records[call.namespace, request.container.id]
        for path in request.update_mask.paths:
            key = path.removeprefix("labels.")
            record.labels[key] = request.container.labels[key]
        return containers_pb2.UpdateContainerResponse(container=record)


class _Namespaces(_Part):
    SERVICE = namespaces_stubs.NAMESPACES

    async def List(self, request, call):
        return namespaces_pb2.ListNamespacesResponse(
            namespaces=[namespaces_pb2.Namespace(name=n) for n in sorted({ns for ns, _ in self.gateway.records})]
        )


class _Snapshots(_Part):
    SERVICE = snapshots_stubs.SNAPSHOTS

    async def Mounts(self, request, call):
        mount = self.gateway.mount
        return snapshots_pb2.MountsResponse(
            mounts=[mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)]
        )


class _Content(_Part):
    SERVICE = content_stubs.CONTENT

    async def Write(self, requests, call):
        data = b""
        self.gateway.leases.append(call.lease)
        async for request in requests:
            data += request.data
            if request.action == content_pb2.COMMIT:
                self.gateway.blobs[request.expected] = data
            yield content_pb2.WriteContentResponse(action=request.action, offset=len(data), digest=request.expected)

    async def Read(self, request, call):
        yield content_pb2.ReadContentResponse(data=self.gateway.blobs[request.digest])


class _Events(_Part):
    SERVICE = events_stubs.EVENTS

    async def Forward(self, request, call):
        return self.gateway.receive(request.envelope)


class _TtrpcEvents(_Part):
    SERVICE = ttrpc_events_stubs.EVENTS

    async def Forward(self, request, call):
        return self.gateway.receive(request.envelope)


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
        """For a create or exec call; stderr comes together with stdout."""
        return IO(self.stdin, self.stdout, "" if terminal else self.stdout, terminal)

    def write(self, text: str) -> None:
        os.write(self._in, text.encode())

    def close_stdin(self) -> None:
        """Close our end."""
        os.close(self._in)
        self._in = -1

    def text(self) -> str:
        """All output so far."""
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
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int, seconds: float = 10.0) -> None:
    async def dead() -> bool:
        return not alive(pid)

    await eventually_async(dead, f"{pid} lives", seconds)


def contained(node: FakeGateway) -> list[int]:
    """Pids of the processes in containers of this gateway: those whose root filesystem is its own."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.path.samefile(entry / "root", node.rootfs) and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def end_all(node: FakeGateway) -> None:
    """For the end of every test: no shim and no container of this gateway, not even a frozen one, is left running."""

    def ended() -> bool:
        left = [
            *(
                pid
                for pid in processes_naming(node.state)
                if b"containerd-shim" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ),
            *contained(node),
        ]
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


__all__ = [
    "NS",
    "RUNC",
    "SPEC",
    "FakeGateway",
    "Output",
    "alive",
    "asyncio",
    "busybox",
    "contained",
    "end_all",
    "gone",
    "output",
    "spec",
]
