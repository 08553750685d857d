"""Two operations stage by stage: two pulls of one image, or a pull before and after a service was replaced.

A stage is what the operation did (resolve, bytes of layers, unpack); within it the time is told by cause. Only time on
the critical path counts, so the rows add up to what the operations took, and their differences to the difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from services.traces.causes import Kind
from services.traces.sentences import seconds
from services.traces.store import Trace
from services.traces.tree import Node, tree
from services.traces.verdict import Verdict, judge

STAGES = {
    "registry.resolve": "resolve",
    "registry.auth": "auth",
    "images.layer": "layers' bytes",
    "diff.apply": "unpack",
    "diff.unpack": "unpack",
    "unpack.layer": "unpack",
    "images.unpack": "unpack",
    "snapshots.commit": "commit",
    "snapshots.sync": "commit",
    "content.commit": "commit",
    "registry.fetch": "documents",
    "images.push": "push",
    "tasks.shim.start": "shim start",
    "tasks.shim.create": "runc create",
}
"""The stage that a span and all below it belong to; the nearest one above counts, but for a layer's fetch."""

OTHER = "other"

SAME = 0.05
"""Operations whose times differ by less than this share took equally long."""


@dataclass(frozen=True, slots=True)
class Row:
    """The time on the critical path of one cause in one stage, in seconds, of both operations."""

    stage: str
    kind: Kind
    part: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Seconds that the second took longer."""
        return self.b - self.a


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two operations side by side."""

    a: Verdict
    b: Verdict
    rows: tuple[Row, ...]
    """By stage, in the order in which the operations came to them. ``a`` adds up to the wall time of the first, ``b``
    to that of the second.
    """
    sentence: str


def compare(a: Trace, b: Trace, others: Iterable[Trace] = ()) -> Comparison:
    """Compare two operations; ValueError if one has no span. ``others`` are as for ``judge``."""
    known = tuple(others)
    first, second = judge(a, known), judge(b, known)
    rows: dict[tuple[str, Kind, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    order: dict[str, None] = {}
    for place, (verdict, trace) in enumerate(((first, a), (second, b))):
        nodes = {(node.span.trace, node.span.id): node for other in (*known, trace) for node in _nodes(other)}
        for segment in verdict.path:
            stage = _stage(nodes.get((segment.span.trace, segment.span.id)))
            order.setdefault(stage)
            rows[stage, segment.cause.kind, segment.cause.part][place] += segment.seconds
    stages = list(order)
    found = [Row(stage, kind, part, *times) for (stage, kind, part), times in rows.items()]
    found.sort(key=lambda row: (stages.index(row.stage), -max(row.a, row.b)))
    return Comparison(first, second, tuple(found), _sentence(first, second, found))


def _nodes(trace: Trace) -> Iterable[Node]:
    return tree(trace).nodes.values() if trace.spans else ()


def _stage(node: Node | None) -> str:
    found = ""
    for above in node.up() if node is not None else ():
        stage = STAGES.get(above.span.name)
        if stage is not None and (not found or above.span.name == "images.layer"):
            found = stage
    return found or OTHER


def _sentence(a: Verdict, b: Verdict, rows: list[Row]) -> str:
    """How much longer one took, and where most of that is."""
    times = f"{seconds(a.wall)} s and {seconds(b.wall)} s"
    longer = b.wall - a.wall
    if abs(longer) <= SAME * max(a.wall, b.wall):
        return f"both took equally long: {times}"
    sign = 1 if longer > 0 else -1
    most = max(rows, key=lambda row: sign * row.difference)
    word = "second" if longer > 0 else "first"
    why = f"{seconds(sign * most.difference)} s of it in {most.stage} ({most.kind}: {most.part})"
    return f"the {word} took {seconds(abs(longer))} s longer ({times}): {why}"
