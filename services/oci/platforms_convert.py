"""Platforms as containerd's messages and back."""

from __future__ import annotations

from api.containerd.types import platform_pb2
from services.oci.platforms import Platform


def platform_to_pb(platform: Platform) -> platform_pb2.Platform:
    return platform_pb2.Platform(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def platform_from_pb(message: platform_pb2.Platform) -> Platform:
    return Platform(message.os, message.architecture, message.variant, message.os_version, tuple(message.os_features))
