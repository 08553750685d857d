"""Records of containers, from which tasks are created. Tasks and snapshots are elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.kit import errors, filters, identifiers
from services.kit.identifiers import quoted
from services.metadata import schema
from services.metadata.database import Database, ensure_namespace
from services.metadata.store import Container, Event, masked, present, validate_labels
from services.metadata.transactions import Transaction

T = TypeVar("T")


class Containers:
    """The containers of each namespace."""

    def __init__(self, database: Database, publish: Callable[[Event], None]) -> None:
        self._database = database
        self._publish = publish

    def get(self, namespace: str, id_: str) -> Container:
        """The record of a container; NotFound."""
        found = self._database.view(lambda tx: schema.CONTAINERS.get(tx, namespace, id_))
        if found is None:
            raise errors.NotFound(f"container {quoted(id_)} in namespace {quoted(namespace)}")
        return found

    def select(self, namespace: str, sources: Sequence[str], make: Callable[[Container], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each container that the filters match, in order of ids and in pieces, as in
        ``Database.select``.
        """
        return self._database.select(
            schema.CONTAINERS, namespace, sources=sources, field=_field, make=lambda _, container: make(container)
        )

    async def create(self, namespace: str, container: Container) -> Container:
        """Record a container; InvalidArgument, AlreadyExists."""
        try:
            _validate(container)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"create container failed validation: {error}") from None
        now = time.time_ns()
        created = replace(container, labels=present(container.labels), created=now, updated=now)

        def work(tx: Transaction) -> None:
            ensure_namespace(tx, namespace)
            if schema.CONTAINERS.has(tx, namespace, created.id):
                raise errors.AlreadyExists(f"container {quoted(created.id)}")
            schema.CONTAINERS.put(tx, namespace, created.id, value=created)

        await self._database.write(work)
        self._publish(
            Event(
                namespace,
                "/containers/create",
                {
                    "id": created.id,
                    "image": created.image,
                    "runtime": {"name": created.runtime, "options": created.runtime_options},
                },
            )
        )
        return created

    async def update(self, namespace: str, container: Container, paths: Sequence[str]) -> Container:
        """Change the fields that ``paths`` name, or all mutable fields if there are no paths. NotFound,
        InvalidArgument.
        """
        if not container.id:
            raise errors.InvalidArgument.verbatim("Container.ID required")

        def work(tx: Transaction) -> Container:
            old = schema.CONTAINERS.get(tx, namespace, container.id)
            if old is None and not schema.CONTAINERS.any(tx, namespace):
                raise errors.NotFound(
                    f"cannot update container {quoted(container.id)} in namespace {quoted(namespace)}"
                )
            if old is None:
                raise errors.NotFound(f"container {quoted(container.id)}")
            new = _updated(old, container, paths)
            try:
                _validate(new)
            except errors.InvalidArgument as error:
                raise errors.InvalidArgument(f"update failed validation: {error}") from None
            new = replace(new, labels=present(new.labels), updated=time.time_ns())
            schema.CONTAINERS.put(tx, namespace, new.id, value=new)
            return new

        updated = await self._database.write(work)
        self._publish(
            Event(
                namespace,
                "/containers/update",
                {
                    "id": updated.id,
                    "image": updated.image,
                    "labels": updated.labels,
                    "snapshot_key": updated.snapshot_key,
                },
            )
        )
        return updated

    async def delete(self, namespace: str, id_: str) -> None:
        """Remove the record of a container; NotFound."""

        def work(tx: Transaction) -> None:
            if not schema.CONTAINERS.has(tx, namespace, id_):
                if not schema.CONTAINERS.any(tx, namespace):
                    raise errors.NotFound(f"cannot delete container {quoted(id_)} in namespace {quoted(namespace)}")
                raise errors.NotFound(f"container {id_}")
            schema.CONTAINERS.delete(tx, namespace, id_)

        await self._database.write(work, "deletion")
        self._publish(Event(namespace, "/containers/delete", {"id": id_}))


_REPLACED = ("labels", "spec", "extensions", "image", "snapshotkey")
"""The fields that an update without a mask changes."""


def _updated(old: Container, new: Container, paths: Sequence[str]) -> Container:
    """``old`` with the fields that ``paths`` name taken from ``new``."""
    if not paths:
        if old.snapshotter != new.snapshotter:
            raise errors.InvalidArgument("container.Snapshotter field is immutable")
        if old.runtime != new.runtime:
            raise errors.InvalidArgument("container.Runtime.Name field is immutable")
    labels, rest = masked(old.labels, new.labels, paths or _REPLACED)
    result = replace(old, labels=labels)
    for path in rest:
        if path == "spec":
            result = replace(result, spec=new.spec)
        elif path == "extensions":
            result = replace(result, extensions=new.extensions)
        elif path.startswith("extensions."):
            name = path.removeprefix("extensions.")
            others = {k: v for k, v in result.extensions.items() if k != name}
            result = replace(
                result, extensions=others | ({name: new.extensions[name]} if name in new.extensions else {})
            )
        elif path == "image":
            result = replace(result, image=new.image)
        elif path == "snapshotkey":
            result = replace(result, snapshot_key=new.snapshot_key)
        else:
            raise errors.InvalidArgument(f"cannot update {quoted(path)} field on {quoted(old.id)}")
    return result


def _validate(container: Container) -> None:
    # A spec is not required: containerd's own check does not apply to containers that come over its API.
    try:
        identifiers.validate(container.id)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(f"container.ID: {error}") from None
    if "" in container.extensions:
        raise errors.InvalidArgument("container.Extension keys must not be zero-length")
    validate_labels(container.labels, "containers.Labels")
    if not container.runtime:
        raise errors.InvalidArgument("container.Runtime.Name must be set")
    if container.snapshot_key and not container.snapshotter:
        raise errors.InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")


def _field(container: Container, path: Sequence[str]) -> tuple[str, bool]:
    """The fields that filters can select containers by."""
    match path:
        case ["id", *_]:
            return container.id, bool(container.id)
        case ["runtime", "name", *_]:
            return container.runtime, bool(container.runtime)
        case ["image", *_]:
            return container.image, bool(container.image)
        case ["labels", *rest]:
            return filters.of_map(rest, container.labels)
    return "", False
