"""The suite of containerd.services.leases.v1.Leases. It runs on metadata's stores, its process, the gateway, and
containerd itself.
"""

from __future__ import annotations

from typing import Any

import pytest

from api.containerd.services.leases.v1 import leases_pb2 as pb
from api.containerd.services.leases.v1 import leases_stubs
from services.kit import errors
from tests.suites.records_lives import Clients, headers, names, new_namespace

LEASES = leases_stubs.LEASES
DIGEST = "sha256:" + "a" * 64


class LeasesSuite:
    """A subclass has a fixture ``clients``."""

    newest = True
    """Whether it has containerd 2's API: leases hold images too."""

    @pytest.fixture
    def leases(self, clients: Clients) -> Any:
        return clients(LEASES)

    @pytest.fixture
    def namespace(self) -> str:
        return new_namespace()

    async def create(self, leases: Any, namespace: str, id_: str = "", **labels: str) -> pb.Lease:
        return (await leases.Create(pb.CreateRequest(id=id_, labels=labels), headers=headers(namespace))).lease

    async def resources(self, leases: Any, namespace: str, lease: str) -> list[tuple[str, str]]:
        found = (await leases.ListResources(pb.ListResourcesRequest(id=lease), headers=headers(namespace))).resources
        return [(r.type, r.id) for r in found]

    async def list(self, leases: Any, namespace: str, *filters: str) -> list[pb.Lease]:
        return list((await leases.List(pb.ListRequest(filters=filters), headers=headers(namespace))).leases)

    async def add(self, leases: Any, namespace: str, lease: str, type_: str, id_: str) -> None:
        await leases.AddResource(
            pb.AddResourceRequest(id=lease, resource=pb.Resource(type=type_, id=id_)), headers=headers(namespace)
        )

    async def remove(self, leases: Any, namespace: str, lease: str, type_: str, id_: str) -> None:
        await leases.DeleteResource(
            pb.DeleteResourceRequest(id=lease, resource=pb.Resource(type=type_, id=id_)), headers=headers(namespace)
        )

    async def test_without_an_id_one_is_chosen(self, leases: Any, namespace: str) -> None:
        """It is a different one each time."""
        first, second = [await self.create(leases, namespace) for _ in range(2)]
        assert first.id
        assert first.id != second.id
        assert first.created_at.seconds > 1_600_000_000
        assert {lease.id for lease in await self.list(leases, namespace)} == {first.id, second.id}

    async def test_a_lease_keeps_its_labels(self, leases: Any, namespace: str) -> None:
        """It keeps its creation time too."""
        made = await self.create(leases, namespace, "l", a="1")
        assert (made.id, dict(made.labels)) == ("l", {"a": "1"})
        assert await self.list(leases, namespace) == [made]

    async def test_an_id_is_taken_once_in_each_namespace(self, leases: Any, namespace: str) -> None:
        """The id is ALREADY_EXISTS in the same namespace, and free in another."""
        await self.create(leases, namespace, "l")
        with pytest.raises(errors.AlreadyExists) as caught:
            await self.create(leases, namespace, "l")
        assert str(caught.value) == 'lease "l": already exists'
        await self.create(leases, new_namespace(), "l")

    async def test_lists_are_filtered(self, leases: Any, namespace: str) -> None:
        """Filters select by id and labels; results are ordered by id."""
        await self.create(leases, namespace, "b", team="red")
        await self.create(leases, namespace, "a", team="blue")
        assert names(await self.list(leases, namespace)) == ["a", "b"]
        assert names(await self.list(leases, namespace, "id==a")) == ["a"]
        assert names(await self.list(leases, namespace, "labels.team==red", "id==a")) == ["a", "b"]
        with pytest.raises(errors.InvalidArgument):
            await self.list(leases, namespace, "id==a,")

    @pytest.mark.parametrize("sync", [False, True])
    async def test_delete_removes_a_lease_with_its_resources(self, leases: Any, namespace: str, sync: bool) -> None:
        """A second delete is NOT_FOUND; a new lease with that id holds nothing."""
        await self.create(leases, namespace, "l")
        await self.add(leases, namespace, "l", "content", DIGEST)
        await leases.Delete(pb.DeleteRequest(id="l", sync=sync), headers=headers(namespace))
        assert await self.list(leases, namespace) == []
        with pytest.raises(errors.NotFound) as caught:
            await leases.Delete(pb.DeleteRequest(id="l"), headers=headers(namespace))
        assert str(caught.value) == 'lease "l": not found'
        await self.create(leases, namespace, "l")
        assert await self.resources(leases, namespace, "l") == []

    async def test_a_lease_holds_its_resources(self, leases: Any, namespace: str) -> None:
        """It holds content, ingests and snapshots of a snapshotter, whether they exist or not; each once."""
        await self.create(leases, namespace, "l")
        held = [
            ("content", DIGEST),
            ("ingests", "layer-sha256:x"),
            ("snapshots/native", "k"),
            ("snapshots/overlayfs", "a/b c"),
        ]
        if self.newest:
            held.append(("images", "docker.io/x:1"))
        for type_, id_ in [*held, *held]:
            await self.add(leases, namespace, "l", type_, id_)
        assert sorted(await self.resources(leases, namespace, "l")) == sorted(held)
        for type_, id_ in [*held[:2], *held[:2]]:
            await self.remove(leases, namespace, "l", type_, id_)
        assert sorted(await self.resources(leases, namespace, "l")) == sorted(held[2:])

    async def test_an_unknown_lease_is_not_found(self, leases: Any, namespace: str) -> None:
        """All methods that name one answer NOT_FOUND."""
        for call in (
            self.add(leases, namespace, "l", "content", DIGEST),
            self.remove(leases, namespace, "l", "content", DIGEST),
            self.resources(leases, namespace, "l"),
        ):
            with pytest.raises(errors.NotFound) as caught:
                await call
            assert str(caught.value) == 'lease "l": not found'

    @pytest.mark.parametrize(
        ("type_", "id_", "kind", "message"),
        [
            ("content/x", DIGEST, errors.InvalidArgument, "invalid resource type content/x: invalid argument"),
            (
                "content",
                "x",
                errors.InvalidArgument,
                "invalid content resource id x: invalid checksum digest format: invalid argument",
            ),
            (
                "content",
                "sha256:aa",
                errors.InvalidArgument,
                "invalid content resource id sha256:aa: invalid checksum digest length: invalid argument",
            ),
            (
                "content",
                "md7:aa",
                errors.InvalidArgument,
                "invalid content resource id md7:aa: unsupported digest algorithm: invalid argument",
            ),
            ("ingests/x", "r", errors.InvalidArgument, "invalid resource type ingests/x: invalid argument"),
            ("snapshots", "k", errors.InvalidArgument, "invalid snapshot resource type snapshots: invalid argument"),
            (
                "snapshots/a/b",
                "k",
                errors.InvalidArgument,
                "invalid snapshot resource type snapshots/a/b: invalid argument",
            ),
            ("tasks", "t", errors.Unimplemented, "resource type tasks not supported yet: not implemented"),
        ],
    )
    async def test_types_of_resources_are_checked(
        self, leases: Any, namespace: str, type_: str, id_: str, kind: type[errors.NodeError], message: str
    ) -> None:
        """They are checked when resources are added and when they are removed."""
        await self.create(leases, namespace, "l")
        for operation in (self.add, self.remove):
            with pytest.raises(kind) as caught:
                await operation(leases, namespace, "l", type_, id_)
            assert str(caught.value) == message
