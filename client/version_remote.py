"""Asks a node for its version."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import empty_pb2

from api.containerd.services.version.v1 import version_stubs
from services.kit.rpc import Channel

SERVICE = version_stubs.VERSION


@dataclass(frozen=True, slots=True)
class Version:
    """``2.4.0+splitd.0.2.0``, and the commit that it was made from, "" if that is not known."""

    version: str
    revision: str

    def __str__(self) -> str:
        return self.version + (f" (revision {self.revision})" if self.revision else "")


async def version_of(channel: Channel, seconds: float | None = None) -> Version:
    """The version of the node, or of the process, behind ``channel``; it must answer within ``seconds``."""
    found = await channel.client(SERVICE).Version(empty_pb2.Empty(), timeout=seconds)
    return Version(found.version, found.revision)
