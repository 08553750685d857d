"""A process that hangs is restarted, and no other process is ever killed: a whole node, with the watchdog's times
divided by fifteen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.place import Place
from deploy.supervision import Supervisor, Watched
from tests.support import Node, eventually, freeze, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.once]

SILENCE, LONGER = 2.0, 3.5
CONFIG = "[watchdog]\nsilence = '2s'\nstart = '1m'\n"


@pytest.fixture(scope="module")
def faults() -> Iterator[Path]:
    """The directory of fault points."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def node(faults: Path) -> Iterator[Node]:
    """A node whose processes can be made to hang."""
    with short_directory() as directory:
        running = Node(directory, config=CONFIG, env={"SPLITD_FAULTS": str(faults)})
        try:
            running.up()
            yield running
        finally:
            running.clear()


def watched(node: Node) -> dict[str, Watched]:
    """Return the watchdog's data by service."""
    return {
        name: status.watched
        for name, status in Supervisor(Place(node.root, node.state, node.config)).processes().items()
    }


def killed(node: Node) -> dict[str, int]:
    return {name: each.killed for name, each in watched(node).items()}


def stay(node: Node, seconds: float, pids: dict[str, int]) -> None:
    """Check that all processes stay the same for that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert node.pids() == pids, node.logs()
        time.sleep(0.1)


def test_loops_that_hang_are_dumped_killed_and_started_anew(node: Node, faults: Path) -> None:
    """One hangs in Python, one in C without releasing the GIL, one of them is the gateway: both at once, each with its
    stacks in its log, and no other process. ``splitd status`` shows it.
    """
    before = node.pids()
    (faults / "content.loop").write_text("hang")
    (faults / "gateway.loop").write_text("hang-in-c")
    begun = time.monotonic()
    eventually(lambda: killed(node)["content"] == killed(node)["gateway"] == 1, "they are not killed", 30)
    assert time.monotonic() - begun >= SILENCE
    node.wait_healthy(30)
    after = node.pids()
    assert {name for name in before if before[name] != after[name]} == {"content", "gateway"}
    for service in ("content", "gateway"):
        log = (node.root / "log" / f"{service}.log").read_text()
        assert f"watchdog: pid {before[service]} has not answered" in log
        assert "most recent call first" in log
        assert " in _beat" in log
    shown = node.splitd("status").stdout
    assert "content hung and was killed once, last at " in shown
    assert "gateway hung and was killed once, last at " in shown
    told = {service["name"]: service["watchdog"] for service in node.status()["services"]}
    assert told["content"]["why"].startswith("no answer for ")
    assert told["metadata"] == {"silent": 0.0, "killed": 0, "why": "", "at": 0.0}


def test_a_stopped_slowly_starting_or_kernel_waiting_process_is_not_killed(node: Node, faults: Path) -> None:
    """Two services are under SIGSTOP, one starts slowly, one is in state D, all for longer than the time of silence.
    Only the last is reported. Afterwards all answer.
    """
    before, kills = node.pids(), killed(node)
    (faults / "images.start").write_text("sleep 5")
    node.kill("images")
    eventually(lambda: node.pid("images") not in (0, before["images"]), "images is not started again")
    pids = node.pids()
    (faults / "metadata.loop").write_text("wait-in-kernel")
    for service in ("snapshots", "gateway"):
        freeze(pids[service])
    stay(node, LONGER, pids)
    said = f"pid {pids['metadata']} has not answered for "
    eventually(
        lambda: said in (node.root / "log" / "supervisord.log").read_text(), "nobody reports the one in the kernel", 30
    )
    assert watched(node)["metadata"].silent >= SILENCE
    [line] = [line for line in (node.root / "log" / "metadata.log").read_text().splitlines() if said in line]
    assert "waits in the kernel" in line
    assert "not killed" in line
    [trouble] = [service["trouble"] for service in node.status()["services"] if service["name"] == "metadata"]
    assert "its loop has been silent for " in trouble
    for service in ("snapshots", "gateway"):
        os.kill(pids[service], signal.SIGCONT)
    for child in Path(f"/proc/{pids['metadata']}/task/{pids['metadata']}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    node.wait_healthy(30)
    assert node.pids() == pids
    assert killed(node) == kills


def test_a_late_watchdog_or_a_busy_machine_ends_no_process(node: Node) -> None:
    """supervisord is stopped for longer than the time of silence, then twenty busy loops run for as long."""
    pids, kills = node.pids(), killed(node)
    supervisord = node.supervisord()
    freeze(supervisord)
    time.sleep(LONGER)  # nothing to wait for: that nothing happens is the point
    os.kill(supervisord, signal.SIGCONT)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(20)]
    try:
        stay(node, LONGER, pids)
    finally:
        for each in busy:
            each.kill()
            each.wait()
    assert killed(node) == kills
