"""Descriptors, and the media types that an image is made of.

Two families are the same thing by other names: OCI's and Docker's schema 2. Docker's schema 1 is refused, as containerd does since 2.0: it cannot be verified by
its digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.oci.digests import Digest
from services.oci.media_types import DOCKER_SCHEMA_1

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA_1 = (DOCKER_SCHEMA_1, "application/vnd.docker.distribution.manifest.v1+prettyjws")

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
ROOTS = MANIFESTS | INDEXES
"""What a name can resolve to, and what lives under ``manifests/`` in a registry."""

ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"
"""The Accept header for a name, in containerd's order."""

MANIFEST_LIMIT = 4 << 20
"""The largest manifest that is taken. One of 128 layers has 32 KiB; what is large belongs into blobs, and a registry must not fill our memory."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob or manifest: its digest, what it is, and its size (0: not known). ``urls`` are other places of a foreign layer."""

    digest: Digest
    media_type: str
    size: int = 0
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def is_root(self) -> bool:
        """Whether this is a manifest or an index, and lives under ``manifests/``."""
        return self.media_type in ROOTS

    @property
    def is_foreign(self) -> bool:
        """Whether the registry need not have this layer, since it may not distribute it."""
        return ".foreign." in self.media_type or ".nondistributable." in self.media_type

    def __str__(self) -> str:
        return f"{'manifest' if self.is_root else 'blob'} {self.digest}"


def media_type_of(content_type: str) -> str:
    """The media type in a Content-Type header."""
    return content_type.partition(";")[0].strip()


def why_no_root(media_type: str) -> str:
    """Why something of this media type is not an image's manifest or index; "" if it may be one."""
    if media_type in SCHEMA_1:
        return f"is an image of Docker's schema 1, which nobody supports any more; rebuild it as {DOCKER_MANIFEST} or {OCI_MANIFEST}"
    return "" if media_type in ROOTS else f'has the media type "{media_type}", which is neither an image manifest nor an index'
