"""The time of a synchronous delete of the last lease that holds thousands of blobs or snapshots, and how long others
wait meanwhile: ``--only victims``.

The blobs have 100 bytes and the snapshots are empty, so that the collection is measured, not the disk. While it runs,
another client reads a blob of 32 KiB, lists 100 containers and writes blobs of 4 KiB, one call after the other, on a
connection for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from bench import peers
from bench.beside import blob, of
from bench.measures import HEADERS, ROOTED
from bench.peers import Peer
from services.kit import errors
from services.kit.rpc import Channel
from services.oci.digests import digest_of

if TYPE_CHECKING:
    from bench.table import Table

FEW, MANY = 5_000, 50_000
SNAPSHOTS = 1_000
GROWTH = 12
"""How much longer ten times as many may take."""
MOST_MS = 50
ROUNDS = 3
_LEASE = "bench-victims"
_OTHERS = {"containerd-namespace": "bench-victims-others"}
_CONNECTIONS = 4
_AT_ONCE = 32
_numbers = itertools.count()


def rows(table: Table, both: list[Peer]) -> None:
    """The wanted rows: the time of both daemons, the calls of others, and, on a tmpfs, how our time grows."""
    name = f"delete with {FEW:,} victims"
    others = {call: f"{call} p99, {FEW:,} victims" for call in CALLS}
    if any(table.wanted(each) for each in (name, *others.values())):
        found = {peer.name: [asyncio.run(_delete(peer.socket, FEW)) for _ in range(ROUNDS)] for peer in both}
        table.add(name, "s", {peer: [seconds for seconds, _ in each] for peer, each in found.items()}, "<= 1.0")
        for call, row in others.items():
            table.add(
                row,
                "ms",
                {peer: [p99[call] for _, p99 in each] for peer, each in found.items()},
                f"ours <= {MOST_MS} ms",
            )
    if table.wanted(name := f"delete with {SNAPSHOTS:,} victims, snapshots"):
        table.add(
            name,
            "s",
            {
                peer.name: [asyncio.run(_delete(peer.socket, SNAPSHOTS, _snapshot))[0] for _ in range(ROUNDS)]
                for peer in both
            },
            "<= 1.0",
        )
    if table.wanted(name := f"{MANY:,} victims to {FEW:,}, on tmpfs"):
        growth, p99 = _growth()
        table.alone(
            name,
            "x",
            growth,
            f"<= {GROWTH}; p99 meanwhile: " + ", ".join(f"{call} {ms:.1f} ms" for call, ms in p99.items()),
        )


def _growth() -> tuple[float, dict[str, float]]:
    """The growth for a node of ours whose root is in memory."""
    with ExitStack() as stack:
        node = stack.enter_context(peers.splitd(stack.enter_context(peers.tmpfs())))
        few = statistics.median(asyncio.run(_delete(node.socket, FEW))[0] for _ in range(ROUNDS))
        many, p99 = asyncio.run(_delete(node.socket, MANY))
        return many / few, p99


async def _blob(channel: Channel, headers: dict[str, str]) -> None:
    await blob(channel, (b"%d victim" % next(_numbers)).ljust(100), headers, {})


async def _snapshot(channel: Channel, headers: dict[str, str]) -> None:
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"victim-{next(_numbers)}")
    await of(channel, snapshots_pb2, "Snapshots").Prepare(request, headers=headers, timeout=None)


async def _delete(
    socket: Path, victims: int, make: Callable[[Channel, dict[str, str]], Awaitable[None]] = _blob
) -> tuple[float, dict[str, float]]:
    """The seconds of the delete, and the p99 of each call of the others in milliseconds."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(Channel(socket)) for _ in range(_CONNECTIONS)]
        leases = of(channels[0], leases_pb2, "Leases")
        await leases.Create(leases_pb2.CreateRequest(id=_LEASE), headers=HEADERS)
        held = {**HEADERS, "containerd-lease": _LEASE}
        for start in range(0, victims, _AT_ONCE):
            await asyncio.gather(
                *(make(channels[n % _CONNECTIONS], held) for n in range(start, min(start + _AT_ONCE, victims)))
            )
        await _others(channels[0])
        ended = asyncio.Event()
        calling = [
            asyncio.create_task(_again(call, await stack.enter_async_context(Channel(socket)), ended))
            for call in CALLS.values()
        ]
        begun = time.perf_counter()
        await leases.Delete(leases_pb2.DeleteRequest(id=_LEASE, sync=True), headers=HEADERS, timeout=None)
        seconds = time.perf_counter() - begun
        ended.set()
        taken = await asyncio.gather(*calling)
    return seconds, {name: sorted(times)[len(times) * 99 // 100] for name, times in zip(CALLS, taken, strict=True)}


# ------------------------------------------------------------------------------------------ the others


_READ = b"what others read".ljust(32 << 10)


async def _others(channel: Channel) -> None:
    """Make the blob that the other clients read, and the containers that they list. Once is enough."""
    with contextlib.suppress(errors.AlreadyExists):
        await blob(channel, _READ, _OTHERS, ROOTED)
    containers = of(channel, containers_pb2, "Containers")
    for number in range(100):
        container = containers_pb2.Container(id=f"container-{number}", runtime={"name": "io.containerd.runc.v2"})
        container.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
        container.spec.value = b"{}"
        with contextlib.suppress(errors.AlreadyExists):
            await containers.Create(containers_pb2.CreateContainerRequest(container=container), headers=_OTHERS)


async def _read(channel: Channel) -> None:
    async for _ in of(channel, content_pb2, "Content").Read(
        content_pb2.ReadContentRequest(digest=digest_of(_READ)), headers=_OTHERS
    ):
        pass


async def _list(channel: Channel) -> None:
    await of(channel, containers_pb2, "Containers").List(
        containers_pb2.ListContainersRequest(), headers=_OTHERS, timeout=None
    )


async def _write(channel: Channel) -> None:
    await blob(channel, os.urandom(4096), _OTHERS, {})


CALLS: dict[str, Callable[[Channel], Awaitable[None]]] = {"read": _read, "list of 100": _list, "write": _write}


async def _again(call: Callable[[Channel], Awaitable[None]], channel: Channel, ended: asyncio.Event) -> list[float]:
    times: list[float] = []
    while not ended.is_set():
        begun = time.perf_counter()
        await call(channel)
        times.append((time.perf_counter() - begun) * 1000)
        await asyncio.sleep(0.005)
    return times
