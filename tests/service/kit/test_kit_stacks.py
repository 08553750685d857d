"""On SIGUSR1 a process writes its stacks to its log, and goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import rpc
from tests.support import TOP, ServiceProcess, eventually, eventually_async, health

pytestmark = pytest.mark.once

CONTENT = "services.content"


@pytest.fixture(params=rpc.TRANSPORTS)
def content(request: pytest.FixtureRequest, place: Path) -> Iterator[ServiceProcess]:
    """A content service on each transport that can be made to hang."""
    (place / "faults").mkdir()
    config = place / "config.toml"
    config.write_text("[watchdog]\nsilence = '1s'\n")
    with ServiceProcess(
        CONTENT,
        place / "r",
        place / "s",
        config=config,
        env={"SPLITD_GRPC_TRANSPORT": request.param, "SPLITD_FAULTS": str(place / "faults"), "PYTHONUNBUFFERED": "1"},
    ) as running:
        yield running
        running.kill()


def asked(process: ServiceProcess, *words: str) -> None:
    """Send one SIGUSR1, and wait until the log has all of ``words``."""
    before = len(process.text())
    os.kill(process.pid, signal.SIGUSR1)
    eventually(lambda: all(word in process.text()[before:] for word in words), f"the log does not tell {words}")


async def test_a_process_tells_its_threads_and_tasks_and_goes_on(content: ServiceProcess) -> None:
    """Each time it writes a stack of the main thread, and the tasks with the points where they wait; calls are answered
    before and after.
    """
    await eventually_async(lambda: health(content.state / "content.sock"), "content does not answer")
    for count in (1, 2, 3):
        asked(content, "Current thread", "process.py", " in until_signal")
        assert content.text().count(" in until_signal") == count
        assert await health(content.state / "content.sock") == 1


@pytest.mark.parametrize("how", ["hang", "hang-in-c"])
async def test_a_loop_that_hangs_tells_where(content: ServiceProcess, how: str, place: Path) -> None:
    """It may hang in Python, or in C with the GIL: the stack names the function, and the process lives on."""
    (place / "faults" / "content.loop").write_text(how)
    eventually(lambda: not (place / "faults" / "content.loop").exists(), "content does not hang")
    asked(content, " in fault", " in _beat")
    os.kill(content.pid, 0)


async def test_a_process_that_dies_in_c_code_tells_where(content: ServiceProcess) -> None:
    """It dies by the signal of a fault in a library, and its log has the stacks."""
    os.kill(content.pid, signal.SIGSEGV)
    assert content.wait() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in content.text()
    assert "process.py" in content.text()


def test_a_program_that_unpacks_layers_tells_where_it_is_and_goes_on(place: Path) -> None:
    """It writes into standard error, which is the log of the service that started it; then it ends properly when that
    service is gone.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = place / "log"
    with ours, theirs, log.open("wb") as errors:
        with subprocess.Popen(
            [
                sys.executable,
                "-S",
                "-P",
                "-c",
                "from services.snapshots.diff.apply import main; main()",
                str(os.getpid()),
                str(place),
                "600",
            ],
            stdin=theirs.fileno(),
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), *(p for p in sys.path if p)])},
        ) as program:
            try:
                eventually(lambda: _takes(program.pid, signal.SIGUSR1), "it does not begin")
                program.send_signal(signal.SIGUSR1)
                eventually(lambda: "in main" in log.read_text(), "no stack in the log")
                theirs.close()
                ours.close()
                assert program.wait(20) == 0
            finally:
                program.kill()


def _takes(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)
