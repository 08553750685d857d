"""The processes of a node get three files from supervisord, and no others of its own."""

from __future__ import annotations

import subprocess
import sys

from deploy.place import TOP

CODE = """
import os
from types import SimpleNamespace as Made

from supervisor.process import Subprocess

from deploy.inside import children

children.install()
given, closed = [], []
options = Made(minfds=1000, dup2=lambda pipe, number: given.append((pipe, number)), close_fd=closed.append)
process = Made(config=Made(options=options, redirect_stderr=True), pipes={"child_stdin": 10, "child_stdout": 11})
for number in (3, 40, 999):
    os.dup2(0, number)
Subprocess._prepare_child_fds(process)
assert given == [(10, 0), (11, 1), (11, 2)], given
assert not closed, f"closed one by one: {closed}"
left = [number for number in range(1001) if os.path.exists(f"/proc/self/fd/{number}")]
assert left == [0, 1, 2], left
"""


def test_a_process_has_its_three_files_only() -> None:
    """All others are closed in one call. supervisord gives what it would give by itself."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
