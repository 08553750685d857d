"""Layer media types: which can be unpacked and how, and which can be made. Also the label with the diff id of a
compressed layer.
"""

from __future__ import annotations

from services.kit import errors
from services.oci.media_types import DOCKER_LAYERS, EROFS_LAYER, LAYER, LAYER_GZIP, LAYER_NON_DISTRIBUTABLE, LAYER_ZSTD

UNCOMPRESSED = "containerd.io/uncompressed"
"""Label of a layer's blob: its diff id, which is the digest of its uncompressed data."""

_OCI = frozenset((LAYER, LAYER_NON_DISTRIBUTABLE))

MADE = {LAYER: "plain", LAYER_GZIP: "gzip", LAYER_ZSTD: "zstd"}
"""The media types that Diff makes, and their names for the worker."""


def may_be_compressed(media_type: str) -> bool:
    """Whether a layer of this type is inflated if its bytes look compressed. Unknown, in containerd's words, for a type
    that is no layer.

    The suffixes of OCI's types decide; of several, containerd takes the last in alphabetical order. Docker's plain type
    is not trusted, so its bytes decide. A Docker type with a suffix is not inflated.
    """
    base, *suffixes = media_type.split("+")
    if base == EROFS_LAYER:
        if suffixes not in ([], ["zstd"]):
            raise errors.Unknown(f"unsupported erofs layer suffix: {'+'.join(suffixes)}")
        return bool(suffixes)
    if base in _OCI:
        if "encrypted" in suffixes:
            raise errors.Unimplemented(f"failed to get stream processor for {media_type}: decryption of layers")
        return bool(suffixes) and max(suffixes) in ("gzip", "zstd")
    if base in DOCKER_LAYERS:
        return not suffixes
    raise errors.Unknown(f"failed to get stream processor for {media_type}: no processor for media-type")


def is_image(media_type: str) -> bool:
    """Whether a layer of this type is no tar, but an EROFS image."""
    return media_type.partition("+")[0] == EROFS_LAYER


def compression_of(media_type: str) -> str:
    """The compression for a requested media type. Unimplemented for types other than OCI's, as in containerd."""
    if media_type not in MADE:
        raise errors.Unimplemented(f"unsupported diff media type: {media_type}")
    return MADE[media_type]
