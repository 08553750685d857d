"""When to collect: containerd's scheduler (plugins/gc/scheduler.go), without its timers.

A collection is due at a *turn*. The first turn comes ``startup_delay`` after the start. Each collection is followed by
an *interval* and then the next turn. The interval is so long that collections, by their average duration, take no more
than ``pause_threshold`` of the time. A turn passes without a collection if nothing was deleted and fewer than
``mutation_threshold`` writes were made; the next turn then comes an interval later. A request for an immediate
collection brings the turn forward.

Times are seconds on one monotonic clock, which the caller reads.
"""

from __future__ import annotations

import math

from services.metadata.gc.config import Config

_LEAST = 0.005
"""Seconds that a collection counts for at least, so that turns do not come too fast."""


class Pace:
    """Counts writes and deletions, and says when the next collection is due."""

    def __init__(self, config: Config, now: float) -> None:
        self._config = config.bounded()
        self._turn = now + self._config.startup_delay if self._config.startup_delay else None
        self._interval = 1.0
        self._last: float | None = None
        self._seconds = 0.0
        self._collections = 0
        self._deletions = 0
        self._mutations = 0
        self._dirty = False
        self._asked = False

    def due(self) -> float | None:
        """When the next collection is due; None: not before something changes."""
        return self._turn if self._wanted() else None

    def changed(self, now: float, *, deletion: bool) -> None:
        """Note a write. After a deletion, every write until the next collection counts as a deletion, as in
        containerd.
        """
        self._let_pass(now)
        self._dirty = self._dirty or deletion
        self._mutations += 1
        self._deletions += self._dirty
        if self._threshold_reached() or (self._turn is None and self._wanted()):
            self._bring_forward(now)

    def asked(self, now: float) -> None:
        """Note that a caller waits for a collection."""
        self._let_pass(now)
        self._asked = True
        self._bring_forward(now)

    def collected(self, now: float, seconds: float) -> None:
        """Note that a collection has ended, in which the store was busy for ``seconds``. The counts from before it were
        reset by :meth:`begun`.
        """
        self._seconds += seconds
        self._collections += 1
        if self._config.pause_threshold:
            average = max(self._seconds / self._collections, _LEAST)
            self._interval = average / self._config.pause_threshold - average
        self._last = now
        self._turn = now + self._interval
        if self._asked or self._threshold_reached():
            self._bring_forward(now)

    def begun(self) -> None:
        """Note that a collection begins: it covers everything counted until now."""
        self._deletions = self._mutations = 0
        self._dirty = self._asked = False

    def failed(self, now: float) -> None:
        """Note that a collection failed: it is repeated after the interval and a second."""
        if self._last is None:
            self._turn = now + self._config.schedule_delay
        else:
            self._turn = now + self._interval + 1.0
        self._last = now
        self._dirty = True
        self._deletions += 1

    def _wanted(self) -> bool:
        if self._asked or self._deletions:
            return True
        if self._last is None and self._turn is not None:
            return True  # the first turn never passes without a collection
        return bool(self._config.mutation_threshold) and self._mutations >= self._config.mutation_threshold

    def _threshold_reached(self) -> bool:
        return bool(self._config.deletion_threshold) and self._deletions >= self._config.deletion_threshold

    def _let_pass(self, now: float) -> None:
        """Skip the past turns at which no collection was wanted."""
        if self._turn is not None and self._turn < now and not self._wanted() and self._interval > 0:
            self._turn += math.ceil((now - self._turn) / self._interval) * self._interval

    def _bring_forward(self, now: float) -> None:
        at = now + self._config.schedule_delay
        if self._turn is None or self._turn > at:
            self._turn = at
