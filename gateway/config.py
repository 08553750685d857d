"""Settings of the gateway: table [gateway], and containerd's [proxy_plugins]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from services.kit import settings
from services.kit.settings import Seconds

_GONE = {"snapshotters": "the snapshots service says which snapshotters it has"}
"""Keys that ``splitd config default`` of earlier releases printed, and the reason why they mean nothing any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The gateway: how long it waits for the services behind it."""

    hold: Seconds = 5.0
    """A call to a service that is down waits this long for it, or until its deadline."""
    outage: Seconds = 30.0
    """How long a service may be away before opening a Write on it is answered INTERNAL. Clients retry UNAVAILABLE there
    for ever.
    """
    unary_timeout: Seconds = 30.0
    """A unary call to one of our services that makes no progress for this long ends; a slow disk that moves is
    progress. A call to a service of another project may take this long. Calls of tasks have a limit of their own, and
    calls that are known to take long have none.
    """
    task_timeout: Seconds = 120.0
    """How long a call of tasks may take, whose methods start programs or wait for the kernel."""
    raw_timeout: Seconds = 300.0
    """As unary_timeout, for a snapshotter's Prepare, View, Commit and Usage, which may copy or walk a tree."""
    stall: Seconds = 60.0
    """A Read or Write that makes no progress in the raw store for this long ends; a commit may take longer."""
    subscribers_bytes: int = 64 << 20
    """Bytes of events that wait for subscribers which do not read them, for all subscribers together. Beyond it, the
    subscriber that is furthest behind is cut off.
    """

    def __post_init__(self) -> None:
        if self.subscribers_bytes < 1:
            raise ValueError(f"subscribers_bytes: {self.subscribers_bytes} is not at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The node's health over HTTP, for monitors and load balancers that do not speak gRPC. GET /health answers 200 if
    the node works and 503 if not; GET /health/SERVICE does so for one service. The body is JSON with what is wrong.
    """

    address: str = ""
    """The address to serve it at, such as "127.0.0.1:1340", or the absolute path of a unix socket (mode 0600). There is
    no password: every client that reaches the address may ask. Empty: it is not served.
    """

    def __post_init__(self) -> None:
        if self.address:
            from services.kit.http_server import parse_address

            try:
                parse_address(self.address)
            except ValueError as error:
                raise ValueError(f"address: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlugin:
    """A service of another project that replaces one of ours, or stands beside it: one entry of [proxy_plugins]."""

    type: Literal["snapshot", "content", "diff"]
    address: str
    """Path of its unix socket."""
    platform: str = ""
    """Its platform, such as linux/amd64, if that is not this machine's."""
    exports: dict[str, str] = field(default_factory=dict)
    """Values that clients find in its row of ``ctr plugins ls -d``; stargz and nydus export their root."""
    capabilities: tuple[str, ...] = ()
    """Features that clients may use, such as rebase or remap-ids."""

    def __post_init__(self) -> None:
        if not self.address.removeprefix("unix://").startswith("/"):
            raise ValueError(f"address: {self.address!r} is not an absolute path")


def load(file: settings.File) -> Config:
    """The settings in ``file``, without keys of earlier releases."""
    table = file.tables.get("gateway", {})
    ours = {key: value for key, value in table.items() if key not in _GONE} if isinstance(table, dict) else table
    return settings.load(Config, settings.File(file.path, {**file.tables, "gateway": ours}), "gateway")


def check(file: settings.File) -> Iterator[tuple[str, str]]:
    """The problems that ``splitd config check`` finds although :func:`load` accepts the file."""
    yield from (
        ("warning", f"config file {file.path}: [gateway] {key} means nothing any more: {why}")
        for key, why in _GONE.items()
        if key in file.tables.get("gateway", {})
    )
