"""The suite of containerd.services.containers.v1.Containers. It runs on metadata's stores, its process, the gateway,
and containerd itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.field_mask_pb2 import FieldMask

from api.containerd.services.containers.v1 import containers_pb2 as pb
from api.containerd.services.containers.v1 import containers_stubs
from services.kit import errors
from tests.suites.records_lives import Clients, headers, names, new_namespace

CONTAINERS = containers_stubs.CONTAINERS
SPEC = PbAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"ociVersion":"1.0.2"}')
OPTIONS = PbAny(type_url="containerd.runc.v1.Options", value=b"\x08\x01\0\xff")


def container(id_: str, runtime: str = "io.containerd.runc.v2", **fields: Any) -> pb.Container:
    """A container as ctr makes it."""
    return pb.Container(id=id_, runtime=pb.Container.Runtime(name=runtime), spec=SPEC, **fields)


class ContainersSuite:
    """A subclass has a fixture ``clients``."""

    label_length = " length (4097 bytes)"
    """Part of containerd's message about a label that is too long, from 1.7 on."""

    @pytest.fixture
    def containers(self, clients: Clients) -> Any:
        return clients(CONTAINERS)

    @pytest.fixture
    def namespace(self) -> str:
        return new_namespace()

    async def create(self, containers: Any, namespace: str, value: pb.Container) -> pb.Container:
        return (
            await containers.Create(pb.CreateContainerRequest(container=value), headers=headers(namespace))
        ).container

    async def get(self, containers: Any, namespace: str, id_: str) -> pb.Container:
        return (await containers.Get(pb.GetContainerRequest(id=id_), headers=headers(namespace))).container

    async def update(self, containers: Any, namespace: str, value: pb.Container, *paths: str) -> pb.Container:
        request = pb.UpdateContainerRequest(container=value, update_mask=FieldMask(paths=paths))
        return (await containers.Update(request, headers=headers(namespace))).container

    async def list(self, containers: Any, namespace: str, *filters: str) -> Sequence[str]:
        found = (
            await containers.List(pb.ListContainersRequest(filters=filters), headers=headers(namespace))
        ).containers
        return names(found)

    async def test_what_is_created_comes_back(self, containers: Any, namespace: str) -> None:
        """All fields come back, Any values byte for byte; the times are the server's."""
        made = container(
            "c1",
            image="i",
            snapshotter="overlayfs",
            snapshot_key="k",
            labels={"a": "1", "empty": ""},
            extensions={"x": OPTIONS},
        )
        made.runtime.options.CopyFrom(OPTIONS)
        made.created_at.seconds = 1
        created = await self.create(containers, namespace, made)
        assert created.created_at.seconds > 1_600_000_000
        assert created.created_at == created.updated_at
        found = await self.get(containers, namespace, "c1")
        assert found == created
        for each in (made, found):
            each.ClearField("created_at")
            each.ClearField("updated_at")
        del made.labels["empty"]
        assert found == made

    async def test_ids_are_identifiers(self, containers: Any, namespace: str) -> None:
        """Other ids are INVALID_ARGUMENT, in containerd's words."""
        for bad in ("", "a/b", "a..b", "_a", "a" * 77):
            with pytest.raises(errors.InvalidArgument) as caught:
                await self.create(containers, namespace, container(bad))
            assert str(caught.value).startswith("create container failed validation: container.ID: identifier ")
            assert str(caught.value).endswith(": invalid argument")
        await self.create(containers, namespace, container("a" * 76))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (container("c", runtime=""), "container.Runtime.Name must be set"),
            (container("c", snapshot_key="k"), "container.Snapshotter must be set if container.SnapshotKey is set"),
            (container("c", extensions={"": OPTIONS}), "container.Extension keys must not be zero-length"),
            (
                container("c", labels={"k": "v" * 4096}),
                "containers.Labels: label key and value{LENGTH} greater than maximum size (4096 bytes), key: k",
            ),
        ],
    )
    async def test_invalid_containers_are_refused(
        self, containers: Any, namespace: str, value: pb.Container, message: str
    ) -> None:
        """They are refused and not stored."""
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.create(containers, namespace, value)
        assert (
            str(caught.value)
            == f"create container failed validation: {message.replace('{LENGTH}', self.label_length)}: invalid argument"
        )
        assert not await self.list(containers, namespace)

    async def test_an_id_is_taken_once_in_each_namespace(self, containers: Any, namespace: str) -> None:
        """The id is ALREADY_EXISTS in the same namespace, and free in another."""
        await self.create(containers, namespace, container("c"))
        with pytest.raises(errors.AlreadyExists) as caught:
            await self.create(containers, namespace, container("c"))
        assert str(caught.value) == 'container "c": already exists'
        await self.create(containers, new_namespace(), container("c"))

    async def test_an_unknown_one_is_not_found(self, containers: Any, namespace: str) -> None:
        """Get, Update and Delete answer NOT_FOUND, whether the namespace has other containers or not."""
        with pytest.raises(errors.NotFound) as caught:
            await self.get(containers, namespace, "c")
        assert str(caught.value) == f'container "c" in namespace "{namespace}": not found'
        with pytest.raises(errors.NotFound) as caught:
            await self.update(containers, namespace, container("c"))
        assert str(caught.value) == f'cannot update container "c" in namespace "{namespace}": not found'
        with pytest.raises(errors.NotFound) as caught:
            await containers.Delete(pb.DeleteContainerRequest(id="c"), headers=headers(namespace))
        assert str(caught.value) == f'cannot delete container "c" in namespace "{namespace}": not found'
        await self.create(containers, namespace, container("other"))
        with pytest.raises(errors.NotFound) as caught:
            await self.update(containers, namespace, container("c"))
        assert str(caught.value) == 'container "c": not found'
        with pytest.raises(errors.NotFound) as caught:
            await containers.Delete(pb.DeleteContainerRequest(id="c"), headers=headers(namespace))
        assert str(caught.value) == "container c: not found"

    async def test_a_namespace_is_required(self, containers: Any) -> None:
        """Calls without a namespace are FAILED_PRECONDITION."""
        with pytest.raises(errors.FailedPrecondition) as caught:
            await containers.List(pb.ListContainersRequest())
        assert str(caught.value) == "namespace is required: failed precondition"

    async def test_lists_are_filtered(self, containers: Any, namespace: str) -> None:
        """Filters select by id, runtime.name, image and labels; results are ordered by id; one matching filter
        suffices.
        """
        await self.create(containers, namespace, container("b", image="docker.io/x:1", labels={"io.team": "red"}))
        await self.create(containers, namespace, container("a", runtime="other", labels={"io.team": "blue"}))
        assert await self.list(containers, namespace) == ["a", "b"]
        assert await self.list(containers, namespace, "id==b") == ["b"]
        assert await self.list(containers, namespace, "id~=^[ab]$") == ["a", "b"]
        assert await self.list(containers, namespace, "runtime.name==other") == ["a"]
        assert await self.list(containers, namespace, "image~=x") == ["b"]
        assert await self.list(containers, namespace, "image") == ["b"]
        assert await self.list(containers, namespace, 'labels."io.team"==blue') == ["a"]
        assert await self.list(containers, namespace, "labels.io.team") == ["a", "b"]
        assert await self.list(containers, namespace, "image,labels.io.team==blue") == []
        assert await self.list(containers, namespace, "id==a", "image") == ["a", "b"]
        with pytest.raises(errors.InvalidArgument):
            await self.list(containers, namespace, "id==")

    async def test_the_streamed_list_is_the_list(self, containers: Any, namespace: str) -> None:
        """The stream has one message for each container."""
        for id_ in ("a", "b", "c"):
            await self.create(containers, namespace, container(id_))
        found = [
            m.container
            async for m in containers.ListStream(
                pb.ListContainersRequest(filters=["id!=b"]), headers=headers(namespace)
            )
        ]
        assert names(found) == ["a", "c"]
        assert found[0] == await self.get(containers, namespace, "a")

    async def test_update_without_a_mask_replaces_mutable_fields(self, containers: Any, namespace: str) -> None:
        """Labels, spec, extensions, image and snapshot key are replaced; the creation time stays, the update time
        changes.
        """
        old = await self.create(
            containers, namespace, container("c", image="i", snapshotter="s", snapshot_key="k", labels={"a": "1"})
        )
        new = container("c", image="j", snapshotter="s", snapshot_key="l", labels={"b": "2"}, extensions={"x": OPTIONS})
        new.spec.value = b"{}"
        updated = await self.update(containers, namespace, new)
        assert (updated.image, updated.snapshot_key, dict(updated.labels), updated.spec.value) == (
            "j",
            "l",
            {"b": "2"},
            b"{}",
        )
        assert updated.extensions["x"] == OPTIONS
        assert updated.created_at == old.created_at
        assert updated.updated_at.ToNanoseconds() > old.updated_at.ToNanoseconds()
        assert await self.get(containers, namespace, "c") == updated

    async def test_update_with_a_mask_changes_only_that(self, containers: Any, namespace: str) -> None:
        """Single labels and extensions can be changed too; an empty label is removed."""
        await self.create(
            containers, namespace, container("c", image="i", labels={"a": "1", "b": "2"}, extensions={"x": OPTIONS})
        )
        new = container("c", image="j", labels={"a": "9", "c": "3"}, extensions={"x": SPEC, "y": SPEC})
        updated = await self.update(containers, namespace, new, "labels.a", "labels.b")
        assert (updated.image, dict(updated.labels), updated.extensions["x"]) == ("i", {"a": "9"}, OPTIONS)
        updated = await self.update(containers, namespace, new, "extensions.y")
        assert (updated.extensions["x"], updated.extensions["y"]) == (OPTIONS, SPEC)
        updated = await self.update(containers, namespace, new, "image", "labels")
        assert (updated.image, dict(updated.labels)) == ("j", {"a": "9", "c": "3"})
        updated = await self.update(containers, namespace, new, "extensions")
        assert dict(updated.extensions) == {"x": SPEC, "y": SPEC}
        assert await self.get(containers, namespace, "c") == updated

    async def test_immutable_fields_stay(self, containers: Any, namespace: str) -> None:
        """The snapshotter, the runtime and unknown fields cannot be changed; the updated container must be valid."""
        await self.create(containers, namespace, container("c", snapshotter="s", snapshot_key="k"))

        async def refused(value: pb.Container, *paths: str) -> str:
            with pytest.raises(errors.InvalidArgument) as caught:
                await self.update(containers, namespace, value, *paths)
            return str(caught.value)

        assert (
            await refused(container("c", snapshotter="t"))
            == "container.Snapshotter field is immutable: invalid argument"
        )
        assert (
            await refused(container("c", runtime="t", snapshotter="s"))
            == "container.Runtime.Name field is immutable: invalid argument"
        )
        assert (
            await refused(container("c"), "snapshotter") == 'cannot update "snapshotter" field on "c": invalid argument'
        )
        assert await refused(container("")) == "Container.ID required"
        assert (await refused(container("c", labels={"k": "v" * 4096}), "labels")).startswith(
            "update failed validation: containers.Labels: label key"
        )

    async def test_delete_removes(self, containers: Any, namespace: str) -> None:
        """Delete removes only that container."""
        await self.create(containers, namespace, container("a"))
        await self.create(containers, namespace, container("b"))
        await containers.Delete(pb.DeleteContainerRequest(id="a"), headers=headers(namespace))
        assert await self.list(containers, namespace) == ["b"]
