"""The caches of converted messages."""

from __future__ import annotations

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1.leases_pb2 import Lease
from services.metadata import convert
from services.metadata.convert import Cached
from services.metadata.store import Container, Image
from services.oci.opaque import Opaque


def test_only_small_images_are_remembered() -> None:
    """Clients choose the size of a record: a thousand records of a megabyte each must not stay in memory."""
    small = Image(name="small", digest="sha256:" + "a" * 64, media_type="x", size=1, labels={"a": "b"})
    for large in (
        Image(name="n" * 10_000, digest="d", media_type="x", size=1),
        Image(name="n", digest="d", media_type="x", size=1, labels={"l" * 5000: "v" * 5000}),
        Image(name="n", digest="d", media_type="x", size=1, annotations={str(n): "v" * 100 for n in range(100)}),
    ):
        assert convert.image_answer(large) == convert.image_answer(large)
        assert convert.image_answer(large) is not convert.image_answer(large)
    assert convert.image_answer(small) is convert.image_answer(small)


def test_the_answer_of_one_image_is_a_part_of_a_list() -> None:
    """So one cached message of an image serves both."""
    images = [Image(name=name, digest="sha256:" + "a" * 64, media_type="x", size=1) for name in ("first", "second")]
    assert images_pb2.GetImageResponse.FromString(convert.image_answer(images[0])).image == convert.image_to_pb(
        images[0]
    )
    listed = images_pb2.ListImagesResponse.FromString(b"".join(map(convert.image_answer, images)))
    assert list(listed.images) == [convert.image_to_pb(image) for image in images]


def test_a_container_with_a_large_spec_is_not_remembered() -> None:
    """Clients may put megabytes into their specs."""
    small, large = (Container(id="c", spec=Opaque("spec", b"x" * size)) for size in (1000, 300 << 10))
    assert convert.container_answer(small) is convert.container_answer(small)
    assert convert.container_answer(large) == convert.container_answer(large)
    assert convert.container_answer(large) is not convert.container_answer(large)


def test_the_answer_of_one_container_is_a_part_of_a_list() -> None:
    """So one cached message of a container serves Get, List and ListStream."""
    found = [Container(id=name, spec=Opaque("spec", b"{}"), labels={"a": "b"}) for name in ("first", "second")]
    answers = [convert.container_answer(container) for container in found]
    assert containers_pb2.GetContainerResponse.FromString(answers[0]).container == convert.container_to_pb(found[0])
    assert containers_pb2.ListContainerMessage.FromString(answers[1]).container == convert.container_to_pb(found[1])
    listed = containers_pb2.ListContainersResponse.FromString(b"".join(answers))
    assert list(listed.containers) == [convert.container_to_pb(container) for container in found]


def test_the_oldest_are_forgotten() -> None:
    """The number of cached messages is bounded."""
    remembering = Cached[str, Lease](lambda name: Lease(id=name), 2, 100, Lease.ByteSize)
    first, second = remembering("first"), remembering("second")
    assert remembering("second") is second
    assert remembering("first") is first
    remembering("third")
    assert len(remembering) == 2
    assert remembering("second") is second
    assert remembering("first") is not first
