"""The work of each process beside serving."""

from __future__ import annotations

import sys

from services.kit import process
from services.kit.slices import SLICE


def test_a_loop_does_not_wait_long_for_a_thread() -> None:
    """Each time that it wakes while a thread computes, it waits for the end of the thread's switch interval."""
    before = sys.getswitchinterval()
    try:
        process._short_waits()
        assert sys.getswitchinterval() <= SLICE
    finally:
        sys.setswitchinterval(before)
