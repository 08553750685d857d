"""Namespaces: their labels, and whether anything is in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from services.kit import errors, identifiers
from services.kit.identifiers import quoted
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.store import Event, Labels, Namespace, masked, present, validate_labels
from services.metadata.transactions import Reader, Transaction

T = TypeVar("T")


class Namespaces:
    """The namespaces of a node. A name in which nothing was written has no labels, and is not listed."""

    def __init__(self, database: Database, publish: Callable[[Event], None]) -> None:
        self._database = database
        self._publish = publish

    def labels(self, name: str) -> Labels:
        """The labels of any name: containerd's Get succeeds for unknown names too."""
        found = self._database.view(lambda tx: schema.NAMESPACES.get(tx, name))
        return {} if found is None else found.labels

    def all(self, make: Callable[[str, Labels], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each namespace, in order of names and in pieces, as in ``Database.select``."""
        return self._database.select(schema.NAMESPACES, make=lambda key, namespace: make(key[0], namespace.labels))

    async def create(self, name: str, labels: Labels) -> None:
        """Create a namespace; InvalidArgument for a name that is no identifier or for labels that are too long;
        AlreadyExists.
        """
        identifiers.validate(name)
        validate_labels(labels, "namespace.Labels")

        def work(tx: Transaction) -> None:
            if schema.NAMESPACES.has(tx, name):
                raise errors.AlreadyExists(f"namespace {quoted(name)}")
            schema.NAMESPACES.put(tx, name, value=Namespace(labels=present(labels)))

        await self._database.write(work)
        self._publish(Event(name, "/namespaces/create", {"name": name, "labels": labels}))

    async def update(self, name: str, labels: Labels, paths: Sequence[str]) -> Labels:
        """Set the labels that ``paths`` name (``labels.KEY``), or replace all if there are no paths. An unknown
        namespace is created, as by any write.
        """
        for path in paths:
            if not path.startswith("labels."):
                raise errors.InvalidArgument.verbatim(f"cannot update {quoted(path)} field")
        identifiers.validate(name)
        validate_labels(labels, "namespace.Labels")

        def work(tx: Transaction) -> Labels:
            old = schema.NAMESPACES.get(tx, name) or Namespace()
            new, _ = masked(old.labels, labels, paths or ("labels",))
            schema.NAMESPACES.put(tx, name, value=Namespace(labels=present(new)))
            return present(new)

        result = await self._database.write(work)
        self._publish(Event(name, "/namespaces/update", {"name": name, "labels": labels}))
        return result

    async def delete(self, name: str) -> None:
        """Delete a namespace; NotFound; FailedPrecondition that names what is still in it. Leases, ingests and records
        of sandboxes do not count, and are removed too, as in containerd.
        """

        def work(tx: Transaction) -> None:
            if left := list(_contents(tx, name)):
                raise errors.FailedPrecondition(
                    f"namespace {quoted(name)} must be empty, but it still has {', '.join(left)}"
                )
            if not schema.NAMESPACES.has(tx, name):
                raise errors.NotFound(f"namespace {quoted(name)}")
            schema.NAMESPACES.delete(tx, name)
            for table in (schema.LEASES, schema.RESOURCES, schema.INGESTS, schema.SANDBOXES):
                table.delete_all(tx, name)

        await self._database.write(work, "deletion")
        self._publish(Event(name, "/namespaces/delete", {"name": name}))


def _contents(tx: Reader, name: str) -> list[str]:
    """The reasons why the namespace cannot be deleted, in containerd's words and order."""
    kinds = ((schema.IMAGES, "images"), (schema.BLOBS, "blobs"), (schema.CONTAINERS, "containers"))
    left = [word for table, word in kinds if table.any(tx, name)]
    return left + [f"snapshots on {quoted(snapshotter)} snapshotter" for snapshotter in schema.snapshotters(tx, name)]
