"""The clock of the tests, which stops while the machine is stopped."""

from __future__ import annotations

import threading
import time

import pytest

from tests.steady import LONGEST, SteadyClock
from tests.support import within


def test_unobserved_time_does_not_count() -> None:
    """Of three seconds in which no thread read the clock, only the first tenth counts; it goes on from there."""
    now = 100.0
    clock = SteadyClock(lambda: now)
    told = []
    for now in (100.0, 100.02, 100.05, 103.05, 103.06, 104.0):  # noqa: B007
        told.append(clock.monotonic() - 100.0)
    assert told == pytest.approx([0.0, 0.02, 0.05, 0.05 + LONGEST, 0.06 + LONGEST, 0.06 + 2 * LONGEST])


def test_waiting_and_working_count() -> None:
    """This process's clock is such a clock. It counts the time of a thread that sleeps and of one that works, although
    no other part of the test reads it.
    """
    assert isinstance(getattr(time.monotonic, "__self__", None), SteadyClock)
    with pytest.raises(AssertionError, match=r"it may take 0\.2 s"), within(0.2):
        threading.Event().wait(0.6)
    with pytest.raises(AssertionError, match=r"it may take 0\.2 s"), within(0.2):
        end = time.perf_counter() + 0.6
        while time.perf_counter() < end:
            pass


def test_no_shorter_is_by_the_machines_clock() -> None:
    """A pause in which the machine was suspended counts as a pause."""
    with pytest.raises(AssertionError, match="at the least"), within(5, at_least=0.5):
        pass
    with within(5, at_least=0.05):
        threading.Event().wait(0.06)
