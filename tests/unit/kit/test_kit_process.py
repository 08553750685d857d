"""The work of each process beside serving."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

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


def test_a_collection_looks_at_few_objects() -> None:
    """Meanwhile all calls wait, about a microsecond for each object."""
    before, most = gc.get_threshold(), {0: 0, 1: 0}

    def look(phase: str, about: dict[str, int]) -> None:
        generation = about["generation"]
        if phase == "start" and generation in most:
            looked_at = sum(len(gc.get_objects(generation=each)) for each in range(generation + 1))
            most[generation] = max(most[generation], looked_at)

    try:
        process._less_garbage_collection()
        gc.callbacks.append(look)
        kept = [[n] for n in range(50_000)]
    finally:
        gc.callbacks.remove(look)
        gc.set_threshold(*before)
        gc.unfreeze()
    assert len(kept) == 50_000
    assert 0 < most[0] < 2_000
    assert 0 < most[1] < 15_000


@pytest.mark.parametrize(("before", "counted"), [(None, 1), (b"7", 8), (b"", 1), (b"\xff\xfe", 1), (b"9" * 5000, 1)])
def test_starts_are_counted_whatever_the_file_has(tmp_path: Path, before: bytes | None, counted: int) -> None:
    """A file that has no number, such as after a power cut, keeps no process from starting."""
    if before is not None:
        (tmp_path / "content").write_bytes(before)
    process._note_start(tmp_path, "content")
    assert process.starts_in(tmp_path / "content") == counted
