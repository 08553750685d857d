"""Manifests of old images whose config has the media type application/octet-stream: Docker pushed them so before 2016
(docker/distribution#1622).

A pull stores another manifest in place of such a one: in it the config has Docker's media type. The image then has the
digest of the new manifest. That is the same as in containerd, since the manifest is written as containerd writes it,
byte for byte. The layers of such an image can be unpacked, which containerd does not do. A manifest whose config is no
image's config stays unchanged. Indexes are not converted.
"""

from __future__ import annotations

from dataclasses import replace

from services.images.documents import manifests
from services.images.documents.blobs import children, config_of, written
from services.images.documents.parser_program import read
from services.images.transfer import Node
from services.kit import errors
from services.oci import media_types
from services.oci.descriptors import Descriptor

OCTET_STREAM = "application/octet-stream"


async def converted(node: Node, descriptor: Descriptor) -> Descriptor:
    """The manifest to use in place of ``descriptor``, whose blobs exist. It is the same one unless it is an image's
    manifest whose config has the media type of an octet stream.
    """
    if not media_types.is_manifest(descriptor.media_type):
        return descriptor
    config, *layers = await children(node, descriptor)
    if config.media_type != OCTET_STREAM or not await _is_config(node, config, len(layers)):
        return descriptor
    config = replace(config, media_type=media_types.DOCKER_CONFIG)
    data = await read(await node.document(descriptor), manifests.with_config, descriptor, config)
    made = await written(data, descriptor.media_type, node, manifests.reference_labels([config, *layers]))
    return replace(descriptor, digest=made.digest, size=made.size)


async def _is_config(node: Node, config: Descriptor, layers: int) -> bool:
    """Whether it is the config of an image with ``layers`` layers."""
    if config.size > manifests.DOCUMENT_LIMIT:
        return False
    try:
        return len((await config_of(node, config)).diff_ids) == layers
    except (errors.Unknown, errors.InvalidArgument):
        return False
