"""The surroundings of a task in tests without a shim and a node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from services.kit import errors, filters
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from services.oci.mounts import Mount
from services.tasks.bundle import Address
from services.tasks.service import Service
from services.tasks.store import Container, Exit
from services.tasks.task import Task

ADDRESS = Address("ttrpc", "unix:///nowhere", 3)


class FakeNode:
    """A ``Node`` in memory, of one namespace; it passes the suite of its interface. ``told`` has the published events,
    ``labels`` the labels that were set; a container's snapshot is mounted by its names.
    """

    def __init__(self, *containers: Container, namespace: str = "n") -> None:
        self.namespace = namespace
        self.records = {c.id: c for c in containers}
        self.labels: list[tuple[str, ...]] = []
        self.blobs: dict[str, bytes] = {}
        self.told: list[str] = []
        self.reachable = True

    def _there(self, namespace: str, name: str) -> Container:
        if namespace != self.namespace or name not in self.records:
            raise errors.NotFound(f'container "{name}" in namespace "{namespace}"')
        return self.records[name]

    async def container(self, namespace: str, name: str) -> Container:
        return self._there(namespace, name)

    async def containers(self, namespace: str, selector: str) -> list[Container]:
        wanted = filters.parse([selector])
        return [c for c in self.records.values() if namespace == self.namespace and wanted.match(_fields(c))]

    async def namespaces(self) -> list[str]:
        return [self.namespace]

    async def set_label(self, namespace: str, name: str, key: str, value: str) -> None:
        record = self._there(namespace, name)
        self.records[name] = replace(record, labels={**record.labels, key: value}, updated_at=time.time_ns())
        self.labels.append((namespace, name, key, value))

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]:
        if not any((c.snapshotter, c.snapshot_key) == (snapshotter, key) for c in self.records.values()):
            raise errors.NotFound(f"snapshot {key}")
        return (Mount("bind", f"/{snapshotter}/{key}", ("rbind",)),)

    async def write_blob(self, namespace: str, lease: str, ref: str, media_type: str, file: BinaryIO) -> Descriptor:
        data = file.read()
        self.blobs[digest_of(data)] = data
        return Descriptor(media_type, digest_of(data), len(data))

    async def read_blob(self, namespace: str, digest: str, file: BinaryIO) -> None:
        if digest not in self.blobs:
            raise errors.NotFound(f"content digest {digest}")
        file.write(self.blobs[digest])

    def exited(self, namespace: str, name: str, exec_id: str, how: Exit) -> None:
        self.told.append("exit")

    def deleted(self, namespace: str, name: str, how: Exit) -> None:
        self.told.append("delete")


def _fields(container: Container) -> Callable[[Sequence[str]], tuple[str, bool]]:
    return lambda path: filters.of_map(path[1:], container.labels) if path[0] == "labels" else ("", False)


class FakeConnection:
    """A connection to a shim that does not exist; ``behaviour`` of its class sets its behaviour."""

    opened: list[FakeConnection]
    connecting: Callable[[], Awaitable[None]]
    pid: Callable[[], int]

    def __init__(self, address: Address, namespace: str, name: str, on_close: Callable[[], None]) -> None:
        self.address, self.version = address, 3
        self.is_closed = False
        self.exits: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._on_close = on_close
        type(self).opened.append(self)

    async def connect(self, timeout: float) -> None:
        await type(self).connecting()

    async def connect_pids(self, timeout: float) -> tuple[int, int]:
        await asyncio.sleep(0)
        return type(self).pid(), 0

    async def wait(self, exec_id: str) -> Exit:
        return await self.exits

    async def close(self) -> None:
        """Close the connection; this also does what the shim's end does."""
        if not self.is_closed:
            self.is_closed = True
            if not self.exits.done():
                self.exits.set_exception(errors.Unavailable("closed"))
                self.exits.exception()
            self._on_close()
        await asyncio.sleep(0)


def connections(
    connecting: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0), pid: Callable[[], int] = lambda: 0
) -> type[FakeConnection]:
    """Make a class of connections that are opened by ``connecting``, and whose shim answers ``pid``."""
    return type(
        "Connection",
        (FakeConnection,),
        {"opened": [], "connecting": staticmethod(connecting), "pid": staticmethod(pid)},
    )


def service(place: Path, connection: type[FakeConnection] | None = None, **hooks: Any) -> Service:
    """A service below ``place``, with its directories."""
    made = Service(
        place / "root",
        place / "state",
        FakeNode(),
        connection=connection or connections(),  # type: ignore[arg-type]
        **hooks,
    )
    made.notes.make()
    return made


def task(service: Service, name: str = "c", **program: Any) -> Task:
    """Make a new task, with a bundle and an address."""
    bundle = service.bundle("ns", name)
    bundle.create(None)
    bundle.write_address(ADDRESS)
    return Task(bundle, SimpleNamespace(path="/bin/shim", **program), service)  # type: ignore[arg-type]
