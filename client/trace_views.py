"""Traces and verdicts as people read them, and as ``--json`` has them."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Sequence
from typing import Any

from client import span_words, waterfall
from client.shown import Piece, Style, escaped
from client.trace_formats import plain
from services.traces.comparison import Comparison
from services.traces.slowest import WhySlow
from services.traces.store import Span, Status, Summary, Trace
from services.traces.tree import Node, Tree
from services.traces.verdict import Cause, Segment, Verdict

CAUSES = 6
"""Causes that are listed; those of less than a hundredth of the time are not."""
FINDINGS = 10
"""Properties of slow pulls that are listed."""
DEEPEST = 200
"""Spans above the own one in a stack; those further in are left out."""


# ---------------------------------------------------------------------------------------------- for people


def about(trace: Summary) -> str:
    """What an operation is about: its image, its container, or the call."""
    container = trace.attributes.get("container.id")
    named = trace.image or (container if isinstance(container, str) else "")
    return named or span_words.title(Span(trace.id, "", "", trace.name, "", 0, 0))


def paragraph(verdict: Verdict, columns: int) -> list[list[Piece]]:
    """The verdict's sentence and advice, wrapped to lines of fewer than ``columns`` characters."""
    said = [(verdict.sentence, Style.BOLD), (verdict.advice, Style.PLAIN), *((n, Style.DIM) for n in _more(verdict))]
    return [line for text, style in said if text for line in wrapped(text, columns, style)]


def wrapped(text: str, columns: int, style: Style = Style.PLAIN) -> list[list[Piece]]:
    """A sentence as lines of fewer than ``columns`` characters."""
    sentence = escaped(text if text.endswith(".") else f"{text}.")
    return [[(line, style)] for line in textwrap.wrap(sentence, max(20, columns - 1))]


def _more(verdict: Verdict) -> list[str]:
    """The notes that the sentence does not say."""
    return [note for note in verdict.notes if note not in verdict.sentence and "at work meanwhile" not in note]


def heading(tree: Tree, count: int, columns: int) -> list[list[Piece]]:
    """Which trace it is, wrapped to lines of fewer than ``columns`` characters."""
    root = tree.root
    attributes = root.span.attributes
    namespace = span_words.text(attributes.get("splitd.namespace"))
    took_part = processes(tree)
    words = (
        f"trace {tree.id[:12]}",
        namespace and f"namespace {namespace}",
        span_words.text(attributes.get("splitd.outcome")),
        span_words.seconds(root.length / 1e9),
        moment(root.start),
        f"{count} span{'' if count == 1 else 's'}" + (f" of {', '.join(took_part)}" if took_part else ""),
    )
    return wrapped(", ".join(filter(None, words)), columns, Style.DIM)


def moment(time: int) -> str:
    """Nanoseconds since the epoch as ``2026-11-29 20:49:13 UTC``; "" of a time that no calendar has."""
    try:
        return datetime.datetime.fromtimestamp(time // 10**9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return ""


def processes(tree: Tree) -> list[str]:
    """The processes that took part, in the order in which they began."""
    nodes = sorted(tree.nodes.values(), key=lambda node: node.start)
    found = list(dict.fromkeys(span_words.process(node.span) for node in nodes if node.span.service))
    return found if len(found) <= 8 else [*found[:8], f"{len(found) - 8} more"]


def causes(verdict: Verdict, columns: int) -> list[list[Piece]]:
    """Seconds, share, kind, and what was done, in lines of fewer than ``columns`` characters."""
    listed = [cause for cause in verdict.causes[:CAUSES] if cause.share >= 0.01]
    rest = verdict.wall - sum(cause.seconds for cause in listed)
    rows = [(c.seconds, c.share, str(c.kind), c.what) for c in listed]
    if verdict.wall and rest / verdict.wall >= 0.005:
        rows.append((rest, rest / verdict.wall, "", "the rest"))
    found: list[list[Piece]] = []
    for seconds, share, kind, what in rows:
        lead = f"{span_words.seconds(seconds):>8}  {share:4.0%}  {kind:8}  "
        lines = textwrap.wrap(escaped(what), max(20, columns - 1 - len(lead))) or [""]
        found.append([(lead, Style.PLAIN), (lines[0], Style.PLAIN)])
        found += [[(" " * len(lead) + line, Style.PLAIN)] for line in lines[1:]]
    return found


def comparison_rows(compared: Comparison) -> list[tuple[str, ...]]:
    """A table of two operations by stage and cause; causes of less than a two-hundredth of the longer one together."""
    least = max(compared.a.wall, compared.b.wall) / 200
    listed = [row for row in compared.rows if max(row.a, row.b) >= least]
    rest = [sum(getattr(row, side) for row in compared.rows if row not in listed) for side in ("a", "b")]
    lines = [(row.stage, str(row.kind), row.part, row.a, row.b) for row in listed]
    if any(rest):
        lines.append(("the rest", "", "", *rest))
    lines.append(("all", "", "", compared.a.wall, compared.b.wall))
    return [
        ("STAGE", "CAUSE", "", compared.a.trace[:12], compared.b.trace[:12], "DIFFERENCE"),
        *(
            (stage, kind, part, span_words.seconds(a), span_words.seconds(b), _difference(b - a))
            for stage, kind, part, a, b in lines
        ),
    ]


def _difference(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{span_words.seconds(abs(value))}"


def findings(why: WhySlow) -> list[tuple[str, ...]]:
    """A table of what distinguishes slow pulls."""
    slow, rest = len(why.slow), why.pulls - len(why.slow)
    return [
        ("WHAT", "VALUE", "SLOW ONES", "OTHERS"),
        *(
            (each.attribute, each.value, f"{each.slow} of {slow}", f"{each.rest} of {rest}")
            for each in why.findings[:FINDINGS]
        ),
    ]


def parts(tree: Tree, path: Sequence[Segment]) -> list[waterfall.Part]:
    """The critical path as the waterfall marks it. A segment in another trace marks the wait for it."""
    waits = [node for node in tree.nodes.values() if any(link.trace != tree.id for link in node.span.links)]
    found = []
    for segment in path:
        identity = segment.span.id
        if segment.span.trace != tree.id:
            around = [node for node in waits if node.start <= segment.start and segment.end <= node.end]
            if not around:
                continue
            identity = min(around, key=lambda node: node.length).span.id
        found.append(waterfall.Part(identity, segment.start, segment.end))
    return found


def stacks(tree: Tree, path: Sequence[Segment]) -> list[tuple[list[Span], int, int]]:
    """The critical path as a profile: for each segment the spans above it, the outermost first, and its own. Of those
    above it the inner ones beyond ``DEEPEST`` are left out: so segments that follow each other share what is outside.
    """
    known: dict[Node, list[Span]] = {}
    found = []
    for segment in path:
        node = tree.nodes.get(segment.span.id) if segment.span.trace == tree.id else None
        above = [tree.root.span] if node is None else _outermost(node.parent, known)
        found.append(([*above, segment.span], segment.start, segment.end))
    return found


def _outermost(at: Node | None, known: dict[Node, list[Span]]) -> list[Span]:
    """The spans from the root down to a node, at most ``DEEPEST``. ``known`` has those of other nodes: each is walked
    once.
    """
    new: list[Node] = []
    while at is not None and at not in known:
        new.append(at)
        at = at.parent
    found = [] if at is None else known[at]
    for each in reversed(new):
        found = known[each] = [*found, each.span] if len(found) < DEEPEST else found
    return found


# ---------------------------------------------------------------------------------------------- for programs


def summary_json(trace: Summary) -> dict[str, Any]:
    """A trace of a list. Times are nanoseconds since the epoch, ``seconds`` is its length."""
    return {
        "trace": trace.id,
        "name": trace.name,
        "operation": trace.operation or None,
        "namespace": trace.namespace or None,
        "image": trace.image or None,
        "outcome": trace.outcome or None,
        "start": trace.start,
        "end": trace.end,
        "seconds": max(0, trace.end - trace.start) / 1e9,
        "spans": trace.spans,
        "errors": trace.errors,
        "attributes": {key: plain(value) for key, value in trace.attributes.items()},
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict. The seconds of ``causes`` and those of ``path`` each add up to ``wall``; ``cause`` is an index into
    ``causes``.
    """
    numbers = {id(cause): number for number, cause in enumerate(verdict.causes)}
    return {
        "sentence": verdict.sentence,
        "advice": verdict.advice or None,
        "gain": round(verdict.gain, 6),
        "notes": list(verdict.notes),
        "wall": verdict.wall,
        "causes": [cause_json(cause) for cause in verdict.causes],
        "path": [
            {
                "trace": segment.span.trace,
                "span": segment.span.id,
                "name": segment.span.name,
                "start": segment.start,
                "end": segment.end,
                "seconds": segment.seconds,
                "cause": numbers[id(segment.cause)],
            }
            for segment in verdict.path
        ],
    }


def comparison_json(compared: Comparison) -> dict[str, Any]:
    """What ``compare --json`` prints: ``a`` and ``b`` are seconds on the critical path."""
    return {
        "sentence": compared.sentence,
        "a": {"trace": compared.a.trace, **verdict_json(compared.a)},
        "b": {"trace": compared.b.trace, **verdict_json(compared.b)},
        "rows": [
            {
                "stage": row.stage,
                "kind": str(row.kind),
                "part": row.part,
                "a": row.a,
                "b": row.b,
                "difference": row.difference,
            }
            for row in compared.rows
        ],
    }


def cause_json(cause: Cause) -> dict[str, Any]:
    """A cause; ``layer`` counts from 0."""
    return {
        "kind": str(cause.kind),
        "part": cause.part,
        "seconds": cause.seconds,
        "share": cause.share,
        "what": cause.what,
        "host": cause.host or None,
        "layer": cause.layer,
        "digest": cause.digest or None,
        "holder": cause.holder or None,
    }


def span_json(span: Span) -> dict[str, Any]:
    """A span; ``status`` is unset, ok or error."""
    return {
        "id": span.id,
        "parent": span.parent or None,
        "name": span.name,
        "service": span.service or None,
        "start": span.start,
        "end": span.end,
        "seconds": span.seconds,
        "status": Status(span.status).name.lower(),
        **({"message": span.message} if span.message else {}),
        "attributes": {key: plain(value) for key, value in span.attributes.items()},
        **({"links": [{"trace": link.trace, "span": link.span} for link in span.links]} if span.links else {}),
    }


def trace_json(trace: Trace, verdict: Verdict) -> dict[str, Any]:
    """What ``show --json`` prints."""
    return {
        "trace": trace.id,
        "operation": verdict.operation or None,
        "image": verdict.image or None,
        "outcome": verdict.outcome or None,
        "start": verdict.start,
        "verdict": verdict_json(verdict),
        "spans": [span_json(span) for span in trace.spans],
    }
