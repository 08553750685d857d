"""The spans of a trace as a tree, whatever somebody sent.

A span that arrives twice (it was open when its process forked) is taken once. A span whose parent is unknown is
adopted by the root. A circle of parents, also that of a span that is its own parent, is cut where it began first, and
that span is adopted by the root too. A span that ends before it starts is empty. Without a root there is one that
nobody sent: it has the times of all its children.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.traces.store import Span, Status, Trace, Value

MOST = 20_000
"""Spans of one trace that are looked at. The bench pull has 300."""

LONGEST = 200
"""Characters of a name from outside that get into a sentence."""

UNKNOWN_ROOT = "(root not recorded)"
"""The name of the root that nobody sent."""


@dataclass(slots=True, eq=False)
class Node:
    """A span in its tree. ``end`` is never before ``start``."""

    span: Span
    start: int
    end: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    """In the order of their beginnings."""
    adopted: bool = False
    """Its own parent is unknown, or was cut off."""

    def __repr__(self) -> str:
        return f"Node({self.span.name}, {self.start}, {self.end})"

    @property
    def length(self) -> int:
        """Nanoseconds."""
        return self.end - self.start

    @property
    def background(self) -> bool:
        """Whether nobody waits for it."""
        return self.span.attributes.get("splitd.background") is True

    def up(self, most: int = 100) -> Iterator[Node]:
        """The node and those above it, at most ``most``."""
        node: Node | None = self
        for _ in range(most):
            if node is None:
                return
            yield node
            node = node.parent

    def text(self, name: str) -> str:
        """An attribute as a short text, of this node or of the next one above that has it; "" if none has."""
        return next((found for node in self.up() if (found := text(node.span.attributes.get(name)))), "")

    def number(self, name: str) -> float | None:
        """An attribute as a number that is not negative, of this node only."""
        return number(self.span.attributes.get(name))


def text(value: Value) -> str:
    """A short text of an attribute's value; "" of what is neither text nor number."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
    return "" if isinstance(value, bool) or not isinstance(value, int | float) else f"{value:.12g}"


def number(value: Value) -> float | None:
    """A finite number that is not negative, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1 << 63 else None


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree of one trace, and its nodes by the ids of their spans."""

    id: str
    root: Node
    nodes: dict[str, Node]
    left_out: int = 0
    """Spans beyond ``MOST``."""

    @property
    def rooted(self) -> bool:
        """Whether the root is one that somebody sent as such."""
        return not self.root.span.parent and self.root.span.name != UNKNOWN_ROOT


def tree(trace: Trace) -> Tree:
    """Make the tree of a trace; ValueError if the trace has no span."""
    if not trace.spans:
        raise ValueError(f"trace {trace.id or '(no id)'} has no span")
    nodes: dict[str, Node] = {}
    for span in trace.spans[:MOST]:
        known = nodes.get(span.id)
        if known is None or span.end > known.span.end:
            nodes[span.id] = Node(span, span.start, max(span.start, span.end))
    root = _root(trace.id, list(nodes.values()))
    nodes.setdefault(root.span.id, root)
    for node in nodes.values():
        if node is not root:
            above = nodes.get(node.span.parent)
            if above is None or above is node:
                node.parent, node.adopted = root, root.span.name != UNKNOWN_ROOT
            else:
                node.parent = above
    _cut_circles(root, nodes)
    for node in sorted(nodes.values(), key=lambda node: node.start):
        if node.parent is not None:
            node.parent.children.append(node)
    return Tree(trace.id, root, nodes, max(0, len(trace.spans) - MOST))


def _root(trace: str, nodes: list[Node]) -> Node:
    """The root: a span without a parent, of several the one that says what the operation is, or the longest. If all
    have parents, it is the span that spans all others, if there is one whose parent is unknown; else one is made.
    """
    without = [node for node in nodes if not node.span.parent]
    if without:
        return max(without, key=lambda node: ("splitd.operation" in node.span.attributes, node.length))
    known = {node.span.id for node in nodes}
    tops = [node for node in nodes if node.span.parent not in known] or nodes
    start, end = min(node.start for node in tops), max(node.end for node in tops)
    spanning = [node for node in tops if node.start == start and node.end == end]
    if spanning:
        return spanning[0]
    parents = {node.span.parent for node in tops}
    identity = parents.pop() if len(parents) == 1 and not parents & known else ""
    return Node(Span(trace, identity, "", UNKNOWN_ROOT, "", start, end, status=Status.UNSET), start, end)


def _cut_circles(root: Node, nodes: dict[str, Node]) -> None:
    """Let the root adopt one span of each circle."""
    safe = {root}
    for node in nodes.values():
        walked: dict[Node, None] = {}
        at: Node | None = node
        while at is not None and at not in safe and at not in walked:
            walked[at] = None
            at = at.parent
        if at is not None and at in walked:
            order = list(walked)
            first = min(order[order.index(at) :], key=lambda node: node.start)
            first.parent, first.adopted = root, True
        safe.update(walked)
