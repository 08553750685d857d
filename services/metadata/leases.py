"""Leases: each holds content, snapshots, ingests and images that nothing else refers to."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from services.kit import errors, filters
from services.kit.identifiers import quoted
from services.metadata import schema
from services.metadata.database import Database, ensure_namespace
from services.metadata.store import Labels, Lease, Resource, present
from services.metadata.transactions import Reader, Transaction
from services.oci.digests import digest_problem

T = TypeVar("T")


class Leases:
    """The leases of each namespace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, namespace: str, id_: str, labels: Labels) -> Lease:
        """Create a lease, with a random id if none is given. AlreadyExists."""
        now = time.time_ns()
        lease = Lease(
            id=id_ or f"{now % 10**9}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}",
            labels=present(labels),
            created=now,
        )

        def work(tx: Transaction) -> None:
            ensure_namespace(tx, namespace)
            if schema.LEASES.has(tx, namespace, lease.id):
                raise errors.AlreadyExists(f"lease {quoted(lease.id)}")
            schema.put_lease(tx, namespace, lease)

        await self._database.write(work)
        return lease

    async def delete(self, namespace: str, id_: str, *, sync: bool) -> None:
        """Remove a lease; NotFound. With ``sync``, returns after a collection."""

        def work(tx: Transaction) -> None:
            _required(tx, namespace, id_)
            schema.delete_lease(tx, namespace, id_)

        await self._database.write(work, None if sync else "deletion", lasting=not sync)
        if sync:
            await self._database.collect_now(namespace)

    def select(self, namespace: str, sources: Sequence[str], make: Callable[[Lease], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each lease that the filters match, in order of ids and in pieces, as in
        ``Database.select``.
        """
        return self._database.select(
            schema.LEASES, namespace, sources=sources, field=_field, make=lambda _, lease: make(lease)
        )

    async def add(self, namespace: str, id_: str, resource: Resource) -> None:
        """Let the lease hold a resource, which need not exist. NotFound for the lease; InvalidArgument or Unimplemented
        for the resource's type.
        """

        def work(tx: Transaction) -> None:
            _required(tx, namespace, id_)
            _validate(resource)
            schema.put_resource(tx, namespace, id_, resource)

        await self._database.write(work)

    async def remove(self, namespace: str, id_: str, resource: Resource) -> None:
        """As ``add``, the reverse. Removing a resource that the lease does not hold is no error."""

        def work(tx: Transaction) -> None:
            _required(tx, namespace, id_)
            _validate(resource)
            schema.delete_resource(tx, namespace, id_, resource)

        await self._database.write(work, "deletion")

    def resources(self, namespace: str, id_: str, make: Callable[[Resource], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each resource of the lease, by type and id and in pieces. NotFound."""
        self._database.view(lambda tx: _required(tx, namespace, id_))
        return self._database.select(schema.RESOURCES, namespace, id_, make=lambda key, _: make(Resource(*key[2:])))


def _required(tx: Reader, namespace: str, id_: str) -> None:
    if not schema.LEASES.has(tx, namespace, id_):
        raise errors.NotFound(f"lease {quoted(id_)}")


def _validate(resource: Resource) -> None:
    kind, *rest = resource.type.split("/")
    if kind in ("content", "ingests", "images"):
        if rest:
            raise errors.InvalidArgument(f"invalid resource type {resource.type}")
        if kind == "content" and (problem := digest_problem(resource.id)):
            raise errors.InvalidArgument(f"invalid content resource id {resource.id}: {problem}")
    elif kind == "snapshots":
        if len(rest) != 1:
            raise errors.InvalidArgument(f"invalid snapshot resource type {resource.type}")
    else:
        raise errors.Unimplemented(f"resource type {resource.type} not supported yet")


def _field(lease: Lease, path: Sequence[str]) -> tuple[str, bool]:
    """The fields that filters can select leases by."""
    match path:
        case ["id", *_]:
            return lease.id, bool(lease.id)
        case ["labels", *rest]:
            return filters.of_map(rest, lease.labels)
    return "", False
