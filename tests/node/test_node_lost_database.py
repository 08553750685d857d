"""A node whose metadata database was lost: nothing on disk is deleted, and the node works."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.images import Registry
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]


def test_a_new_database_deletes_nothing_of_the_old_one_and_numbers_go_on(registry: Registry) -> None:
    """The raw stores carry the lost store's id: the collector of the new one leaves them alone; pulling and running work, over numbers that are taken."""
    reference = f"{registry.host}/box:1"
    with short_directory() as directory:
        node = Node(directory)
        try:
            node.up()
            node.ctr("images", "pull", "--plain-http", reference)
            node.ctr("snapshots", "prepare", "kept")
            eventually(lambda: len(list(node.root.rglob("store-id"))) >= 3, "the first collection did not mark the stores as its own")
            node.down()
            blobs = {p.name for p in (node.root / "content/blobs").glob("*/*")}
            snapshots = {p.name for p in (node.root / "snapshots/overlayfs/snapshots").iterdir()}
            assert blobs
            assert snapshots
            shutil.rmtree(node.root / "metadata")

            node.up()
            assert node.out("images", "ls", "-q") == ""
            node.ctr("images", "pull", "--plain-http", reference)
            assert node.out("run", "--rm", reference, "again", "echo", "works") == "works\n"
            node.ctr("images", "rm", "--sync", reference)

            assert blobs <= {p.name for p in (node.root / "content/blobs").glob("*/*")}, "a blob of the lost database was deleted"
            assert snapshots <= {p.name for p in Path(node.root / "snapshots/overlayfs/snapshots").iterdir()}, "a snapshot of the lost database was deleted"
        finally:
            node.clear()
