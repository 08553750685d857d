"""OCI's words as containerd's protobuf messages and back."""

from __future__ import annotations

from collections.abc import Iterable

from api.containerd.types import descriptor_pb2, mount_pb2, platform_pb2
from services.oci.descriptors import Descriptor
from services.oci.mounts import Mount
from services.oci.platforms import Platform


def descriptor_to_pb(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    """Of what containerd's has no field for, nothing goes."""
    return descriptor_pb2.Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size, annotations=descriptor.annotations)


def descriptor_from_pb(message: descriptor_pb2.Descriptor) -> Descriptor:
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))


def platform_to_pb(platform: Platform) -> platform_pb2.Platform:
    return platform_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant, os_version=platform.os_version,
                                 os_features=platform.os_features)


def platform_from_pb(message: platform_pb2.Platform) -> Platform:
    return Platform(message.os, message.architecture, message.variant, message.os_version, tuple(message.os_features))


def mounts_to_pb(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


def mounts_from_pb(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [Mount(m.type, m.source, tuple(m.options), m.target) for m in messages]
