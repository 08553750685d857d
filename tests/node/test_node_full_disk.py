"""A node whose disk is full: it starts, deletions make room, and calls that need room get the reason. And the log lines
of failed calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.samples import Registry
from tests.support import Node, eventually

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(240)]


@pytest.fixture
def node(place: Path) -> Iterator[Node]:
    node = Node(place)
    try:
        yield node
    finally:
        node.clear()


@contextlib.contextmanager
def small(directory: Path, size: str) -> Iterator[None]:
    """Mount a separate filesystem of so many bytes there."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Take every free block of its filesystem."""
    path = directory / "fills"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="No space left") as caught, (directory / "more").open("wb", buffering=0) as more:
        more.write(b"x")
    assert caught.value.errno == errno.ENOSPC
    return path


def test_services_start_on_a_full_root_and_deletions_make_room(node: Node, place: Path) -> None:
    """After a stop, and after kill -9: nothing could be deleted to make room if the deleting services were down."""
    with small(node.root, "32m"):
        node.up()
        node.ctr("content", "ingest", "large", stdin=bytes(4 << 20), text=False)
        digest = node.out("content", "ls", "-q").strip()
        node.ctr("content", "label", digest, "containerd.io/gc.root=kept")
        node.down()
        fill(node.root)
        node.up()
        before = node.pids()
        for service in before:
            node.kill(service)
        eventually(
            lambda: all(pid and pid != before[name] for name, pid in node.pids().items()), "not all were started again"
        )
        node.wait_healthy(30)
        refused = node.ctr("content", "ingest", "more", stdin=bytes(1 << 20), text=False, ok=False)
        assert b"no space left on device" in refused.stderr
        node.ctr("content", "rm", digest)
        eventually(lambda: not list((node.root / "content/blobs").glob("*/*")), "the blob was not collected", 30)
        node.ctr("content", "ingest", "again", stdin=bytes(1 << 20), text=False)
        node.down()
        assert not list(node.root.rglob("*.room"))


def test_a_full_state_is_answered_in_the_kernels_words(node: Node, registry: Registry) -> None:
    """The service's log has a line, as for every failed call; once there is room again, the same container starts."""
    reference = f"{registry.host}/box:1"
    with small(node.state, "4m"):
        node.up()
        node.ctr("images", "pull", "--plain-http", reference)
        filling = fill(node.state)
        refused = node.ctr("run", "--rm", reference, "box", "true", ok=False)
        assert "no space left on device" in refused.stderr
        assert "internal error" not in refused.stderr
        eventually(
            lambda: "Tasks/Create in namespace default failed: " in (node.root / "log/tasks.log").read_text(),
            "its log has no line",
        )
        node.wait_healthy(30)
        filling.unlink()
        node.ctr("containers", "rm", "box", ok=None)
        assert node.out("run", "--rm", reference, "box", "echo", "works") == "works\n"


def test_starts_stops_and_failed_pulls_leave_a_line(node: Node, registry: Registry) -> None:
    """Each line is in the log of the service concerned; a pull of an image that the registry does not have is a failed
    pull too.
    """
    node.up()
    absent = f"{registry.host}/absent:1"
    refused = node.splitd("pull", "--plain-http", absent, ok=False)
    assert "not found" in refused.stderr
    log = (node.root / "log/images.log").read_text()
    assert f"pull of {absent} in namespace default failed: " in log
    assert log.count(f"pull of {absent}") == 1, log
    node.down()
    for service in ("metadata", "content", "snapshots", "images", "tasks", "gateway"):
        log = (node.root / f"log/{service}.log").read_text()
        assert f"{service} serves: version " in log
        assert f"{service} stops: SIGTERM" in log
        assert f"{service} has stopped" in log
