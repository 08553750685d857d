"""The processes of a node: one table, from which supervisord's configuration, the status and the checks are made.

A new service is a row here, a row in the gateway's routes, and a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.kit import settings


@dataclass(frozen=True, slots=True)
class Process:
    """One supervised process, started as ``python -m MODULE``."""

    name: str
    module: str
    sockets: tuple[str, ...]
    """Sockets below STATE on which it must answer health checks."""
    upstreams: tuple[str, ...]
    """Its names in the gateway's health service."""
    config: tuple[tuple[str, str], ...]
    """The tables of the configuration file that it reads, each with its dataclass as ``module:class``."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables of its own, which the programs that it starts do not have."""
    needs: tuple[str, ...] = ()
    """Keys of the configuration, from table to inner key, without which the process does not run."""


_MALLOC = ("PYTHONMALLOC", "malloc")
"""Small objects come from malloc, which gives free memory back in pages of 4 KiB. Python's own allocator gives it back
in pieces of 1 MiB, and one object keeps a piece (docs/adr/0014).
"""

PROCESSES = (
    Process("traces", "services.traces", ("traces.sock",), (), (("traces", "services.traces.config:Config"),)),
    Process(
        "metadata",
        "services.metadata",
        ("metadata.sock",),
        ("metadata",),
        (("metadata", "services.metadata.config:Config"),),
    ),
    Process(
        "content", "services.content", ("content.sock",), ("content",), (("content", "services.content.config:Config"),)
    ),
    Process(
        "snapshots",
        "services.snapshots",
        ("snapshots.sock", "diff.sock"),
        ("snapshots", "diff"),
        (("snapshots", "services.snapshots.config:Config"),),
    ),
    Process(
        "images",
        "services.images",
        ("images.sock",),
        ("images",),
        (("images", "services.images.config:Config"),),
        (_MALLOC,),
    ),
    Process("tasks", "services.tasks", ("tasks.sock",), ("tasks",), (("tasks", "services.tasks.config:Config"),)),
    Process(
        "gateway",
        "gateway",
        ("containerd.sock", "internal.sock"),
        ("gateway",),
        (("gateway", "gateway.config:Config"), ("health", "gateway.config:Health")),
    ),
)
"""Those of every node, in the order in which they are started. They are stopped in reverse order, so that no process
loses what it calls.
"""

OPTIONAL = (
    Process(
        "fleet",
        "services.fleet",
        ("fleet.sock",),
        (),
        (("fleet", "services.fleet.config:Config"),),
        needs=("fleet", "etcd", "endpoints"),
    ),
)
"""Those that run only where the configuration wants them. They are started last. A node is healthy without them."""

ALL = (*PROCESSES, *OPTIONAL)

NAMES = tuple(process.name for process in PROCESSES)

ALL_NAMES = tuple(process.name for process in ALL)

SOCKETS = (
    "supervisor.sock.0000000",
    "containerd.sock.ttrpc",
    "snapshots-123456789.sock",
    *(s for p in ALL for s in p.sockets),
)
"""Every socket name in STATE, to check in advance whether the longest path fits. supervisord makes its own socket under
a name with its pid; a snapshotter's name is at most as long as the one here.
"""

STOP_SECONDS = 20
"""Seconds from SIGTERM to SIGKILL. This is more than the 5 s that calls have to end (``grace``) and the kit's 3 s for
shielded work, with room for a slow disk. A longer grace adds to it.
"""


def of(file: settings.File) -> tuple[Process, ...]:
    """The processes of a node with this configuration, which may be wrong otherwise."""
    return (*PROCESSES, *(process for process in OPTIONAL if _wanted(process, file)))


def _wanted(process: Process, file: settings.File) -> bool:
    found: Any = file.tables
    for key in process.needs:
        found = found.get(key) if isinstance(found, dict) else None
    return bool(found)


def named(name: str) -> Process:
    """The process called ``name``, which must exist."""
    return next(process for process in ALL if process.name == name)


def optional(name: str) -> bool:
    """Whether the node is healthy without the process."""
    return any(process.name == name for process in OPTIONAL)
