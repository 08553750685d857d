"""What a node consists of: one table, from which supervisord's configuration, the status and the checks are made.

A new service is a row here, a row in the gateway's routes, and a folder.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """One supervised process, started as ``python -m MODULE``."""

    name: str
    module: str
    sockets: tuple[str, ...]
    """Names below STATE at which it must answer health."""
    upstreams: tuple[str, ...]
    """Names under which the gateway's health speaks of it."""
    config: tuple[tuple[str, str], ...]
    """Tables of the configuration file that it reads, each with its dataclass as ``module:class``."""


PROCESSES = (
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
    Process("images", "services.images", ("images.sock",), ("images",), (("images", "services.images.config:Config"),)),
    Process("tasks", "services.tasks", ("tasks.sock",), ("tasks",), (("tasks", "services.tasks.config:Config"),)),
    Process(
        "gateway",
        "gateway",
        ("containerd.sock", "internal.sock"),
        ("gateway",),
        (("gateway", "gateway.config:Config"),),
    ),
)
"""In the order in which they are started. They are stopped the other way round: nobody loses what it calls."""

NAMES = tuple(process.name for process in PROCESSES)

SOCKETS = (
    "supervisor.sock.0000000",
    "containerd.sock.ttrpc",
    "snapshots-123456789.sock",
    *(s for p in PROCESSES for s in p.sockets),
)
"""Every socket name in STATE (supervisord makes its own under a name with its pid; a snapshotter's name is no
longer than that), to know beforehand whether the longest fits.
"""

STOP_SECONDS = 20
"""From SIGTERM to SIGKILL: above the 5 s for calls to end (``grace``) and the kit's 3 s for shielded work, with
room for a slow disk. A longer grace adds to it.
"""


def named(name: str) -> Process:
    """The process called ``name``, which is known to be one."""
    return next(process for process in PROCESSES if process.name == name)
