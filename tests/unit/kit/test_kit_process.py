"""The work of each process beside serving."""

from __future__ import annotations

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


@pytest.mark.parametrize(("before", "counted"), [(None, 1), (b"7", 8), (b"", 1), (b"\xff\xfe", 1), (b"9" * 5000, 1)])
def test_starts_are_counted_whatever_the_file_has(tmp_path: Path, before: bytes | None, counted: int) -> None:
    """A file that has no number, such as after a power cut, keeps no process from starting."""
    if before is not None:
        (tmp_path / "content").write_bytes(before)
    process._note_start(tmp_path, "content")
    assert process.starts_in(tmp_path / "content") == counted
