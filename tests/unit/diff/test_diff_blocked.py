"""How long a process is blocked, by samples."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.snapshots.diff.blocked import EVERY, Sampler

PROGRAMS = {
    "blocked": "import fcntl, sys; file = open(sys.argv[1]); print(flush=True); fcntl.flock(file, fcntl.LOCK_EX)",
    "polls": "import select, sys; print(flush=True); select.select([sys.stdin], [], [])",
    "locked": "import threading; lock = threading.Lock(); lock.acquire(); print(flush=True); lock.acquire()",
    "runs": "print(flush=True)\nwhile True: continue",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_only_a_thread_in_the_file_system_is_blocked(what: str, tmp_path: Path) -> None:
    """A program waits for the lock of a file, for input, for a lock of its own, or runs."""
    with (tmp_path / "file").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAMS[what], file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with program:
            try:
                assert program.stdout is not None
                program.stdout.readline()
                wchan = Path(f"/proc/{program.pid}/wchan")
                until = time.monotonic() + 10
                while what != "runs" and wchan.read_text() == "0" and time.monotonic() < until:
                    continue  # it has printed, and is about to wait
                sampler = Sampler(program.pid)
                begun = time.monotonic()
                while time.monotonic() < begun + 5 * EVERY:
                    time.sleep(sampler.pause())
                    sampler.look()
                seen = time.monotonic() - begun
                blocked, cpu, runqueue = sampler.seen()
            finally:
                program.kill()
        sampler.close()
    assert sampler.blocked == pytest.approx(seen if what == "blocked" else 0, abs=0.01)
    assert sampler.seen() == (blocked, cpu, runqueue)  # as it was last seen
    assert blocked == round(sampler.blocked * 1e6)
    assert (cpu + runqueue > seen * 0.5e6) == (what == "runs")


def test_samples_become_rare(tmp_path: Path) -> None:
    """A worker that waits for a slow network for minutes costs little, and a process that is gone is not blocked."""
    program = subprocess.Popen([sys.executable, "-c", ""])
    sampler = Sampler(program.pid)
    program.wait()
    assert sampler.pause() <= EVERY
    sampler._begun -= 10
    sampler.look()
    assert 0.02 < sampler.pause() <= 0.06
    assert not sampler.blocked
    sampler.close()
    assert not Sampler(program.pid).blocked
