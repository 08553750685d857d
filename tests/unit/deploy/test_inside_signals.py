"""Signals to supervisord as a node runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.place import TOP
from tests.support import eventually

CONFIG = """
[supervisord]
nodaemon = true
logfile = {directory}/supervisord.log
pidfile = {directory}/supervisord.pid
user = root
"""


@pytest.mark.root
def test_sigusr1_has_it_write_its_stack_and_go_on(tmp_path: Path) -> None:
    """The processes that it runs do the same. Plain supervisord would end, and the node with it."""
    conf, said = tmp_path / "supervisord.conf", tmp_path / "out"
    conf.write_text(CONFIG.format(directory=tmp_path))
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.inside", "-c", str(conf), "--silent"],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        eventually(lambda: "started with pid" in (tmp_path / "supervisord.log").read_text())

        def stacks() -> int:
            """Ask for one more; the first ones may come before supervisord waits for events."""
            process.send_signal(signal.SIGUSR1)
            return said.read_text().count("in runforever")

        eventually(lambda: stacks() >= 2)
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(10) == 0
