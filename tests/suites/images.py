"""The suite of containerd.services.images.v1.Images. It runs on the images process, on the gateway, and on containerd
itself.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from api.containerd.events import image_pb2
from api.containerd.services.images.v1 import images_pb2 as pb
from api.containerd.services.images.v1 import images_stubs
from api.containerd.types.descriptor_pb2 import Descriptor
from services.kit import errors
from services.kit.any import unpack
from services.kit.rpc import NAMESPACE, Channel
from tests.suites.events import EVENTS, subscribed

IMAGES = images_stubs.IMAGES
_numbers = itertools.count()


def descriptor(what: str = "x", **more: Any) -> Descriptor:
    """The descriptor of a manifest that need not exist."""
    digest = "sha256:" + hashlib.sha256(what.encode()).hexdigest()
    return Descriptor(
        **{"media_type": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7, **more}
    )


class Images:
    """The service as a client of one namespace."""

    def __init__(self, channel: Channel, namespace: str) -> None:
        self._client = channel.client(IMAGES)
        self.namespace = namespace
        self._headers = {NAMESPACE: namespace}

    async def create(self, image: pb.Image, **more: Any) -> pb.Image:
        return (await self._client.Create(pb.CreateImageRequest(image=image, **more), headers=self._headers)).image

    async def get(self, name: str) -> pb.Image:
        return (await self._client.Get(pb.GetImageRequest(name=name), headers=self._headers)).image

    async def names(self, *filters: str) -> list[str]:
        return [
            i.name
            for i in (await self._client.List(pb.ListImagesRequest(filters=filters), headers=self._headers)).images
        ]

    async def update(self, image: pb.Image, *paths: str, **more: Any) -> pb.Image:
        request = pb.UpdateImageRequest(image=image, **more)
        request.update_mask.paths.extend(paths)
        return (await self._client.Update(request, headers=self._headers)).image

    async def delete(self, name: str, **more: Any) -> None:
        await self._client.Delete(pb.DeleteImageRequest(name=name, **more), headers=self._headers)


class ImagesSuite:
    """A subclass has the fixtures ``channel``, to a process that serves Images, and ``publisher``, to one that serves
    Events.
    """

    @pytest.fixture
    def images(self, channel: Channel) -> Images:
        """The images of a namespace that only this test uses."""
        return Images(channel, f"images-{next(_numbers)}")

    async def test_a_created_image_is_there(self, images: Images) -> None:
        """It has its labels and its target; the times are the server's, whatever the client sends."""
        before = time.time()
        image = pb.Image(name="docker.io/library/x:1", labels={"team": "a"}, target=descriptor())
        image.created_at.FromSeconds(5)
        created = await images.create(image)
        assert (created.name, dict(created.labels), created.target) == (image.name, {"team": "a"}, image.target)
        assert before <= created.created_at.ToNanoseconds() / 1e9 <= time.time()
        assert created.updated_at == created.created_at
        assert await images.get(image.name) == created

    async def test_images_belong_to_a_namespace(self, images: Images, channel: Channel) -> None:
        """The same name in another namespace is another image."""
        other = Images(channel, images.namespace + "-other")
        await images.create(pb.Image(name="x", target=descriptor("a")))
        with pytest.raises(errors.NotFound):
            await other.get("x")
        await other.create(pb.Image(name="x", target=descriptor("b")))
        assert (await images.get("x")).target.digest != (await other.get("x")).target.digest
        await images.delete("x")
        assert await other.names() == ["x"]

    async def test_a_name_is_taken_once(self, images: Images) -> None:
        """The second Create changes nothing."""
        await images.create(pb.Image(name="x", target=descriptor("a")))
        with pytest.raises(errors.AlreadyExists) as raised:
            await images.create(pb.Image(name="x", target=descriptor("b")))
        assert str(raised.value) == 'image "x": already exists'
        assert (await images.get("x")).target == descriptor("a")

    async def test_an_unknown_image_is_not_found(self, images: Images) -> None:
        """Get, Update and Delete answer NOT_FOUND in containerd's words, in an existing and in an unknown namespace."""
        for _ in range(2):
            for call in (images.get("x"), images.update(pb.Image(name="x", target=descriptor())), images.delete("x")):
                with pytest.raises(errors.NotFound) as raised:
                    await call
                assert str(raised.value) == 'image "x": not found'
            await images.create(pb.Image(name="y", target=descriptor()))
            await images.delete("y")

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (pb.Image(target=descriptor()), "Image.Name required"),
            (
                pb.Image(name="x", target=descriptor(digest="sha256:12")),
                'target.Digest "sha256:12" invalid: invalid checksum digest length: invalid argument',
            ),
            (
                pb.Image(name="x", target=descriptor(digest="")),
                'target.Digest "" invalid: invalid checksum digest format: invalid argument',
            ),
            (
                pb.Image(name="x", target=descriptor(digest="odd:" + "a" * 64)),
                f'target.Digest "odd:{"a" * 64}" invalid: unsupported digest algorithm: invalid argument',
            ),
            (pb.Image(name="x", target=descriptor(size=0)), "target.Size must be greater than zero: invalid argument"),
            (pb.Image(name="x", target=descriptor(media_type="")), "target.MediaType must be set: invalid argument"),
        ],
    )
    async def test_images_are_checked(self, images: Images, image: pb.Image, message: str) -> None:
        """Create and Update check them; the words are those of containerd 2.4 (before it, "Target" had a capital)."""
        words = f"(?i:{re.escape(message[:1])}){re.escape(message[1:])}$"
        with pytest.raises(errors.InvalidArgument, match=words):
            await images.create(image)
        await images.create(pb.Image(name="x", target=descriptor()))
        with pytest.raises(errors.InvalidArgument, match=words):
            await images.update(image)

    async def test_labels_are_limited(self, images: Images) -> None:
        """Key and value together may have 4096 bytes."""
        await images.create(pb.Image(name="fits", labels={"k": "v" * 4095}, target=descriptor()))
        with pytest.raises(
            errors.InvalidArgument, match=r"label key and value .*greater than maximum size \(4096 bytes\)"
        ):
            await images.create(pb.Image(name="x", labels={"k": "v" * 4096}, target=descriptor()))
        assert await images.names() == ["fits"]

    @pytest.mark.parametrize(
        ("filters", "wanted"),
        [
            ([], ["a:1", "b:1", "c:1"]),
            (["name==b:1"], ["b:1"]),
            (["name~=^[ab]"], ["a:1", "b:1"]),
            (["labels.team"], ["a:1", "b:1"]),
            (["labels.team==x", "name==c:1"], ["a:1", "c:1"]),
            (["labels.team==x,name==c:1"], []),
            (['labels."io.odd/key"==1'], ["b:1"]),
            ([f"target.digest=={descriptor('b').digest}"], ["b:1"]),
            (["target.mediatype~=index"], ["c:1"]),
            (["nosuch"], []),
        ],
    )
    async def test_list_filters(self, images: Images, filters: list[str], wanted: list[str]) -> None:
        """Filters select by name, labels, and the target's digest and media type."""
        await images.create(pb.Image(name="a:1", labels={"team": "x"}, target=descriptor("a")))
        await images.create(pb.Image(name="b:1", labels={"team": "y", "io.odd/key": "1"}, target=descriptor("b")))
        await images.create(
            pb.Image(name="c:1", target=descriptor("c", media_type="application/vnd.oci.image.index.v1+json"))
        )
        assert await images.names(*filters) == wanted

    async def test_a_bad_filter_is_an_invalid_argument(self, images: Images) -> None:
        """The message shows where it is malformed."""
        with pytest.raises(errors.InvalidArgument, match="parse error"):
            await images.names("name===")

    async def test_update_without_a_mask_replaces_all_but_the_creation_time(self, images: Images) -> None:
        """Labels that the update does not name are gone."""
        created = await images.create(pb.Image(name="x", labels={"a": "1"}, target=descriptor("a")))
        updated = await images.update(pb.Image(name="x", labels={"b": "2"}, target=descriptor("b")))
        assert (dict(updated.labels), updated.target) == ({"b": "2"}, descriptor("b"))
        assert updated.created_at == created.created_at
        assert updated.updated_at.ToNanoseconds() > created.updated_at.ToNanoseconds()
        assert await images.get("x") == updated

    @pytest.mark.parametrize(
        ("paths", "labels", "target"),
        [
            (["labels"], {"new": "1", "b": "9"}, "old"),
            (["labels.new"], {"a": "1", "b": "2", "new": "1"}, "old"),
            (["labels.b", "target"], {"a": "1", "b": "9"}, "new"),
            (["target"], {"a": "1", "b": "2"}, "new"),
            (["labels.a"], {"b": "2"}, "old"),
        ],
    )
    async def test_update_with_a_mask_changes_the_named_fields(
        self, images: Images, paths: list[str], labels: dict[str, str], target: str
    ) -> None:
        """One label, all labels, or the whole target change; a label that is named but not given is removed."""
        await images.create(pb.Image(name="x", labels={"a": "1", "b": "2"}, target=descriptor("old")))
        await images.update(pb.Image(name="x", labels={"new": "1", "b": "9"}, target=descriptor("new")), *paths)
        found = await images.get("x")
        assert ({k: v for k, v in found.labels.items() if v}, found.target) == (labels, descriptor(target))

    async def test_other_fields_cannot_be_updated(self, images: Images) -> None:
        """A mask may not name the creation time; nothing changes."""
        before = await images.create(pb.Image(name="x", target=descriptor()))
        with pytest.raises(errors.InvalidArgument) as raised:
            await images.update(pb.Image(name="x", target=descriptor("b")), "target", "created_at")
        assert str(raised.value) == 'cannot update "created_at" field on image "x": invalid argument'
        assert await images.get("x") == before

    async def test_a_namespace_is_required(self, channel: Channel) -> None:
        """Every method requires one."""
        client = channel.client(IMAGES)
        image = pb.Image(name="x", target=descriptor())
        for call in (
            client.Get(pb.GetImageRequest(name="x")),
            client.List(pb.ListImagesRequest()),
            client.Create(pb.CreateImageRequest(image=image)),
            client.Update(pb.UpdateImageRequest(image=image)),
            client.Delete(pb.DeleteImageRequest(name="x")),
        ):
            with pytest.raises(errors.FailedPrecondition, match="^namespace is required: failed precondition$"):
                await call

    async def test_changes_are_published(self, images: Images, publisher: Channel) -> None:
        """Each event comes after its change and in order, with name and labels; a refused change has no event."""
        async with subscribed(publisher.client(EVENTS), f"namespace=={images.namespace}") as subscriber:
            await images.create(pb.Image(name="x", labels={"a": "1"}, target=descriptor()))
            with pytest.raises(errors.AlreadyExists):
                await images.create(pb.Image(name="x", target=descriptor()))
            await images.update(pb.Image(name="x", labels={"b": "2"}, target=descriptor()), "labels.b")
            await images.delete("x")
            found: list[Any] = []
            deadline = time.monotonic() + 10
            while len(found) < 3 and time.monotonic() < deadline:
                found += await subscriber.seen()
        wanted = [
            ("/images/create", image_pb2.ImageCreate(name="x", labels={"a": "1"})),
            ("/images/update", image_pb2.ImageUpdate(name="x", labels={"a": "1", "b": "2"})),
            ("/images/delete", image_pb2.ImageDelete(name="x")),
        ]
        assert [(e.topic, unpack(e.event, type(w))) for e, (_, w) in zip(found, wanted, strict=True)] == wanted

    async def test_a_synchronous_delete_answers_after_a_collection(self, images: Images) -> None:
        """The image is gone by then."""
        await images.create(pb.Image(name="x", target=descriptor()))
        await images.delete("x", sync=True)
        assert await images.names() == []
        with pytest.raises(errors.NotFound):
            await images.delete("x", sync=True)

    async def test_a_lasting_image_of_many(self, images: Images) -> None:
        """A hundred images come back in the order of their names."""
        for n in range(100):
            await images.create(pb.Image(name=f"i{n:03}", target=descriptor(str(n))))
        assert await images.names() == [f"i{n:03}" for n in range(100)]


class NodeImagesSuite(ImagesSuite):
    """Features that containerd has from 2.x on."""

    async def test_delete_with_a_target_deletes_only_that(self, images: Images) -> None:
        """An image that was moved meanwhile stays."""
        await images.create(pb.Image(name="x", target=descriptor("a")))
        with pytest.raises(errors.NotFound) as raised:
            await images.delete("x", target=descriptor("b"))
        assert (
            str(raised.value)
            == f'image "x" has target {descriptor("a").digest}, not {descriptor("b").digest}: not found'
        )
        await images.delete("x", target=descriptor("a"))
        assert await images.names() == []

    async def test_times_may_be_those_of_the_source(self, images: Images) -> None:
        """source_date_epoch replaces the current time, for reproducible builds."""
        created = await images.create(
            pb.Image(name="x", target=descriptor()), source_date_epoch=Timestamp(seconds=1000)
        )
        assert (created.created_at.seconds, created.updated_at.seconds) == (1000, 1000)
        updated = await images.update(
            pb.Image(name="x", target=descriptor()), source_date_epoch=Timestamp(seconds=2000)
        )
        assert (updated.created_at.seconds, updated.updated_at.seconds) == (1000, 2000)

    async def test_annotations_of_the_target_are_kept_and_updated(self, images: Images) -> None:
        """They can be updated one by one, or all."""
        await images.create(pb.Image(name="x", target=descriptor(annotations={"a": "1", "b": "2"})))
        await images.update(pb.Image(name="x", target=descriptor(annotations={"b": "3"})), "annotations.b")
        assert dict((await images.get("x")).target.annotations) == {"a": "1", "b": "3"}
        await images.update(pb.Image(name="x", target=descriptor(annotations={"c": "4"})), "annotations")
        assert dict((await images.get("x")).target.annotations) == {"c": "4"}
