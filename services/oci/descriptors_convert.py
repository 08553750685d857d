"""Descriptors as containerd's messages and back."""

from __future__ import annotations

from api.containerd.types import descriptor_pb2
from services.oci.descriptors import Descriptor


def descriptor_to_pb(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    """Fields that containerd's message does not have are dropped."""
    return descriptor_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor_from_pb(message: descriptor_pb2.Descriptor) -> Descriptor:
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))
