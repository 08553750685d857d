"""Reading /proc about processes, and the share of a daemon."""

from __future__ import annotations

import os
import subprocess
import sys

from bench import usage
from bench.peers import Peer
from bench.usage import Process, below


def test_a_stat_line_is_read_whatever_the_program_is_called():
    tick = 1 / os.sysconf("SC_CLK_TCK")
    line = "7 (a) b (c)) S 5 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 100 1000 10"
    assert Process.parse(line) == Process(5, 30 * tick, 70 * tick)


def test_descendants_are_found_through_any_number_of_parents():
    there = {pid: Process(parent, 0, 0) for pid, parent in {1: 0, 2: 1, 3: 2, 4: 3, 9: 1}.items()}
    assert below([2], there) == {2, 3, 4}
    assert below([2, 77], there) == {2, 3, 4}
    assert below([77], there) == set()


def started(code, *marks):
    """A Python that runs ``code``, which prints a line when it is ready and ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *marks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


BURN = "import time\nwhile time.process_time() < 0.1: pass\n"


def test_time_of_children_that_have_ended_is_counted_with_their_parent(tmp_path):
    code = f"""
import subprocess, sys
print("ready", flush=True)
sys.stdin.readline()
subprocess.run([sys.executable, "-c", {BURN!r}])
print("done", flush=True)
sys.stdin.readline()
"""
    with started(code, str(tmp_path)) as process:
        spent = usage.Spent(Peer("it", tmp_path, (str(tmp_path),)))
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        found = spent.since()
        process.stdin.close()
    who = os.path.basename(sys.executable)
    assert found[f"{who}'s children"] >= 0.09
    assert found.get(who, 0.0) < found[f"{who}'s children"]


def test_what_a_process_took_before_is_not_counted_when_it_ends(tmp_path):
    """Its parent's time grows by all that it ever took. A worker that waits for work for a while is such a process."""
    worker = f"{BURN.replace('0.1', '0.3')}print('ready', flush=True)\ninput()"
    code = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {worker!r}, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
print("ready", flush=True)
sys.stdin.readline()
worker.communicate(b"end\\n")
print("done", flush=True)
sys.stdin.readline()
"""
    with started(code, str(tmp_path)) as process:
        spent = usage.Spent(Peer("it", tmp_path, (str(tmp_path),)))
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        found = spent.since()
        process.stdin.close()
    assert sum(found.values()) < 0.2


def test_the_peak_of_memory_is_seen_though_it_is_gone_in_the_end(tmp_path):
    code = """
import sys
held = bytearray(60_000_000)
held[::4096] = b"x" * len(held[::4096])
print("ready", flush=True)
sys.stdin.readline()
held = None
print("freed", flush=True)
sys.stdin.readline()
"""
    with started(code) as process:
        with usage.Peak({"it": lambda there: below([process.pid], there), "nobody": lambda _: ()}) as peak:
            while peak.mb["it"] < 60:  # bounded by the test's own timeout
                assert process.poll() is None
        process.stdin.write("free\n")
        process.stdin.flush()
        assert process.stdout.readline() == "freed\n"
        assert usage.pss([process.pid]) < 40
        process.stdin.close()
    assert 60 <= peak.mb["it"] < 120
    assert peak.mb["nobody"] == 0
