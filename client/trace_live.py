"""What a node does at a moment, from the spans that have not ended: each operation with the stages that it is in, how
long each has taken, and for a wait who holds what it waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from client import span_words
from client.shown import Piece, Style, escaped, fitted
from client.trace_formats import plain
from services.traces.store import Live, Span, Summary

STAGES = 6
"""Stages of an operation that people are shown: the longest."""
_ABOVE = 32
"""Spans above a stage that are looked at."""
_OWN = "images."
"""Spans of the images service whose names say the operation: ``images.pull``."""
UNDER_WAY = "under way"
"""The outcome of an operation that has none yet."""


@dataclass(frozen=True, slots=True)
class Stage:
    """An open span that no other open span is below."""

    span: Span
    seconds: float
    """Since it began."""
    layer: int | None = None
    """The number from 0 of the layer that the span, or one above it, is about."""
    holders: tuple[tuple[Span, str], ...] = ()
    """If it is a wait: the open spans that hold what it waits for, each with its operation in words."""


@dataclass(frozen=True, slots=True)
class Flight:
    """An operation in flight."""

    trace: str
    operation: str
    about: str
    """Its image or container; "" if that is not known yet."""
    seconds: float
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return f"{self.operation} {self.about}".rstrip()


def flights(live: Live) -> list[Flight]:
    """The operations in flight, the longest first."""
    traces = _traces(live)
    spans = {(span.trace, span.id): span for span in live.spans}
    names = {trace: f"{_operation(found)} {_about(found)}".rstrip() for trace, found in traces.items()}

    def stage(span: Span) -> Stage:
        links = span.links if span.name.startswith("wait.") else ()
        held = [(holder, names[link.trace]) for link in links if (holder := spans.get((link.trace, link.span)))]
        return Stage(span, _since(span, live.now), _layer(span, spans), tuple(held))

    flying = []
    for trace, found in traces.items():
        above = {span.parent for span in found if span.parent != span.id}
        stages = sorted(
            (stage(span) for span in found if span.id not in above), key=lambda each: each.seconds, reverse=True
        )
        flying.append(Flight(trace, _operation(found), _about(found), _since(found[0], live.now), tuple(stages)))
    return sorted(flying, key=lambda flight: flight.seconds, reverse=True)


def named(listed: Sequence[Summary], live: Live) -> list[Summary]:
    """A list in which those under way are called what their open spans say. Their roots are stored only when they end;
    until then the list knows them by the span that happened to end first.
    """
    traces = _traces(live)

    def one(trace: Summary) -> Summary:
        found = traces.get(trace.id)
        if found is None or trace.outcome:
            return trace
        return replace(
            trace,
            operation=_operation(found, trace.operation),
            namespace=_said(found, "splitd.namespace") or trace.namespace,
            image=_said(found, "container.image.name") or trace.image,
            outcome=UNDER_WAY,
            start=min(trace.start, found[0].start),
            end=max(trace.end, live.now),
            attributes={**trace.attributes, "container.id": _said(found, "container.id")},
        )

    return [one(trace) for trace in listed]


def _traces(live: Live) -> dict[str, list[Span]]:
    """The open spans of each trace, in the order of their beginnings."""
    traces: dict[str, list[Span]] = {}
    for span in sorted(live.spans, key=lambda span: span.start):
        traces.setdefault(span.trace, []).append(span)
    return traces


def _layer(span: Span | None, spans: Mapping[tuple[str, str], Span]) -> int | None:
    for _ in range(_ABOVE):
        if span is None:
            break
        if (found := span_words.layer(span)) is not None:
            return found
        span = spans.get((span.trace, span.parent))
    return None


def _since(span: Span, now: int) -> float:
    return max(0, now - span.start) / 1e9


def _operation(spans: Sequence[Span], known: str = "") -> str:
    """In one word, of spans in the order of their beginnings. ``known`` is what the ended ones say."""
    if said := _said(spans, "splitd.operation"):
        return said
    own = next((span.name for span in spans if span.name.startswith(_OWN)), "")
    return known or (own.removeprefix(_OWN) if own else span_words.title(spans[0]))


def _about(spans: Sequence[Span]) -> str:
    return _said(spans, "container.image.name") or _said(spans, "container.id")


def _said(spans: Sequence[Span], attribute: str) -> str:
    """What the first of them says that says anything."""
    return next((said for span in spans if (said := span_words.text(span.attributes.get(attribute)))), "")


# ---------------------------------------------------------------------------------------------- shown


def lines(flying: Sequence[Flight], columns: int, rows: int = 0) -> list[list[Piece]]:
    """The operations as lines of fewer than ``columns`` characters, and fewer than ``rows`` of them (0: any number)."""
    if not flying:
        return [[("nothing has been in flight for longer than a second"[: columns - 1], Style.DIM)]]
    found: list[list[Piece]] = []
    room = max(10, columns - 1 - 10)
    for flight in flying:
        title = fitted(escaped(f"{flight}  {flight.trace[:12]}"), room)
        found.append([(title, Style.BOLD), (span_words.seconds(flight.seconds).rjust(10), Style.BOLD)])
        stages = _together(flight.stages)
        for words, seconds, style in stages[:STAGES]:
            found.append([(fitted(words, room), style), (span_words.seconds(seconds).rjust(10), Style.PLAIN)])
        if (more := len(stages) - STAGES) > 0:
            found.append([(f"  and {more} more", Style.DIM)])
    if rows and len(found) >= rows:
        more = len(found) - (rows - 2)
        return [*found[: rows - 2], [(f"and {more} more lines"[: columns - 1], Style.DIM)]]
    return found


def _together(stages: Sequence[Stage]) -> list[tuple[str, float, Style]]:
    """Stages in words, each with its time and style; those of the same words, such as parts of a blob, are one."""
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        found.setdefault(escaped(f"  {_words(stage)}"), []).append(stage)
    return [
        (
            words if len(same) == 1 else f"{words} ({len(same)} at once)",
            same[0].seconds,
            Style.WAIT if same[0].span.name.startswith("wait.") else Style.PLAIN,
        )
        for words, same in found.items()
    ]


def _words(stage: Stage) -> str:
    span = stage.span
    notes = ", ".join(dict.fromkeys(filter(None, (span_words.named_layer(stage.layer), *span_words.notes(span)))))
    held = "; ".join(f"{span_words.title(holder)} of {operation}" for holder, operation in stage.holders[:2])
    return "".join(
        (
            f"{span_words.process(span)}: {span_words.title(span)}",
            f"  {notes}" if notes else "",
            f", held by {held}" if held else "",
        )
    )


def flights_json(live: Live, flying: Sequence[Flight]) -> Mapping[str, Any]:
    """What ``top --json`` prints. ``now`` is in nanoseconds since the epoch."""
    return {
        "now": live.now,
        "operations": [
            {
                "trace": flight.trace,
                "operation": flight.operation,
                "about": flight.about or None,
                "seconds": flight.seconds,
                "stages": [_stage_json(stage) for stage in flight.stages],
            }
            for flight in flying
        ],
    }


def _stage_json(stage: Stage) -> Mapping[str, Any]:
    span = stage.span
    return {
        "span": span.id,
        "name": span.name,
        "service": span.service or None,
        "seconds": stage.seconds,
        "layer": stage.layer,
        "attributes": {key: plain(value) for key, value in span.attributes.items()},
        "heldBy": [
            {"trace": holder.trace, "span": holder.id, "name": holder.name, "operation": operation}
            for holder, operation in stage.holders
        ],
    }
