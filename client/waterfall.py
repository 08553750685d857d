"""A trace as a waterfall: a line for each span below its parent, with a bar for its time, and the critical path marked.

A trace of a pull has hundreds of spans, of which few took time. So short ones are folded into one line below their
parent, and what counts as short grows until the lines are few enough to read. Failed spans are not folded. The calls
of a hop (the client's span, the relay's and the server's) are one line.

A line is a list of pieces of text, each with a style of :mod:`client.shown`; it is escaped when it is printed.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from client import span_words
from client.shown import Piece, Style, escaped, fitted
from client.shown import columns as columns_of
from services.traces.store import Kind, Status
from services.traces.tree import Node, Tree

LINES = 50
"""Lines that a waterfall has at most, if it may fold."""
DEEPEST = 24
"""Levels that are indented."""
_SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the whole below which a span is short; the first with which the lines are few enough is used."""
_DURATION = 8
_WHO = 20
_LEAST_BAR = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the critical path: the span ``id`` was waited for from ``start`` to ``end`` (nanoseconds)."""

    id: str
    start: int
    end: int


@dataclass(slots=True)
class Row:
    """A line of the waterfall. Times are nanoseconds."""

    depth: int
    label: str
    note: str
    who: str
    start: int
    end: int
    seconds: float
    style: Style = Style.PLAIN
    critical: list[tuple[int, int]] = field(default_factory=list)
    """When it was on the critical path itself, not a span below it."""


# ---------------------------------------------------------------------------------------------- rows


def rows(tree: Tree, path: Sequence[Part], *, everything: bool = False) -> list[Row]:
    """The lines of a trace, at most :data:`LINES`, unless ``everything`` is wanted."""
    on_path: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for part in path:
        on_path[part.id].append((part.start, part.end))
    order = _in_order(tree.root)
    if everything:
        return list(_rows(tree.root, {id(node) for node in order}, on_path, merged=False))
    whole = max(1, tree.root.length)
    for share in (*_SHARES, None):
        made = _rows(tree.root, _long(order, whole, share), on_path, merged=True)
        found = list(itertools.islice(made, LINES + 1))
        if len(found) <= LINES:
            return found
    rest = 2 + sum(1 for _ in made)
    return [*found[: LINES - 1], Row(0, f"and {rest} more lines", "", "", 0, 0, 0.0, Style.DIM)]


def _in_order(root: Node) -> list[Node]:
    """All nodes, each after its parent."""
    found, left = [], [root]
    while left:
        node = left.pop()
        found.append(node)
        left += node.children
    return found


def _long(order: Sequence[Node], whole: int, share: float | None) -> set[int]:
    """The nodes that have lines of their own. Without a ``share`` also errors are folded."""
    least = whole * (_SHARES[-1] if share is None else share)
    found: set[int] = {id(order[0])}
    for node in reversed(order):
        wanted = node.length >= least or (share is not None and node.span.status == Status.ERROR)
        if (wanted or id(node) in found) and node.parent is not None:
            found |= {id(node), id(node.parent)}
    return found


def _rows(
    root: Node, long: AbstractSet[int], on_path: dict[str, list[tuple[int, int]]], *, merged: bool
) -> Iterator[Row]:
    left: list[tuple[Node | Sequence[Node], int, AbstractSet[str]]] = [(root, 0, frozenset())]
    while left:
        node, depth, said = left.pop()
        if not isinstance(node, Node):
            yield _folded(node, depth, on_path)
            continue
        hop = _hop(node) if merged else [node]
        notes = dict.fromkeys(note for each in hop for note in span_words.notes(each.span) if note not in said)
        yield _row(hop, depth, ", ".join(notes), on_path)
        children = hop[-1].children
        shown = [child for child in children if id(child) in long]
        folded = [child for child in children if id(child) not in long]
        if len(folded) == 1 and not folded[0].children:  # its own line takes no more room
            shown, folded = children, []
        if folded:
            left.append((folded, depth + 1, said))
        left += [(child, depth + 1, said | notes.keys()) for child in reversed(shown)]


def _hop(node: Node) -> list[Node]:
    """A call's spans, from the caller's to the server's: each is the only child of the one before."""
    found = [node]
    while (
        len(found[-1].children) == 1
        and (child := found[-1].children[0]).span.name == node.span.name
        and {child.span.kind, node.span.kind} <= {Kind.CLIENT, Kind.SERVER}
        and found[-1].span.status == child.span.status
    ):
        found.append(child)
    return found


def _row(hop: Sequence[Node], depth: int, note: str, on_path: dict[str, list[tuple[int, int]]]) -> Row:
    first = hop[0]
    span = first.span
    operation = span_words.text(span.attributes.get("splitd.operation"))
    label = " ".join(filter(None, (operation, span_words.text(span.attributes.get("container.image.name")))))
    style = (
        Style.ERROR
        if span.status == Status.ERROR
        else Style.WAIT
        if span.name.startswith("wait.")
        else Style.DIM
        if first.background
        else Style.PLAIN
    )
    return Row(
        depth,
        label if operation else span_words.title(span),
        note,
        ">".join(dict.fromkeys(span_words.process(node.span) for node in (hop[0], hop[-1]))),
        first.start,
        first.end,
        first.length / 1e9,
        style,
        [part for node in hop for part in on_path.get(node.span.id, ())],
    )


def _folded(nodes: Sequence[Node], depth: int, on_path: dict[str, list[tuple[int, int]]]) -> Row:
    """One line for short spans and all below them."""
    below = [each for node in nodes for each in _in_order(node)]
    names = collections.Counter(span_words.title(node.span) for node in nodes)
    named = ", ".join(name if count == 1 else f"{count} {name}" for name, count in names.most_common(3))
    return Row(
        depth,
        f"+ {len(below)} short: {named}{', ...' if len(names) > 3 else ''}",
        "",
        "",
        min(node.start for node in nodes),
        max(node.end for node in nodes),
        sum(node.length for node in nodes) / 1e9,
        Style.DIM,
        [part for node in below for part in on_path.get(node.span.id, ())],
    )


# ---------------------------------------------------------------------------------------------- lines


def draw(found: Sequence[Row], start: int, end: int, columns: int, *, ascii_only: bool = False) -> list[list[Piece]]:
    """The rows as lines of fewer than ``columns`` characters, below a scale from ``start`` to ``end``. Where there is
    no room for bars they are left out.
    """
    critical, other = ("#", "-") if ascii_only else ("\u2588", "\u2591")
    who = min(_WHO if columns >= 100 else _WHO // 2, max((len(row.who) for row in found), default=0))
    longest = max((columns_of(_label(row)) for row in found), default=0)
    fixed = 2 + 1 + who + 1 + _DURATION + 1  # the mark, and blanks between columns
    room = max(10, columns - 1 - fixed)
    label = min(longest, max(10, room * 60 // 100, room - 60))
    bar = room - label - 1
    if bar < _LEAST_BAR:
        label, bar = min(longest, room), 0
    lines = [_scale(start, end, fixed + label, bar)] if bar else []
    for row in found:
        cells = _bar(row, start, end, bar)
        text = fitted(_label(row), label)
        named = len(text) if not row.note else min(len(text), _indent(row) + len(escaped(row.label)))
        line: list[Piece] = [
            ("* " if row.critical else "  ", Style.CRITICAL),
            (text[:named], row.style),
            (text[named:], Style.DIM),
            (f" {fitted(escaped(row.who), who)} ", Style.PLAIN),
            (_length(row).rjust(_DURATION), Style.BOLD if row.critical else Style.PLAIN),
            (" ", Style.PLAIN),
        ]
        line += _runs(cells, {1: (other, Style.BAR), 2: (critical, Style.CRITICAL)})
        lines.append(line)
    return lines


def _indent(row: Row) -> int:
    return 2 * min(row.depth, DEEPEST)


def _length(row: Row) -> str:
    return span_words.seconds(row.seconds) if row.seconds or row.start else ""


def _label(row: Row) -> str:
    return " " * _indent(row) + escaped(f"{row.label}  {row.note}" if row.note else row.label)


def _bar(row: Row, start: int, end: int, cells: int) -> list[int]:
    """For each cell 0: before or after, 1: the span, 2: on the critical path."""
    found = [0] * cells
    whole = max(1, end - start)

    def fill(first: int, last: int, value: int) -> None:
        begin = (min(max(first, start), end) - start) * cells // whole
        finish = -(-(min(max(last, start), end) - start) * cells // whole)
        for index in range(min(begin, cells - 1), min(cells, max(finish, begin + 1))):
            found[index] = value

    if cells and (row.seconds or row.start):
        fill(row.start, row.end, 1)
        for first, last in row.critical:
            fill(first, last, 2)
    return found


def _runs(cells: Sequence[int], drawn: dict[int, Piece]) -> list[Piece]:
    """Equal cells as one piece of text."""
    found: list[Piece] = []
    begin = 0
    for index in range(1, len(cells) + 1):
        if index == len(cells) or cells[index] != cells[begin]:
            char, style = drawn.get(cells[begin], (" ", Style.PLAIN))
            found.append((char * (index - begin), style))
            begin = index
    while found and not found[-1][0].strip():
        found.pop()
    return found


def _scale(start: int, end: int, offset: int, cells: int) -> list[Piece]:
    """``0          2.5 s      5.0 s`` above the bars."""
    text = ""
    parts = 4 if cells >= 48 else 2 if cells >= 20 else 1
    for number in range(parts + 1):
        at = cells * number // parts
        word = span_words.seconds((end - start) / 1e9 * number / parts)
        text = text.ljust(at - (len(word) if number == parts else 0)) + word
    return [(" " * offset + text, Style.DIM)]
