"""containerd.services.version.v1: the version of this server. Each process serves it, since after an upgrade some may
still run the old version.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.version.v1 import version_pb2 as pb
from api.containerd.services.version.v1 import version_stubs
from services.kit import version
from services.kit.call import Call


class VersionServicer:
    """Answers the values of ``services.kit.version``; no namespace is needed."""

    SERVICE = version_stubs.VERSION

    async def Version(self, request: Empty, call: Call) -> pb.VersionResponse:
        """What ``ctr version`` shows below "Server"."""
        return pb.VersionResponse(version=version.VERSION, revision=version.revision())
