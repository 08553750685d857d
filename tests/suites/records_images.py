"""The suite of the image records: splitd.records.v1.Records here, containerd.services.images.v1.Images on containerd.
Their answers must be the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from api.containerd.services.images.v1 import images_pb2 as pb
from api.containerd.services.images.v1 import images_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.types.descriptor_pb2 import Descriptor
from services.kit import errors
from tests.suites.records_lives import Clients, headers, names, new_namespace

IMAGES = images_stubs.IMAGES
LEASES = leases_stubs.LEASES
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def target(number: int = 1, **fields: Any) -> Descriptor:
    return Descriptor(**{"media_type": MANIFEST, "digest": f"sha256:{number:064x}", "size": 7, **fields})


def image(name: str, to: Descriptor | None = None, **labels: str) -> pb.Image:
    return pb.Image(name=name, target=to or target(), labels=labels)


class ImagesOf:
    """The five methods, under their names in either service."""

    def __init__(self, client: Any, *, records: bool) -> None:
        self.get, self.list, self.create, self.update, self.delete = (
            getattr(client, f"{verb}Image{'s' if verb == 'List' else ''}" if records else verb)
            for verb in ("Get", "List", "Create", "Update", "Delete")
        )


class ImageRecordsSuite:
    """A subclass has the fixtures ``images`` (an :class:`ImagesOf`) and ``clients``."""

    newest = True
    """Whether it has containerd 2's features: annotations can be updated and filtered by, leases hold images that
    expire.
    """

    @pytest.fixture
    def namespace(self) -> str:
        return new_namespace()

    async def create(
        self, images: ImagesOf, namespace: str, value: pb.Image, lease: str = "", **fields: Any
    ) -> pb.Image:
        return (
            await images.create(pb.CreateImageRequest(image=value, **fields), headers=headers(namespace, lease))
        ).image

    async def get(self, images: ImagesOf, namespace: str, name: str) -> pb.Image:
        return (await images.get(pb.GetImageRequest(name=name), headers=headers(namespace))).image

    async def update(self, images: ImagesOf, namespace: str, value: pb.Image, *paths: str, lease: str = "") -> pb.Image:
        request = pb.UpdateImageRequest(image=value, update_mask=FieldMask(paths=paths))
        return (await images.update(request, headers=headers(namespace, lease))).image

    async def list(self, images: ImagesOf, namespace: str, *filters: str) -> list[str]:
        return names(
            (await images.list(pb.ListImagesRequest(filters=filters), headers=headers(namespace))).images, "name"
        )

    async def test_what_is_created_comes_back(self, images: ImagesOf, namespace: str) -> None:
        """It has the labels except empty ones; the times are the server's."""
        made = image("docker.io/x:1", a="1", empty="")
        created = await self.create(images, namespace, made)
        assert created.created_at.seconds > 1_600_000_000
        assert created.created_at == created.updated_at
        found = await self.get(images, namespace, "docker.io/x:1")
        assert found == created
        assert (found.name, found.target, dict(found.labels)) == ("docker.io/x:1", target(), {"a": "1"})

    async def test_a_name_is_taken_once_in_each_namespace(self, images: ImagesOf, namespace: str) -> None:
        """The name is ALREADY_EXISTS in the same namespace, and free in another."""
        await self.create(images, namespace, image("i"))
        with pytest.raises(errors.AlreadyExists) as caught:
            await self.create(images, namespace, image("i"))
        assert str(caught.value) == 'image "i": already exists'
        await self.create(images, new_namespace(), image("i"))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (image("i", target(digest="")), 'target.Digest "" invalid: invalid checksum digest format'),
            (image("i", target(digest="sha256:1")), 'target.Digest "sha256:1" invalid: invalid checksum digest length'),
            (image("i", target(size=0)), "target.Size must be greater than zero"),
            (image("i", target(media_type="")), "target.MediaType must be set"),
        ],
    )
    async def test_invalid_images_are_refused(
        self, images: ImagesOf, namespace: str, value: pb.Image, message: str
    ) -> None:
        """Create and Update refuse them."""
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.create(images, namespace, value)
        # containerd 2.3 and earlier begin the field name with a capital
        assert str(caught.value).lower() == f"{message}: invalid argument".lower()
        await self.create(images, namespace, image("i"))
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.update(images, namespace, value)
        # containerd 2.3 and earlier begin the field name with a capital
        assert str(caught.value).lower() == f"{message}: invalid argument".lower()
        assert (await self.get(images, namespace, "i")).target == target()

    async def test_labels_are_checked(self, images: ImagesOf, namespace: str) -> None:
        """A label may have 4096 bytes with its key."""
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.create(images, namespace, image("i", k="v" * 4096))
        assert str(caught.value).startswith("image.Labels: label key and value")

    async def test_an_unknown_one_is_not_found(self, images: ImagesOf, namespace: str) -> None:
        """Get, Update and Delete answer NOT_FOUND."""
        for call in (
            self.get(images, namespace, "i"),
            self.update(images, namespace, image("i")),
            images.delete(pb.DeleteImageRequest(name="i"), headers=headers(namespace)),
        ):
            with pytest.raises(errors.NotFound) as caught:
                await call
            assert str(caught.value) == 'image "i": not found'

    async def test_lists_are_filtered(self, images: ImagesOf, namespace: str) -> None:
        """Filters select by name, target and labels; results are ordered by name."""
        await self.create(images, namespace, image("b", target(2, media_type="t/x"), team="red"))
        await self.create(images, namespace, image("a", team="blue"))
        assert await self.list(images, namespace) == ["a", "b"]
        assert await self.list(images, namespace, "name==a") == ["a"]
        assert await self.list(images, namespace, f"target.digest=={target(2).digest}") == ["b"]
        assert await self.list(images, namespace, "target.mediatype~=^application") == ["a"]
        assert await self.list(images, namespace, "labels.team==red", "name==a") == ["a", "b"]
        with pytest.raises(errors.InvalidArgument):
            await self.list(images, namespace, "name=a")

    async def test_update_without_a_mask_replaces_it(self, images: ImagesOf, namespace: str) -> None:
        """Only the creation time stays."""
        old = await self.create(images, namespace, image("i", a="1"))
        new = await self.update(images, namespace, image("i", target(2), b="2"))
        assert (new.target, dict(new.labels), new.created_at) == (target(2), {"b": "2"}, old.created_at)
        assert new.updated_at.ToNanoseconds() > old.updated_at.ToNanoseconds()
        assert await self.get(images, namespace, "i") == new

    async def test_update_with_a_mask_changes_only_that(self, images: ImagesOf, namespace: str) -> None:
        """The whole target, all labels or single ones change."""
        await self.create(images, namespace, image("i", a="1", b="2"))
        new = await self.update(images, namespace, image("i", target(2), a="9"), "target")
        assert (new.target, dict(new.labels)) == (target(2), {"a": "1", "b": "2"})
        new = await self.update(images, namespace, image("i", target(3), a="9"), "labels.a", "labels.b")
        assert (new.target, dict(new.labels)) == (target(2), {"a": "9"})
        new = await self.update(images, namespace, image("i", target(3), c="3"), "labels")
        assert (new.target, dict(new.labels)) == (target(2), {"c": "3"})
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.update(images, namespace, image("i"), "name")
        assert str(caught.value) == 'cannot update "name" field on image "i": invalid argument'

    async def test_delete_removes(self, images: ImagesOf, namespace: str) -> None:
        """Only that image is removed; with ``sync`` the answer comes after a collection."""
        for name in ("a", "b", "c"):
            await self.create(images, namespace, image(name))
        await images.delete(pb.DeleteImageRequest(name="a"), headers=headers(namespace))
        await images.delete(pb.DeleteImageRequest(name="b", sync=True), headers=headers(namespace))
        assert await self.list(images, namespace) == ["c"]

    async def test_delete_may_ask_for_a_target(self, images: ImagesOf, namespace: str) -> None:
        """If the image has another digest, the call is NOT_FOUND and the image stays."""
        if not self.newest:
            pytest.skip("containerd has it from 1.7 on")
        await self.create(images, namespace, image("i"))
        with pytest.raises(errors.NotFound) as caught:
            await images.delete(pb.DeleteImageRequest(name="i", target=target(2)), headers=headers(namespace))
        assert str(caught.value) == f'image "i" has target {target(1).digest}, not {target(2).digest}: not found'
        await images.delete(pb.DeleteImageRequest(name="i", target=target(1)), headers=headers(namespace))
        assert await self.list(images, namespace) == []

    async def test_times_may_be_given(self, images: ImagesOf, namespace: str) -> None:
        """They are the source date epoch of reproducible builds."""
        if not self.newest:
            pytest.skip("containerd has it from 1.7 on")
        created = await self.create(images, namespace, image("i"), source_date_epoch=Timestamp(seconds=1000))
        assert (created.created_at.seconds, created.updated_at.seconds) == (1000, 1000)

    async def test_annotations_of_the_target(self, images: ImagesOf, namespace: str) -> None:
        """They are kept, and updated all or one by one."""
        if not self.newest:
            pytest.skip("containerd has it from 1.7 on")
        await self.create(images, namespace, image("i", target(annotations={"a": "1", "b": "2"})))
        new = await self.update(images, namespace, image("i", target(annotations={"a": "9"})), "annotations.a")
        assert dict(new.target.annotations) == {"a": "9", "b": "2"}
        new = await self.update(images, namespace, image("i", target(annotations={"c": "3"})), "annotations")
        assert dict(new.target.annotations) == {"c": "3"}

    async def test_a_lease_holds_images_that_expire(self, images: ImagesOf, clients: Clients, namespace: str) -> None:
        """Other images need no lease."""
        if not self.newest:
            pytest.skip("containerd has it from 2.0 on")
        leases = clients(LEASES)
        await leases.Create(leases_pb2.CreateRequest(id="l"), headers=headers(namespace))

        async def held() -> list[tuple[str, str]]:
            return [
                (r.type, r.id)
                for r in (
                    await leases.ListResources(leases_pb2.ListResourcesRequest(id="l"), headers=headers(namespace))
                ).resources
            ]

        await self.create(images, namespace, image("kept"), lease="l")
        expiring = image("expires")
        expiring.labels["containerd.io/gc.expire"] = "2099-01-01T00:00:00Z"
        await self.create(images, namespace, expiring, lease="l")
        assert await held() == [("images", "expires")]
        with pytest.raises(errors.NotFound) as caught:
            await self.create(
                images, namespace, pb.Image(name="x", target=target(), labels=expiring.labels), lease="nope"
            )
        assert str(caught.value) == "lease does not exist: not found"
        await images.delete(pb.DeleteImageRequest(name="expires"), headers=headers(namespace, "l"))
        assert await held() == []
