"""The contract of Node towards transfers: the caller's blobs, images and snapshots.

A life of the interface is a fixture ``node``; the fixture ``damage`` writes other bytes into a blob's file. Layers are
applied by the node's Diff, which has a suite of its own, and so have its snapshotters.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest

from services.images.transfer import Image, Node
from services.kit import errors
from services.oci import media_types
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from services.snapshots.diff.media import UNCOMPRESSED

Damage = Callable[[str, bytes], None]


def blob() -> bytes:
    """Return bytes that no other blob has."""
    return os.urandom(3000)


def described(data: bytes, media_type: str = media_types.LAYER_GZIP) -> Descriptor:
    return Descriptor(media_type, digest_of(data), len(data))


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def filled(node: Node, data: bytes, **labels: str) -> str:
    """Make a blob at once; return its digest."""
    async with node.filling(f"filling {time.time_ns()}") as filling:
        os.write(filling.fd, data)
        filling.filled()
        await filling.commit(digest_of(data), len(data), labels)
    return digest_of(data)


async def read(node: Node, digest: str) -> bytes:
    """Read a whole blob; its bytes may come from a pipe."""
    found = b""
    async with node.reading(digest) as fd:
        while piece := await asyncio.to_thread(os.read, fd, 1 << 16):
            found += piece
    return found


class NodeSuite:
    async def test_a_blob_is_filled_and_read(self, node: Node) -> None:
        """Its size and labels are as committed; a second commit of the same bytes is no error, and changes no label."""
        data = blob()
        digest = await filled(node, data, one="1")
        assert await filled(node, data, one="2", two="2") == digest
        info = await node.info(digest)
        assert (str(info.digest), info.size, dict(info.labels)) == (digest, len(data), {"one": "1"})
        assert await read(node, digest) == data
        assert await node.document(described(data)) == data

    async def test_a_blob_that_is_not_there_is_named(self, node: Node) -> None:
        """The error of each call names it."""
        missing = described(blob())
        for asked in (
            node.info(missing.digest),
            node.document(missing),
            read(node, missing.digest),
            node.label(missing.digest, {"a": "b"}),
        ):
            with pytest.raises(errors.NotFound, match=missing.digest):
                await asked
        assert await node.trouble(missing, verify=True) == ""

    async def test_a_document_may_come_with_its_descriptor(self, node: Node) -> None:
        """The document need not be a blob then; bytes that do not match the digest are not used."""
        data = json.dumps({"a": 1}).encode()
        embedded = Descriptor(media_types.CONFIG, digest_of(data), len(data), data=data)
        assert await node.document(embedded) == data
        false = Descriptor(media_types.CONFIG, digest_of(data), len(data), data=data.replace(b"1", b"2"))
        with pytest.raises(errors.NotFound, match=false.digest):
            await node.document(false)

    async def test_what_is_not_committed_is_gone(self, node: Node) -> None:
        """A blob was filled and not committed; its ref can be used again at once."""
        data = blob()
        async with node.filling("given up") as filling:
            os.write(filling.fd, data)
            filling.filled()
        with pytest.raises(errors.NotFound):
            await node.info(digest_of(data))
        async with node.filling("given up") as filling:
            os.write(filling.fd, data[:100])
            filling.filled()
            await filling.commit(digest_of(data[:100]), 100)
        assert await read(node, digest_of(data[:100])) == data[:100]

    async def test_a_blob_is_fetched(self, node: Node) -> None:
        """It is fetched on a lane and committed with labels; once it exists, the answer is AlreadyExists."""
        data = blob()
        layer = described(data)
        async with node.ingest(layer) as ingest:
            assert (ingest.offset, ingest.received) == (0, 0)
            async with ingest.lane(0) as lane:
                async for piece in pieces(data):
                    await lane.write(piece)
            assert (ingest.offset, ingest.received) == (len(data), len(data))
            await ingest.commit({"from": "there"})
        assert dict((await node.info(layer.digest)).labels)["from"] == "there"
        assert await read(node, layer.digest) == data
        with pytest.raises(errors.AlreadyExists):
            async with node.ingest(layer):
                pass

    async def test_a_fetch_that_was_cut_goes_on(self, node: Node) -> None:
        """It continues at the end of the bytes without a gap."""
        data = blob()
        async with node.ingest(described(data)) as ingest:
            async with ingest.lane(0) as lane:
                await lane.write(data[:1234])
        with pytest.raises(errors.NotFound):
            await node.info(digest_of(data))
        async with node.ingest(described(data)) as ingest:
            assert ingest.offset == 1234
            async with ingest.lane(ingest.offset) as lane:
                await lane.write(data[1234:])
            await ingest.commit({})
        assert await read(node, digest_of(data)) == data

    async def test_other_bytes_are_no_blob(self, node: Node) -> None:
        """Neither too few bytes nor others; after a restart the ingest can become one."""
        data, other = blob(), blob()
        async with node.ingest(described(data)) as ingest:
            for wrong in (data[:-1], other):
                async with ingest.lane(0) as lane:
                    await lane.write(wrong)
                with pytest.raises(errors.FailedPrecondition):
                    await ingest.commit({})
                await ingest.restart()
                assert ingest.offset == 0
            async with ingest.lane(0) as lane:
                await lane.write(data)
            await ingest.commit({})
        assert await read(node, digest_of(data)) == data

    async def test_labels_are_set_beside_others(self, node: Node) -> None:
        """Only the named labels change."""
        digest = await filled(node, blob(), a="1", b="1")
        await node.label(digest, {"b": "2", "c": "2"})
        assert dict((await node.info(digest)).labels) == {"a": "1", "b": "2", "c": "2"}

    async def test_compressed_forms_of_a_layer_are_found(self, node: Node) -> None:
        """They are found by their label; there may be several, or none."""
        diff_id, other, none = (digest_of(blob()) for _ in range(3))
        made = [await filled(node, blob(), **{UNCOMPRESSED: of}) for of in (diff_id, diff_id, other)]

        async def found(*wanted: str) -> set[str]:
            return {str(info.digest) async for info in node.compressed(wanted)}

        assert await found(diff_id) == set(made[:2])
        assert await found(diff_id, other) == set(made)
        assert await found(none) == set()

    async def test_a_damaged_blob_is_found_and_replaced(self, node: Node, damage: Damage) -> None:
        """Another size is found at once, other bytes if they are read; the bytes that replace it must match its
        digest.
        """
        data = blob()
        layer, other = described(data), bytes(len(data))
        await filled(node, data, kept="1")
        assert await node.trouble(layer, verify=True) == ""
        damage(layer.digest, data[:-1])
        assert str(len(data) - 1) in await node.trouble(layer, verify=False)
        damage(layer.digest, other)
        assert await node.trouble(layer, verify=True)
        with pytest.raises(errors.FailedPrecondition):
            await node.replace(layer, pieces(other))
        assert await node.trouble(layer, verify=True)
        await node.replace(layer, pieces(data))
        assert await node.trouble(layer, verify=True) == ""
        assert await read(node, layer.digest) == data
        assert dict((await node.info(layer.digest)).labels) == {"kept": "1"}

    async def test_an_image_is_created_or_replaced(self, node: Node) -> None:
        """The error for an unknown image names it."""
        name = f"example.com/{digest_of(blob())[7:20]}:1"
        with pytest.raises(errors.NotFound, match=f'^image "{name}": not found$'):
            await node.image(name)
        one, two = (described(json.dumps({"n": number}).encode(), media_types.MANIFEST) for number in range(2))
        for target, labels in ((one, {"a": "1"}), (two, {"b": "2"})):
            image = Image(name, target, labels)
            stored = await node.store(image)
            assert (stored.name, stored.target.digest, dict(stored.labels)) == (name, target.digest, labels)
            assert await node.image(name) == stored

    async def test_a_snapshotter_is_the_one_of_its_name(self, node: Node) -> None:
        """A snapshot of one snapshotter does not exist in another."""
        key = digest_of(blob())[7:20]
        await node.snapshotter("native").prepare(key, "", {"containerd.io/gc.root": "test"})
        assert (await node.snapshotter("native").stat(key)).name == key
        with pytest.raises(errors.NotFound, match=key):
            await node.snapshotter("overlayfs").stat(key)
        await node.snapshotter("native").remove(key)
