"""The domain of the traces service: spans, traces, and the bounded store that holds them.

Words:

span        a piece of work of one process with a beginning and an end (OpenTelemetry's). Its *parent* is the span on
            whose behalf the work was done. It may *link* to further spans.
trace       all spans of one operation, in all processes. Its *root* has no parent.
operation   what a client wanted: a pull, a push, a run. The root says it: ``splitd.operation``, with the namespace, the
            image, the bytes and the outcome (docs/tracing.md lists all names and attributes).
wait        a span in which its process only waited: ``wait.CAUSE``. It links to the span that held what was waited for.
background  work that nobody waits for; the attribute ``splitd.background`` says so.
open span   a span that has not ended. Its process reports it, so that one can see what is in flight.

Times are nanoseconds since the epoch. All processes of a node derive them from one clock, so spans of different
processes can be compared. Spans that others send (``splitd trace import``) may have any times and ids.

The store is bounded in bytes and in age. The oldest traces go first; those that failed or were slow are kept longer. A
store that is full or slow drops spans and counts them. It never holds up whoever sends them.

Spans come encoded, go to the disk encoded, and leave encoded: between the wire and the disk nobody looks at more than
their ids, times and states. Such spans of one trace are a :class:`Piece`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
class Head:
    """What is said of a trace: by its root, or, while that is unknown, by other spans (:func:`best`)."""

    root: bool
    start: int
    end: int
    name: str
    operation: str = ""
    namespace: str = ""
    image: str = ""
    outcome: str = ""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    """Its other attributes."""


def head(span: Span) -> Head:
    """What ``span`` says of its trace."""
    rest = dict(span.attributes)
    operation, namespace, image, outcome = (_text(rest.pop(name, "")) for name in OF_TRACE)
    operation = operation or TRANSFERS.get(span.name, "")
    if not outcome and (not span.parent or operation) and span.status == Status.ERROR:
        outcome = FAILED
    start, end = min(span.start, LAST), min(max(span.start, span.end), LAST)
    return Head(not span.parent, start, end, span.name, operation, namespace, image, outcome, rest)


def best(heads: Iterable[Head]) -> Head:
    """What some spans of a trace say together. The root knows all. Without one, the span that says the operation comes
    first, then one that says the image, then the one that began first; what it does not say, the next ones may.
    """
    found = sorted(heads, key=lambda each: (not each.root, not each.operation, not each.image, each.start))
    first = found[0]
    if first.root or len(found) == 1:
        return first
    return replace(
        first,
        operation=next(filter(None, (each.operation for each in found)), ""),
        namespace=next(filter(None, (each.namespace for each in found)), ""),
        image=next(filter(None, (each.image for each in found)), ""),
        outcome=next(filter(None, (each.outcome for each in found)), ""),
    )


TRANSFERS = {f"images.{kind}": kind for kind in ("pull", "push", "import", "export")}
"""Spans of the images service whose names say the operation."""
OF_TRACE = ("splitd.operation", "splitd.namespace", "container.image.name", "splitd.outcome")
"""The attributes of a root that have a field of their own in a summary."""
FAILED = "failed"


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Spans of one trace, encoded (OTLP's TracesData). Two pieces of a trace are a piece if one is put behind the
    other.
    """

    trace: str
    data: bytes
    spans: Sequence[tuple[bytes, bool]]
    """The id of each span, and whether its status is ERROR."""
    start: int
    end: int
    head: Head


@dataclass(frozen=True, slots=True)
class Summary:
    """A trace in a list. Everything but ``id``, ``spans`` and ``errors`` is from its root. While that is unknown, the
    times are those of all spans, and the rest is from those spans that say it (:func:`best`).
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

    @property
    def seconds(self) -> float:
        """How long the operation took, never negative."""
        return max(0, self.end - self.start) / 1e9

    @property
    def failed(self) -> bool:
        """Whether the operation failed; where nobody says so, whether any span did."""
        return self.outcome == FAILED or (not self.outcome and self.errors > 0)


LIMIT = 100
"""Traces in a list that does not say how many."""
LAST = (1 << 63) - 1
"""The latest time in a summary. That of a span may be twice as late."""


def is_routine(operation: str) -> bool:
    """Whether an operation is a single call, or the node's own collection."""
    return operation == "collect" or "." in operation


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
    operations: bool = False
    """Leave out single calls (whose operation is named after the call) and collections that went well: monitors and
    the node itself make many.
    """
    limit: int = LIMIT

    def selects(self, summary: Summary) -> bool:
        """Whether the list has this trace, if there is room."""
        return (
            summary.start >= self.since
            and (not self.operation or summary.operation == self.operation)
            and self.image in summary.image
            and (not self.namespace or summary.namespace == self.namespace)
            and (not self.failed or summary.failed)
            and summary.seconds >= self.longer
            and (not self.operations or summary.failed or not is_routine(summary.operation))
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What the store holds, and what it lost since the process began."""

    traces: int = 0
    spans: int = 0
    bytes: int = 0
    """On the disk."""
    oldest: int = 0
    """When the oldest trace came, in nanoseconds since the epoch; 0 if there is none."""
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Live:
    """The open spans of all processes, at ``now``. Their ``end`` is 0."""

    now: int
    spans: Sequence[Span]


class Store(Protocol):
    """The store of one node."""

    async def add(self, spans: Sequence[Span]) -> None:
        """Take spans in. A span that is there already (the same id in the same trace) is ignored; spans whose id is
        zero are all different. Those that there is no room for are dropped and counted.
        """
        ...

    async def take(self, pieces: Sequence[Piece]) -> None:
        """The same for encoded spans."""
        ...

    async def traces(self, query: Query) -> list[Summary]:
        """The traces that ``query`` selects, newest first."""
        ...

    async def trace(self, prefix: str) -> Trace:
        """The trace whose id begins with ``prefix``. NotFound if none does, InvalidArgument if several do."""
        ...

    async def encoded(self, prefix: str) -> Sequence[bytes]:
        """Its spans: parts that are each a TracesData of OTLP. Of a span that is there twice, the first one counts.
        Errors as of ``trace``.
        """
        ...

    async def delete(self, trace: str) -> None:
        """Forget a trace; NotFound if there is none."""
        ...

    async def figures(self) -> Figures:
        """What it holds."""
        ...


class Tidied(Store, Protocol):
    """A store that needs to be tidied."""

    async def tidy(self) -> None:
        """Make room, and remove what is too old. To be called a few seconds after spans came, and now and then."""
        ...
