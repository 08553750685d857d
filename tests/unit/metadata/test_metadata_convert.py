"""What of the messages is remembered."""

from __future__ import annotations

from services.metadata import convert
from services.metadata.store import Image


def test_only_small_images_are_remembered() -> None:
    """How large a record is its client chooses: a thousand of a megabyte must not stay."""
    convert._image_to_pb.cache_clear()
    small = Image(name="small", digest="sha256:" + "a" * 64, media_type="x", size=1, labels={"a": "b"})
    for large in (Image(name="n" * 10_000, digest="d", media_type="x", size=1), Image(name="n", digest="d", media_type="x", size=1, labels={"l" * 5000: "v" * 5000}),
                  Image(name="n", digest="d", media_type="x", size=1, annotations={str(n): "v" * 100 for n in range(100)})):
        assert convert.image_to_pb(large).name == large.name
    assert convert.image_to_pb(small) is convert.image_to_pb(small)
    assert convert._image_to_pb.cache_info().currsize == 1
