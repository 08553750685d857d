"""Gathers ended spans, and sends them in batches, from a thread of its own: :class:`Batches`.

The SDK's processor is not used: it wakes up all the time, its timeouts do nothing, it logs each span that it drops, and
it begins a thread in each process that is forked. This one sleeps until a span begins.

For a collector that the environment names, the standard variables OTEL_BSP_* configure this. They are read here and not
by the SDK, which raises on some values and names no variable.

- MAX_QUEUE_SIZE: spans that may wait (2048). Further spans are lost.
- MAX_EXPORT_BATCH_SIZE: spans that are sent at once (512); never more than may wait.
- SCHEDULE_DELAY: milliseconds from one batch to the next (5000).
- EXPORT_TIMEOUT: milliseconds for a batch (30000). The SDK ignores it; OTEL_EXPORTER_OTLP_TIMEOUT counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.kit import clock, loops
from services.kit.spans import OPEN, Span, state

log = logging.getLogger(__name__)

_DAY = 86_400_000
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"

VARIABLES = {
    _QUEUE: (2048, 1 << 20),
    _BATCH: (512, 1 << 20),
    "OTEL_BSP_SCHEDULE_DELAY": (5000, _DAY),
    "OTEL_BSP_EXPORT_TIMEOUT": (30_000, _DAY),
}
"""The default (OpenTelemetry's) and the largest value of each."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Valid values."""

    queue: int
    batch: int
    delay: int
    """Milliseconds."""
    timeout: int
    """Milliseconds."""
    quiet: int = _DAY
    """Milliseconds after which a batch leaves before its time, if no span has ended in them, and none is open."""


def read(environment: Mapping[str, str]) -> tuple[Batching, list[str]]:
    """Read the environment. The result includes a line for each variable whose value cannot be used, with the value
    that is used instead.
    """
    wrong: list[str] = []
    values = {name: _value(name, environment.get(name, "").strip(), wrong) for name in VARIABLES}
    if values[_BATCH] > values[_QUEUE]:
        if environment.get(_BATCH, "").strip():
            wrong.append(
                f"{_BATCH}={values[_BATCH]} is more than {_QUEUE}, {values[_QUEUE]}: batches have {values[_QUEUE]}"
            )
        values[_BATCH] = values[_QUEUE]
    return Batching(*values.values()), wrong


def _value(name: str, text: str, wrong: list[str]) -> int:
    default, most = VARIABLES[name]
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most:
        return int(text)
    wrong.append(f"{name}={text[:100]} is not a whole number from 1 to {most}: {default} is used")
    return default


# ---------------------------------------------------------------------------------------------- the thread

Export = Callable[[Sequence[Span]], bool]
"""Sends a batch, and returns whether it was taken. It may block for some seconds."""
Report = Callable[[Sequence[Span], int, float], bool]
"""Tells which spans are open, how many were dropped so far, and for how many seconds this is valid. Returns whether
that was heard.
"""

_LOOK = 5.0
"""Seconds between two looks at the settings, while there is nothing else to do."""
_GLANCE = 1.0
"""Seconds between two looks whether somebody has asked, and what is open, while spans begin or are open."""
_OPEN_NS = 1_000_000_000
"""A report tells what has been open for so long."""
_FIRST = 2.0
"""Seconds for which the first span of an operation is open when it is reported though nobody has asked."""
_SELDOM = 5.0
"""The longest pause from one report to the next: as long as nobody asks, each is twice as long as the one before."""
_LASTING = 10.0
"""The same if all that is open lasts, and while nobody is there to be told."""
_LATE = 2.0
"""A report is valid for so many seconds longer than the time to the next one."""
_LASTING_NS = 60_000_000_000
"""What has been open for so long lasts. It is in the last report, which is valid: nobody need ask for it."""
_REPORTED = 1000
"""The most spans in a report."""


class Batches:
    """A queue of ended spans and the thread that empties it. What the queue has no room for is dropped and counted."""

    def __init__(
        self,
        export: Export,
        values: Batching,
        *,
        report: Report | None = None,
        look: Callable[[], None] | None = None,
        asked: Callable[[], bool] = lambda: False,
        later: Callable[[float], None] | None = None,
    ) -> None:
        """``look`` looks whether settings have changed. ``asked`` tells whether somebody wants to know just now what is
        open; as long as it is so, that is reported each second. ``later`` is told at the end how many seconds are left.
        """
        self._export = export
        self._values = values
        self._report = report
        self._look = look
        self._asked = asked
        self._watched = False
        self._later = later
        self._queue: deque[Span] = deque()
        self.dropped = 0
        """Spans that were lost since the process began."""
        self._woken = threading.Event()
        self._stirred = float("-inf")
        """When a span began while the thread slept. From then on it looks by itself: a call that takes a millisecond
        would else wake it, and so would the next.
        """
        self._asleep = False
        self._end = float("inf")
        self._first = float("inf")
        """When the oldest span of the queue was seen there."""
        self._newest = 0.0
        """When the newest span came."""
        self._said = 0.0
        """When the last report was made, and the traces of the spans that it had. Unless somebody asks, the next one is
        due ``every`` so many seconds later.
        """
        self._last: frozenset[str] = frozenset()
        self._every = 1.0
        self._failed = False
        """Whether a report has failed in a way that nobody foresaw."""
        self._confessed = 0
        """How many of the dropped ones were reported."""
        self._thread = loops.thread("the export of spans", self._run)

    def change(
        self, export: Export, values: Batching, *, report: Report | None, later: Callable[[float], None] | None
    ) -> None:
        """Go on in another way. Only ``look`` may call this, which is called where nothing is being sent."""
        self._export, self._values, self._report, self._later = export, values, report, later
        self._last = frozenset()

    def put(self, span: Span) -> None:
        """Take a span that has ended. This never waits."""
        queue = self._queue
        if len(queue) >= self._values.queue:
            self.dropped += 1
            return
        queue.append(span)
        self._newest = time.monotonic()
        if self._asleep or len(queue) == self._values.batch:
            self._woken.set()

    def end(self, seconds: float) -> None:
        """Send what is left, within ``seconds``, and end. :meth:`join` waits for it."""
        self._end = time.monotonic() + seconds
        if self._later is not None:
            self._later(seconds)
        self._woken.set()

    def join(self) -> None:
        """Wait for the end, not longer than it may take."""
        self._thread.join(max(0.0, self._end - time.monotonic()))

    # -- in the thread

    def _run(self) -> None:
        while self._end == float("inf"):
            self._step()
        while self._queue and time.monotonic() < self._end:
            self._send()

    def _step(self) -> None:
        wait = self._wait()
        self._asleep = not self._queue
        if self._report is not None and wait > _GLANCE:
            state.idle = self._wake
        self._woken.wait(self._wait())  # asked again: what came just now has not woken us
        self._woken.clear()
        self._asleep = False
        if self._report is not None:
            state.idle = None
            self._watched = self._asked()
        if self._look is not None:
            self._look()
        if len(state.open) > OPEN:
            self.dropped += state.trim()
        if self._queue and (len(self._queue) >= self._values.batch or self._left() <= 0):
            self._send()
        if self._report is not None and self._until_report() <= 0:
            self._tell(self._report)

    def _wake(self) -> None:
        state.idle = None
        self._stirred = time.monotonic()
        self._woken.set()

    def _wait(self) -> float:
        """Seconds until there is something to do."""
        return max(0.0, min(self._until_look(), self._left(), self._until_report()))

    def _until_look(self) -> float:
        """Seconds until the next look at what others have said."""
        if (since := time.monotonic() - self._stirred) < _GLANCE:
            return _GLANCE - since
        return _GLANCE if self._report is not None and self._works() else _LOOK

    def _left(self) -> float:
        """Seconds until a batch leaves that is not full."""
        if not self._queue:
            self._first = float("inf")
            return float("inf")
        now = time.monotonic()
        self._first = min(self._first, now)
        delay = min(self._values.delay / 1000, 1.0) if self._watched else self._values.delay / 1000
        left = self._first + delay - now
        return left if self._works() else min(left, self._newest + self._values.quiet / 1000 - now)

    def _works(self) -> bool:
        """Whether something is open that does not last: then further spans will end."""
        opened = list(state.open)
        return bool(opened) and clock.now() - opened[-1].start < _LASTING_NS

    def _until_report(self) -> float:
        """Seconds until the next report: one that repeats the last, or one that tells of an operation that has come or
        gone.
        """
        if self._report is None:
            return float("inf")
        now, opened = time.monotonic(), list(state.open)
        over = self._last.difference(span.trace for span in opened)
        pause = 1.0 if self._watched or over else self._every
        again = self._said + pause - now if self._last or self.dropped != self._confessed else float("inf")
        new = next((span for span in opened if span.trace not in self._last), None)
        if new is None:
            return again
        age = _OPEN_NS if self._watched else int(_FIRST * 1e9)
        return min(again, max(self._said + 1.0 - now, (new.start + age - clock.now()) / 1e9))

    def _send(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(self._values.batch, len(self._queue)))]
        self._first = float("inf")
        taken = False
        try:
            taken = self._export(batch)
        except Exception:  # whatever a library finds in a span: the next batch is sent all the same
            log.exception("%d spans could not be sent", len(batch))
        if not taken:
            self.dropped += len(batch)

    def _tell(self, report: Report) -> None:
        now = clock.now()
        found = [span for span in list(state.open)[:_REPORTED] if span.start <= now - _OPEN_NS]
        these = frozenset(span.trace for span in found)
        if not found:
            self._every = 1.0
        elif self._watched or not these <= self._last:
            self._every = _FIRST
        else:
            lasting = all(span.start <= now - _LASTING_NS for span in found)
            self._every = min(2 * self._every, _LASTING if lasting else _SELDOM)
        dropped = self.dropped
        self._said, self._last = time.monotonic(), these
        heard = False
        try:
            heard = report(found, dropped, self._every + _LATE)
        except Exception:  # whatever a library finds in a span: those that end are sent all the same
            if not self._failed:
                log.exception("%d open spans could not be reported", len(found))
            self._failed = True
        if heard:
            self._confessed = dropped
        elif not found:
            self._every = _LASTING
