"""Walks through the documents of an image: their labels and their limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.images.documents import manifests
from services.images.documents.blobs import children, config_of
from services.images.documents.graph import DEPTH, Graph, Walk
from services.images.documents.limits import LAYERS
from services.images.documents.manifests import REFERENCES
from services.images.transfer import ImageStore
from services.kit import errors
from services.oci import media_types
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from services.oci.platforms import Platform
from tests.unit.images.memory_node import MemoryNode

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
D = digest_of(b"anything")


@pytest.fixture
def node(tmp_path: Path) -> MemoryNode:
    return MemoryNode(tmp_path)


def stored(node: MemoryNode, media_type: str, document: Any) -> Descriptor:
    data = json.dumps(document).encode()
    return Descriptor(media_type, node.put(data), len(data))


def index(node: MemoryNode, entries: Sequence[Descriptor]) -> Descriptor:
    return stored(node, media_types.INDEX, {"manifests": [manifests.descriptor_to_json(entry) for entry in entries]})


def manifest(node: MemoryNode, layers: int) -> Descriptor:
    return stored(
        node,
        media_types.MANIFEST,
        {
            "config": {"mediaType": media_types.CONFIG, "digest": D, "size": 1},
            "layers": [{"mediaType": LAYER, "digest": D, "size": 1}] * layers,
        },
    )


async def walked(walk: Walk, root: Descriptor) -> int:
    """Return how many documents below ``root`` a recursion meets, as in a pull."""
    if not walk.first(root):
        return 0
    children = await walk.children(root)
    walk.follow(root, children)
    return 1 + sum([await walked(walk, child) for child in children if media_types.is_index(child.media_type)])


async def test_indexes_in_indexes_have_an_end(node: MemoryNode) -> None:
    """Walks recurse, so their depth is limited. The error names the first document that is too deep."""
    at = index(node, ())
    chain = [at]
    for _ in range(DEPTH + 1):
        chain.append(at := index(node, (at,)))
    assert await walked(Walk(node), chain[-2]) == DEPTH + 1
    with pytest.raises(errors.ResourceExhausted, match=f"{chain[0].digest} is in {DEPTH + 1} indexes"):
        await walked(Walk(node), chain[-1])


async def test_the_longest_way_counts(node: MemoryNode) -> None:
    """A document that is both near the top and far below it counts as far below."""
    at = bottom = index(node, ())
    for _ in range(DEPTH):
        at = index(node, (at,))
    with pytest.raises(errors.ResourceExhausted, match=bottom.digest):
        await walked(Walk(node), index(node, (bottom, at)))


async def test_references_are_counted_as_often_as_they_are_met(node: MemoryNode) -> None:
    """Thirty indexes that name the next one twice have a thousand million ways."""
    at = index(node, ())
    for _ in range(DEPTH - 2):
        at = index(node, (at, at))
    with pytest.raises(errors.ResourceExhausted) as caught:
        await walked(Walk(node), at)
    assert str(caught.value) == f"too many descriptors (limit {REFERENCES}): resource exhausted"


async def test_a_document_met_again_is_not_read_again(node: MemoryNode) -> None:
    """Twelve indexes that name the next one twice are 8,190 references, but only twelve documents to read and to label:
    a read at each reference would take a minute of calls.
    """
    at = index(node, ())
    for _ in range(12):
        at = index(node, (at, at))
    assert await walked(Walk(node), at) == 13
    with pytest.raises(errors.ResourceExhausted, match="too many descriptors"):
        await walked(Walk(node), index(node, (at, at)))


async def test_descriptors_count_on_each_way_to_them(node: MemoryNode) -> None:
    """A walk of several branches at once may have reached the bottom before it meets the bottom again."""
    bottom = index(node, [Descriptor(media_types.MANIFEST, D, n + 1) for n in range(REFERENCES // 2)])
    middle = index(node, (bottom,))
    walk = Walk(node)
    for each in (index(node, (bottom, middle)), bottom):
        walk.follow(each, await walk.children(each))
    with pytest.raises(errors.ResourceExhausted, match="too many descriptors"):
        walk.follow(middle, await walk.children(middle))


async def test_the_same_document_for_another_platform_is_another_walk(node: MemoryNode) -> None:
    """The platform in its descriptor decides which of its children are wanted."""
    at = manifest(node, 1)
    walk = Walk(node)
    assert walk.first(at)
    assert not walk.first(at.annotated({"a": "b"}))
    for other in (
        replace(at, platform=Platform("linux", "s390x")),
        replace(at, media_type=media_types.INDEX),
        replace(at, size=1),
    ):
        assert walk.first(other)


async def test_only_wanted_descriptors_count(node: MemoryNode) -> None:
    """This is as in containerd, which counts the children of an index that are left for the pulled platforms."""
    entries = [
        Descriptor(media_types.MANIFEST, D, 1, platform=Platform("linux", "amd64" if n % 2 else "s390x"))
        for n in range(REFERENCES)
    ]
    graph, descriptor = (
        Graph(node, ImageStore(platforms=(Platform("linux", "amd64"),))),
        Descriptor(media_types.INDEX, node.put(b"{}"), 2),
    )
    assert len(await graph.wanted(descriptor, entries)) == REFERENCES // 2
    with pytest.raises(errors.ResourceExhausted, match="too many descriptors"):
        await graph.wanted(descriptor, entries)


async def test_an_image_has_a_number_of_layers(node: MemoryNode) -> None:
    """The setting ``layers`` limits it; nothing is labelled for an image that has more."""
    most, more = manifest(node, LAYERS), manifest(node, LAYERS + 1)
    assert len(await Graph(node, ImageStore()).all_children(most)) == LAYERS + 1
    with pytest.raises(errors.ResourceExhausted) as caught:
        await Graph(node, ImageStore()).all_children(more)
    assert str(caught.value) == f"manifest {more.digest} has {LAYERS + 1} layers (limit {LAYERS}): resource exhausted"
    assert not node.labels[more.digest]
    assert await Graph(node, ImageStore(), LAYERS + 1).all_children(more)


async def test_a_malformed_child_is_refused_before_a_label_is_written(node: MemoryNode) -> None:
    """This includes a child that is not wanted, or that is said to be a referrer, whose label is cut from its digest
    (containerd 2.4.2).
    """
    for digest in ("sha256:12", "x", "sha256:" + "g" * 64):
        bad = index(
            node,
            (
                Descriptor(media_types.MANIFEST, D, 1),
                Descriptor(media_types.MANIFEST, digest, 1, {manifests.SUBJECT: D}, Platform("plan9", "mips")),
            ),
        )
        with pytest.raises(errors.InvalidArgument, match=f'index {bad.digest}: "{digest}": invalid checksum digest'):
            await Graph(node, ImageStore(platforms=(Platform("linux", "amd64"),))).all_children(bad)
        assert not node.labels[bad.digest]


async def test_large_documents_are_read_in_a_thread(node: MemoryNode) -> None:
    """The results and the errors are the same."""
    entries = [Descriptor(media_types.MANIFEST, D, n) for n in range(1000)]
    large = index(node, entries)
    assert await children(node, large) == entries
    assert await children(node, Descriptor(LAYER, D, 1)) == []
    config = stored(node, media_types.CONFIG, {"os": ["x" * 100_000]})
    with pytest.raises(errors.Unknown, match=f"unmarshal image config {config.digest}: os: a list instead of a string"):
        await config_of(node, config)
