"""What each process does beside serving."""

from __future__ import annotations

import gc
import sys
import types

from services.kit import process
from services.kit.slices import SLICE


def test_what_was_loaded_is_looked_through_once() -> None:
    """A look for cycles among all that a process has loaded takes 40 ms of its loop; it stays loaded, so the next looks pass over it."""
    loaded = process._collect(0)
    try:
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        assert len(gc.get_objects()) < 1000
        assert process._collect(loaded) == loaded
        assert gc.get_freeze_count() <= frozen, "what is there for a moment is not kept"
        sys.modules["loaded.later"] = types.ModuleType("loaded.later")
        assert process._collect(loaded) == loaded + 1
    finally:
        gc.unfreeze()
        sys.modules.pop("loaded.later", None)


def test_a_loop_does_not_wait_long_for_a_thread() -> None:
    """Each time that it wakes while a thread computes, it waits for the thread's turn to end."""
    before = sys.getswitchinterval()
    try:
        process._short_waits()
        assert sys.getswitchinterval() <= SLICE
    finally:
        sys.setswitchinterval(before)
