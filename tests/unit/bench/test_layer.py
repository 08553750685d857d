"""The layer whose entries are timed, and how."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from bench.layer import layer

TOP = Path(__file__).resolve().parents[3]


def test_the_layer_is_the_same_each_time() -> None:
    """So figures of different clones and days are of the same bytes; each directory comes before what is in it."""
    for pax in (False, True):
        data = layer(300, pax=pax)
        assert data == layer(300, pax=pax)
        with tarfile.open(fileobj=io.BytesIO(data)) as read:
            members = read.getmembers()
        assert len(members) == 300
        seen = {""}
        for member in members:
            assert member.name.rpartition("/")[0] in seen
            assert bool(member.pax_headers) is pax
            if member.isdir():
                seen.add(member.name)


def test_two_clones_are_measured_in_turn(tmp_path: Path) -> None:
    """Each row has a figure for either, and their ratio."""
    command = [sys.executable, "-m", "bench.layer", "--entries", "200", "--rounds", "1", "--only", "ustar index"]
    done = subprocess.run(
        [*command, "--directory", tmp_path, "--against", TOP], capture_output=True, text=True, check=True, cwd=TOP
    )
    (line,) = done.stdout.splitlines()
    new, old, ratio = map(float, line.removeprefix("ustar index").split())
    assert new > 0
    assert old > 0
    assert ratio > 0
