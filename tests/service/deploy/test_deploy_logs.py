"""supervisord as a node runs it, with a disk for its logs that is full or gone: it goes on, and restarts programs that
end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import supervisor
from tests.support import TOP, eventually

pytestmark = [pytest.mark.root, pytest.mark.once]

CONF = """\
[supervisord]
logfile={logs}/supervisord.log
logfile_maxbytes=100KB
logfile_backups=1
pidfile={state}/supervisord.pid
childlogdir={logs}
nodaemon=true
user=root

[unix_http_server]
file={state}/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[program:talker]
command={python} {state}/talker.py
startsecs=0
startretries=1000000
redirect_stderr=true
stdout_logfile={logs}/talker.log
stdout_logfile_maxbytes=20KB
stdout_logfile_backups=1
"""


class Running:
    """A separate supervisord with one program, which writes all the time."""

    def __init__(self, directory: Path) -> None:
        self.state, self.logs = directory, directory / "log"
        self.log = self.logs / "talker.log"
        (directory / "talker.py").write_text(
            "import time\nwhile True:\n    print('x' * 99, flush=True)\n    time.sleep(0.02)\n"
        )
        conf = directory / "supervisord.conf"
        conf.write_text(CONF.format(logs=self.logs, state=self.state, python=sys.executable))
        self.said = directory / "said"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.inside", "-c", str(conf), "--silent"],
                cwd=TOP,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def talker(self) -> int:
        """The pid of the program; 0 if it does not run."""
        assert self.process.poll() is None, self.said.read_text()
        return int(supervisor.call(self.state / "supervisor.sock", "getProcessInfo", "talker", timeout=5.0)["pid"])

    def kill_talker(self) -> None:
        """Kill it, and wait until it is started again."""
        pid = self.talker()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.talker() not in (0, pid), "it is not started again")

    def text(self) -> str:
        """Return its log, with the rotated files."""
        return "".join(path.read_text() for path in self.logs.glob("talker.log*"))


@pytest.fixture
def running(place: Path) -> Iterator[Running]:
    """A supervisord whose logs are on a file system of 64 KiB."""
    (place / "log").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "logs", str(place / "log")], check=True)
    started = Running(place)
    try:
        eventually(lambda: (place / "supervisor.sock").exists() and started.talker(), "supervisord does not start")
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(20)


def test_a_full_disk_costs_lines_only(running: Running) -> None:
    """The program is restarted meanwhile; when there is room, its log goes on, and says how much it lacks."""
    filler = running.logs / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    eventually(lambda: "No space left on device" in running.said.read_text(), "nobody says that the disk is full")
    running.kill_talker()
    filler.unlink()
    eventually(
        lambda: "bytes of this log were lost: No space left on device" in running.text(), "the log does not go on"
    )
    assert running.said.read_text().count("\n") <= 4


def test_a_disk_that_is_gone_costs_lines_only(running: Running) -> None:
    """The file system is unmounted below supervisord, and the directory is gone: programs that end are restarted, and
    logs are made again when there is a directory.
    """
    subprocess.run(["umount", "-l", str(running.logs)], check=True)
    running.logs.rmdir()
    running.kill_talker()  # its new log cannot be opened
    running.kill_talker()
    running.logs.mkdir()
    eventually(lambda: "x" * 99 in running.text(), "the log is not made again")
