"""What a thread's time went for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from services.kit.thread_times import measured


def test_the_parts_add_up() -> None:
    """A thread computes, and then is blocked."""
    begun = time.monotonic_ns()
    with measured() as times:
        until = time.thread_time_ns() + 20_000_000
        while time.thread_time_ns() < until:
            continue
        time.sleep(0.03)
    assert abs(times.whole - (time.monotonic_ns() - begun)) < 5_000_000
    assert 20_000_000 <= times.cpu < 30_000_000
    assert times.disk >= 20_000_000
    assert times.attributes()["splitd.time.cpu_ms"] == times.cpu / 1e6


def test_a_thread_without_a_processor_says_so() -> None:
    """It shares one with a program that never rests. The file with its counters is closed when the thread ends."""
    one = {min(os.sched_getaffinity(0))}
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: continue"], stdout=subprocess.PIPE)
    found = []

    def work() -> None:
        os.sched_setaffinity(threading.get_native_id(), one)
        with measured() as times:
            until = time.thread_time_ns() + 60_000_000
            while time.thread_time_ns() < until:
                continue
        found.append(times)

    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        os.sched_setaffinity(busy.pid, one)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        busy.kill()
        busy.communicate()
    (times,) = found
    assert times.runqueue > 0.3 * times.cpu
    assert times.disk < 0.2 * times.whole
    files = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.exists()]
    assert not [each for each in files if f"/task/{thread.native_id}/" in each]


def test_importing_it_opens_nothing() -> None:
    """A process may be forked from one that imported it, and would read that one's counters."""
    program = "import os; import services.kit.thread_times; print(os.listdir('/proc/self/fd'))"
    done = subprocess.run(
        [sys.executable, "-c", f"import os; print(os.listdir('/proc/self/fd')); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = done.stdout.splitlines()
    assert before == after
