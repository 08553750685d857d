"""Descriptors: how OCI's documents, and containerd's messages, name a blob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from services.kit import errors
from services.oci.digests import Digest, digest_of
from services.oci.media_types import IN_TOTO, is_index, is_known_config, is_layer, is_manifest, is_root

if TYPE_CHECKING:
    from services.oci.platforms import Platform  # which few need who have descriptors


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a document names it."""

    media_type: str
    digest: str
    """As the document has it; :meth:`checked` for one that is well formed."""
    size: int
    """Zero from a registry that does not say."""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    """Other places of a layer that its owner does not let everybody serve."""
    data: bytes = b""
    """The blob itself, where its document brings it along."""
    artifact_type: str = ""

    def annotated(self, annotations: Mapping[str, str]) -> Descriptor:
        """The same with these annotations too."""
        return replace(self, annotations={**self.annotations, **annotations}) if annotations else self

    def checked(self) -> Digest:
        """The digest; InvalidArgument if it is none."""
        try:
            return Digest.parse(self.digest)
        except ValueError as error:
            raise errors.InvalidArgument(f"digest {self.digest!r}: {error}") from None

    @property
    def is_root(self) -> bool:
        """Whether this is a manifest or an index, which a name can resolve to."""
        return is_root(self.media_type)

    @property
    def brought(self) -> bytes | None:
        """The blob, if its document brings it along."""
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
