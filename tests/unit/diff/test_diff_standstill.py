"""Processes that stand still, and processes that only wait."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

from services.snapshots.diff import standstill
from services.snapshots.diff.standstill import Watch
from tests.support import TOP, eventually


@contextlib.contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that has begun, with a standard input to which nothing is written."""
    code = f"import os; from services.snapshots.diff import stream; os.write(1, b'!'); {code}"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TOP
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.read(1) == b"!"
            yield program
        finally:
            program.kill()


def test_a_process_in_one_long_system_call_stands_still() -> None:
    """The seconds add up from one look to the next; time in which it is stopped does not count."""
    with running("os.read(0, 1)") as program:
        still = Watch(60)
        eventually(lambda: still.seconds(program.pid) > 0.3, "it is not noticed")
        program.send_signal(signal.SIGSTOP)
        eventually(lambda: still.seconds(program.pid) == 0.0, "a stopped process counts")
        program.send_signal(signal.SIGCONT)
        eventually(lambda: still.seconds(program.pid) > 0.3, "it is not noticed again")


def test_a_worker_that_waits_for_its_blob_shows_life() -> None:
    """It does so repeatedly, since the transfer that fetches the blob has a time limit of its own."""
    with running("stream._next(0, 1)") as program:
        for _ in range(3):
            before = standstill._signs(program.pid)
            assert before is not None
            eventually(lambda before=before: standstill._signs(program.pid) != before, ("it shows no life"))  # type: ignore[misc]


def test_a_process_that_is_gone_does_not_stand_still() -> None:
    with running("0") as program:
        still = Watch(60)
        program.wait(20)
        assert still.seconds(program.pid) == still.seconds(program.pid) == 0.0


def test_time_without_looks_counts_as_at_most_two_intervals() -> None:
    """After a suspend of the machine no process is held to be dead."""
    with running("os.read(0, 1)") as program:
        still = Watch(0.004)
        eventually(lambda: still.seconds(program.pid) > 0, "it is not noticed")
        before = still.seconds(program.pid)
        still._looked -= 3600
        assert still.seconds(program.pid) <= before + 0.002 + 1e-9
