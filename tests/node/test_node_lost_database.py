"""A node whose metadata database was lost: no file is deleted, and the node works."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from deploy.samples import Registry
from services.kit.rpc import Channel
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]


def test_a_new_database_deletes_nothing_of_the_old_one_and_numbers_go_on(registry: Registry) -> None:
    """The raw stores have the id of the lost database: the collector of the new one leaves them alone. Pulling and
    running work, and skip the numbers in use.
    """
    reference = f"{registry.host}/box:1"
    with short_directory() as directory:
        node = Node(directory)
        try:
            node.up()
            node.ctr("images", "pull", "--plain-http", reference)
            node.ctr("snapshots", "prepare", "kept")
            eventually(
                lambda: all(
                    (node.root / store / "store-id").exists()
                    for store in ("content", "snapshots/overlayfs", "snapshots/native")
                ),
                "the first collection did not mark the stores as its own",
            )
            node.ctr("run", "-d", reference, "still", "sleep", "1000")
            node.down(containers=False)
            blobs = {p.name for p in (node.root / "content/blobs").glob("*/*")}
            snapshots = {p.name for p in (node.root / "snapshots/overlayfs/snapshots").iterdir()}
            assert blobs
            assert snapshots
            shutil.rmtree(node.root / "metadata")

            node.up()
            assert node.out("images", "ls", "-q") == ""
            node.splitd("pull", "--plain-http", reference)
            [shown] = json.loads(node.splitd("images", "--json").stdout)
            assert shown["unpacked"] == ["overlayfs"], "a number was taken, and the snapshot for made"
            assert node.out("run", "--rm", reference, "again", "echo", "works") == "works\n"
            node.ctr("images", "rm", "--sync", reference)

            assert blobs <= {p.name for p in (node.root / "content/blobs").glob("*/*")}, (
                "a blob of the lost database was deleted"
            )
            assert snapshots <= {p.name for p in Path(node.root / "snapshots/overlayfs/snapshots").iterdir()}, (
                "a snapshot of the lost database was deleted"
            )
            assert "stopped 1 container" in node.splitd("down", "--containers", "--grace", "0").stdout
            node.up()
            assert "belongs to another metadata store" in node.splitd("gc").stdout
            node.splitd("gc", "--release")
            eventually(
                lambda: (
                    not list((node.root / "content/blobs").glob("*/*"))
                    and not any((node.root / "snapshots/overlayfs/snapshots").iterdir())
                ),
                "what only the lost database knew stays for ever",
            )
        finally:
            node.clear()


async def test_a_node_with_damaged_pages_says_so_at_once(place: Path) -> None:
    """``up`` does not wait for a state that will not pass, and prints metadata's error; so does ``status``, with the
    held-back things. If metadata cannot start at all, the last line of its log is printed.
    """
    node = Node(place)
    try:
        node.up()
        async with Channel(node.socket) as channel:
            namespaces = channel.client(namespaces_stubs.NAMESPACES)
            for number in range(60):
                space = namespaces_pb2.Namespace(name=f"space{number}", labels={"filler": "x" * 3000})
                await namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=space))
        node.down()
        database = node.root / "metadata" / "metadata.db"
        data = bytearray(database.read_bytes())
        for page in range(20, 40):
            data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
        database.write_bytes(data)
        node.splitd("up", ok=None)
        eventually(lambda: not node.status()["healthy"], "damaged pages are not found")
        said = node.splitd("up", "--timeout", "600", ok=False).stderr
        assert f"metadata is not healthy: {database} is damaged" in said
        assert "docs/damaged-database.md" in said
        (held,) = eventually(lambda: node.status()["held_back"], "nothing is held back")
        assert (held["what"], "is damaged" in held["reason"]) == ("metadata", True)
        assert f"held back since {time.strftime('%Y-')}" in node.splitd("status", ok=False).stdout
        node.down(containers=False)
        data[:100] = b"\xff" * 100
        database.write_bytes(data)
        said = node.splitd("up", "--timeout", "600", ok=False).stderr
        assert "metadata cannot run" in said
        assert "docs/damaged-database.md" in said
    finally:
        node.clear()


def test_a_snapshotter_whose_database_cannot_be_read(place: Path) -> None:
    """Only this snapshotter is out of use: ``up``, ``status`` and its clients' errors name the file and what to do,
    nothing of it is collected, and the other snapshotter works.
    """
    node = Node(place)
    snapshots = node.root / "snapshots/overlayfs"
    try:
        node.up()
        for key in ("kept", "removed"):
            node.ctr("snapshots", "prepare", key)
        node.down()
        with contextlib.closing(sqlite3.connect(snapshots / "metadata.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # of a log that has the page SQLite would take it
        whole = (snapshots / "metadata.db").read_bytes()
        (snapshots / "metadata.db").write_bytes(b"\xff" * 100 + whole[100:])
        words = f"snapshotter overlayfs is out of use: {snapshots}/metadata.db cannot be used: "
        said = node.splitd("up", ok=False).stderr
        assert f"snapshots is not healthy: {words}" in said
        assert "docs/damaged-database.md" in said
        assert {
            each["name"]: words in each["trouble"] for each in node.status()["services"] if not each["healthy"]
        } == {"snapshots": True}
        assert words in node.ctr("snapshots", "prepare", "more", ok=False).stderr
        node.ctr("snapshots", "--snapshotter", "native", "prepare", "works")
        node.ctr("snapshots", "rm", "removed")
        node.ctr("leases", "create", "--id", "lease")
        node.ctr("leases", "delete", "--sync", "lease")
        assert len(list((snapshots / "snapshots").iterdir())) == 2
        (snapshots / "metadata.db").write_bytes(whole)
        node.splitd("restart", "snapshots")
        node.wait_healthy()
        eventually(lambda: len(list((snapshots / "snapshots").iterdir())) == 1, "what was removed meanwhile stays")
        assert str(snapshots) in node.out("snapshots", "mounts", "/mnt", "kept")
    finally:
        node.clear()


def test_a_snapshotter_that_lost_its_database_removes_nothing(place: Path, registry: Registry) -> None:
    """Files that a container wrote are still there, and a client that misses a layer is told the reason. The image is
    pulled again; once the operator releases the snapshotter, unknown things are removed.
    """
    reference = f"{registry.host}/box:1"
    node = Node(place)
    snapshots = node.root / "snapshots/overlayfs"
    try:
        node.up()
        node.ctr("images", "pull", "--plain-http", reference)
        node.ctr("run", reference, "wrote", "sh", "-c", "echo precious >/kept")
        [written] = (snapshots / "snapshots").glob("*/fs/kept")
        node.down()
        for path in snapshots.glob("metadata.db*"):
            path.unlink()
        node.up()
        assert "metadata.db is new, though there are snapshots" in node.splitd("gc").stdout
        assert [each["what"] for each in node.status()["held_back"]] == ["snapshots.overlayfs"]
        assert "docs/damaged-database.md" in node.ctr("run", "--rm", reference, "other", "true", ok=False).stderr
        said = node.splitd("pull", "--plain-http", reference, ok=False).stderr
        assert "is recorded, and snapshots.overlayfs does not have it" in said
        assert "splitd gc --release" in said
        assert written.read_text() == "precious\n"
        assert (
            "2 snapshots that their snapshotter has lost are no longer recorded"
            in node.splitd("gc", "--release").stdout
        )
        eventually(lambda: not written.exists(), "what nobody knows stays")
        node.ctr("containers", "rm", "wrote")
        node.splitd("pull", "--plain-http", reference)
        assert node.out("run", "--rm", reference, "other", "echo", "works") == "works\n"
        assert not node.status()["held_back"]
    finally:
        node.clear()
