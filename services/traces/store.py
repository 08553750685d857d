"""The domain of the traces service: spans, traces, and the bounded store that holds them.

Words:

span        a piece of work of one process with a beginning and an end (OpenTelemetry's). Its *parent* is the span on
            whose behalf the work was done. It may *link* to further spans.
trace       all spans of one operation, in all processes. Its *root* has no parent.
operation   what a client wanted: a pull, a push, a run. The root says it: ``splitd.operation``, with the namespace, the
            image, the bytes and the outcome (docs/tracing.md lists all names and attributes).
wait        a span in which its process only waited: ``wait.CAUSE``. It links to the span that held what was waited for.
background  work that nobody waits for; the attribute ``splitd.background`` says so.
open span   a span that has not ended. Its process reports it each second, so that one can see what is in flight.

Times are nanoseconds since the epoch. All processes of a node derive them from one clock, so spans of different
processes can be compared. Spans that others send (``splitd trace import``) may have any times and ids.

The store is bounded in bytes and in age. The oldest traces go first; those that failed or were slow are kept longer. A
store that is full or slow drops spans and counts them. It never holds up whoever sends them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Value = str | bool | int | float | bytes | None | Sequence["Value"] | Mapping[str, "Value"]
"""An attribute's value: all seven kinds of OTLP."""


class Kind(enum.IntEnum):
    """A span's kind; the numbers are OTLP's. Other numbers count as UNSPECIFIED."""

    UNSPECIFIED = 0
    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Status(enum.IntEnum):
    """How a span ended; the numbers are OTLP's."""

    UNSET = 0
    OK = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Event:
    """A moment of a span."""

    time: int
    name: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """A reference to another span, maybe of another trace. Ids are lower-case hex."""

    trace: str
    span: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """One span. ``trace`` has 32, ``id`` and ``parent`` have 16 lower-case hex digits; ``parent`` is empty for a root.
    ``end`` may be before ``start`` in what others send.
    """

    trace: str
    id: str
    parent: str
    name: str
    service: str
    """``service.name`` of its process: ``splitd-images``."""
    start: int
    end: int
    kind: int = Kind.INTERNAL
    status: int = Status.UNSET
    message: str = ""
    """The description of an ERROR."""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()

    @property
    def seconds(self) -> float:
        """Its length, never negative."""
        return max(0, self.end - self.start) / 1e9


@dataclass(frozen=True, slots=True)
class Trace:
    """The spans of a trace that are known, in the order of their beginnings."""

    id: str
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Summary:
    """A trace in a list. Everything but ``id``, times and ``spans`` is from its root, or, while that is unknown, from
    the span that began first.
    """

    id: str
    name: str
    operation: str
    """``splitd.operation`` of the root; empty if it says none."""
    namespace: str
    image: str
    outcome: str
    """``ok``, ``failed``, ``cancelled``; empty if unknown."""
    start: int
    end: int
    spans: int
    errors: int
    """Spans with status ERROR."""
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which traces to list; the newest come first. Empty values select nothing out."""

    since: int = 0
    operation: str = ""
    image: str = ""
    """A part of the image's name."""
    namespace: str = ""
    failed: bool = False
    longer: float = 0.0
    """Seconds that the trace took at least."""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Figures:
    """What the store holds, and what it lost since the process began."""

    traces: int
    spans: int
    bytes: int
    oldest: int
    dropped: int


class Store(Protocol):
    """The store of one node."""

    async def add(self, spans: Sequence[Span]) -> None:
        """Take spans in. Those that there is no room for are dropped and counted."""
        ...

    async def traces(self, query: Query) -> list[Summary]:
        """The traces that ``query`` selects, newest first."""
        ...

    async def trace(self, prefix: str) -> Trace:
        """The trace whose id begins with ``prefix``. NotFound if none does, InvalidArgument if several do."""
        ...

    async def delete(self, trace: str) -> None:
        """Forget a trace; NotFound if there is none."""
        ...

    async def figures(self) -> Figures:
        """What it holds."""
        ...
