"""The media types that are asked for, and accepted, as the target of a name."""

from __future__ import annotations

from services.oci.media_types import DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST, SCHEMA_1, is_root

ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_INDEX}, {MANIFEST}, {INDEX}, */*"
"""The Accept header for a name, in containerd's order."""


def media_type_of(content_type: str) -> str:
    """The media type in a Content-Type header."""
    return content_type.partition(";")[0].strip()


def why_no_root(media_type: str) -> str:
    """Why something of this media type is no image manifest or index; "" if it may be one."""
    if media_type in SCHEMA_1:
        return (
            f"is an image of Docker's schema 1, which nobody supports any more; rebuild it as {DOCKER_MANIFEST} or "
            f"{MANIFEST}"
        )
    return (
        ""
        if is_root(media_type)
        else f'has the media type "{media_type}", which is neither an image manifest nor an index'
    )
