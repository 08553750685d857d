"""The node's health for the page, as far as it is cheap: the kernel knows the processes, the gateway says which
services it finds healthy, and the images service which registries it finds slow or dead.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from api.splitd.registries.v1 import registries_pb2, registries_stubs
from services.kit import errors, health, rpc
from services.shadows.remote import Shadows
from services.shadows.store import Report
from services.traces.page.source import Node, Process, Registry
from services.traces.processes import processes

SERVICES = {
    "gateway": ("gateway",),
    "metadata": ("metadata",),
    "content": ("content",),
    "snapshots": ("snapshots", "diff"),
    "images": ("images",),
    "tasks": ("tasks",),
}
"""Processes, and the gateway's names of what each of them serves."""

_PATIENCE = 3.0
"""Seconds for an answer."""
_MOST = 100
"""Registries that are shown."""
_ABSENT = "does not answer"


class RemoteNode:
    """The node whose sockets are in ``state``."""

    def __init__(self, state: Path) -> None:
        self._state = state

    async def health(self) -> Node:
        """How the node is. What cannot be asked is trouble; nothing is raised."""
        running = await asyncio.to_thread(lambda: {each.name: each for each in processes(self._state)})
        asked = [(process, service) for process, served in SERVICES.items() for service in served]
        async with rpc.Channel(self._state / "internal.sock", "gateway") as gateway:
            answers, registries, shadows = await asyncio.gather(
                asyncio.gather(*(_trouble(gateway, service) for _, service in asked)),
                self._registries(),
                _shadows(gateway),
            )
        troubles: dict[str, str] = {}
        for (process, _), trouble in zip(asked, answers, strict=True):
            troubles[process] = troubles.get(process) or trouble
        silent = troubles["gateway"] == _ABSENT
        return Node(
            [
                replace(running.get(name, Process(name, "")), trouble="" if silent else troubles.get(name, ""))
                for name in dict.fromkeys((*SERVICES, *sorted(running)))
            ],
            registries,
            "the gateway does not answer" if silent else "",
            shadows,
        )

    async def _registries(self) -> list[Registry]:
        async with rpc.Channel(self._state / "images.sock", "images") as channel:
            try:
                found = await channel.client(registries_stubs.REGISTRIES).List(
                    registries_pb2.ListRequest(), timeout=_PATIENCE
                )
            except errors.NodeError:  # the process's own row says more
                return []
        return [
            Registry(host.address, host.state, host.since, host.failures, host.last_error, host.throughput)
            for host in found.hosts[:_MOST]
        ]


async def _shadows(gateway: rpc.Channel) -> list[Report]:
    """The shadows that stand; without methods where the report cannot be had now."""
    shadows, found = Shadows(gateway), list[Report]()
    try:
        async with asyncio.timeout(_PATIENCE):
            for each in await shadows.list():
                try:
                    found.append(await shadows.report(each.route))
                except errors.NodeError as error:
                    found.append(Report(replace(each, trouble=each.trouble or str(error)), ()))
    except (errors.NodeError, TimeoutError):  # the gateway's own row says more
        pass
    return found


async def _trouble(gateway: rpc.Channel, service: str) -> str:
    """What the gateway says is wrong with a service; "" if it serves, or is not known to it."""
    try:
        serves, why = await health.check(gateway, service, _PATIENCE)
    except errors.NotFound:
        return ""
    except (errors.Unavailable, errors.DeadlineExceeded):
        return _ABSENT
    except errors.NodeError as error:
        return str(error)
    return "" if serves else why or "is not serving"
