"""Open spans, as the processes of the node report them: who is alive reports again before the last report is void."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.kit import clock
from services.traces.store import Live, Span

REPORTERS = 64
"""Processes that are remembered."""
SPANS = 2000
"""Open spans of one process that are remembered: those that began first."""
LIFETIME = 60.0
"""Seconds that a report may be valid, whatever it says."""


@dataclass(slots=True)
class _Report:
    spans: Sequence[Span]
    void: float
    """When, on the monotonic clock."""
    dropped: int
    """Spans that the process lost since it began."""


class OpenSpans:
    """The last report of each process, while it is valid."""

    def __init__(self, clock: Callable[[], int] = clock.now, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._reports: dict[str, _Report] = {}
        self._lost = 0
        """Spans that processes lost which are not remembered any longer, or began anew."""

    def report(self, process: str, spans: Sequence[Span], lifetime: float, dropped: int) -> None:
        """What ``process`` has open now; it replaces what it said before."""
        now = self._monotonic()
        last = self._reports.pop(process, None)
        if last is not None and dropped < last.dropped:
            self._lost += last.dropped
        if len(self._reports) >= REPORTERS:
            first = min(self._reports, key=lambda name: self._reports[name].void)
            self._lost += self._reports.pop(first).dropped
        kept = sorted(spans, key=lambda span: span.start)[:SPANS]
        self._reports[process] = _Report(kept, now + min(max(lifetime, 0.0), LIFETIME), dropped)

    def live(self) -> Live:
        """All open spans, in the order of their beginnings."""
        now = self._monotonic()
        for report in self._reports.values():
            if report.void < now:
                report.spans = ()
        found = [span for report in self._reports.values() for span in report.spans]
        return Live(self._clock(), sorted(found, key=lambda span: span.start))

    def dropped(self) -> int:
        """Spans that the processes lost before they sent them."""
        return self._lost + sum(report.dropped for report in self._reports.values())
