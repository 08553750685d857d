"""What a task is, and what one can do with it; the domain of the tasks service.

Words:

container   a record (metadata's): image, spec, runtime, labels. It does not run.
task        a container that runs, or is about to, or did and was not deleted yet. At most one for each container, and
named as it.
exec        one more process in a task, named by its exec id. The task's own first process, its *init*, has the empty
exec id.
runtime     what runs containers, named like ``io.containerd.runc.v2``: a program ``containerd-shim-runc-v2``, or a path
of one.
shim        that program at work for a task (or a group of them): the parent of its processes. It is independent of this
service and outlives it.
bundle      the directory of a task: its OCI spec, its root filesystem's mount point, and how to reach its shim.

A task's life::

            create          start           (its init exits)          delete
    (none) -------> CREATED ------> RUNNING ----------------> STOPPED -------> (none)
                                     |  ^
                               pause v  | resume
                                    PAUSED

The shim knows the state; nothing here caches it but exits, which happen once. A shim that dies takes its task with it:
the task's processes are killed, it counts as exited with status 137, and is gone without being deleted. Nothing else
ends a task: a shim that does not answer is only slow.

Errors that a shim reports are passed on in its words. A task that is not there is NotFound, ``task NAME not found``;
its container's absence is reported first.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from services.oci.descriptors import Descriptor
from services.oci.mounts import Mount
from services.oci.opaque import Opaque


class Status(enum.IntEnum):
    """Where a process is in its life; the numbers are the API's."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class IO:
    """Where a process reads and writes: paths of FIFOs, or URIs (``binary://``, ``file://``), as its shim
    understands them; empty for nothing.
    """

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """How to make a task. An empty ``rootfs`` is legal: the spec then names a directory. ``runtime`` overrides the
    container's.
    """

    io: IO = IO()
    rootfs: tuple[Mount, ...] = ()
    checkpoint: Descriptor | None = None
    options: Opaque | None = None
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its status, and when, in nanoseconds since 1970 (None where the shim did not say)."""

    status: int
    at: int | None
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Process:
    """The state of a process, ``id`` being the task's name or the exec id."""

    id: str
    pid: int
    status: Status
    io: IO = IO()
    exit_status: int = 0
    exited_at: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process of a task as the kernel knows it."""

    pid: int
    info: Opaque | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """Statistics of a task, in whatever type its shim has them, and when they were taken (nanoseconds)."""

    id: str
    at: int
    data: Opaque | None


@dataclass(frozen=True, slots=True)
class Container:
    """What a task needs to know of its container's record."""

    id: str
    runtime: str
    runtime_options: Opaque | None = None
    spec: Opaque | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    updated_at: int = 0
    """When its record was changed last, in nanoseconds since the epoch."""


class Tasks(Protocol):
    """The tasks of a node, by namespace and name. An empty ``exec_id`` means the task's init."""

    async def create(self, namespace: str, name: str, options: CreateOptions) -> int:
        """Start a shim and make the task, not yet running; its init's pid. AlreadyExists where it has one; a caller
        that gives up undoes it.
        """
        ...

    async def start(self, namespace: str, name: str, exec_id: str = "") -> int:
        """Run a created process; its pid."""
        ...

    async def delete(self, namespace: str, name: str) -> Exit:
        """Forget a stopped task, and end its shim; how it ended. While it runs the shim refuses."""
        ...

    async def delete_process(self, namespace: str, name: str, exec_id: str) -> Exit:
        """Forget a stopped exec. InvalidArgument for an empty exec id."""
        ...

    async def get(self, namespace: str, name: str, exec_id: str = "") -> Process:
        """The state of a process."""
        ...

    async def list(self, namespace: str) -> Sequence[Process]:
        """The state of every task; a task whose shim does not answer is listed as UNKNOWN."""
        ...

    async def kill(self, namespace: str, name: str, exec_id: str, signal: int, *, everything: bool) -> None:
        """Send a signal, with ``everything`` to all processes of the task. NotFound where the process has ended;
        everything may be killed again, though.
        """
        ...

    async def exec(self, namespace: str, name: str, exec_id: str, spec: Opaque | None, io: IO) -> None:
        """Make one more process, not yet running. InvalidArgument for an exec id that is no identifier, and for
        what a shim must not see.
        """
        ...

    async def resize(self, namespace: str, name: str, exec_id: str, width: int, height: int) -> None:
        """Set the size of a process's terminal."""
        ...

    async def close_stdin(self, namespace: str, name: str, exec_id: str = "") -> None:
        """Close the end of stdin that the shim holds open."""
        ...

    async def pause(self, namespace: str, name: str) -> None:
        """Freeze a task."""
        ...

    async def resume(self, namespace: str, name: str) -> None:
        """Let a frozen task go on."""
        ...

    async def pids(self, namespace: str, name: str) -> Sequence[ProcessInfo]:
        """The processes of a task."""
        ...

    async def checkpoint(
        self, namespace: str, name: str, options: Opaque | None, *, lease: str = ""
    ) -> Sequence[Descriptor]:
        """Write a task's state to the content store (under ``lease``), or, where the options name a path, there,
        and then no descriptors.
        """
        ...

    async def update(self, namespace: str, name: str, resources: Opaque | None, annotations: Mapping[str, str]) -> None:
        """Change a running task's limits."""
        ...

    async def metrics(self, namespace: str, filters: Sequence[str]) -> Sequence[Metric]:
        """Statistics of the tasks that one of ``filters`` matches (fields id and namespace); of all where there are
        none.
        """
        ...

    async def wait(self, namespace: str, name: str, exec_id: str = "") -> Exit:
        """Wait for a process to end, however long it takes."""
        ...


class Node(Protocol):
    """What tasks needs of the rest of the node."""

    async def container(self, namespace: str, name: str) -> Container:
        """A container's record, or NotFound in its owner's words."""
        ...

    async def containers(self, namespace: str, selector: str) -> Sequence[Container]:
        """Records that a filter matches."""
        ...

    async def namespaces(self) -> Sequence[str]:
        """All namespaces."""
        ...

    async def set_label(self, namespace: str, name: str, key: str, value: str) -> None:
        """Change one label of a container."""
        ...

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]:
        """How to mount a snapshot."""
        ...

    async def write_blob(self, namespace: str, lease: str, ref: str, media_type: str, file: BinaryIO) -> Descriptor:
        """Put the rest of ``file`` into the content store; a blob that is there already is as good."""
        ...

    async def read_blob(self, namespace: str, digest: str, file: BinaryIO) -> None:
        """Append a blob to ``file``."""
        ...

    def exited(self, namespace: str, name: str, exec_id: str, how: Exit) -> None:
        """Publish the exit of a process. Known exits are published once, whoever else reports them. Never waits,
        never fails.
        """
        ...

    def deleted(self, namespace: str, name: str, how: Exit) -> None:
        """Publish that a task is gone."""
        ...

    @property
    def reachable(self) -> bool:
        """Whether events reach their subscribers now."""
        ...


def task_not_found(name: str) -> str:
    """The words, containerd's, for a task that is not there."""
    return f"task {name} not found"
