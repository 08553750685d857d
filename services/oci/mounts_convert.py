"""Mounts as containerd's messages and back."""

from __future__ import annotations

from collections.abc import Iterable

from api.containerd.types import mount_pb2
from services.oci.mounts import Mount


def mounts_to_pb(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


def mounts_from_pb(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [Mount(m.type, m.source, tuple(m.options), m.target) for m in messages]
