"""The node's processes, read from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

from services.traces.processes import processes

STAT = "{} (py) thon) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 4 0 {} 1 1"


def process(proc: Path, pid: int, *command: str, started: int = 1000) -> None:
    entry = proc / str(pid)
    entry.mkdir()
    (entry / "cmdline").write_bytes(b"\0".join(word.encode() for word in command) + b"\0")
    (entry / "stat").write_text(STAT.format(pid, started))
    (entry / "smaps_rollup").write_text("5581-7ffd ---p 00000000 00:00 0 [rollup]\nRss:   40000 kB\nPss:   32100 kB\n")


def test_only_the_processes_of_this_node_are_shown(tmp_path: Path) -> None:
    """Those of another node, workers, and programs that only look alike are not."""
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 1700000000\n")
    (tmp_path / "self").mkdir()
    process(tmp_path, 10, "python", "-m", "services.content", "--root", "/r", "--state", "/run/a")
    process(tmp_path, 11, "python", "-m", "gateway", "--config", "/c", "--root", "/r", "--state", "/run/a")
    process(tmp_path, 12, "python", "-m", "services.images", "--root", "/r", "--state", "/run/ab")
    process(tmp_path, 13, "python", "-m", "services.snapshots.diff.apply", "--state", "/run/a")
    process(tmp_path, 14, "sh", "-m")
    process(tmp_path, 15, "python", "-m", "services.tasks", "--state")
    process(tmp_path, 16, "python", "-m", "deploy", "pull", "x", "--state", "/run/a")
    (tmp_path / "17").mkdir()  # has ended
    found = {each.name: each for each in processes(Path("/run/a"), tmp_path)}
    assert set(found) == {"content", "gateway"}
    ticks = os.sysconf("SC_CLK_TCK")
    one = found["content"]
    assert (one.pid, one.memory, one.cpu, one.began) == (10, 32100 * 1024, 300 / ticks, 1_700_000_000 + 1000 / ticks)


def test_the_kernels_own_files_are_read() -> None:
    """Nobody runs for a state directory that does not exist, and this takes a moment only."""
    begun = time.perf_counter()
    assert list(processes(Path("/no/such/state"))) == []
    assert time.perf_counter() - begun < 10
