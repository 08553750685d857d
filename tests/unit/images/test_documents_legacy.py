"""Old manifests, whose config is declared as an octet stream: they are converted as containerd does it, unless they are
no image's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.images.documents import manifests
from services.images.documents.legacy import OCTET_STREAM, converted
from services.oci import digests, media_types
from services.oci.descriptors import Descriptor
from tests.unit.images.memory_node import MemoryNode

LAYER = Descriptor(media_types.DOCKER_LAYER_GZIP, f"sha256:{'1' * 64}", 5)


@pytest.fixture
def node(tmp_path: Path) -> MemoryNode:
    return MemoryNode(tmp_path)


def put(node: MemoryNode, config: bytes, media_type: str = OCTET_STREAM, **more: Any) -> Descriptor:
    """Store a manifest of one layer."""
    named = {"mediaType": media_type, "digest": node.put(config), "size": len(config)}
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_types.DOCKER_MANIFEST,
            "config": named,
            "layers": [manifests.descriptor_to_json(LAYER)],
            **more,
        }
    ).encode()
    return Descriptor(media_types.DOCKER_MANIFEST, node.put(data), len(data))


CONFIG = json.dumps(
    {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}}
).encode()


async def test_the_config_becomes_dockers(node: MemoryNode) -> None:
    """Fields are in Go's order, with three spaces for each level and without unknown ones; the manifest is labelled, so
    that its config and layers are kept.
    """
    made = await converted(node, put(node, CONFIG, unknown=1, annotations={"b": "<", "a": "1"}))
    digest = digests.digest_of(CONFIG)
    assert (
        node.blobs[made.digest].decode()
        == f"""{{
   "schemaVersion": 2,
   "mediaType": "{media_types.DOCKER_MANIFEST}",
   "config": {{
      "mediaType": "{media_types.DOCKER_CONFIG}",
      "digest": "{digest}",
      "size": {len(CONFIG)}
   }},
   "layers": [
      {{
         "mediaType": "{LAYER.media_type}",
         "digest": "{LAYER.digest}",
         "size": 5
      }}
   ],
   "annotations": {{
      "a": "1",
      "b": "\\u003c"
   }}
}}"""
    )
    assert made == Descriptor(media_types.DOCKER_MANIFEST, made.digest, len(node.blobs[made.digest]))
    assert node.labels[made.digest] == {
        "containerd.io/gc.ref.content.config": digest,
        "containerd.io/gc.ref.content.l.0": LAYER.digest,
    }
    assert await converted(node, made) == made


@pytest.mark.parametrize(
    ("config", "media_type"),
    [
        (CONFIG, media_types.CONFIG),
        (b"\x00not json", OCTET_STREAM),
        (b"{}", OCTET_STREAM),
        (b"[]", OCTET_STREAM),
        (CONFIG.replace(b'"sha256:x"', b'"a", "b"'), OCTET_STREAM),
    ],
)
async def test_a_manifest_of_no_old_image_stays(node: MemoryNode, config: bytes, media_type: str) -> None:
    """Current images and artifacts with any config are not converted."""
    manifest = put(node, config, media_type)
    assert await converted(node, manifest) == manifest
    assert len(node.blobs) == 2


async def test_an_index_stays(node: MemoryNode) -> None:
    """An index is not converted, as in containerd, whatever it has."""
    index = Descriptor(media_types.INDEX, node.put(b"{}"), 2)
    assert await converted(node, index) == index
