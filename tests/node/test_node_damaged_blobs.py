"""Blobs whose files are missing or damaged: a pull that would otherwise say "already there" finds and repairs them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.samples import Image
from services.kit.rpc import Channel
from tests.fake_registry import FakeRegistry
from tests.pulls import Client, config_of, made
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]


def path_of(node: Node, digest: str) -> Path:
    return node.root / "content/blobs" / Path(digest.replace(":", "/"))


def damaged(node: Node, box: Image) -> list[str]:
    """Return the image's blobs whose files are not right."""
    return [
        digest
        for digest in box.blobs
        if not path_of(node, digest).exists()
        or hashlib.sha256(path_of(node, digest).read_bytes()).hexdigest() != digest.partition(":")[2]
    ]


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [Path.unlink, cut], ids=["missing", "cut"])
@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
async def test_a_pull_repairs_the_blobs_that_it_relies_on(
    node: Node, channel: Channel, fake: FakeRegistry, spoil: Callable[[Path], None], which: str
) -> None:
    """In this namespace and in another that shares the blob, whether the layers are unpacked already or not; records
    and labels stay.
    """
    box, clients = made(), [Client(channel, f"{which}-{spoil.__name__}-{n}") for n in range(2)]
    reference = fake.add(box, f"{which}-{spoil.__name__}:1")
    for client in clients:
        await client.pull(reference)
    digest = {"layer": box.layers[1], "config": config_of(box), "manifest": box.digest}[which]
    labels = await clients[0].labels(digest)
    spoil(path_of(node, digest))
    assert damaged(node, box) == [digest]
    await clients[1].pull(reference)
    assert not damaged(node, box)
    assert await clients[0].labels(digest) == labels
    assert not await clients[1].ingests()


async def test_wrong_bytes_are_found_where_asked(node: Node, channel: Channel, fake: FakeRegistry) -> None:
    """``splitd pull`` checks the bytes of small blobs, ``splitd pull --verify`` of all."""
    box, client = made(kib=1500), Client(channel, "default")
    reference = fake.add(box, "verified:1")
    await client.pull(reference)
    for digest in (box.layers[0], config_of(box)):
        flip(path_of(node, digest))
    await asyncio.to_thread(node.splitd, "pull", "--plain-http", reference)
    assert damaged(node, box) == [box.layers[0]]
    await asyncio.to_thread(node.splitd, "pull", "--plain-http", "--verify", reference)
    assert not damaged(node, box)


async def test_a_damaged_blob_that_cannot_be_fetched_again_is_reported(
    node: Node, channel: Channel, fake: FakeRegistry
) -> None:
    """The pull fails and names the blob; another pull repairs it once the registry has it again."""
    box, client = made(), Client(channel, "gone")
    reference = fake.add(box, "gone:1")
    await client.pull(reference)
    path_of(node, box.layers[0]).unlink()
    data = fake.blobs.pop(box.layers[0])
    with pytest.raises(Exception, match=f"blob {box.layers[0]}: its file is missing, and it cannot be fetched again"):
        await client.pull(reference)
    fake.blobs[box.layers[0]] = data
    await client.pull(reference)
    assert not damaged(node, box)
