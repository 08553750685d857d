"""The page of metrics: GET /v1/metrics at ``[metrics] address``, in Prometheus' text format, as containerd has it.

Each process of the node counts for itself (:mod:`services.kit.metrics`). For each request this module asks all of them,
at once, and gives every series the label ``service``. A process that does not answer in time hides nothing of the
others: only its own series are missing, and ``splitd_service_up`` is 0. prometheus_client makes the text. Its own
server is not used, since it knows no unix sockets, nor are its registries, since one failing function would end the
whole page.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from gateway.routes import PROGRAMS, Routes
from services.kit import errors, http_server, metrics, version
from services.kit.http_server import Request, Response
from services.kit.metrics import Family, Sample
from services.kit.metrics_server import collect
from services.kit.process import STARTS, starts_in
from services.kit.rpc import Channel

log = logging.getLogger(__name__)

PATH = "/v1/metrics"
SERVICE = "service"
GATEWAY, TRACES = "gateway", "traces"

_PATIENCE = 5.0
"""Seconds for a process to answer. tasks asks each shim, for up to 2 s."""
_FRESH = 0.5
"""Seconds for which a page is good, however many ask."""


class Page:
    """Makes the page for the processes behind ``routes``. ``traces``: whether the node has the traces service."""

    def __init__(self, routes: Routes, state: Path, *, traces: bool = True, patience: float = _PATIENCE) -> None:
        self._routes = routes
        self._state = state
        self._patience = patience
        self._traces = traces
        self._lock = asyncio.Lock()
        self._made = b""
        self._until = 0.0
        self._channels: dict[str, Channel] = {}
        self._silent: set[str] = set()

    async def serve(self, address: str) -> None:
        """Serve at ``address``; for :func:`services.kit.loops.running`, which begins again if it is taken."""
        async with AsyncExitStack() as stack:
            self._channels = {}
            if self._traces:
                self._channels[TRACES] = await stack.enter_async_context(
                    Channel(self._state / f"{TRACES}.sock", TRACES)
                )
            await http_server.lasting("[metrics] address", address, self.answer)

    async def answer(self, request: Request) -> Response:
        """The page."""
        if request.path != PATH:
            return http_server.failure(404, f"{PATH} is here")
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if clock() >= self._until:
                families = await self._collected()
                self._made = await asyncio.to_thread(rendered, families)
                self._until = clock() + _FRESH
        return Response(body=self._made, type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _collected(self) -> dict[str, list[Family]]:
        """The families of each process, by its name; the gateway's last, with what it knows of the others."""
        channels = {
            program: self._routes[name].home.channel
            for name, program in PROGRAMS.items()
            if name == program and self._routes[name].home.program == program
        } | self._channels
        answers = await asyncio.gather(*(self._of(name, channel) for name, channel in channels.items()))
        found = {name: families for name, families in zip(channels, answers, strict=True) if families is not None}
        ups = [*((name, name in found) for name in channels), (GATEWAY, True)]
        starts = await asyncio.to_thread(_starts, self._state / STARTS)
        found[GATEWAY] = [
            *await metrics.collect(),
            Family(
                "containerd_build_info",
                "The version of this node.",
                "counter",
                [Sample(1, {"version": version.VERSION, "revision": version.revision()}, "_total")],
            ),
            Family(
                "splitd_service_up",
                "Whether a service answers: 1 or 0.",
                "gauge",
                [Sample(float(up), {SERVICE: name}) for name, up in ups],
            ),
            Family(
                "splitd_service_restarts",
                "How often a service was started again in this boot.",
                "counter",
                [Sample(float(max(0, count - 1)), {SERVICE: name}, "_total") for name, count in starts.items()],
            ),
        ]
        return found

    async def _of(self, name: str, channel: Channel) -> list[Family] | None:
        try:
            found = await collect(channel, self._patience)
        except errors.NodeError as error:
            if name not in self._silent:
                log.warning("service %s tells no metrics: %s", name, error)
            self._silent.add(name)
            return None
        self._silent.discard(name)
        return found


def _starts(directory: Path) -> dict[str, int]:
    """How often each process was started in this boot."""
    try:
        return {file.name: starts_in(file) for file in sorted(directory.iterdir())}
    except OSError as error:
        log.warning("%s: %s", directory, error.strerror)
        return {}


def rendered(processes: Mapping[str, Iterable[Family]]) -> bytes:
    """The text of all families. Those of the same name and kind become one, whichever processes they come from; a
    second kind of the same name is left out, and logged.
    """
    found: dict[str, Metric] = {}
    for service, families in processes.items():
        for family in families:
            metric = found.setdefault(family.name, Metric(family.name, family.help, family.kind))
            if metric.type != family.kind:
                log.error("metric %s of service %s is a %s elsewhere", family.name, service, metric.type)
                continue
            for sample in family.samples:
                metric.add_sample(family.name + sample.suffix, {SERVICE: service, **sample.labels}, sample.value)
    return generate_latest(_Families(found.values()))


class _Families(Collector):
    """What prometheus_client makes its text of."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
