"""What each process does beside serving."""

from __future__ import annotations

import gc
import sys
import types

from services.kit import process


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
