"""A foreign snapshotter that takes calls and answers none holds up nothing of others (containerd issue 13798)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from deploy.samples import Registry
from tests.support import TOP, Node, OwnService, eventually, freeze, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]


def test_others_go_on(registry: Registry, place: Path) -> None:
    """Pulls, runs, and deletes that wait for the collection, which has something to remove in the silent one; when it
    answers again, that is removed.
    """
    reference = f"{registry.host}/box:1"
    with short_directory() as elsewhere, OwnService(TOP / "examples/overlay.py", elsewhere) as theirs:
        kept = elsewhere / "r" / "snapshots"
        node = Node(place, config=f'[proxy_plugins.theirs]\ntype = "snapshot"\naddress = "{theirs.sockets[0]}"\n')
        try:
            node.up()
            node.ctr("images", "pull", "--plain-http", "--snapshotter", "theirs", reference)
            assert any(kept.iterdir())
            freeze(theirs.pid)
            node.ctr("images", "rm", reference)
            for number in range(3):
                namespace = f"n{number}"
                node.ctr("images", "pull", "--plain-http", reference, namespace=namespace)
                assert node.out("run", "--rm", reference, "x", "echo", "on", namespace=namespace) == "on\n"
                node.ctr("images", "rm", "--sync", reference, namespace=namespace)
                assert node.out("snapshots", "ls", namespace=namespace).splitlines()[1:] == []
            assert "theirs" in node.out("plugins", "ls")
            os.kill(theirs.pid, signal.SIGCONT)
            eventually(lambda: not any(kept.iterdir()), "what it has is never removed", 60.0)
        finally:
            os.kill(theirs.pid, signal.SIGCONT)
            node.clear()
