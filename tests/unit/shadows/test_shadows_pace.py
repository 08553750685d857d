"""Copies are made rarely where the machine is busy."""

from __future__ import annotations

import pytest

from services.shadows import pace


@pytest.mark.parametrize(
    ("ran", "waited", "rest"), [(0, 0, 0.0), (90, 10, 0.0), (10, 90, pace.REST), (50, 51, pace.REST)]
)
def test_a_thread_that_waits_for_a_processor_rests(ran: int, waited: int, rest: float) -> None:
    assert pace.rest_after(ran, waited) == rest


def test_the_first_look_has_nothing_to_compare_with() -> None:
    """Nor has one that follows at once: what was found then still holds."""
    made = pace.Pace()
    assert [made.rest(), made.rest()] == [0.0, 0.0]
    made.close()
    made.close()
