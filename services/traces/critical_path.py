"""The critical path: what an operation waited for at each moment of its time.

It is worked out backwards, as Google's critical path tracing (ACM Queue 20(1), 2022) and Uber's CRISP (USENIX ATC 2022)
do it. At the end of a span its path is in the child that ended last. Before that child began it is in the child that
had ended last then, and so on. Where there is none, the span itself is on the path: that is its *self time*. A child
that overlaps the next one by less than 1 % of the parent counts as before it. Background work is never on the path.

A span that the root adopted is on the path only through :func:`orphanage`: where it belongs is not known, so it says
what went on in time of which nothing else is known.

A wait has no time of its own. For its duration the path is where the span was that it links to, in whatever process or
trace that is. If it links to several, the last gave way, and the ones before it held it up before that one began. What
remains to the wait is the time in which none of them existed.

The pieces of a path do not overlap and leave nothing out: they add up to the root's time, to the nanosecond.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.traces.store import Span
from services.traces.tree import Node

OVERLAP = 100
"""A child may overlap the next by this fraction of its parent: 1/100."""

STEPS = 500_000
"""Children that are looked at for one path. Beyond that a span is not parted into its children. A path through the 300
spans of the bench pull needs some 1,000.
"""

CHAIN = 64
"""Waits that are followed one inside another."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the path: the self time of ``node`` from ``start`` to ``end``, in nanoseconds."""

    node: Node
    start: int
    end: int
    waits: tuple[Node, ...] = ()
    """The waits that the path came through, the outermost first."""


LINKS = 16
"""Links of a span that are followed, the last ones."""


def linked(node: Node, spans: Mapping[tuple[str, str], Node]) -> list[Node]:
    """Those of ``spans`` (by trace and id) that a span links to, in the order of the links."""
    found = [spans.get((link.trace, link.span)) for link in node.span.links[-LINKS:]]
    return [each for each in found if each is not None and each is not node]


def is_wait(node: Node) -> bool:
    return node.span.name.startswith("wait.")


NOBODY = Span("", "", "", "", "", 0, 0)
"""The span of an orphanage."""


def orphanage(root: Node) -> Node | None:
    """A node whose children are the spans that ``root`` adopted, and whose self time means nothing; None if there are
    none.
    """
    children = [child for child in root.children if child.adopted]
    return Node(NOBODY, root.start, root.end, children=children) if children else None


class Path:
    """Works out paths among ``spans``: those of the trace and of others that its waits may link to."""

    def __init__(self, spans: Mapping[tuple[str, str], Node]) -> None:
        self._spans = spans
        self._steps = STEPS
        self._ends: dict[Node, tuple[list[Node], list[int]]] = {}

    def of(self, node: Node, start: int | None = None, end: int | None = None) -> list[Piece]:
        """The path through ``node`` between two times (its own, if None), in the order of time."""
        start = node.start if start is None else max(start, node.start)
        end = node.end if end is None else min(end, node.end)
        pieces: list[Piece] = []
        work = [Piece(node, start, end)]
        while work:
            part = work.pop()
            for inner in self._parted(part):
                if inner.end > inner.start:
                    (pieces if inner.node is part.node else work).append(inner)
        return sorted(pieces, key=lambda piece: piece.start)

    def beside(self, piece: Piece) -> list[Piece]:
        """A piece of self time as the paths of those children that were under way then, the one that began first
        before the others. They are not on the path of their parent, since they outlasted what came next on it: the
        first part of a blob begins those that are fetched beside it, and may end after them.
        """
        children, _ = self._by_end(piece.node)
        self._steps -= len(children)
        if self._steps <= 0:
            return [piece]
        under_way = [child for child in children if child.start < piece.end and child.end > piece.start]
        found, at = [], piece.start
        for child in sorted(under_way, key=lambda child: child.start):
            start, end = max(at, child.start), min(piece.end, child.end)
            if end > start:
                found += [replace(piece, start=at, end=start)] if start > at else []
                found += [replace(each, waits=(*piece.waits, *each.waits)) for each in self.of(child, start, end)]
                at = end
        return [*found, replace(piece, start=at)] if piece.end > at else found

    def _parted(self, part: Piece) -> list[Piece]:
        """The part as pieces of its own span and parts of other spans."""
        if is_wait(part.node) and part.node not in part.waits and len(part.waits) < CHAIN:
            above = set(part.node.up())
            targets = [target for target in linked(part.node, self._spans) if target not in above]
            if targets:
                return self._followed(part, targets)
        return self._children(part)

    @staticmethod
    def _followed(part: Piece, targets: list[Node]) -> list[Piece]:
        at, found = part.end, []
        for target in reversed(targets):
            start, end = max(part.start, target.start), min(at, target.end)
            if end > start:
                found += [Piece(part.node, end, at, part.waits), Piece(target, start, end, (*part.waits, part.node))]
                at = start
        return [*found, Piece(part.node, part.start, at, part.waits)]

    def _children(self, part: Piece) -> list[Piece]:
        node, at = part.node, part.end
        children, ends = self._by_end(node)
        pieces = []
        for child in self._from_the_last(part, children, ends):
            start, end = max(child.start, part.start), min(child.end, at)
            pieces += [Piece(node, end, at, part.waits), Piece(child, start, end, part.waits)]
            at = start
        return [*pieces, Piece(node, part.start, at, part.waits)]

    def _from_the_last(self, part: Piece, children: list[Node], ends: list[int]) -> list[Node]:
        """The children on the path, backwards."""
        slack = part.node.length // OVERLAP
        at, found = part.end, []
        after = bisect_right(ends, at)
        self._steps -= len(children) - after + 1
        if self._steps <= 0:
            return []
        running = [child for child in children[after:] if child.start < at]
        if part.end >= part.node.end:
            # Nobody waited for a child that outlasts its parent, unless no other explains the parent's end: then
            # the clocks differ.
            in_time = bisect_right(ends, at + slack) - 1
            if in_time >= 0 and ends[in_time] >= at - slack and children[in_time].start < at:
                running = []
        if running:
            # The one that began first says most about the part.
            found.append(min(running, key=lambda child: child.start))
            at = found[0].start
        index = bisect_right(ends, at + slack) - 1
        while index >= 0 and at > part.start and ends[index] > part.start:
            self._steps -= 1
            child = children[index]
            if child.start < at and ends[index] <= at + slack:
                found.append(child)
                at = child.start
                index = min(index, bisect_right(ends, at + slack))
            index -= 1
        return found

    def _by_end(self, node: Node) -> tuple[list[Node], list[int]]:
        """Those children that can be on a path, by their ends."""
        known = self._ends.get(node)
        if known is None:
            children = [
                child
                for child in node.children
                if child.end > child.start and not child.background and (not child.adopted or node.span is NOBODY)
            ]
            children.sort(key=lambda child: child.end)
            known = self._ends[node] = children, [child.end for child in children]
        return known
