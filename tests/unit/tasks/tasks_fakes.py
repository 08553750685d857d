"""What a task needs around it where there is neither a shim nor a node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from services.kit import errors
from services.tasks.bundle import Address
from services.tasks.service import Service
from services.tasks.store import Exit
from services.tasks.task import Task

ADDRESS = Address("ttrpc", "unix:///nowhere", 3)


class FakeNode:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.reachable = True

    def exited(self, namespace: str, name: str, exec_id: str, how: Exit) -> None:
        self.told.append("exit")

    def deleted(self, namespace: str, name: str, how: Exit) -> None:
        self.told.append("delete")


class FakeConnection:
    """A connection to a shim that there is not; ``behaviour`` of its class says how it goes."""

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
        """Also what the shim's end does."""
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
    """A class of connections that are made by ``connecting``, and whose shim says ``pid``."""
    return type(
        "Connection",
        (FakeConnection,),
        {"opened": [], "connecting": staticmethod(connecting), "pid": staticmethod(pid)},
    )


def service(place: Path, connection: type[FakeConnection] | None = None, **hooks: Any) -> Service:
    """Below ``place``, with its directories."""
    made = Service(
        place / "root",
        place / "state",
        FakeNode(),  # type: ignore[arg-type]
        connection=connection or connections(),  # type: ignore[arg-type]
        **hooks,
    )
    made.notes.make()
    return made


def task(service: Service, name: str = "c", **program: Any) -> Task:
    """A new one, with a bundle and an address."""
    bundle = service.bundle("ns", name)
    bundle.create(None)
    bundle.write_address(ADDRESS)
    return Task(bundle, SimpleNamespace(path="/bin/shim", **program), service)  # type: ignore[arg-type]
