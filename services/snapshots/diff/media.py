"""Layer media types: which may be unpacked and how, which can be made; and the label that says what is in a
compressed one.
"""

from __future__ import annotations

from services.kit import errors
from services.oci.media_types import DOCKER_LAYERS, LAYER, LAYER_GZIP, LAYER_NON_DISTRIBUTABLE, LAYER_ZSTD

UNCOMPRESSED = "containerd.io/uncompressed"
"""Label of a layer's blob: its diff id, the digest of what it is without compression."""

_OCI = frozenset((LAYER, LAYER_NON_DISTRIBUTABLE))

MADE = {LAYER: "plain", LAYER_GZIP: "gzip", LAYER_ZSTD: "zstd"}
"""What Diff makes, and how its worker calls that."""


def may_be_compressed(media_type: str) -> bool:
    """Whether a layer of this type is to be inflated, if its bytes look compressed; Unknown for what is no layer, in
    containerd's words.

    OCI's types say it by their last suffix, in alphabetical order as containerd takes them; Docker's plain type is not
    believed. A Docker type with a suffix is taken as it is.
    """
    base, *suffixes = media_type.split("+")
    if base in _OCI:
        if "encrypted" in suffixes:
            raise errors.Unimplemented(f"failed to get stream processor for {media_type}: decryption of layers")
        return bool(suffixes) and max(suffixes) in ("gzip", "zstd")
    if base in DOCKER_LAYERS:
        return not suffixes
    raise errors.Unknown(f"failed to get stream processor for {media_type}: no processor for media-type")


def compression_of(media_type: str) -> str:
    """How to compress a layer of the type asked for; Unimplemented for others than OCI's, as in containerd."""
    if media_type not in MADE:
        raise errors.Unimplemented(f"unsupported diff media type: {media_type}")
    return MADE[media_type]
