"""How long to wait for what may be alive but slow."""

from __future__ import annotations

from services.fleet.patience import KEPT, TIMES, Patience


def test_it_follows_the_longest_wait_lately() -> None:
    """Within its limits, and until that wait is long ago."""
    now = 100.0
    patience = Patience(1.0, 20.0, clock=lambda: now)
    assert patience.seconds == 1.0
    patience.took(0.01)
    assert patience.seconds == 1.0
    patience.took(2.0)
    now += KEPT - 1
    patience.took(0.5)
    patience.took(0.1)
    assert patience.seconds == TIMES * 2.0
    now += 2
    assert patience.seconds == TIMES * 0.5
    patience.took(1000.0)
    assert patience.seconds == 20.0
    now += KEPT + 1
    assert patience.seconds == 1.0
