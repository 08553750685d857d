"""Two images that share layers, but not those below: the layers are unpacked once, and nobody can tell."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from deploy.samples import Image, image
from services.kit.rpc import NAMESPACE, Channel
from services.oci.digests import chain_ids, digest_of
from services.snapshots.diff import note
from tests.fake_registry import FakeRegistry
from tests.node.test_node_layer_chains import without_times
from tests.pulls import Client
from tests.suites.diff_chains import Snapshots
from tests.suites.diff_sides import Node as File
from tests.suites.diff_sides import differences
from tests.suites.diff_tars import directory, link, opaque, reg, symlink, tar, whiteout
from tests.support import Node, eventually

pytestmark = [pytest.mark.node, pytest.mark.root]

_ids = itertools.count()


def lowest(*, mode: int = 0o755) -> bytes:
    """A layer that no other test has, with directories that layers above use."""
    return tar(
        directory(b"etc/", mode),
        directory(b"usr/", 0o2755, gid=50),
        directory(b"usr/gone/"),
        *(reg(b"usr/" + name, name) for name in (b"one", b"two", b"gone/file")),
        reg(b"unique", os.urandom(8)),
    )


def above() -> list[bytes]:
    """Layers of all kinds of entries, which name their directories, or do not."""
    mark = reg(b"etc/mark", os.urandom(8))
    return [
        tar(directory(b"opt/"), reg(b"opt/file", b"x" * 5000, mode=0o4755), link(b"opt/hard", b"opt/file"), mark),
        tar(whiteout(b"usr/one"), opaque(b"usr/gone"), symlink(b"usr/link", b"../opt"), mark),
        tar(reg(b"usr/lib/deep/file", b"y", uid=7), reg(b"etc/conf", b"z"), mark),
        tar(directory(b"opt/", 0o700), whiteout(b"opt/hard"), mark),
    ]


class Pulls:
    """A namespace that pulls images of given layers."""

    def __init__(self, node: Node, channel: Channel, registry: FakeRegistry, place: Path) -> None:
        self.namespace = f"shared{os.getpid()}-{next(_ids)}"
        self.client = Client(channel, self.namespace)
        self._registry = registry
        self._snapshots = channel.client(snapshots_stubs.SNAPSHOTS)
        (place / self.namespace).mkdir()
        self._trees = Snapshots(channel, self.namespace, place / self.namespace)
        self.things = node.root / "snapshots" / "overlayfs" / "snapshots"

    async def pull(self, layers: Sequence[bytes]) -> tuple[str, set[str]]:
        """Pull an image. The result is its reference, and the directories into which layers were unpacked."""
        before = self.unpacked()
        box: Image = image(layers)
        reference = self._registry.add(box, f"shared:{next(_ids)}")
        await self.client.pull(reference)
        await self._snapshots.Cleanup(
            snapshots_pb2.CleanupRequest(snapshotter="overlayfs"), headers={NAMESPACE: self.namespace}
        )
        return reference, self.unpacked() - before

    def unpacked(self) -> set[str]:
        return {path.parent.name for path in self.things.glob(f"*/{note.NAME}")}

    async def tree(self, layers: Sequence[bytes]) -> dict[bytes, File]:
        return await self._trees.tree(chain_ids(list(map(digest_of, layers)))[-1])

    async def usage(self, layers: Sequence[bytes]) -> list[int]:
        """The inodes that each layer takes."""
        asked = [
            snapshots_pb2.UsageRequest(snapshotter="overlayfs", key=name)
            for name in chain_ids(list(map(digest_of, layers)))
        ]
        answers = [await self._snapshots.Usage(each, headers={NAMESPACE: self.namespace}) for each in asked]
        return [each.inodes for each in answers]


async def test_the_second_image_makes_no_files_for_layers_that_are_there(
    node: Node, channel: Channel, fake: FakeRegistry, place: Path
) -> None:
    """Only its lowest layer differs, and only that is unpacked. Its tree is the one that another namespace unpacks
    afresh, also after the first image and its snapshots are gone, and the process was killed. The files go with it.
    """
    pulls, fresh = Pulls(node, channel, fake, place), Pulls(node, channel, fake, place)
    shared = above()
    one, two = [lowest(), *shared], [lowest(), *shared]
    first, came = await pulls.pull(one)
    assert len(came) == len(one)
    second, more = await pulls.pull(two)
    assert len(more) == 1
    _, others = await fresh.pull(two)
    assert len(others) == len(two)
    right = await fresh.tree(two)
    assert not differences(await pulls.tree(two), right)
    used = await pulls.usage(two)
    assert used[0] > 0
    assert used[1:] == [0] * len(shared), "counted for the first image"

    await pulls.client.delete_image(first)
    node.kill("snapshots")
    node.wait_healthy(30)

    async def whole() -> None:
        assert not differences(await pulls.tree(two), right)

    await whole()
    eventually(lambda: len(pulls.unpacked() & came) == len(shared), "the first's own layer stays", 30)
    await whole()
    assert await pulls.usage(two) == await fresh.usage(two)
    await pulls.client.delete_image(second)
    eventually(lambda: not pulls.unpacked() & (came | more), "files of removed images stay", 30)


async def test_layers_that_would_become_another_tree_are_unpacked_again(
    node: Node, channel: Channel, fake: FakeRegistry, place: Path
) -> None:
    """The two lowest layers have a directory of other modes, which some layers above use and do not name."""
    pulls, fresh = Pulls(node, channel, fake, place), Pulls(node, channel, fake, place)
    shared = above()
    await pulls.pull([lowest(), *shared])
    other = [lowest(mode=0o700), *shared]
    _, more = await pulls.pull(other)
    assert len(more) == len(other), "the first layer above uses it, so the others were not asked for"
    await fresh.pull(other)
    assert not differences(await pulls.tree(other), await fresh.tree(other))


async def test_two_images_at_once(node: Node, channel: Channel, fake: FakeRegistry, place: Path) -> None:
    """Whichever of them shares what: the trees are right."""
    pulls, fresh = Pulls(node, channel, fake, place), Pulls(node, channel, fake, place)
    shared = above()
    images = [[lowest(), *shared] for _ in range(4)]
    await pulls.pull(images[0])
    await asyncio.gather(*(pulls.client.pull(fake.add(image(each), f"shared:{next(_ids)}")) for each in images[1:]))
    for each in images[1:]:
        await fresh.pull(each)
        assert not differences(await pulls.tree(each), await fresh.tree(each))


async def test_erofs_takes_layers_that_are_there(node: Node, channel: Channel, fake: FakeRegistry, place: Path) -> None:
    """On any others, also if these decide about a directory: they are on the disk once. The blobs are fetched all the
    same. Another namespace unpacks them, and yet there is one copy. The files go with the last image.
    """
    root = node.root / "snapshots/erofs"

    def unpacked() -> set[str]:
        there = {path.name for path in (root / "snapshots").iterdir() if (path / "erofs/about").exists()}
        return there - {path.parent.parent.name for path in (root / "snapshots").glob("*/erofs/staged")}

    fresh, shared = Pulls(node, channel, fake, place), above()
    one, two, alone = [lowest(), *shared], [lowest(mode=0o700), *shared], [shared[0]]
    await fresh.pull(two)
    client, other = (Client(channel, f"erofs{os.getpid()}-{next(_ids)}") for _ in range(2))
    references = []
    for who, layers, count in ((client, one, len(one)), (client, two, 1), (client, alone, 0), (other, two, len(two))):
        box, before = image(layers), unpacked()
        references.append((who, fake.add(box, f"shared:{next(_ids)}")))
        await who.pull(references[-1][1], snapshotter="erofs")
        assert len(unpacked() - before) == count
        assert set(box.blobs) <= set(await who.blobs())
    assert len({path.stat().st_ino for path in (root / "snapshots").glob("*/erofs/data")}) == len(shared) + 2
    (place / "m").mkdir()
    for layers in (one, two):
        found = Snapshots(channel, client.namespace, place / "m", "erofs")
        made = await found.tree(chain_ids(list(map(digest_of, layers)))[-1])
        if layers is two:
            right = await fresh.tree(two)
            assert not differences(right, without_times(made, right))
    for who, reference in references:
        await who.delete_image(reference)
        await who.collect()
    eventually(lambda: not os.listdir(root / "layers"), "files of removed images stay", 30)
