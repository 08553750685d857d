"""The domain of the tasks service: tasks, and the requests that clients make of them.

Words:

container   a record of the metadata service: image, spec, runtime, labels. It does not run.
task        a container that runs, or is about to run, or has run and was not deleted yet. A container has at most one
            task, which has the container's name.
exec        one more process in a task, named by its exec id. The task's own first process, its *init*, has the empty
            exec id.
runtime     the program that runs containers, named like ``io.containerd.runc.v2``: ``containerd-shim-runc-v2``, or the
            path of a program.
shim        that program at work for a task, or for a group of tasks: the parent of their processes. It does not depend
            on this service, and outlives it.
bundle      the directory of a task: its OCI spec, the mount point of its root filesystem, and the address of its shim.

A task's life, as clients see it::

            create          start           (its init exits)          delete
    (none) -------> CREATED ------> RUNNING ----------------> STOPPED -------> (none)
                                     |  ^
                               pause v  | resume
                                    PAUSED

The shim knows the status; this service caches only exits, which happen once. If a shim dies its task ends too: the
processes of the task are killed, the task counts as exited with status 137, and is gone without a delete. Nothing else
ends a task: a shim that does not answer is only slow. (``task.py`` has the states in which this service sees a task.)

Errors that a shim reports are passed on in its words. A task that does not exist is NotFound, ``task NAME not found``.
If its container does not exist either, that is reported instead.
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
    """The standard input, output and error of a process: paths of FIFOs, or URIs (``binary://``, ``file://``) that the
    shim understands. Empty for none.
    """

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """The options of a create. An empty ``rootfs`` is legal if the spec names a directory. ``runtime`` overrides the
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
    """Statistics of a task, of the shim's own type, and when they were taken (nanoseconds since 1970)."""

    id: str
    at: int
    data: Opaque | None


@dataclass(frozen=True, slots=True)
class Container:
    """The part of a container's record that its task needs."""

    id: str
    runtime: str
    runtime_options: Opaque | None = None
    spec: Opaque | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    """The name of the image that it was made of."""
    updated_at: int = 0
    """When its record was changed last, in nanoseconds since the epoch."""


class Tasks(Protocol):
    """The tasks of a node, by namespace and name. An empty ``exec_id`` means the task's init."""

    async def create(self, namespace: str, name: str, options: CreateOptions) -> int:
        """Start a shim and create the task, which does not run yet; return its init's pid. AlreadyExists if there is
        one. If the caller gives up the create is undone.
        """
        ...

    async def start(self, namespace: str, name: str, exec_id: str = "") -> int:
        """Run a created process; return its pid."""
        ...

    async def delete(self, namespace: str, name: str) -> Exit:
        """Delete a stopped task; return its exit. Its shim ends soon after. The shim refuses while the task runs."""
        ...

    async def delete_process(self, namespace: str, name: str, exec_id: str) -> Exit:
        """Delete a stopped exec; return its exit. InvalidArgument for an empty exec id."""
        ...

    async def get(self, namespace: str, name: str, exec_id: str = "") -> Process:
        """The state of a process; of a task whose shim does not answer, UNKNOWN."""
        ...

    async def list(self, namespace: str) -> Sequence[Process]:
        """The state of every task; a task whose shim does not answer is listed as UNKNOWN."""
        ...

    async def kill(self, namespace: str, name: str, exec_id: str, signal: int, *, everything: bool) -> None:
        """Send a signal, with ``everything`` to all processes of the task. NotFound if the process has ended; with
        ``everything`` that is no error.
        """
        ...

    async def exec(self, namespace: str, name: str, exec_id: str, spec: Opaque | None, io: IO) -> None:
        """Create an exec, which does not run yet. InvalidArgument for an exec id that is no identifier, and for a
        request that a shim must not be sent (``checks.py``).
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
        """Write a task's state to the content store, under ``lease``, and return the descriptors. If the options name
        a directory it is written there, and no descriptors are returned.
        """
        ...

    async def update(self, namespace: str, name: str, resources: Opaque | None, annotations: Mapping[str, str]) -> None:
        """Change a running task's limits."""
        ...

    async def metrics(self, namespace: str, filters: Sequence[str]) -> Sequence[Metric]:
        """Statistics of the tasks that one of ``filters`` matches (fields id and namespace), or of all tasks if there
        are no filters.
        """
        ...

    async def wait(self, namespace: str, name: str, exec_id: str = "") -> Exit:
        """Wait for a process to end, however long it takes."""
        ...


class Node(Protocol):
    """The rest of the node, as far as tasks needs it."""

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
        """Write the rest of ``file`` to the content store. It is no error if the blob is there already."""
        ...

    async def read_blob(self, namespace: str, digest: str, file: BinaryIO) -> None:
        """Append a blob to ``file``."""
        ...

    def exited(self, namespace: str, name: str, exec_id: str, how: Exit) -> None:
        """Publish the exit of a process; the gateway drops one that was published before. Never waits, never fails."""
        ...

    def deleted(self, namespace: str, name: str, how: Exit) -> None:
        """Publish that a task is gone."""
        ...

    @property
    def reachable(self) -> bool:
        """True while events reach their subscribers."""
        ...


def task_not_found(name: str) -> str:
    """The words, containerd's, for a task that is not there."""
    return f"task {name} not found"
