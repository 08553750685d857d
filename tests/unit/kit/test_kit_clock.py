"""kit.clock: all processes of a node have one clock, which no step of the realtime clock changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from services.kit import clock, tracing
from tests.support import TOP


def times(**variables: str) -> tuple[int, int]:
    """``now`` and ``ANCHOR`` of another process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from services.kit import clock; print(clock.now(), clock.ANCHOR)"],
        env={**os.environ, "PYTHONPATH": str(TOP), **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    now, anchor = map(int, done.stdout.split())
    return now, anchor


def test_a_process_that_is_started_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its starter's anchor, so that times of both can be compared, whatever was done to the clock meanwhile."""
    monkeypatch.setattr(clock, "ANCHOR", clock.ANCHOR - 3_600_000_000_000)
    before = tracing.now()
    now, _ = times(**tracing.environment())
    assert before < now < tracing.now()


@pytest.mark.parametrize("value", ["", "x", "9" * 400, "-", "1e9"])
def test_a_process_alone_asks_the_realtime_clock(value: str) -> None:
    """And so does one whose variable is nonsense."""
    before = time.time_ns()
    now, anchor = times(**{clock.VARIABLE: value})
    assert before - 10**9 < now < time.time_ns() + 10**9
    assert abs(anchor - clock.anchor()) < 10**9
