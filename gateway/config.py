"""Settings of the gateway: table [gateway], containerd's [proxy_plugins], and [services] with candidates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from gateway.candidates import ALL, KINDS, Terms, kind_of, named_by
from services.kit import errors, page_address, settings
from services.kit.addresses import address as as_address
from services.kit.settings import Seconds

_GONE = {"snapshotters": "the snapshots service says which snapshotters it has"}
"""Keys that ``splitd config default`` of earlier releases printed, and the reason why they mean nothing any more."""
_BESIDE = {"snapshot": "snapshots", "sandbox": "sandbox"}
"""Types of proxy plugins that stand beside ours, each with a route of its own, to the kind of that route."""
_NAMED = tuple(_BESIDE.values())
"""Kinds of which there are several routes, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The gateway: how long it waits for the services behind it."""

    hold: Seconds = 5.0
    """A call to a service that is down waits this long for it, or until its deadline."""
    candidate_hold: Seconds = 10.0
    """The same for a candidate (``splitd replace``), whose objects nobody else has. New objects do not wait: they go
    home.
    """
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
    """How long a call of tasks or of a sandbox controller may take, whose methods start programs or wait for the
    kernel.
    """
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
        page_address.check(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlugin:
    """A service of another project that replaces one of ours, or stands beside it: one entry of [proxy_plugins]."""

    type: Literal["snapshot", "content", "diff", "sandbox"]
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

    @property
    def beside(self) -> bool:
        """Whether it stands beside what we have, instead of in its place."""
        return self.type in _BESIDE

    def route(self, name: str) -> str:
        """The route of which the plugin ``name`` is home."""
        return f"{_BESIDE[self.type]}.{name}" if self.beside else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A candidate from the gateway's start on, as ``splitd replace`` makes one: another service that takes new objects
    of a route, such as [services.content] or [services.snapshots.overlayfs]. What it has made stays with it. After
    ``splitd restore`` it takes none until this entry changes.
    """

    address: str
    """``/path`` of its unix socket, or ``HOST:PORT``."""
    name: str = ""
    """Its name, for as long as it has objects; empty: made of the address."""
    namespaces: tuple[str, ...] = ()
    """Namespaces of which it takes new objects; empty: all."""
    share: float = ALL
    """Percent of those that it takes."""
    back_at: float = 0.0
    """It takes no more once so many percent of its last 100 calls have failed; 0: never."""
    deadline: Seconds = 0.0
    """Limit of a unary call to it; 0: that of the service whose place it takes."""
    capabilities: tuple[str, ...] = ()
    """Features of a snapshotter that clients may use there, such as rebase or remap-ids."""
    tls: bool = False
    """Whether the connection is TLS; it is so too if one of the next four is set."""
    ca: str = ""
    """File with the authorities (PEM) that may have signed its certificate; empty: those that the machine trusts."""
    cert: str = ""
    """File with the certificate (PEM) that this node shows it."""
    key: str = ""
    """File with the key (PEM) of ``cert``; empty: it is in the same file."""
    server_name: str = ""
    """The name in its certificate; empty: the host of ``address``."""

    def terms(self, route: str) -> Terms:
        """As a candidate of ``route``. InvalidArgument where they cannot be meant."""
        terms = Terms(
            route=route,
            name=self.name or named_by(self.address),
            **{each.name: getattr(self, each.name) for each in fields(self) if each.name != "name"},
        )
        terms.check_wanted()
        return terms


def own_socket(address: str, state: Path) -> str:
    """Why a service cannot be at ``address``, if that is a socket of the gateway whose files are in ``state``; else
    empty.
    """
    path = as_address(address).path
    own = {os.path.realpath(state / name) for name in ("containerd.sock", "internal.sock")}
    if not path or os.path.realpath(path) not in own:
        return ""
    return f"{address} is a socket of this node itself, which would send each call to itself without an end"


def candidates(file: settings.File) -> list[Terms]:
    """Those that [services] names, by route."""
    return list(_candidates(file))


def _candidates(file: settings.File) -> Iterator[Terms]:
    tables = file.tables.get("services", {})
    if not isinstance(tables, dict):
        raise errors.InvalidArgument(f"config file {file.path}: services is not a table")
    entries = {name: table for name, table in tables.items() if name not in _NAMED}
    for kind in _NAMED:
        of_kind = tables.get(kind, {})
        if not isinstance(of_kind, dict):
            raise errors.InvalidArgument(f"config file {file.path}: services.{kind} is not a table")
        entries |= {f"{kind}.{name}": table for name, table in of_kind.items()}
    for route, table in entries.items():
        where = f"config file {file.path}: [services.{route}]"
        if kind_of(route) not in KINDS or route in _NAMED:
            raise errors.InvalidArgument(
                f"{where} is no route (routes: {', '.join(sorted(KINDS))}, such as snapshots.overlayfs)"
            )
        entry = settings.load(Service, settings.File(file.path, {"service": table}), "service")
        try:
            yield entry.terms(route)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"{where}: {error}") from None


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
    state = settings.load(settings.Node, file, "").state
    for name, entry in file.tables.get("proxy_plugins", {}).items():
        if own := own_socket(entry["address"], state):
            yield "error", f"config file {file.path}: [proxy_plugins.{name}] address: {own}"
    try:
        found = candidates(file)
    except errors.InvalidArgument as error:
        yield "error", str(error).removesuffix(f": {error.suffix}")
        return
    for terms in found:
        if own := own_socket(terms.address, state):
            yield "error", f"config file {file.path}: [services.{terms.route}] address: {own}"
        kind, _, name = terms.route.partition(".")
        if kind == "sandbox" and file.tables.get("proxy_plugins", {}).get(name, {}).get("type") != kind:
            yield (
                "warning",
                (
                    f"config file {file.path}: [services.{terms.route}] takes nothing: no [proxy_plugins.{name}] of "
                    "type sandbox is there, and this node has no sandbox controllers of its own"
                ),
            )
