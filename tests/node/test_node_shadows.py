"""A candidate gets copies of a node's calls, and the report says what it answers otherwise."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.samples import Registry
from tests.support import Node, ServiceProcess, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]

SNAPSHOTS = ("snapshots-overlayfs.sock", "snapshots-native.sock", "diff.sock")


@contextlib.contextmanager
def candidates() -> Iterator[Path]:
    """A second content store and second snapshotters, in processes of their own. Yields their state directory."""
    with (
        short_directory() as elsewhere,
        ServiceProcess("services.content", elsewhere / "r", elsewhere / "s"),
        ServiceProcess("services.snapshots", elsewhere / "r", elsewhere / "s", sockets=SNAPSHOTS),
    ):
        yield elsewhere / "s"


def reports(node: Node, *arguments: str) -> dict[str, dict[str, Any]]:
    """The methods of all reports."""
    found = json.loads(node.splitd("shadow", "report", "--json", *arguments).stdout)
    return {method["method"]: method for report in found for method in report["methods"]}


def compared(node: Node, *methods: str) -> dict[str, dict[str, Any]]:
    """The reports, once each of ``methods`` was compared."""

    def found() -> dict[str, dict[str, Any]]:
        seen = reports(node)
        assert all(seen.get(name, {}).get("same") for name in methods), str(
            {k: (v["same"], v["skipped"], v["differences"]) for k, v in seen.items()}
        )
        return seen

    return eventually(found, f"not all of {methods} are compared")


def test_our_own_services_differ_in_nothing(node: Node, registry: Registry) -> None:
    """Pulls, runs and removals are copied to stores of their own, whose roots, keys and times differ by design."""
    reference = f"{registry.host}/box:1"
    with candidates() as there:
        for route, socket in (("content", "content.sock"), ("snapshots.overlayfs", "snapshots-overlayfs.sock")):
            node.splitd("shadow", route, "--address", str(there / socket), "--store", str(there.parent / "r"))
        node.ctr("images", "pull", "--plain-http", reference)
        assert node.out("run", "--rm", reference, "one", "echo", "hello") == "hello\n"
        for digest in node.out("content", "ls", "-q").split():
            subprocess.run(["ctr", "-a", node.socket, "content", "get", digest], stdout=subprocess.DEVNULL, check=True)
        node.ctr("images", "rm", "--sync", reference)
        found = compared(node, "Content/Write", "Content/Read", "Snapshots/Prepare", "Snapshots/Commit")
        differences = {name: method["differences"] for name, method in found.items() if method["differences"]}
        assert differences == {}
        assert all(method["calls"] and not method["dropped"] for method in found.values())
        listed = {each["route"]: each for each in json.loads(node.splitd("shadow", "list", "--json").stdout)}
        assert [each["writes"] for each in listed.values()] == [True, True]
        shown = node.splitd("shadow", "report").stdout
        assert "Snapshots/Prepare" in shown
        # the collector removed what the candidates have, too
        eventually(lambda: not list((there.parent / "r/content/blobs").rglob("*/*")), "copies of removals are missing")
        for route in ("content", "snapshots.overlayfs"):
            node.splitd("shadow", "stop", route)
        assert "content has no shadow" in node.splitd("shadow", "report", "content", ok=False).stderr
        assert list((node.state).glob("shadow-*")) == []


def test_mistakes_are_told(node: Node, place: Path) -> None:
    """Each names the thing."""
    nobody = str(place / "nobody.sock")
    for arguments, words in (
        (("content",), "--address is missing"),
        (("content", "--address", nobody), nobody),
        (("cheese", "--address", nobody), "cheese is no store of this node"),
        (("content", "--address", nobody, "--share", "0%"), "more than 0% and at most 100%"),
        (("content", "--address", nobody, "--store", str(node.root / "content")), "is within the root of this node"),
        (("stop", "content"), "content has no shadow"),
        (("report",), "no service has a shadow"),
        (("list", "content"), "one word too many"),
    ):
        assert words in node.splitd("shadow", *arguments, ok=False).stderr
