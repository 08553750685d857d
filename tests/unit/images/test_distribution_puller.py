"""Documents and layers of a pull, as those who wait for them see them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from services.images.concurrency.budget import Budget
from services.images.distribution.fetcher import Fetcher
from services.images.distribution.progress import Tracker
from services.images.distribution.puller import _FIRST, _Arriving, _Document, _Pull
from services.images.documents import manifests
from services.images.documents.graph import Graph
from services.images.layers.unpacker import Unpacker
from services.images.node.ingest import FileIngest, SharedIngest
from services.images.registry.client import Client
from services.images.transfer import ImageStore, Unpacking, UnpackModes, no_report
from services.kit import errors, tracing
from services.oci import media_types
from services.oci.descriptors import Descriptor
from services.oci.digests import chain_ids, digest_of
from services.oci.platforms import default
from services.oci.references import Reference
from tests.spans import attribute, recorded
from tests.support import eventually_async, turns
from tests.unit.images.memory_node import MemoryNode

LAYER = b"layer"
DIFF_IDS = [digest_of(b"unpacked")]
CONFIG = json.dumps(
    {**manifests.platform_to_json(default()), "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}}
).encode()


def embedded(media_type: str, data: bytes) -> dict[str, object]:
    """A descriptor that brings its blob."""
    return {
        "mediaType": media_type,
        "digest": digest_of(data),
        "size": len(data),
        "data": base64.b64encode(data).decode(),
    }


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": media_types.MANIFEST,
        "config": embedded(media_types.CONFIG, CONFIG),
        "layers": [embedded(f"{media_types.LAYER}+gzip", LAYER)],
    }
).encode()
ROOT = Descriptor(media_types.MANIFEST, digest_of(MANIFEST), len(MANIFEST))


class OneManifest:
    """The client of a registry that has one manifest, and nothing else."""

    async def manifest(self, _reference: Reference, _descriptor: Descriptor) -> bytes:
        return MANIFEST


class ManyLayers:
    """The client of a registry that has a manifest of ``count`` layers and one that it brings, and gives no other: it
    fails, or does not answer.
    """

    def __init__(self, count: int, failure: errors.NodeError | None = None) -> None:
        layers = [{"mediaType": media_types.LAYER, "digest": digest_of(b"%d" % n), "size": 1000} for n in range(count)]
        self.manifest_bytes = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": media_types.MANIFEST,
                "config": embedded(media_types.CONFIG, CONFIG),
                "layers": [embedded(media_types.LAYER, LAYER), *layers],
            }
        ).encode()
        self.root = Descriptor(media_types.MANIFEST, digest_of(self.manifest_bytes), len(self.manifest_bytes))
        self.failure = failure

    async def manifest(self, _reference: Reference, _descriptor: Descriptor) -> bytes:
        return self.manifest_bytes

    @contextlib.asynccontextmanager
    async def fetch(self, *_: object, **__: object) -> AsyncIterator[None]:
        if self.failure is not None:
            raise self.failure
        await asyncio.Event().wait()
        yield


class LateNode(MemoryNode):
    """A node whose disk takes long for the blobs ``late``: until it is ``let``, or fails."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.late = {ROOT.digest, digest_of(CONFIG)}
        self.begun: set[str] = set()
        self.let = asyncio.Event()
        self.fails = False

    @contextlib.asynccontextmanager
    async def ingest(self, descriptor: Descriptor) -> AsyncIterator[FileIngest]:
        self.begun.add(descriptor.digest)
        async with super().ingest(descriptor) as ingest:
            commit = ingest._commit

            async def later(labels: Mapping[str, str]) -> None:
                if descriptor.digest in self.late:
                    await self.let.wait()
                    if self.fails:
                        raise errors.Unavailable("the disk")
                await commit(labels)

            ingest._commit = later
            yield ingest


def fetch_onto(node: LateNode, client: ManyLayers) -> asyncio.Task[None]:
    """Fetch an image, and unpack nothing."""
    reference = Reference.parse("example.com/box:1")
    graph = Graph(node, ImageStore(str(reference)))
    pull = _Pull(Fetcher(Budget()), Unpacker(), cast(Client, client), reference, node, graph, (), verify=False)
    tracker = Tracker(str(reference), "downloading", no_report, pull.active, pull.done)
    return asyncio.ensure_future(pull.walk(client.root, tracker))


def pull_onto(node: LateNode) -> asyncio.Task[None]:
    node.how = UnpackModes(follows=True, side_by_side=True)
    node.diff_ids = {digest_of(LAYER): DIFF_IDS[0]}
    reference = Reference.parse("example.com/box:1")
    graph = Graph(node, ImageStore(str(reference)))
    wanted = (Unpacking(default(), "snap"),)
    pull = _Pull(
        Fetcher(Budget()), Unpacker(), cast(Client, OneManifest()), reference, node, graph, wanted, verify=False
    )
    tracker = Tracker(str(reference), "downloading", no_report, pull.active, pull.done)
    return asyncio.ensure_future(pull.walk(ROOT, tracker))


async def test_layers_are_unpacked_while_documents_are_written_to_the_disk(tmp_path: Path) -> None:
    """What a document says is known when its bytes are. Its labels are set when its blob is there."""
    node = LateNode(tmp_path)
    pulling = pull_onto(node)

    async def unpacked() -> bool:
        return list(node.snapshotter("snap").committed) == chain_ids(DIFF_IDS)

    await eventually_async(unpacked)
    await turns()
    assert set(node.blobs) == {digest_of(LAYER)}
    assert not pulling.done()
    node.let.set()
    await pulling
    assert set(node.blobs) == {ROOT.digest, digest_of(CONFIG), digest_of(LAYER)}
    assert set(node.labels[ROOT.digest].values()) >= {digest_of(CONFIG), digest_of(LAYER)}
    assert node.labels[digest_of(CONFIG)]["containerd.io/gc.ref.snapshot.snap"] == chain_ids(DIFF_IDS)[-1]


async def test_a_document_that_cannot_be_kept_fails_the_pull(tmp_path: Path) -> None:
    """However far the rest of the pull has come by then."""
    node = LateNode(tmp_path)
    node.fails = True
    pulling = pull_onto(node)
    await turns()
    node.let.set()
    with pytest.raises(errors.Unavailable, match="the disk"):
        await pulling
    assert ROOT.digest not in node.blobs


async def test_documents_of_a_pull_that_fails_become_blobs(tmp_path: Path) -> None:
    """Their ingests would stay for a day otherwise, to be resumed."""
    node = LateNode(tmp_path)
    pulling = pull_onto(node)
    node.diff_ids.clear()  # its layer cannot be unpacked
    await turns(100)
    assert not pulling.done()
    node.let.set()
    with pytest.raises(errors.NotFound):
        await pulling
    assert {ROOT.digest, digest_of(CONFIG)} <= set(node.blobs)


async def test_a_large_document_is_read_when_it_is_there(tmp_path: Path) -> None:
    """So it is not kept in memory."""
    large = Descriptor(media_types.MANIFEST, ROOT.digest, 2 << 20)
    document = _Document(large)
    reading = asyncio.ensure_future(document.readable())
    node = MemoryNode(tmp_path)
    async with node.ingest(ROOT) as ingest:
        document.arriving(ingest)
        async with ingest.lane(0) as lane:
            await lane.write(MANIFEST)
        await ingest.commit({})
    await turns()
    assert not reading.done()
    document.arrived()
    assert await reading == large


async def test_who_waits_for_bytes_says_who_brings_them() -> None:
    """The wait begins before the fetch does, and links to it all the same. A layer that is there is not waited for."""
    blobs = _Arriving(2, _Document(ROOT))

    async def unpack(number: int) -> None:
        with tracing.span("unpack.layer"):
            await blobs.begun(number)
            await blobs.there(number)

    async def commit(_: object) -> None:
        return

    with recorded() as spans:
        blobs.arrived(1)
        await unpack(1)
        assert not spans.named("wait.bytes")
        unpacking = asyncio.ensure_future(unpack(0))
        await turns()
        with tracing.span("images.layer"):
            blobs.arriving(0, SharedIngest(1, commit))
            blobs.arrived(0)
        await unpacking
        wait = spans.one("wait.bytes")
        assert attribute(wait, "splitd.wait.for") == "a layer that is arriving"
        assert spans.parent(wait).name == "unpack.layer"
        assert [each.name for each in spans.linked(wait)] == ["images.layer"]


async def test_few_blobs_are_begun_until_one_has_come(tmp_path: Path) -> None:
    """A document may name hundreds that its registry does not have. Once it has given one, all are begun at once."""
    node, client = LateNode(tmp_path), ManyLayers(100)
    node.late = {digest_of(LAYER)}
    pulling = fetch_onto(node, client)

    async def begun(count: int) -> bool:
        return len(node.begun) >= count

    try:
        await eventually_async(lambda: begun(1 + _FIRST))
        await turns(100)
        assert len(node.begun) == 1 + _FIRST  # the manifest was there before
        node.let.set()
        await eventually_async(lambda: begun(103))
    finally:
        pulling.cancel()
        await asyncio.wait((pulling,))


async def test_a_manifest_of_many_layers_is_not_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five hundred layers took 40 ms of the loop, in which nobody else was answered."""
    compared, equal = 0, Descriptor.__eq__

    def counted(one: Descriptor, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(one, other)

    monkeypatch.setattr(Descriptor, "__eq__", counted)
    node, client = LateNode(tmp_path), ManyLayers(499, errors.NotFound("the layer"))
    node.let.set()
    with pytest.raises(errors.NotFound, match="the layer"):
        await fetch_onto(node, client)
    assert compared < 2000
