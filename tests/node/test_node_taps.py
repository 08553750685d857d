"""Taps and faults on a whole node, with ctr and the node's own pulls."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.samples import Registry
from tests.support import TOP, Node, eventually

pytestmark = [pytest.mark.node, pytest.mark.root]

BOX = "{}/box:1"
SECRET = "hunter2-hunter2"
INJECTED = "injected by splitd fault"


@contextlib.contextmanager
def tapped(node: Node, out: Path, *words: str) -> Iterator[list[dict[str, Any]]]:
    """What ``splitd tap --json`` says meanwhile, when the block has ended."""
    events: list[dict[str, Any]] = []
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "tap", "--json", *words, "--root", node.root, "--state", node.state],
            cwd=TOP,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            eventually(lambda: "tap of " in node.splitd("routes").stdout, "the tap does not stand")
            yield events
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    events += map(json.loads, out.read_text().splitlines())


def test_a_tap_of_a_pull_and_a_run(node: Node, registry: Registry, tmp_path: Path) -> None:
    """All calls of both are seen, with what is in them, and no secret is: neither a container's environment nor the
    password for a registry.
    """
    out = tmp_path / "events"
    with tapped(node, out, "--messages") as events:
        node.splitd("pull", BOX.format(registry.host), "--plain-http", "--user", f"me:{SECRET}")
        ran = node.ctr("run", "--rm", "--env", f"PASSWORD={SECRET}", BOX.format(registry.host), "tapped", "env")
        assert SECRET in ran.stdout
    assert SECRET not in out.read_text()
    seen = {(each["service"], each["method"].rpartition(".")[2]) for each in events if each["event"] == "call"}
    assert {
        ("snapshots.overlayfs", "Snapshots/Prepare"),
        ("snapshots.overlayfs", "Snapshots/Commit"),
        ("metadata", "Records/BeginSnapshot"),
        ("metadata", "Containers/Create"),
        ("images", "Transfer/Transfer"),
        ("tasks", "Tasks/Create"),
        ("tasks", "Tasks/Wait"),
    } <= seen
    words = [each["text"] for each in events if each["event"] == "message"]
    assert any(f'reference: "{BOX.format(registry.host)}"' in each for each in words)
    assert any('id: "tapped"' in each for each in words)


def test_a_node_whose_metadata_fails_now_and_then(node: Node, registry: Registry) -> None:
    """Every failure of a client says that it was injected, and nothing is left of the faults: the pull succeeds when it
    is tried again, containers run, and the node is as a node without faults.
    """
    failed = 0
    for when, seed in (("--before", 7), ("--after", 8)):
        node.splitd(
            "fault", "metadata.*", "--error", "UNAVAILABLE", "--share", "5%", "--for", "60s", when, "--seed", str(seed)
        )
        for attempt in range(30):
            name = f"{when.strip('-')}-{attempt}"
            node.ctr("images", "rm", BOX.format(registry.host), ok=None)
            for done in (
                node.splitd("pull", BOX.format(registry.host), "--plain-http", ok=None),
                node.ctr("run", "--rm", BOX.format(registry.host), name, "true", ok=None),
            ):
                if done.returncode:
                    failed += 1
                    said = done.stdout + done.stderr
                    assert INJECTED in said or re.search(r"not found|already exists", said), said
            if failed > 3 and attempt > 2:
                break
        ended = node.splitd("fault", "--stop", "--all").stdout
        assert int(re.findall(r"was in (\d+) of", ended)[0]) > 0, ended
    assert failed
    for name in ("after-all", "once-more"):
        node.splitd("pull", BOX.format(registry.host), "--plain-http")
        node.ctr("run", "--rm", BOX.format(registry.host), name, "true")
        node.ctr("images", "rm", "--sync", BOX.format(registry.host))
    assert node.splitd("fault", "--list").stdout == "there are no faults\n"
    node.splitd("leases", "rm", "--interrupted", "--sync", ok=None)
    left = node.ctr("snapshots", "ls").stdout.splitlines()[1:]
    assert [line for line in left if "Active" in line] == [], left
