"""The contract of the rest of the node towards a tasks service (``services.tasks.store.Node``).

A life of the interface is a fixture ``around``; ``add`` is a fixture that makes a container in the namespace ``ns``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable

import pytest

from services.kit import errors
from services.oci.digests import digest_of
from services.tasks.store import Node

Add = Callable[..., Awaitable[None]]
"""Makes a container of a name, with ``labels``; ``snapshot`` is the key of a snapshot of overlayfs that is made with
it.
"""
LABEL = "containerd.io/restart.status"


class NodeSuite:
    async def test_a_container_is_as_its_record(self, around: Node, add: Add, ns: str) -> None:
        """It has the record's runtime, spec and labels; it exists in its own namespace only."""
        await add("c", labels={LABEL: "running", "mine": "1"})
        found = await around.container(ns, "c")
        assert (found.id, found.runtime, dict(found.labels)) == (
            "c",
            "io.containerd.runc.v2",
            {LABEL: "running", "mine": "1"},
        )
        assert found.spec is not None
        assert "process" in json.loads(found.spec.value)
        assert ns in await around.namespaces()
        with pytest.raises(errors.NotFound, match=f'^container "none" in namespace "{ns}": not found$'):
            await around.container(ns, "none")
        with pytest.raises(errors.NotFound, match='^container "c" in namespace "another": not found$'):
            await around.container("another", "c")

    async def test_containers_are_chosen_by_a_label(self, around: Node, add: Add, ns: str) -> None:
        """The label may have any value."""
        for name, labels in (("a", {LABEL: "running"}), ("b", {"other": "1"}), ("c", {LABEL: "stopped"})):
            await add(name, labels=labels)
        assert [c.id for c in await around.containers(ns, f'labels."{LABEL}"')] == ["a", "c"]
        assert await around.containers("another", f'labels."{LABEL}"') == []

    async def test_a_label_is_set(self, around: Node, add: Add, ns: str) -> None:
        """Other labels stay, and the record's update time changes."""
        await add("c", labels={LABEL: "running", "mine": "1"})
        before = (await around.container(ns, "c")).updated_at
        await around.set_label(ns, "c", "mine", "2")
        after = await around.container(ns, "c")
        assert dict(after.labels) == {LABEL: "running", "mine": "2"}
        assert after.updated_at > before
        with pytest.raises(errors.NotFound):
            await around.set_label(ns, "none", "mine", "2")

    async def test_a_snapshot_is_mounted(self, around: Node, add: Add, ns: str) -> None:
        """It is found by snapshotter and key."""
        await add("c", snapshot="c-key")
        container = await around.container(ns, "c")
        assert (container.snapshotter, container.snapshot_key) == ("overlayfs", "c-key")
        assert len(await around.mounts(ns, "overlayfs", "c-key")) == 1
        with pytest.raises(errors.NotFound, match="none"):
            await around.mounts(ns, "overlayfs", "none")

    async def test_a_blob_is_written_and_read(self, around: Node, ns: str) -> None:
        """Writing the same bytes again succeeds."""
        data = bytes(range(256)) * 20_000
        for _ in range(2):
            made = await around.write_blob(ns, "", "/checkpoint", "text/plain", io.BytesIO(data))
            assert (made.media_type, made.digest, made.size) == ("text/plain", digest_of(data), len(data))
        file = io.BytesIO()
        await around.read_blob(ns, made.digest, file)
        assert file.getvalue() == data
        with pytest.raises(errors.NotFound):
            await around.read_blob(ns, digest_of(b"none"), file)
