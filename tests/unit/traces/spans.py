"""Spans of made-up traces, in milliseconds from the trace's beginning."""

from __future__ import annotations

from services.traces.store import Link, Span, Status, Trace, Value

T0 = 1_700_000_000_000_000_000
TRACE = "a" * 32
OTHER = "b" * 32


class Spans:
    """Collects the spans of one trace. ``add`` answers the new span's id, for the parent of others and for links."""

    def __init__(self, trace: str = TRACE) -> None:
        self.id = trace
        self.spans: list[Span] = []

    def add(
        self,
        name: str,
        start: float,
        end: float,
        parent: str = "",
        *,
        link: str = "",
        also: str = "",
        service: str = "splitd-images",
        kind: int = 1,
        status: int = Status.UNSET,
        message: str = "",
        **attributes: Value,
    ) -> str:
        """Add a span; in attributes' names ``__`` is a dot. ``link`` and ``also`` are ``SPAN`` or ``TRACE-SPAN``."""
        identity = f"{self.id[0]}{len(self.spans) + 1:015x}"
        self.spans.append(
            Span(
                self.id,
                identity,
                parent,
                name,
                service,
                T0 + round(start * 1e6),
                T0 + round(end * 1e6),
                kind=kind,
                status=status,
                message=message,
                attributes={key.replace("__", "."): value for key, value in attributes.items()},
                links=tuple(self._link(each) for each in (link, also) if each),
            )
        )
        return identity

    def _link(self, ref: str) -> Link:
        trace, _, span = ref.rpartition("-")
        return Link(trace or self.id, span)

    def trace(self) -> Trace:
        return Trace(self.id, sorted(self.spans, key=lambda span: span.start))
