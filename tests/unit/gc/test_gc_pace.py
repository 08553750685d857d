"""Pace: when containerd's scheduler would collect, on a fake clock."""

from __future__ import annotations

import pytest

from services.metadata.gc.config import Config
from services.metadata.gc.pace import Pace


def started(**settings: float) -> Pace:
    """The state after the first collection, which ended at 100.0 and took no time: turns come every 0.245 s."""
    pace = Pace(Config(**settings), 99.0)  # type: ignore[arg-type]
    pace.begun()
    pace.collected(100.0, 0.0)
    return pace


def test_the_first_collection_is_due_a_startup_delay_after_the_start() -> None:
    """It sets the base for the interval and is never skipped."""
    assert Pace(Config(), 50.0).due() == pytest.approx(50.1)
    assert Pace(Config(startup_delay=3.0), 50.0).due() == 53.0


def test_without_a_startup_delay_the_first_deletion_collects() -> None:
    """Nothing is due until then; a write without a deletion does not change that."""
    pace = Pace(Config(startup_delay=0.0), 50.0)
    assert pace.due() is None
    pace.changed(51.0, deletion=False)
    assert pace.due() is None
    pace.changed(52.0, deletion=True)
    assert pace.due() == 52.0


def test_idle_means_that_nothing_is_due() -> None:
    """Turns without a preceding deletion are skipped, without a wake-up."""
    pace = started()
    assert pace.due() is None
    for _ in range(99):
        pace.changed(101.0, deletion=False)
    assert pace.due() is None


def test_a_deletion_waits_for_the_next_turn() -> None:
    """Turns come one interval after another, counted from the last collection, whether there is work for them or
    not.
    """
    pace = started()
    pace.changed(100.1, deletion=True)
    assert pace.due() == pytest.approx(100.245)
    pace = started()
    pace.changed(100.3, deletion=True)
    assert pace.due() == pytest.approx(100.49)


def test_many_writes_make_the_next_turn_collect() -> None:
    """mutation_threshold writes make it due; 0 turns that off."""
    pace = started(mutation_threshold=3)
    for now in (100.01, 100.02, 100.03):
        assert pace.due() is None
        pace.changed(now, deletion=False)
    assert pace.due() == pytest.approx(100.245)
    pace = started(mutation_threshold=0)
    for _ in range(1000):
        pace.changed(100.1, deletion=False)
    assert pace.due() is None


def test_the_interval_follows_from_the_pauses() -> None:
    """Collections take the share pause_threshold of the time, on average; each counts as at least 5 ms."""
    pace = started()  # one of 0 s
    pace.begun()
    pace.collected(200.0, 0.04)  # the average is 20 ms: 0.02 of 1 s
    pace.changed(200.0, deletion=True)
    assert pace.due() == pytest.approx(200.98)


def test_a_pause_threshold_of_zero_leaves_an_interval_of_a_second() -> None:
    """This is containerd's behaviour."""
    pace = started(pause_threshold=0.0)
    pace.changed(100.1, deletion=True)
    assert pace.due() == pytest.approx(101.0)


def test_the_bounds_of_the_settings_are_containerds() -> None:
    """pause_threshold is at most 0.5, and no setting is negative."""
    config = Config(pause_threshold=0.9, mutation_threshold=-1, schedule_delay=-1.0, startup_delay=-1.0).bounded()
    assert (config.pause_threshold, config.mutation_threshold, config.schedule_delay, config.startup_delay) == (
        0.5,
        0,
        0.0,
        0.0,
    )


def test_the_deletion_threshold_does_not_wait_for_a_turn() -> None:
    """After that many deletions the collection is due schedule_delay later. Writes after a deletion count too, as in
    containerd.
    """
    pace = started(deletion_threshold=3, schedule_delay=0.01)
    pace.changed(100.01, deletion=True)
    pace.changed(100.02, deletion=False)
    assert pace.due() == pytest.approx(100.245)
    pace.changed(100.03, deletion=False)
    assert pace.due() == pytest.approx(100.04)


def test_a_request_does_not_wait_for_a_turn() -> None:
    """The collection is due schedule_delay later, and never later than it would be without the request."""
    pace = started()
    pace.asked(100.05)
    assert pace.due() == 100.05
    pace = started(schedule_delay=5.0)
    pace.asked(100.05)
    assert pace.due() == pytest.approx(100.245)


def test_changes_during_a_collection_count_for_the_next() -> None:
    """A collection resets what was counted before it began, and no more."""
    pace = started()
    pace.changed(100.1, deletion=True)
    pace.begun()
    pace.changed(100.25, deletion=True)
    pace.collected(100.3, 0.0)
    assert pace.due() == pytest.approx(100.545)
    pace.begun()
    pace.asked(100.55)
    pace.collected(100.6, 0.0)
    assert pace.due() == pytest.approx(100.6)
    pace.begun()
    pace.collected(100.7, 0.0)
    assert pace.due() is None


def test_a_failed_collection_comes_again() -> None:
    """A failed first collection is repeated after schedule_delay, later ones after an interval and a second."""
    pace = Pace(Config(schedule_delay=0.5), 10.0)
    pace.begun()
    pace.failed(11.0)
    assert pace.due() == 11.5
    pace = started()
    pace.changed(100.1, deletion=True)
    pace.begun()
    pace.failed(100.3)
    assert pace.due() == pytest.approx(101.545)
