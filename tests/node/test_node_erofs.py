"""Containers whose layers the kernel mounts: the process that mounted them may be killed, and the machine may go down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.samples import Registry
from tests.support import Node, eventually, mounts_below

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(600)]

NAMES = [f"c{number}" for number in range(10)]
EROFS = ("--snapshotter", "erofs")
PASSWD = "root:x:0:0:root:/root:/bin/sh\n"
COMMAND = ("sh", "-c", "cat /etc/passwd && exec sleep 1000")


@pytest.fixture(scope="module")
def box(node: Node, registry: Registry) -> str:
    """The reference of busybox, pulled as an erofs layer."""
    reference = f"{registry.host}/box:1"
    node.ctr("images", "pull", "--plain-http", *EROFS, reference)
    return reference


def layers(node: Node) -> dict[str, str]:
    """The mounted layers: where, and the kernel's number of the mount. Two at one place are an error."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, _, _, point, *_ = line.split()
        if point.startswith(f"{node.root}/snapshots/erofs/mounts/"):
            assert point not in found, f"{point} is mounted twice"
            found[point] = number
    return found


def lowers(node: Node, key: str) -> list[str]:
    """What the mounts of a snapshot stand on."""
    said = node.out("snapshots", *EROFS, "mounts", "/x", key)
    options = said.split(" -o ")[1].split()[0].split(",")
    (found,) = [option for option in options if option.startswith("lowerdir=")]
    return found.removeprefix("lowerdir=").split(":")


def reads(node: Node, name: str, serial: str) -> str:
    """What a program in a container reads of its layer."""
    return node.out("tasks", "exec", "--exec-id", f"e{serial}", name, "cat", "/etc/passwd")


def test_containers_run_on_when_the_process_that_mounted_their_layers_is_killed(node: Node, box: str) -> None:
    """Their mounts are found again, and no second ones are made. What a container wrote is committed then, and its layer
    is let go when nothing needs it.
    """
    for name in NAMES:
        node.ctr("run", "-d", *EROFS, box, name, *COMMAND)
    before, mounted = node.tasks(), layers(node)
    assert mounted
    node.kill("snapshots")
    assert reads(node, NAMES[0], "away") == PASSWD
    node.wait_healthy()
    assert node.tasks() == before
    assert {each for name in NAMES for each in lowers(node, name)} == set(mounted)
    assert layers(node) == mounted
    node.ctr("run", "--rm", *EROFS, box, "new", "true")
    assert layers(node) == mounted
    assert reads(node, NAMES[1], "back") == PASSWD

    node.ctr("tasks", "exec", "--exec-id", "write", NAMES[0], "sh", "-c", "echo written >/etc/written; rm /etc/passwd")
    node.ctr("tasks", "kill", "-s", "SIGKILL", NAMES[0])
    eventually(lambda: node.tasks()[NAMES[0]][1] == "STOPPED", f"{NAMES[0]} is not STOPPED")
    node.ctr("tasks", "rm", NAMES[0])
    node.kill("snapshots")
    node.wait_healthy()
    node.ctr("snapshots", *EROFS, "commit", "committed", NAMES[0])
    node.ctr("snapshots", *EROFS, "view", "seen", "committed")
    upper, lower = lowers(node, "seen")
    assert Path(upper, "etc/written").read_text() == "written\n"
    assert Path(lower, "etc/passwd").read_text() == PASSWD
    assert layers(node).items() > mounted.items()
    for key in ("seen", "committed"):
        node.ctr("snapshots", *EROFS, "rm", key)
    eventually(lambda: layers(node) == mounted, "the layer of the commit is still mounted")
    node.ctr("containers", "rm", NAMES[0])
    assert node.tasks() == {name: before[name] for name in NAMES[1:]}


def test_every_container_starts_after_a_reboot(node: Node, box: str, registry: Registry) -> None:
    """Nothing is mounted then, nothing runs, and STATE is empty. When all are removed, nothing of them is left."""
    there = node.out("containers", "ls", "-q").split()
    for name in {*NAMES} - {*there}:
        node.ctr("containers", "create", *EROFS, box, name, "sleep", "1000")  # it would take -c for its own
    containers = [pid for pid, _ in node.tasks().values()]
    for pid in [node.supervisord(), *node.remains(), *containers]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not node.remains(), "processes of the node are left")
    for point in mounts_below(node.state) + mounts_below(node.root):
        eventually(
            lambda point=point: not subprocess.run(["umount", point], check=False, capture_output=True).returncode,  # type: ignore[misc]
            f"{point} is in use",
        )
    shutil.rmtree(node.state)

    node.up()
    assert not node.tasks()
    assert not layers(node)
    for name in NAMES:
        node.ctr("tasks", "start", "-d", name)
    assert reads(node, NAMES[0], "reboot") == PASSWD
    assert {state for _, state in node.tasks().values()} == {"RUNNING"}
    assert len(node.tasks()) == len(NAMES)
    assert {each for name in NAMES for each in lowers(node, name)} == set(layers(node))

    for name in NAMES:
        node.ctr("tasks", "rm", "-f", name)
        node.ctr("containers", "rm", name)
    node.ctr("images", "rm", "--sync", box)
    eventually(lambda: not layers(node), "layers are still mounted")
    things = node.root / "snapshots/erofs/snapshots"
    eventually(lambda: not list(things.iterdir()), "layers are still there")
