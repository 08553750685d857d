"""The page's JSON, made of the domain's values.

Spans come from anywhere (``splitd trace import``), and a browser is given what it can hold: numbers that JavaScript
keeps exactly, texts and traces of a bounded size. Times in a trace are microseconds since the beginning of its root;
spans name each other by their places in the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from services.shadows.store import Report
from services.traces.comparison import Comparison
from services.traces.page.source import OPEN, Node
from services.traces.store import Figures, Live, Span, Status, Summary, Trace, Value
from services.traces.verdict import Cause, Verdict

MOST_SPANS = 20_000
"""Spans of a trace that are shown: the longest ones, and all that they are part of."""
_TEXT = 2_000
"""Characters of a text; the rest is cut off."""
_VALUES = 100
"""Attributes of one thing, values of a list, events and links of a span."""
_DEPTH = 6
_ALL = 16 << 20
"""Characters of the attributes, events and links of one trace: beyond, spans are shown without theirs."""
_EXACT = 1 << 53
"""JavaScript's numbers hold integers below this exactly."""

Json = dict[str, Any]


def summary(each: Summary) -> Json:
    """A trace in the list."""
    return {
        "id": each.id,
        "name": _text(each.name),
        "operation": _text(each.operation),
        "namespace": _text(each.namespace),
        "image": _text(each.image),
        "outcome": _text(each.outcome),
        "began": each.start / 1e6,
        "seconds": max(0, each.end - each.start) / 1e9,
        "spans": each.spans,
        "errors": each.errors,
        "attributes": _Shown(1 << 14).attributes(each.attributes),
    }


def figures(each: Figures) -> Json:
    """What the store holds."""
    return {
        "traces": each.traces,
        "spans": each.spans,
        "bytes": each.bytes,
        "oldest": each.oldest / 1e6,
        "dropped": each.dropped,
    }


def node(each: Node) -> Json:
    """The node's health."""
    return {
        "trouble": _text(each.trouble),
        "processes": [
            {
                "name": p.name,
                "trouble": _text(p.trouble),
                "pid": p.pid,
                "began": p.began * 1e3,
                "memory": p.memory,
                "cpu": p.cpu,
            }
            for p in each.processes
        ],
        "registries": [
            {
                "address": _text(r.address),
                "state": r.state,
                "since": r.since * 1e3,
                "failures": r.failures,
                "error": _text(r.last_error),
                "throughput": r.throughput,
            }
            for r in each.registries
        ],
        "shadows": [_shadow(report) for report in each.shadows],
    }


def _shadow(report: Report) -> Json:
    """A candidate that gets copies of calls: what it answers otherwise, method by method."""
    return {
        "route": _text(report.shadow.route),
        "address": _text(report.shadow.address),
        "trouble": _text(report.shadow.trouble),
        "methods": [
            {
                "name": _text(method.method),
                "calls": method.calls,
                "same": method.same,
                "different": method.different,
                "skipped": sum(method.skipped.values()),
                "dropped": method.dropped,
                "ours": [method.ours.p50, method.ours.p99],
                "theirs": [method.candidate.p50, method.candidate.p99],
                "differences": [
                    {
                        "field": _text(difference.name),
                        "count": difference.count,
                        "examples": [
                            {
                                "request": _text(example.request),
                                "ours": _text(example.ours),
                                "theirs": _text(example.candidate),
                                "trace": _text(example.trace),
                            }
                            for example in difference.examples
                        ],
                    }
                    for difference in method.differences
                ],
            }
            for method in report.methods
        ],
    }


def trace(found: Trace, most: int = MOST_SPANS) -> tuple[Json, dict[str, int]]:
    """A trace, and the place of each span in its list."""
    spans = _chosen(found.spans, most)
    places: dict[str, int] = {}
    for place, span in enumerate(spans):
        places.setdefault(span.id, place)  # a span that was open at a fork arrives twice
    parents = _parents(spans, places, found.spans if len(spans) < len(found.spans) else ())
    base = next((s.start for s, parent in zip(spans, parents, strict=True) if parent < 0), 0)
    services: dict[str, int] = {}
    shown = _Shown(_ALL)
    return {
        "id": found.id,
        "began": base / 1e6,
        "left_out": len(found.spans) - len(spans),
        "spans": [
            {
                "id": span.id,
                "parent": parent,
                "name": _text(span.name),
                "service": services.setdefault(_text(span.service), len(services)),
                "start": (span.start - base) // 1000,
                "length": max(0, span.end - span.start) // 1000,
                "kind": span.kind,
                **({"open": True} if span.attributes.get(OPEN) is True else {}),
                **({"error": True} if span.status == Status.ERROR else {}),
                **({"message": _text(span.message)} if span.message else {}),
                **shown.details(span, places, base),
            }
            for span, parent in zip(spans, parents, strict=True)
        ],
        "services": list(services),
    }, places


def verdict(found: Verdict, trace: Trace, places: Mapping[str, int]) -> Json:
    """A verdict: its sentences and causes, and the path as ``[place of the span, start, end, place of the cause]``. The
    time that a wait spent in another trace is the wait's.
    """
    causes = {cause: index for index, cause in enumerate(found.causes)}
    waits = [span for span in trace.spans if span.name.startswith("wait.") and span.links]

    def place(span: Span, start: int, end: int) -> int:
        if span.trace == found.trace:
            return places.get(span.id, -1)
        return next(
            (
                places.get(wait.id, -1)
                for wait in waits
                if wait.start <= start and wait.end >= end and any(link.trace == span.trace for link in wait.links)
            ),
            -1,
        )

    return {
        "sentence": _text(found.sentence),
        "advice": _text(found.advice),
        "gain": found.gain,
        "wall": found.wall,
        "causes": [_cause(cause) for cause in found.causes[:_VALUES]],
        "path": [
            [
                place(part.span, part.start, part.end),
                (part.start - found.start) // 1000,
                (part.end - found.start) // 1000,
                causes.get(part.cause, -1),
            ]
            for part in found.path[:MOST_SPANS]
        ],
    }


def brief(found: Verdict) -> Json:
    """A verdict in a list: its sentence, and the share of each kind of cause, the greatest first."""
    shares: dict[str, float] = {}
    for cause in found.causes:
        shares[cause.kind] = shares.get(cause.kind, 0.0) + cause.share
    return {"sentence": _text(found.sentence), "shares": sorted(shares.items(), key=lambda each: -each[1])}


def comparison(found: Comparison, a: Trace, b: Trace) -> Json:
    """Two operations side by side."""

    def side(judged: Verdict, trace: Trace) -> Json:
        return {
            "id": judged.trace,
            "operation": _text(judged.operation),
            "image": _text(judged.image),
            "outcome": _text(judged.outcome),
            "began": judged.start / 1e6,
            **verdict(judged, trace, {}),
        }

    return {
        "sentence": _text(found.sentence),
        "first": side(found.a, a),
        "second": side(found.b, b),
        "rows": [
            {"stage": _text(row.stage), "kind": row.kind, "part": _text(row.part), "a": row.a, "b": row.b}
            for row in found.rows[:_VALUES]
        ],
    }


def _cause(cause: Cause) -> Json:
    return {
        "kind": cause.kind,
        "part": _text(cause.part),
        "seconds": cause.seconds,
        "share": cause.share,
        "what": _text(cause.what),
        "host": _text(cause.host),
        "layer": cause.layer,
        "holder": _text(cause.holder),
    }


def live(now: Live) -> Json:
    """What is under way: an operation for each trace, with the spans that are open in it."""
    groups: dict[str, list[Span]] = {}
    for span in now.spans:
        groups.setdefault(span.trace, []).append(span)
    names = {(span.trace, span.id): span for span in now.spans}
    return {
        "now": now.now / 1e6,
        "operations": sorted(
            (_operation(identity, spans, names, now.now) for identity, spans in groups.items()),
            key=lambda each: -each["seconds"],
        )[:_VALUES],
    }


def _operation(identity: str, spans: list[Span], known: Mapping[tuple[str, str], Span], now: int) -> Json:
    """The first span says what it is; those that no open span is part of are where it stands."""
    spans.sort(key=lambda each: each.start)
    root = next((span for span in spans if not span.parent), spans[0])
    parents = {span.parent for span in spans}
    inner = [span for span in spans if span.id not in parents]
    return {
        "trace": identity,
        "operation": _text(_goal(spans, root)),
        "image": _text(_first(spans, "container.image.name")),
        "namespace": _text(_first(spans, "splitd.namespace")),
        "seconds": max(0, now - root.start) / 1e9,
        "stages": [
            {
                "name": _text(span.name),
                "service": _text(span.service),
                "seconds": max(0, now - span.start) / 1e9,
                "attributes": _Shown(1 << 14).attributes({**_layer(span, known), **span.attributes}),
                "held": _holders(span, known),
            }
            for span in inner[:_VALUES]
        ],
    }


_GOALS = {f"images.{goal}": goal for goal in ("pull", "push", "import", "export")}
"""Spans that say what their operation is, before its root does at its end."""


def _goal(spans: Sequence[Span], root: Span) -> str:
    return (
        _first([root], "splitd.operation")
        or next((goal for s in spans if (goal := _GOALS.get(s.name))), "")
        or root.name
    )


def _first(spans: Sequence[Span], name: str) -> str:
    """The first text that an attribute has in them; "" if it has none."""
    return next((value for span in spans if isinstance(value := span.attributes.get(name), str)), "")


def _layer(span: Span, known: Mapping[tuple[str, str], Span]) -> dict[str, Value]:
    """The number of the layer that a span, or what it is part of, is about."""
    above: Span | None = span
    for _ in range(_VALUES):
        if above is None:
            break
        if "splitd.layer" in above.attributes:
            return {"splitd.layer": above.attributes["splitd.layer"]}
        above = known.get((above.trace, above.parent))
    return {}


def _holders(span: Span, known: Mapping[tuple[str, str], Span]) -> list[str]:
    """What a wait waits for, as far as that is open: spans, and of other operations their images."""
    found = []
    for link in span.links[:_VALUES] if span.name.startswith("wait.") else ():
        if (holder := known.get((link.trace, link.span))) is not None:
            others = [each for each in known.values() if each.trace == link.trace] if link.trace != span.trace else []
            image = _first(others, "container.image.name")
            layer = _layer(holder, known).get("splitd.layer")
            numbered = f" of layer {layer + 1}" if isinstance(layer, int) else ""  # people count from 1
            told = holder.name + numbered + (f" of {image}" if image else "")
            found.append(_text(told))
    return found


def _chosen(spans: Sequence[Span], most: int) -> Sequence[Span]:
    """All spans, or the ``most`` longest in the order of the trace. Roots always are among them."""
    if len(spans) <= most:
        return spans
    kept = sorted(range(len(spans)), key=lambda i: (bool(spans[i].parent), -spans[i].seconds))[:most]
    return [spans[i] for i in sorted(kept)]


def _parents(spans: Sequence[Span], places: Mapping[str, int], left_out: Sequence[Span]) -> list[int]:
    """The place of each span's parent; -1 if there is none in the trace. The parent of a span whose own parent is left
    out is the next one above. Whoever would be above himself has no parent.
    """
    above = {span.id: span.parent for span in left_out}
    result: list[int] = []
    for span in spans:
        parent, seen = span.parent, set[str]()
        while parent and parent not in places and parent not in seen:
            seen.add(parent)
            parent = above.get(parent, "")
        result.append(places.get(parent, -1))
    state = [0] * len(spans)  # 1: on the way up from here, 2: leads to a root
    for start in range(len(spans)):
        way, at = [], start
        while at >= 0 and state[at] == 0:
            state[at] = 1
            way.append(at)
            at = result[at]
        if at >= 0 and state[at] == 1:
            result[at] = -1
        for each in way:
            state[each] = 2
    return result


class _Shown:
    """Attributes, events and links, up to a number of characters in all."""

    def __init__(self, characters: int) -> None:
        self._left = characters

    def details(self, span: Span, places: Mapping[str, int], base: int) -> Json:
        if self._left <= 0:
            return {"bare": True}
        found: Json = {}
        if span.attributes:
            found["attributes"] = self.attributes(span.attributes)
        if span.events:
            found["events"] = [
                {
                    "at": (event.time - base) // 1000,
                    "name": self._text(event.name),
                    "attributes": self.attributes(event.attributes),
                }
                for event in span.events[:_VALUES]
            ]
        if span.links:
            found["links"] = [
                {"trace": link.trace, "id": link.span}
                if link.trace != span.trace
                else {"id": link.span, "place": places.get(link.span, -1)}
                for link in span.links[:_VALUES]
            ]
        return found

    def attributes(self, values: Mapping[str, Value], depth: int = 0) -> Json:
        found: Json = {}
        for key, value in values.items():
            if len(found) == _VALUES:
                break
            found[self._text(key)] = self._value(value, depth)
        return found

    def _value(self, value: Value, depth: int) -> Any:
        self._left -= 8
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return value if -_EXACT < value < _EXACT else str(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, bytes):
            return self._text("0x" + value[: _TEXT // 2].hex())
        if depth == _DEPTH:
            return "…"
        if isinstance(value, Mapping):
            return self.attributes(value, depth + 1)
        return [self._value(each, depth + 1) for each in list(value)[:_VALUES]]

    def _text(self, text: str) -> str:
        shown = _text(text)
        self._left -= len(shown)
        return shown


def _text(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
