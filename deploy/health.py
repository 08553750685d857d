"""The health of a node: supervisord's state of each process, the process's own answer, and the gateway's view of it.
Also the state of the registries that the node asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from api.splitd.registries.v1 import registries_pb2, registries_stubs
from api.splitd.traces.v1 import traces_pb2, traces_stubs
from client.routes_remote import RemoteRoutes, Stands
from client.version_remote import version_of
from deploy import running
from deploy.place import Place
from deploy.processes import ALL, Process
from deploy.supervision import ABSENT, RUNNING, Status, Supervisor
from gateway.config import ProxyPlugin
from services.kit import errors, health, rpc

REGISTRIES = registries_stubs.REGISTRIES
SNAPSHOTS = "snapshots"
"""The process that has more upstreams than the table says: its snapshotters, which it announces."""
PATIENCE = 3.0
"""Seconds for an answer. A process that takes longer is not healthy."""


@dataclass(frozen=True, slots=True)
class Health:
    """One process: its state in supervisord, its memory, and its trouble ("" if none)."""

    status: Status
    memory: int
    """PSS in bytes: its own pages, and its share of the pages that it shares. 0 if it does not run."""
    trouble: str
    runs: tuple[str, str] | None = None
    """The version and the revision of the code that it runs; None if it does not tell, as before 0.2."""
    lasting: bool = False
    """Whether the process says that waiting does not help."""

    @property
    def healthy(self) -> bool:
        return not self.trouble


@dataclass(frozen=True, slots=True)
class Proxied:
    """Another project's service of [proxy_plugins], as the gateway sees it."""

    name: str
    kind: str
    """snapshot, content, diff or sandbox."""
    address: str
    in_place: bool
    """Whether it replaces one of our services, so that the node does not work without it."""
    trouble: str
    """"" if there is none, or if the gateway does not tell."""

    @property
    def healthy(self) -> bool:
        return not self.trouble


def proxied(place: Place) -> list[Proxied]:
    """All proxy plugins. They are asked at the same time."""
    return asyncio.run(_proxied(place))


async def _proxied(place: Place) -> list[Proxied]:
    found = running.proxies(place)
    ours = running.snapshotters(place)
    upstreams = {name: _upstream(name, plugin) for name, plugin in found.items()}
    async with rpc.Channel(place.socket, "gateway") as gateway:
        answers = await asyncio.gather(*(_check(gateway, upstream, "") for upstream in upstreams.values()))
    troubles = dict(zip(found, answers, strict=True))
    return [
        Proxied(
            name,
            plugin.type,
            plugin.address,
            not plugin.beside or (plugin.type == "snapshot" and name in ours),
            "does not answer the gateway" if troubles[name].words not in ("", SILENT) else "",
        )
        for name, plugin in found.items()
    ]


def candidates(place: Place) -> list[Stands]:
    """The candidates on the node's routes; none if the gateway does not tell."""
    return asyncio.run(_candidates(place))


async def _candidates(place: Place) -> list[Stands]:
    async with rpc.Channel(place.state / "internal.sock", "gateway") as gateway:
        try:
            await gateway.reached(PATIENCE)
            async with asyncio.timeout(PATIENCE):
                return [each for route in await RemoteRoutes(gateway).all() for each in route.candidates]
        except (errors.NodeError, TimeoutError):
            return []


def away(place: Place) -> list[Proxied]:
    """The plugins that replace one of our services and do not answer. They get a moment to."""
    end = time.monotonic() + PATIENCE
    while (found := [each for each in proxied(place) if each.in_place and not each.healthy]) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _upstream(name: str, plugin: ProxyPlugin) -> str:
    """The gateway's name for it."""
    return plugin.route(name)


def of_node(place: Place) -> list[Health]:
    """Every process of a node that is up. They are asked at the same time."""
    return asyncio.run(_of_node(place, Supervisor(place).processes()))


async def _of_node(place: Place, statuses: Mapping[str, Status], *, brief: bool = False) -> list[Health]:
    """The health of these processes; if ``brief``, without their memory and versions, which cost more than the rest."""
    others = frozenset(_upstream(name, plugin) for name, plugin in running.proxies(place).items())
    snapshotters = [f"snapshots.{name}" for name in running.snapshotters(place)]
    processes = [p for p in ALL if p.name in statuses and statuses[p.name].state == RUNNING]
    async with rpc.Channel(place.socket, "gateway") as gateway:
        answers, runs = await asyncio.gather(
            asyncio.gather(
                *(
                    _trouble(
                        place,
                        p,
                        gateway,
                        [
                            each
                            for each in (*p.upstreams, *(snapshotters if p.name == SNAPSHOTS else ()))
                            if each not in others
                        ],
                    )
                    for p in processes
                )
            ),
            asyncio.gather(*(_runs(place, p) for p in processes if not brief)),
        )
    revisions = {} if brief else dict(zip((p.name for p in processes), runs, strict=True))
    troubles = dict(zip((p.name for p in processes), answers, strict=True))
    return [
        Health(
            s,
            0 if brief else pss(s.pid),
            _and_silence(troubles[name].words, s) if name in troubles else _state_trouble(s),
            revisions.get(name),
            s.state == ABSENT or (name in troubles and troubles[name].lasting),
        )
        for name, s in statuses.items()
    ]


async def _runs(place: Place, process: Process) -> tuple[str, str] | None:
    async with rpc.Channel(place.state / process.sockets[0], process.name) as channel:
        try:
            found = await version_of(channel, PATIENCE)
        except errors.NodeError:
            # an old process does not serve Version; one that does not answer has its trouble reported elsewhere
            return None
    return found.version, found.revision


def _and_silence(trouble: str, status: Status) -> str:
    """``trouble``, with the watchdog's word about silence. A process without trouble answers, so it is not silent,
    however old its last beat is.
    """
    return (
        f"{trouble} (its loop has been silent for {status.watched.silent:.0f} s)"
        if trouble and status.watched.silent
        else trouble
    )


def _state_trouble(status: Status) -> str:
    return status.trouble or status.state.lower()


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The trouble of a process; empty ``words`` mean none."""

    words: str = ""
    lasting: bool = False


async def _trouble(place: Place, process: Process, gateway: rpc.Channel, upstreams: Iterable[str]) -> _Trouble:
    """The trouble of a running process: by its own health first, then by what the gateway says of its ``upstreams``."""
    for name in process.sockets:
        async with rpc.Channel(place.state / name, process.name) as channel:
            if (trouble := await _check(channel, "", f"{name} ")).words:
                return trouble
    for upstream in upstreams:
        if (trouble := await _check(gateway, upstream, f"the gateway says: {upstream} ")).words:
            # If the gateway is away, that is the gateway's trouble, not that of each process.
            return _Trouble() if trouble.words.endswith(SILENT) and process.name != "gateway" else trouble
    return _Trouble()


SILENT = "does not answer"


async def _check(channel: rpc.Channel, service: str, prefix: str) -> _Trouble:
    try:
        serves, why = await health.check(channel, service, PATIENCE)
    except errors.NotFound:
        return _Trouble()  # replaced by a plugin, or not configured: not this process's fault
    except (errors.Unavailable, errors.DeadlineExceeded):
        return _Trouble(prefix + SILENT)
    except errors.NodeError as error:
        return _Trouble(f"{prefix}answers: {error}")
    return _Trouble() if serves else _Trouble(why or f"{prefix}is not serving", bool(why))


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry or mirror, as the images service remembers it. Times are in seconds since the epoch. ``throughput`` is
    in bytes a second (0: not measured).
    """

    host: str
    state: str
    """good, slow, busy (it asks for fewer requests) or dead."""
    since: float
    failures: int
    """In a row."""
    last_error: str
    throughput: float
    rests_until: float
    """Until then other hosts are asked before it; 0 if it is good."""
    ranges_refused: str = ""
    """Its answer to a request for a part of a blob; "" if it is not known to refuse such requests."""
    ranges_refused_until: float = 0.0
    """Until then it is asked for whole blobs only."""


def registries(place: Place) -> list[Registry] | None:
    """The registries that the images service remembers; None if the service does not answer, which its own health
    explains.
    """
    return asyncio.run(_registries(place))


async def _registries(place: Place) -> list[Registry] | None:
    async with rpc.Channel(place.state / "images.sock", "images") as channel:
        try:
            response = await channel.client(REGISTRIES).List(registries_pb2.ListRequest(), timeout=PATIENCE)
        except errors.NodeError:
            return None
    return [
        Registry(
            h.address,
            h.state,
            h.since,
            h.failures,
            h.last_error,
            h.throughput,
            h.rests_until,
            h.ranges_refused,
            h.ranges_refused_until,
        )
        for h in response.hosts
    ]


@dataclass(frozen=True, slots=True)
class Traces:
    """What the traces service holds."""

    traces: int
    spans: int
    bytes: int
    """On the disk."""
    oldest: int
    """When the oldest trace came, in nanoseconds since the epoch; 0 if there is none."""
    dropped: int
    """Spans that were dropped since the service and the processes began."""
    trouble: str = ""
    """Why it cannot say so; then all of these are 0."""


def traces(place: Place) -> Traces:
    """The figures of the traces service. It is healthy without its file: then it answers, and spans are lost."""
    return asyncio.run(_traces(place))


async def _traces(place: Place) -> Traces:
    async with rpc.Channel(place.state / "traces.sock", "traces") as channel:
        try:
            found = await channel.client(traces_stubs.TRACES).Figures(traces_pb2.FiguresRequest(), timeout=PATIENCE)
        except errors.NodeError as error:
            return Traces(0, 0, 0, 0, 0, str(error).removesuffix(f": {error.suffix}"))
    return Traces(found.traces, found.spans, found.bytes, found.oldest, found.dropped)


_DEATHS = 3
"""How often a service that cannot start may end, and be started again, while we wait for it. Its log says why."""


def wait(place: Place, seconds: float, only: set[str] | None = None) -> list[Health]:
    """Ask until all processes (or ``only`` these) are healthy, or ``seconds`` have passed. It ends earlier if each of
    the others says itself that waiting does not help, or cannot start. The result is the last answers.
    """
    end = time.monotonic() + seconds
    ended: dict[str, int] = {}
    done: dict[str, int] = {}  # the pids of those that need not be waited for
    while True:
        statuses = {name: s for name, s in Supervisor(place).processes().items() if only is None or name in only}
        # processes that start need the processor: those that are there are not asked again until all are
        left = {name: s for name, s in statuses.items() if s.state != RUNNING or done.get(name) != s.pid}
        found = asyncio.run(_of_node(place, left, brief=True))
        gone = {name: s.restarts - ended.setdefault(name, s.restarts) for name, s in statuses.items()}
        done |= {h.status.name: h.status.pid for h in found if h.healthy}
        if all(h.healthy or h.lasting or gone[h.status.name] >= _DEATHS for h in found) or time.monotonic() > end:
            found = asyncio.run(_of_node(place, statuses))
            if all(h.healthy or h.lasting or gone[h.status.name] >= _DEATHS for h in found) or time.monotonic() > end:
                return found
            done.clear()
        time.sleep(0.1)


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
