"""What the page shows: an interface, so that it can be shown without a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.shadows.store import Report
from services.traces.store import Figures, Live, Query, Summary, Trace

OPEN = "splitd.open"
"""The attribute of a span that has not ended."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the node, as the kernel and the gateway see it."""

    name: str
    trouble: str
    """"" if the gateway finds it healthy, or does not know it."""
    pid: int = 0
    """0: it does not run."""
    began: float = 0.0
    """Seconds since the epoch."""
    memory: int = 0
    """Proportional set size in bytes."""
    cpu: float = 0.0
    """Seconds on a processor since it began."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry or mirror as the images service remembers it (``splitd.registries.v1``)."""

    address: str
    state: str
    """good, slow, busy or dead."""
    since: float
    """Seconds since the epoch."""
    failures: int
    last_error: str
    throughput: float
    """Bytes a second; 0: not measured."""


@dataclass(frozen=True, slots=True)
class Node:
    """The node's health. ``trouble`` says why the gateway could not be asked; "" if it could."""

    processes: Sequence[Process]
    registries: Sequence[Registry]
    trouble: str = ""
    shadows: Sequence[Report] = ()
    """What candidates that get copies of calls answer otherwise."""


class Source(Protocol):
    """Where the page gets what it shows."""

    async def traces(self, query: Query) -> list[Summary]:
        """As the store's."""
        ...

    async def trace(self, prefix: str) -> Trace:
        """As the store's, with its errors."""
        ...

    async def figures(self) -> Figures:
        """As the store's."""
        ...

    async def live(self) -> Live:
        """What is under way."""
        ...

    async def node(self) -> Node:
        """How the node is. It raises nothing: what cannot be asked is trouble."""
        ...
