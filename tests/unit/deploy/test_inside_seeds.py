"""Copies of supervisord that are forked before it starts its processes, and become these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from deploy.place import TOP

SUPERVISOR = """
import ctypes, json, os, signal
from types import SimpleNamespace
from deploy.inside import seeds

class Process:
    def __init__(self, name):
        self.config, self.pipes = SimpleNamespace(name=name), {}

    def get_execv_args(self):
        return "setpriv", ["setpriv", self.config.name]

    def _spawn_as_child(self, *command):
        if copies.sure:
            os.write(self.pipes["child_stdout"], json.dumps([os.getpid(), command]).encode())
        os._exit(7)

copies = SimpleNamespace(load=lambda: LOADED, sure=False)
planted = seeds.Seeds(copies)
processes = [Process(name) for name in ("one", "two", "three")]
planted.plant(processes)

def started(process):
    stdin, stdout = os.pipe(), os.pipe()
    process.pipes = {"child_stdin": stdin[0], "child_stdout": stdout[1], "child_stderr": None}
    planted.starting = process
    pid = planted.fork()
    if not pid:
        os._exit(9)
    os.close(stdout[1])
    said = b""
    while more := os.read(stdout[0], 1000):
        said += more
    return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), json.loads(said or b'null')
"""


def told(code: str, loaded: bool = True) -> Any:
    """What the code prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR.replace("LOADED", str(loaded)) + code],
        env={**os.environ, "PYTHONPATH": str(TOP)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_copy_that_waits_becomes_the_process_that_is_started() -> None:
    """It gets the files of its process, and its command; what is started again is forked anew."""
    first, again = told("print(json.dumps([started(processes[1]), started(processes[1])]), flush=True); os._exit(0)")
    pid, status, said = first
    assert said == [pid, ["setpriv", ["setpriv", "two"]]]
    assert status == 7
    assert again[1:] == [9, None]


def test_copies_that_are_not_started_end_with_supervisord() -> None:
    """None holds the socket of another, so each learns that nobody will start it."""
    code = """
waiting = [pid for pid, _ in planted._waiting.values()]
planted.let_go()
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in waiting]))
"""
    assert told(code) == [127, 127, 127]


def test_where_a_copy_is_gone_another_is_forked() -> None:
    """Somebody may kill it before its process is started."""
    code = """
pid, _ = planted._waiting["one"]
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print(json.dumps(started(processes[0])), flush=True)
os._exit(0)
"""
    assert told(code)[1:] == [9, None]


def test_nothing_is_left_of_the_nursery() -> None:
    """The copies are supervisord's own children, and it adopts nobody else, as a shim."""
    code = """
pid = os.getpid()
with open(f"/proc/self/task/{pid}/children") as file:
    children = {int(each) for each in file.read().split()}
adopts = ctypes.c_int(1)
assert not ctypes.CDLL(None).prctl(37, ctypes.byref(adopts), 0, 0, 0)
print(json.dumps([children == {pid for pid, _ in planted._waiting.values()}, len(children), adopts.value]))
"""
    assert told(code) == [True, 3, 0]


def test_no_copies_are_made_where_the_modules_cannot_be_loaded() -> None:
    """Or where they have changed: they would all have to execute the new ones."""
    assert told("print(len(planted._waiting))", loaded=False) == 0


def test_a_process_that_is_started_again_finds_the_modules_loaded() -> None:
    """supervisord has none of them before. It takes them up for good, so that the next start is quick, too."""
    code = """
loads = []
copies.load = lambda: loads.append(1)
started(processes[0])
first = len(loads)
started(processes[0])
print(json.dumps([first, len(loads)]), flush=True)
os._exit(0)
"""
    assert told(code) == [0, 1]
