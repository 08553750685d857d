"""The suite of containerd.services.namespaces.v1.Namespaces. It runs on metadata's stores, its process, the gateway,
and containerd itself.
"""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.field_mask_pb2 import FieldMask

from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2 as pb
from api.containerd.services.namespaces.v1 import namespaces_stubs
from services.kit import errors
from tests.suites.records_lives import Clients, headers, names, new_namespace

NAMESPACES = namespaces_stubs.NAMESPACES
CONTAINERS = containers_stubs.CONTAINERS
LEASES = leases_stubs.LEASES
CALLER = headers("suite")
"""Before containerd 1.7 the caller needed a namespace of its own."""


class NamespacesSuite:
    """A subclass has a fixture ``clients``."""

    label_length = " length (4097 bytes)"
    """Part of containerd's message about a label that is too long, from 1.7 on."""

    @pytest.fixture
    def namespaces(self, clients: Clients) -> Any:
        return clients(NAMESPACES)

    @pytest.fixture
    def name(self) -> str:
        return new_namespace()

    async def create(self, namespaces: Any, name: str, **labels: str) -> pb.Namespace:
        return (
            await namespaces.Create(
                pb.CreateNamespaceRequest(namespace=pb.Namespace(name=name, labels=labels)), headers=CALLER
            )
        ).namespace

    async def labels(self, namespaces: Any, name: str) -> dict[str, str]:
        return dict((await namespaces.Get(pb.GetNamespaceRequest(name=name))).namespace.labels)

    async def all(self, namespaces: Any) -> list[str]:
        return names((await namespaces.List(pb.ListNamespacesRequest())).namespaces, "name")

    async def update(self, namespaces: Any, name: str, labels: dict[str, str], *paths: str) -> None:
        await namespaces.Update(
            pb.UpdateNamespaceRequest(
                namespace=pb.Namespace(name=name, labels=labels), update_mask=FieldMask(paths=paths)
            ),
            headers=CALLER,
        )

    async def test_an_unknown_name_has_no_labels_and_is_not_listed(self, namespaces: Any, name: str) -> None:
        """Get of a name in which nothing was written succeeds."""
        assert await self.labels(namespaces, name) == {}
        assert name not in await self.all(namespaces)

    async def test_a_created_namespace_is_there(self, namespaces: Any, name: str) -> None:
        """It has its labels; one with an empty value does not count."""
        assert (await self.create(namespaces, name, a="1", b="")).name == name
        assert await self.labels(namespaces, name) == {"a": "1"}
        assert name in await self.all(namespaces)

    async def test_names_are_listed_in_order(self, namespaces: Any, name: str) -> None:
        """They are ordered by their bytes."""
        for suffix in ("b", "a", "B"):
            await self.create(namespaces, name + suffix)
        assert [n for n in await self.all(namespaces) if n.startswith(name)] == [name + "B", name + "a", name + "b"]

    async def test_a_second_create_is_refused(self, namespaces: Any, name: str) -> None:
        """The words are containerd's."""
        await self.create(namespaces, name)
        with pytest.raises(errors.AlreadyExists) as caught:
            await self.create(namespaces, name)
        assert str(caught.value) == f'namespace "{name}": already exists'

    @pytest.mark.parametrize("name", ["", "a/b", ".", "a..b", "-a", "a" * 77, "ä"])
    async def test_a_name_is_an_identifier(self, namespaces: Any, name: str) -> None:
        """Anything else is INVALID_ARGUMENT."""
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.create(namespaces, name)
        assert str(caught.value).startswith("identifier ")

    async def test_a_label_is_at_most_4096_bytes(self, namespaces: Any, name: str) -> None:
        """Key and value count together."""
        await self.create(namespaces, name, k="v" * 4095)
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.create(namespaces, name + "2", k="v" * 4096)
        assert str(caught.value) == (
            f"namespace.Labels: label key and value{self.label_length} greater than maximum size (4096 bytes), "
            "key: "
            "k: invalid argument"
        )

    async def test_update_without_a_mask_replaces_all_labels(self, namespaces: Any, name: str) -> None:
        """Labels that the update does not name are removed."""
        await self.create(namespaces, name, a="1", b="2")
        await self.update(namespaces, name, {"b": "3", "c": "4"})
        assert await self.labels(namespaces, name) == {"b": "3", "c": "4"}

    async def test_update_with_a_mask_changes_the_named_labels(self, namespaces: Any, name: str) -> None:
        """An empty value removes a label; other labels stay."""
        await self.create(namespaces, name, a="1", b="2", c="3")
        await self.update(namespaces, name, {"a": "9", "c": "8"}, "labels.a", "labels.b")
        assert await self.labels(namespaces, name) == {"a": "9", "c": "3"}

    async def test_nothing_but_labels_can_be_updated(self, namespaces: Any, name: str) -> None:
        """Another path is INVALID_ARGUMENT."""
        await self.create(namespaces, name)
        with pytest.raises(errors.InvalidArgument) as caught:
            await self.update(namespaces, name, {}, "name")
        assert str(caught.value) == 'cannot update "name" field'

    async def test_delete_takes_an_empty_one(self, namespaces: Any, name: str) -> None:
        """A second delete is NOT_FOUND."""
        await self.create(namespaces, name, a="1")
        await namespaces.Delete(pb.DeleteNamespaceRequest(name=name), headers=CALLER)
        assert name not in await self.all(namespaces)
        assert await self.labels(namespaces, name) == {}
        with pytest.raises(errors.NotFound) as caught:
            await namespaces.Delete(pb.DeleteNamespaceRequest(name=name), headers=CALLER)
        assert str(caught.value) == f'namespace "{name}": not found'

    async def test_delete_names_the_contents_of_the_namespace(
        self, clients: Clients, namespaces: Any, name: str
    ) -> None:
        """It names a container; when that is deleted, the namespace can be deleted."""
        containers = clients(CONTAINERS)
        container = containers_pb2.Container(
            id="c", runtime=containers_pb2.Container.Runtime(name="r"), spec=PbAny(type_url="x", value=b"{}")
        )
        await containers.Create(containers_pb2.CreateContainerRequest(container=container), headers=headers(name))
        assert name in await self.all(namespaces)
        with pytest.raises(errors.FailedPrecondition) as caught:
            await namespaces.Delete(pb.DeleteNamespaceRequest(name=name), headers=CALLER)
        assert (
            str(caught.value) == f'namespace "{name}" must be empty, but it still has containers: failed precondition'
        )
        await containers.Delete(containers_pb2.DeleteContainerRequest(id="c"), headers=headers(name))
        await namespaces.Delete(pb.DeleteNamespaceRequest(name=name), headers=CALLER)

    async def test_leases_do_not_keep_a_namespace(self, clients: Clients, namespaces: Any, name: str) -> None:
        """They create it, and are deleted with it."""
        leases = clients(LEASES)
        await leases.Create(leases_pb2.CreateRequest(id="l"), headers=headers(name))
        assert name in await self.all(namespaces)
        await namespaces.Delete(pb.DeleteNamespaceRequest(name=name), headers=CALLER)
        assert not (await leases.List(leases_pb2.ListRequest(), headers=headers(name))).leases
