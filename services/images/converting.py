"""Manifests of old images, whose config has the media type application/octet-stream: Docker pushed it so before 2016 (docker/distribution#1622).

A pull stores another manifest in place of such a one, in which the config is said to be Docker's. By its digest the image is then known, the same as containerd's: it is written as
containerd writes it, byte for byte. Its layers can be unpacked, which containerd leaves undone. What is no image's config stays what it is. Indexes are not converted.
"""

from __future__ import annotations

from dataclasses import replace

from services.images import oci
from services.images.documents import written
from services.images.oci import Config, Descriptor
from services.images.transfer import Node
from services.kit import errors

OCTET_STREAM = "application/octet-stream"


async def converted(node: Node, descriptor: Descriptor) -> Descriptor:
    """The manifest to use in place of ``descriptor``, whose blobs are there; itself unless it is an image's manifest whose config is said to be an octet stream."""
    if not oci.is_manifest(descriptor.media_type):
        return descriptor
    what = f"manifest {descriptor.digest}"
    document = await node.document(descriptor)
    config, *layers = oci.children_in(document, descriptor)
    if config.media_type != OCTET_STREAM or not await _is_config(node, config, len(layers)):
        return descriptor
    found, config = oci.decoded(document, what), replace(config, media_type=oci.DOCKER_CONFIG)
    data = oci.encoded({
        "schemaVersion": found.get("schemaVersion", 0),
        **{key: found[key] for key in ("mediaType", "artifactType") if found.get(key)},
        "config": oci.descriptor_to_json(config),
        "layers": [oci.descriptor_to_json(layer) for layer in layers],
        **({"subject": oci.descriptor_to_json(oci.descriptor_from_json(found["subject"], what))} if found.get("subject") else {}),
        **({"annotations": dict(sorted(found["annotations"].items()))} if found.get("annotations") else {}),
    }, indent=3)
    made = await written(data, descriptor.media_type, node, oci.reference_labels([config, *layers]))
    return replace(descriptor, digest=made.digest, size=made.size)


async def _is_config(node: Node, config: Descriptor, layers: int) -> bool:
    """Whether it is the config of an image of so many layers."""
    if config.size > oci.DOCUMENT_LIMIT:
        return False
    try:
        return len(Config.parse(await node.document(config), config.digest).diff_ids) == layers
    except errors.Unknown:
        return False
