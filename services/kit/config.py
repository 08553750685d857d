"""Settings that every process has: tables [grpc], [tracing], [cgroup], [metrics] and [watchdog]. Of containerd's own
keys in [grpc], only the address is checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from services.kit import cgroups, logs, page_address, settings
from services.wire.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How the node's processes speak gRPC, to clients and to each other."""

    transport: Literal["wire", "grpcio"] = "wire"
    """Our own HTTP/2 ("wire"), or Google's library ("grpcio"). The environment's SPLITD_GRPC_TRANSPORT overrides this.
    Both speak the same protocol.
    """
    limits: Limits = field(default_factory=Limits)


def load(file: settings.File) -> Config:
    """Load our keys of [grpc]."""
    table = file.tables.get("grpc", {})
    if not isinstance(table, dict):
        return settings.load(Config, file, "grpc")
    ours = {key: table.get(key) for key in ("transport", "limits") if table.get(key) is not None}
    return settings.load(Config, settings.File(file.path, {"grpc": ours}), "grpc")


_SERVER = "io.containerd.server.v1.grpc"
"""The plugin whose table has containerd's [grpc] from version 4 of its configuration file on. It wins if both exist."""


def check(file: settings.File) -> Iterator[tuple[str, str]]:
    """Warn of a SPLITD_LOG that is no level, and of an address of containerd's that differs from the node's: the node's
    socket is STATE/containerd.sock in any case.
    """
    _, trouble = logs.level()
    if trouble:
        yield "warning", trouble
    node = settings.load(settings.Node, file, "")
    server = settings.plugin(file, _SERVER)
    where, table = (f'[plugins."{_SERVER}"]', server) if server else ("[grpc]", file.tables.get("grpc", {}))
    address = table.get("address", "")
    if address not in ("", str(node.state / "containerd.sock")):
        yield (
            "warning",
            (
                f"config file {file.path}: {where} address {address!r} has no effect: the node listens at "
                "containerd.sock "
                "in its state directory, to which a symbolic link there can lead clients"
            ),
        )
    for key, value in server.items():
        if value and key != "address":
            yield "warning", f"config file {file.path}: {where} {key} is containerd's and means nothing here"


def _is_address(text: str) -> bool:
    """Whether a collector may be there."""
    if text.startswith("unix:/"):
        return len(os.fsencode(text.removeprefix("unix:"))) <= 107
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
        )
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Traces of what the node does, which its traces service keeps. The standard variables OTEL_... send them to a
    collector as well. Changes take effect in a running node, some seconds after the file has changed.
    """

    enabled: bool = True
    """Whether anything is traced."""
    sampling_ratio: float = 0.05
    """The share of calls that only look (List, Get, Info and the like) that is traced, from 0.0 to 1.0. A call that
    changes something always is. A call with a traceparent of the client's is traced if that says so.
    """
    fold: settings.Seconds = 0.005
    """A step that takes less time is not kept: the step that it was part of counts it."""
    max_queue_size: int = 4096
    """Spans of a process that may wait to be sent. Further ones are dropped and counted."""
    max_export_batch_size: int = 512
    """Spans that are sent at once."""
    schedule_delay: settings.Seconds = 2.5
    """The longest time that an ended span waits before it is sent; 0.5 s if no other ends, and none is open."""
    endpoint: str = ""
    """Where spans are sent instead of to the node's traces service: any collector that takes OTLP over gRPC, such as
    "http://127.0.0.1:4317", "https://collector.example" or "unix:/run/collector.sock". splitd trace does not show them.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_ratio <= 1:
            raise ValueError(f"sampling_ratio: {self.sampling_ratio} is not between 0 and 1")
        if self.fold > 3600:
            raise ValueError(f"fold: {settings.format_duration(self.fold)} is more than 1h")
        for name, most in (("max_queue_size", 1 << 20), ("max_export_batch_size", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: {getattr(self, name)} is not between 1 and {most}")
        if self.endpoint and not _is_address(self.endpoint):
            raise ValueError(f"endpoint: {self.endpoint!r} is neither http://HOST:PORT nor https://... nor unix:/PATH")
        if not 0.01 <= self.schedule_delay <= 3600:
            raise ValueError(
                f"schedule_delay: {settings.format_duration(self.schedule_delay)} is not between 10ms and 1h"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The control group of the node's processes, containerd's [cgroup]. Shims and containers are not in it: they stay
    in the group where the node was started, or, if that is gone, with the processes.
    """

    path: str = ""
    """A path such as /splitd, from the top of each hierarchy. With cgroup v1 it is made; with v2 it must exist. Empty:
    the group where the node is started. splitd up reads this.
    """

    def __post_init__(self) -> None:
        cgroups.checked(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchdog:
    """A process of the node that hangs writes its stacks into its log, is killed, and is started again. supervisord
    does this.
    """

    silence: settings.Seconds = 30.0
    """A process hangs if its loop has not turned for this long; "0s" turns the watchdog off. Time does not count in
    which the process is stopped, or supervisord itself does not run on time.
    """
    start: settings.Seconds = 300.0
    """The same for a process that does not serve yet, or no longer: a start may have much to recover."""

    def __post_init__(self) -> None:
        if self.silence and self.silence < 1:
            raise ValueError(f"silence: {settings.format_duration(self.silence)} is less than 1s")
        if self.start < self.silence:
            raise ValueError(
                f"start: {settings.format_duration(self.start)} is less than silence, "
                f"{settings.format_duration(self.silence)}"
            )

    @property
    def beat(self) -> float:
        """Seconds from one beat to the next; 0 if the watchdog is off."""
        return min(3.0, self.silence / 6)


_METRICS = "io.containerd.server.v1.metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Metrics of all services and containers in Prometheus' text format, as containerd's [metrics]; version 4 of
    containerd's file has it as [plugins."io.containerd.server.v1.metrics"]. GET /v1/metrics is the page. The gateway
    serves it.
    """

    address: str = ""
    """The address to serve it at, such as "127.0.0.1:1338", or the absolute path of a unix socket (mode 0600). There is
    no password: every client that reaches the address may read it. Empty: it is not served, and nothing is counted.
    """
    grpc_histogram: bool = False
    """Count the calls of each method by how long they took, in buckets; false: only their sum and number."""

    def __post_init__(self) -> None:
        page_address.check(self.address)


def load_metrics(file: settings.File) -> Metrics:
    """The settings of metrics in ``file``. As with [grpc], containerd's newer table wins if both exist."""
    theirs, named = settings.load_plugin(Metrics, file, _METRICS)
    ours = settings.load(Metrics, file, "metrics")
    return replace(ours, **{key: getattr(theirs, key) for key in named})
