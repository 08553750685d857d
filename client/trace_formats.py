"""A trace in the formats of other programs' viewers: Chrome's trace events, which Perfetto opens, and speedscope's.

Both draw a *lane* as a stack of slices that are nested or apart, never crossing. Spans of one process do cross each
other, since it does many things at once; so each process has as many lanes as that takes. A span is below its parent
where the parent's lane has room.

Formats: "Trace Event Format" (Google, 2016), and file-format-schema.json of speedscope.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from services.kit import version
from services.traces.store import Kind, Span, Status, Trace, Value

_TRIED = 64
"""Lanes that are tried for a span before it gets a new one; more would take long for what an adversary imports."""


@dataclass(slots=True)
class Lane:
    """Spans that are nested or apart, in the order of their beginnings, outer ones first."""

    spans: list[Span] = field(default_factory=list)
    open: list[int] = field(default_factory=list)
    """The ends of those that the next span may be within."""

    def takes(self, span: Span) -> bool:
        """Whether ``span``, which begins no earlier than the last one, fits."""
        while self.open and self.open[-1] <= span.start:
            self.open.pop()
        return not self.open or end_of(span) <= self.open[-1]


def end_of(span: Span) -> int:
    """Its end, which is not before its start."""
    return max(span.start, span.end)


def lanes(spans: Iterable[Span]) -> list[Lane]:
    """The lanes of one process's spans."""
    found: list[Lane] = []
    of: dict[str, Lane] = {}
    for span in sorted(spans, key=lambda span: (span.start, -end_of(span))):
        parent = of.get(span.parent)
        lane = parent if parent is not None and parent.takes(span) else None
        if lane is None:
            lane = next((each for each in found[-_TRIED:] if each.takes(span)), None)
        if lane is None:
            lane = Lane()
            found.append(lane)
        lane.spans.append(span)
        lane.open.append(end_of(span))
        of[span.id] = lane
    return found


def by_service(spans: Sequence[Span]) -> dict[str, list[Span]]:
    """Spans by the name of their process, the process that began first before the others."""
    found: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        found.setdefault(span.service or "unknown", []).append(span)
    return found


# ---------------------------------------------------------------------------------------------- Chrome, Perfetto


def chrome(trace: Trace, critical: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """The trace as Chrome's trace events. Times are microseconds from the trace's beginning, since those from the epoch
    have more digits than a double. ``critical`` are the ids of the spans on the critical path.

    A link is an arrow from the span that was waited for to the one that waited.
    """
    begin = min((span.start for span in trace.spans), default=0)
    events: list[dict[str, Any]] = []
    placed: dict[str, tuple[Span, int, int]] = {}
    for pid, (service, spans) in enumerate(by_service(trace.spans).items(), 1):
        events.append(_named("process_name", pid, 0, name=service))
        events.append(_named("process_sort_index", pid, 0, sort_index=pid))
        for tid, lane in enumerate(lanes(spans), 1):
            events.append(_named("thread_name", pid, tid, name=f"lane {tid}"))
            for span in lane.spans:
                placed[span.id] = (span, pid, tid)
                events += _slice(span, pid, tid, begin, span.id in critical)
    number = 0
    for span, pid, tid in placed.values():
        for link in span.links:
            if link.trace == trace.id and (holder := placed.get(link.span)) is not None and holder[0] is not span:
                number += 1
                events += _arrow(holder, (span, pid, tid), number, begin)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"trace_id": trace.id, "start_unix_nano": str(begin), "exporter": f"splitd {version.SPLITD}"},
    }


def _named(what: str, pid: int, tid: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _slice(span: Span, pid: int, tid: int, begin: int, critical: bool) -> Iterable[dict[str, Any]]:
    args: dict[str, Any] = {key: plain(value) for key, value in span.attributes.items()}
    args |= {"span_id": span.id, "parent_span_id": span.parent}
    if span.status == Status.ERROR:
        args["error"] = span.message or True
    if critical:
        args["critical_path"] = True
    yield {
        "ph": "X",
        "name": span.name,
        "cat": _category(span, critical),
        "ts": (span.start - begin) / 1000,
        "dur": (end_of(span) - span.start) / 1000,
        "pid": pid,
        "tid": tid,
        "args": args,
    }
    for event in span.events:
        yield {
            "ph": "i",
            "s": "t",
            "name": event.name,
            "cat": "event",
            "ts": (event.time - begin) / 1000,
            "pid": pid,
            "tid": tid,
            "args": {key: plain(value) for key, value in event.attributes.items()},
        }


def _category(span: Span, critical: bool) -> str:
    """Categories are what a viewer filters and colours by, separated by commas."""
    words = [
        "wait" if span.name.startswith("wait.") else "rpc" if span.kind in (Kind.CLIENT, Kind.SERVER) else "work",
        *(["critical"] if critical else []),
        *(["error"] if span.status == Status.ERROR else []),
    ]
    return ",".join(words)


def _arrow(
    holder: tuple[Span, int, int], waiter: tuple[Span, int, int], number: int, begin: int
) -> Iterable[dict[str, Any]]:
    """From when the waiting began to its end; an arrow leads from and to a moment within a slice, and never back in
    time.
    """
    held, waited = holder[0], waiter[0]
    first = min(max(held.start, waited.start), end_of(held))
    last = max(first, end_of(waited))
    for phase, (_, pid, tid), at, more in (("s", holder, first, {}), ("f", waiter, last, {"bp": "e"})):
        yield {
            "ph": phase,
            "id": number,
            "name": "waited for",
            "cat": "link",
            "ts": (at - begin) / 1000,
            "pid": pid,
            "tid": tid,
            **more,
        }


def plain(value: Value) -> Any:
    """A value as JSON has it: bytes in hex, and what is no finite number as text."""
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value


# ---------------------------------------------------------------------------------------------- speedscope


class _Frames:
    """The names that speedscope's profiles share."""

    def __init__(self) -> None:
        self.list: list[dict[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, span: Span) -> int:
        key = (span.name, span.service)
        if key not in self._numbers:
            self._numbers[key] = len(self.list)
            self.list.append({"name": span.name, **({"file": span.service} if span.service else {})})
        return self._numbers[key]


def speedscope(trace: Trace, title: str, path: Sequence[tuple[Sequence[Span], int, int]] = ()) -> dict[str, Any]:
    """The trace for speedscope, one profile for each lane. If ``path`` is given, the first profile is the critical
    path: its parts in the order of time, each with the span and its ancestors (outermost first), start and end.
    """
    begin = min((span.start for span in trace.spans), default=0)
    end = max((end_of(span) for span in trace.spans), default=begin)
    frames = _Frames()
    profiles = [_profile("critical path", begin, end, _along(path, frames, begin))] if path else []
    for service, spans in by_service(trace.spans).items():
        found = lanes(spans)
        for number, lane in enumerate(found, 1):
            name = service if len(found) == 1 else f"{service} {number}"
            profiles.append(_profile(name, begin, end, _nested(lane, frames, begin)))
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": f"splitd {version.SPLITD}",
        "name": title,
        "activeProfileIndex": 0,
        "shared": {"frames": frames.list},
        "profiles": profiles,
    }


def _profile(name: str, begin: int, end: int, events: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "evented",
        "name": name,
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": end - begin,
        "events": events,
    }


def _nested(lane: Lane, frames: _Frames, begin: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    open_: list[Span] = []

    def close(span: Span) -> None:
        events.append({"type": "C", "frame": frames.number(span), "at": end_of(span) - begin})

    for span in lane.spans:
        while open_ and end_of(open_[-1]) <= span.start:
            close(open_.pop())
        events.append({"type": "O", "frame": frames.number(span), "at": span.start - begin})
        open_.append(span)
    while open_:
        close(open_.pop())
    return events


def _along(path: Sequence[tuple[Sequence[Span], int, int]], frames: _Frames, begin: int) -> list[dict[str, Any]]:
    """Consecutive stacks; what two of them share at their outer side stays open."""
    events: list[dict[str, Any]] = []
    open_: list[Span] = []
    last = begin

    def close(down_to: int) -> None:
        while len(open_) > down_to:
            events.append({"type": "C", "frame": frames.number(open_.pop()), "at": last - begin})

    for stack, start, end in path:
        shared = 0
        if start <= last:
            while shared < min(len(open_), len(stack)) and open_[shared].id == stack[shared].id:
                shared += 1
        close(shared)
        last = max(last, start)
        for span in stack[shared:]:
            events.append({"type": "O", "frame": frames.number(span), "at": last - begin})
            open_.append(span)
        last = max(last, end)
    close(0)
    return events
