"""Open spans, as the processes of the node report them: who is alive reports again before the last report is void.

As long as nobody asks, they report more and more seldom (:mod:`services.kit.batching`). Whoever asks is answered at
once with what is known, and from then on they report each second for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.kit import clock
from services.traces.store import Live, Span

log = logging.getLogger(__name__)

REPORTERS = 64
"""Processes that are remembered."""
SPANS = 2000
"""Open spans of one process that are remembered: those that began first."""
LIFETIME = 60.0
"""Seconds that a report may be valid, whatever it says."""


@dataclass(slots=True)
class _Report:
    read: Callable[[], Iterable[Span]]
    begun: int
    """When the first of its spans began; 0 if it has none."""
    void: float
    """When, on the monotonic clock."""
    dropped: int
    """Spans that the process lost since it began."""


class Asking:
    """Tells the processes, by touching ``file`` (``kit.exporting.ASKED``), that somebody looks."""

    OFTEN = 0.5
    """Seconds from one touch to the next, at least."""

    def __init__(self, file: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._monotonic = monotonic
        self._told = float("-inf")
        self._failed = False

    def __call__(self) -> None:
        now = self._monotonic()
        if now - self._told < self.OFTEN:
            return
        self._told = now
        try:
            self._file.touch(0o600)
        except OSError as error:  # what is shown is older then
            if not self._failed:
                log.warning("processes cannot be asked what is in flight: %s", error)
            self._failed = True
        else:
            self._failed = False


class OpenSpans:
    """The last report of each process, while it is valid."""

    def __init__(
        self,
        clock: Callable[[], int] = clock.now,
        monotonic: Callable[[], float] = time.monotonic,
        ask: Callable[[], None] = lambda: None,
    ) -> None:
        """``ask`` tells the processes that somebody looks."""
        self.ask = ask
        self._clock = clock
        self._monotonic = monotonic
        self._reports: dict[str, _Report] = {}
        self._lost = 0
        """Spans that processes lost which are not remembered any longer, or began anew."""

    def report(
        self, process: str, begun: int, read: Callable[[], Iterable[Span]], lifetime: float, dropped: int
    ) -> None:
        """What ``process`` has open now; it replaces what it said before. ``read`` makes the spans, which costs much
        more than to keep them as they came, and most are never asked for; the first of them ``begun`` then (0: none).
        """
        now = self._monotonic()
        last = self._reports.pop(process, None)
        if last is not None and dropped < last.dropped:
            self._lost += last.dropped
        if len(self._reports) >= REPORTERS:
            first = min(self._reports, key=lambda name: self._reports[name].void)
            self._lost += self._reports.pop(first).dropped
        self._reports[process] = _Report(read, begun, now + min(max(lifetime, 0.0), LIFETIME), dropped)

    def _valid(self) -> Sequence[_Report]:
        """The reports that are valid and have spans. Void ones lose theirs."""
        now = self._monotonic()
        for report in self._reports.values():
            if report.void < now:
                report.read, report.begun = tuple, 0
        return [report for report in self._reports.values() if report.begun]

    def live(self) -> Live:
        """All open spans, in the order of their beginnings."""
        found: list[Span] = []
        for report in self._valid():
            found += sorted(report.read(), key=lambda span: span.start)[:SPANS]
        return Live(self._clock(), sorted(found, key=lambda span: span.start))

    def asked(self) -> Live:
        """The same for somebody who looks, and may look again: then it is at most a second old."""
        self.ask()
        return self.live()

    def age(self) -> float:
        """For how many seconds the oldest open span has been open; 0 if there is none."""
        first = min((report.begun for report in self._valid()), default=0)
        return max(0.0, (self._clock() - first) / 1e9) if first else 0.0

    def dropped(self) -> int:
        """Spans that the processes lost before they sent them."""
        return self._lost + sum(report.dropped for report in self._reports.values())
