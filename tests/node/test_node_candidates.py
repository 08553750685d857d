"""Candidates beside a node's own snapshotter and content store: pulls and runs go on while they come, die, come back
and go.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.samples import Registry, busybox_image, tar_of
from tests.support import Node, ServiceProcess, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]

ROUTE = "snapshots.overlayfs"


class Tried:
    """A node with two candidates, and what a client does on it."""

    def __init__(self, node: Node, elsewhere: Path, image: str) -> None:
        self.node, self.image = node, image
        self.theirs = elsewhere / "r"
        sockets = ("snapshots-overlayfs.sock", "snapshots-native.sock")
        self.snapshots = ServiceProcess("services.snapshots", self.theirs, elsewhere / "s", sockets=sockets)
        self.content = ServiceProcess("services.content", self.theirs, elsewhere / "s")

    def pull(self, namespace: str) -> None:
        """By the node's own engine, which unpacks layers side by side where it may."""
        self.node.splitd("pull", "-n", namespace, "--plain-http", self.image)

    def run(self, namespace: str, *, ok: bool = True) -> str:
        """The output of a container."""
        command = ("run", "--rm", "--snapshotter", "overlayfs", self.image, f"c-{namespace}", "cat", "/words")
        return self.node.out(*command, namespace=namespace, ok=ok)

    def kill(self) -> None:
        for process in (self.snapshots, self.content):
            process.kill()

    def start(self) -> None:
        for process in (self.snapshots, self.content):
            process.start()

    def candidates(self) -> dict[str, dict[str, Any]]:
        """Those that stand, by backend."""
        found = json.loads(self.node.splitd("routes", "--json").stdout)
        return {each["backend"]: each for route in found for each in route["candidates"]}

    def their_snapshots(self) -> int:
        return len(list((self.theirs / "snapshots" / "overlayfs" / "snapshots").glob("*")))

    def their_blobs(self) -> int:
        return len(list((self.theirs / "content" / "blobs" / "sha256").glob("*")))


@pytest.fixture
def tried(registry: Registry, place: Path) -> Iterator[Tried]:
    layers = [tar_of([(name, {"data": f"{name}\n".encode()})]) for name in ("words", "more")]
    registry.push(busybox_image(*layers), "layers:1")
    with short_directory() as elsewhere:
        # two processes of a busy machine may take longer to come back than a call is held by default
        node = Node(place, config='[gateway]\ncandidate_hold = "60s"\n')
        tried = Tried(node, elsewhere, f"{registry.host}/layers:1")
        try:
            node.up()
            yield tried
        finally:
            node.clear()
            for process in (tried.snapshots, tried.content):
                process.kill()


def test_half_of_everything_goes_to_candidates_and_back(tried: Tried) -> None:
    """No client notices: not the share, not a kill -9 of both candidates, not the gateway's restart, not the way back.
    What is forgotten is gone, and is pulled again.
    """
    node, state = tried.node, tried.snapshots.state
    half = ("--share", "50%", "--name", "theirs")
    node.splitd("replace", ROUTE, "--address", f"{state}/snapshots-overlayfs.sock", *half)
    node.splitd("replace", "content", "--address", f"{state}/content.sock", *half)
    spaces = ["a", "b"]  # the first image's layers go to the candidate, the second's go home
    for space in spaces:
        tried.pull(space)
        assert tried.run(space) == "words\n"
    assert tried.their_snapshots()
    assert tried.their_blobs()
    assert tried.candidates()[f"{ROUTE}@theirs"]["objects"]

    tried.kill()
    eventually(lambda: tried.candidates()["content@theirs"]["state"] == "down", "its death is not seen")
    assert f"{ROUTE}@theirs" in node.splitd("status", ok=None).stdout
    back = threading.Timer(1.0, tried.start)
    back.start()
    try:
        for space in spaces:  # those of the candidates are held until they are back
            assert tried.run(space) == "words\n"
    finally:
        back.join()

    node.kill("gateway")
    node.wait_healthy()
    for space in spaces:
        assert tried.run(space) == "words\n"

    node.splitd("restore", ROUTE)
    node.splitd("restore", "content")
    before = tried.their_snapshots(), tried.their_blobs()
    tried.pull("c")
    for space in (*spaces, "c"):
        assert tried.run(space) == "words\n"
    # what the last runs left may go meanwhile, but nothing new comes
    assert tried.their_snapshots() <= before[0]
    assert tried.their_blobs() <= before[1]
    assert {each["state"] for each in tried.candidates().values()} == {"draining"}

    said = node.splitd("restore", ROUTE, "--forget", "--yes").stdout
    assert "sha256:" in said
    node.splitd("restore", "content", "--forget", "--yes")
    assert not tried.candidates()
    tried.kill()
    for space in spaces:
        tried.pull(space)
        assert tried.run(space) == "words\n"
