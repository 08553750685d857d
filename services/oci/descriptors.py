"""Descriptors: the way in which OCI's documents, and containerd's messages, name a blob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from services.kit import errors
from services.oci.digests import Digest, digest_of
from services.oci.media_types import IN_TOTO, is_index, is_known_config, is_layer, is_manifest, is_root

if TYPE_CHECKING:
    from services.oci.platforms import Platform  # needed by few users of descriptors


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a document names it."""

    media_type: str
    digest: str
    """As in the document; :meth:`checked` returns one that is well formed."""
    size: int
    """Zero if a registry does not tell it."""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    """Other places of a layer that not everybody may serve."""
    data: bytes = b""
    """The blob itself, if its document embeds it."""
    artifact_type: str = ""

    def annotated(self, annotations: Mapping[str, str]) -> Descriptor:
        """The same descriptor with these annotations added."""
        return replace(self, annotations={**self.annotations, **annotations}) if annotations else self

    def checked(self) -> Digest:
        """The digest; InvalidArgument if it is not well formed."""
        try:
            return Digest.parse(self.digest)
        except ValueError as error:
            raise errors.InvalidArgument(f"digest {self.digest!r}: {error}") from None

    @property
    def is_root(self) -> bool:
        """Whether this is a manifest or an index. A name can resolve to these."""
        return is_root(self.media_type)

    @property
    def brought(self) -> bytes | None:
        """The blob, if its document embeds it."""
        return self.data if self.data and len(self.data) == self.size and digest_of(self.data) == self.digest else None

    @property
    def ref(self) -> str:
        """The name by which clients know the transfer of this blob: ``layer-sha256:...``."""
        named = self.annotations.get("org.opencontainers.image.ref.name")
        key = self.digest if named is None else f"{named}@{self.digest}"
        kinds = (
            ("manifest", is_manifest),
            ("index", is_index),
            ("layer", is_layer),
            ("config", is_known_config),
            ("attestation", lambda t: t == IN_TOTO),
        )
        return next((f"{kind}-{key}" for kind, test in kinds if test(self.media_type)), f"unknown-{key}")

    def __str__(self) -> str:
        return f"{'manifest' if self.is_root else 'blob'} {self.digest}"
