"""``python -m bench --trials``: what it costs to try a service on a live node. One node in memory; the same calls with
and without what is tried, in turn.

Routes with selectors and shadows must cost clients next to nothing, and a foreign snapshotter that hangs must cost
clients of others nothing (containerd issue 13798).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from bench import peers
from bench.measures import ctr
from bench.peers import TOP, Peer
from client.routes_remote import RemoteRoutes
from deploy.samples import Registry, busybox_image
from gateway.candidates import Terms
from services.kit.addresses import Address
from services.kit.rpc import LEASE, NAMESPACE, Channel
from services.shadows.remote import Shadows

CALLS, PIECES = 5_000, 50
"""Calls of each kind in a round of the row about routes, and the pieces in which these are made, with the route and
without it in turn: the speed of a machine changes within seconds by more than the bound.
"""
PACED, SECONDS, TWICE = 50, 4.0, 2
"""Calls a second, and the length of a round, of the rows about time beside a shadow; and how many times as many rounds
they have: the median of a round changes by 3 % from one to the next.
"""
AT_ONCE = 16
FULL = 6_000
"""Calls in a round at full load."""
CYCLES, TURNS = 180, 12
"""Pulls, runs and deletes with and without the snapshotter that hangs, and the turns in which they are made: it freezes
in every other one. So each p99 has 270 calls, and what the first deletion beside a frozen one takes is in more than one
of a hundred.
"""
HEADERS = {NAMESPACE: "bench", LEASE: "bench"}
Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Row:
    """A ratio, of the figures with what is tried to those without."""

    name: str
    bound: float
    """The ratio that it should stay within; for a rate, above."""
    rate: bool = False


ROUTE = "a route with selectors, for others: "
ROWS = (
    Row(f"{ROUTE}Info", 1.03),
    Row(f"{ROUTE}Read of 1 kB", 1.03),
    Row(f"{ROUTE}Read of 32 KiB", 1.03),
    Row("a shadow of content: Read of 32 KiB, p50", 1.05),
    Row("a shadow of overlayfs: Prepare, p50", 1.05),
    Row("a shadow of content: Reads at full load, calls/s", 0.90, rate=True),
    Row("a snapshotter that hangs: pull, run, delete beside it, p99", 1.2),
)


def rows(stack: ExitStack, rounds: int, only: str) -> list[dict[str, object]]:
    """Measure and print the wanted rows. Each result has all figures."""
    directory = stack.enter_context(peers.tmpfs())
    theirs = Own(stack, directory / "theirs", "services.content", "content")
    snapshots = Own(stack, directory / "theirs", "services.snapshots", "snapshots-overlayfs")
    hangs = Own(stack, directory / "hangs", "services.snapshots", "snapshots-overlayfs")
    config = f'[proxy_plugins.hangs]\ntype = "snapshot"\naddress = "{hangs.socket}"\n'
    peer = stack.enter_context(peers.splitd(directory, config=config))
    registry = stack.enter_context(Registry(directory / "registry"))
    reference = registry.push(busybox_image(), "tried:1")
    found: list[dict[str, object]] = []

    def told(row: Row, pairs: Sequence[tuple[float, float]], remark: str = "") -> None:
        ratio = statistics.median(one / none for one, none in pairs)
        worse = ratio < row.bound if row.rate else ratio > row.bound
        one, none = (statistics.median(each) for each in zip(*pairs, strict=True))
        print(
            f"{row.name:60}{one:12.3f}{none:12.3f}{ratio:9.3f}   bound {row.bound:g}{remark}"
            + ("   not met" if worse else ""),
            flush=True,
        )
        found.append({"name": row.name, "pairs": list(pairs), "ratio": ratio, "worse": worse})

    print(f"{'median of ' + str(rounds) + ' rounds; ms, or calls/s':60}{'with':>12}{'without':>12}{'ratio':>9}")
    if any(only in row.name for row in ROWS[:6]):
        asyncio.run(_calls(peer, theirs, snapshots, rounds, only, told))
    if only in ROWS[6].name:
        told(ROWS[6], [_beside_a_hanging(peer, hangs, reference)], f"; {CYCLES} cycles")
    return found


class Own:
    """A service of another node, whose socket a candidate or a proxy plugin is given."""

    def __init__(self, stack: ExitStack, directory: Path, module: str, socket: str) -> None:
        self.root = directory / "r"
        self.socket = directory / "s" / f"{socket}.sock"
        directory.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--root", str(self.root), "--state", str(directory / "s")],
            cwd=TOP,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(self._end)
        while not self.socket.exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"{module} does not start")
            time.sleep(0.02)

    def freeze(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def _end(self) -> None:
        self.thaw()
        self._process.terminate()
        self._process.wait()


Told = Callable[..., None]


async def _calls(peer: Peer, content: Own, snapshots: Own, rounds: int, only: str, told: Told) -> None:
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(Channel(peer.socket))
        inner = await stack.enter_async_context(Channel(peer.socket.with_name("internal.sock")))
        lease = leases_pb2.CreateRequest(id="bench")
        await channel.client(leases_stubs.LEASES).Create(lease, headers=HEADERS)
        digests = [await _blob(channel, os.urandom(size)) for size in (1_000, 100_000)]
        routes, shadows = RemoteRoutes(inner), Shadows(inner)
        kinds = (_info(channel, digests[0]), _read(channel, digests[0], 0), _read(channel, digests[1], 32 << 10))
        newest, compared = kinds[2], list[tuple[int, int]]()

        async def read() -> None:
            await newest()

        async def route(on: bool) -> None:
            if on:
                terms = Terms(route="content", name="o", address=str(content.socket), namespaces=("other",), share=50.0)
                await routes.replace(terms)
            else:
                await routes.restore("content")

        async def shadow(on: bool, of: str = "content", own: Own = content) -> None:
            if on:
                await shadows.start(of, Address(address=str(own.socket)), root=str(own.root))
                await asyncio.sleep(1.0)  # its process starts, which is no load of a call
            else:
                await shadows.stop(of)

        async def shadow_of_snapshots(on: bool) -> None:
            await shadow(on, "snapshots.overlayfs", snapshots)

        async def shadow_of_reads(on: bool) -> None:
            """With a blob that the candidate has: a copy about an older one is skipped."""
            nonlocal newest
            if not on:
                found = {each.method: each for each in (await shadows.report("content")).methods}["Content/Read"]
                compared.append((found.same + found.different, found.calls))
            await shadow(on)
            if on:
                newest = _read(channel, await _blob(channel, os.urandom(100_000)), 32 << 10)
                await _written(shadows)

        for row, call in zip(ROWS[:3], kinds, strict=True):
            if only in row.name:
                told(row, await _in_turn(rounds * PIECES, route, lambda call=call: _median(call)))  # type: ignore[misc]
        if only in ROWS[3].name:
            pairs = await _in_turn(rounds * TWICE, shadow_of_reads, lambda: _paced(read))
            told(ROWS[3], pairs, f"; {_share(compared)} compared")
        if only in ROWS[4].name:
            prepare = _prepare(channel)
            told(ROWS[4], await _in_turn(rounds * TWICE, shadow_of_snapshots, lambda: _paced(prepare)))
        if only in ROWS[5].name:
            dropped: list[int] = []

            async def full(on: bool) -> None:
                if not on:
                    dropped.append(sum(each.dropped for each in (await shadows.report("content")).methods))
                await shadow_of_reads(on)

            pairs = await _in_turn(rounds, full, lambda: _rate(read))
            told(ROWS[5], pairs, f"; {statistics.median(dropped):,.0f} of {FULL:,} copies dropped")


def _share(compared: Sequence[tuple[int, int]]) -> str:
    """Of the copies of all rounds."""
    return f"{sum(one for one, _ in compared):,} of {sum(calls for _, calls in compared):,} copies"


async def _written(shadows: Shadows) -> None:
    """Wait until the candidate has a blob."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(each.method == "Content/Write" and each.same for each in (await shadows.report("content")).methods):
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("the candidate has not got the blob within a minute")


async def _in_turn(
    rounds: int, switch: Callable[[bool], Awaitable[None]], measure: Callable[[], Awaitable[float]]
) -> list[tuple[float, float]]:
    """Figures with and without, from rounds in turn."""
    await measure()  # the extra cost of the first time
    pairs = []
    for number in range(rounds):
        figures: dict[bool, float] = {}
        for on in (True, False) if number % 2 else (False, True):
            if on:
                await switch(True)
            figures[on] = await measure()
            if on:
                await switch(False)
        pairs.append((figures[True], figures[False]))
    return pairs


async def _median(call: Call) -> float:
    """ms: the median of calls, one after the other. What others do in the machine, and what a route costs once when it
    comes and goes, is in a mean.
    """
    times = []
    for _ in range(CALLS // PIECES):
        start = time.perf_counter()
        await call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


async def _paced(call: Call) -> float:
    """ms: the median of calls at a steady pace."""
    times = []
    begun = time.perf_counter()
    for number in range(int(PACED * SECONDS)):
        await asyncio.sleep(max(0.0, begun + number / PACED - time.perf_counter()))
        start = time.perf_counter()
        await call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


async def _rate(call: Call) -> float:
    """Calls a second, of many callers."""

    async def some() -> None:
        for _ in range(FULL // AT_ONCE):
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return FULL // AT_ONCE * AT_ONCE / (time.perf_counter() - start)


async def _blob(channel: Channel, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with channel.client(content_stubs.CONTENT).Write(headers=HEADERS) as stream:
        await stream.send(
            content_pb2.WriteContentRequest(
                action=content_pb2.COMMIT, ref=digest, total=len(data), expected=digest, data=data
            )
        )
        await stream.done_sending()
        while await stream.receive() is not None:
            pass
    return digest


def _info(channel: Channel, digest: str) -> Call:
    content, request = channel.client(content_stubs.CONTENT), content_pb2.InfoRequest(digest=digest)
    return lambda: content.Info(request, headers=HEADERS)


def _read(channel: Channel, digest: str, size: int) -> Call:
    content, request = channel.client(content_stubs.CONTENT), content_pb2.ReadContentRequest(digest=digest, size=size)

    async def read() -> None:
        async for _ in content.Read(request, headers=HEADERS):
            pass

    return read


def _prepare(channel: Channel) -> Call:
    client = channel.client(snapshots_stubs.SNAPSHOTS)
    numbers = iter(range(1_000_000))

    async def prepare() -> None:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"k{next(numbers)}")
        await client.Prepare(request, headers=HEADERS)

    return prepare


def _beside_a_hanging(peer: Peer, hangs: Own, reference: str) -> tuple[float, float]:
    """ms: p99 of pulls, runs and deletes of others, beside the snapshotter that hangs and without, in turn."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for words in _cycle(reference, "first"):
        ctr(peer, *words)  # the extra cost of the first time
    for hung in (False, True, True, False) * (TURNS // 4):
        ctr(peer, "-n", "theirs", "images", "pull", "--plain-http", "--snapshotter", "hangs", reference)
        if hung:
            hangs.freeze()
        try:
            ctr(peer, "-n", "theirs", "images", "rm", reference)  # it has something to remove
            for number in range(CYCLES // TURNS):
                for words in _cycle(reference, f"r{number}"):
                    start = time.perf_counter()
                    ctr(peer, *words)
                    times[hung].append((time.perf_counter() - start) * 1e3)
        finally:
            if hung:
                hangs.thaw()
    return tuple(statistics.quantiles(times[hung], n=100)[-1] for hung in (True, False))  # type: ignore[return-value]


def _cycle(reference: str, container: str) -> tuple[tuple[str, ...], ...]:
    return (
        ("images", "pull", "--plain-http", reference),
        ("run", "--rm", reference, container, "true"),
        ("images", "rm", "--sync", reference),
    )
