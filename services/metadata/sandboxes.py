"""Records of sandboxes, as containerd's sandbox store keeps them. What runs of a sandbox its controller has, which is
another service.

The rules are containerd's: core/metadata/sandbox.go. Its answer to an update repeats what was asked; ours is the record
as it is from then on.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.kit import errors, filters, identifiers
from services.kit.identifiers import quoted
from services.metadata import schema
from services.metadata.database import Database, ensure_namespace
from services.metadata.store import Sandbox, masked, present
from services.metadata.transactions import Reader, Transaction
from services.oci.opaque import Opaque

T = TypeVar("T")


class Sandboxes:
    """The sandboxes of each namespace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, id_: str) -> Sandbox:
        """The record of a sandbox; NotFound."""
        return self._database.view(lambda tx: _found(tx, namespace, id_))

    def select(self, namespace: str, sources: Sequence[str], make: Callable[[Sandbox], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each sandbox that the filters match (fields ``id`` and ``labels``), in order of
        ids and in pieces, as in ``Database.select``.
        """
        return self._database.select(
            schema.SANDBOXES, namespace, sources=sources, field=_field, make=lambda _, sandbox: make(sandbox)
        )

    async def create(self, namespace: str, sandbox: Sandbox) -> Sandbox:
        """Record a sandbox; InvalidArgument, AlreadyExists. The times are those of now."""
        try:
            identifiers.validate(sandbox.id)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"failed to validate sandbox: invalid sandbox ID: {error}") from None
        _check_names(sandbox)
        now = time.time_ns()
        created = replace(sandbox, labels=present(sandbox.labels), created=now, updated=now)

        def work(tx: Transaction) -> None:
            ensure_namespace(tx, namespace)
            if schema.SANDBOXES.has(tx, namespace, created.id):
                raise errors.AlreadyExists.verbatim(
                    f"write error: sandbox bucket {quoted(created.id)} already exists: already exists"
                )
            schema.SANDBOXES.put(tx, namespace, created.id, value=created)

        await self._database.write(work)
        return created

    async def update(self, namespace: str, sandbox: Sandbox, paths: Sequence[str]) -> Sandbox:
        """Change what ``paths`` name: ``labels``, ``labels.KEY``, ``extensions``, ``extensions.KEY``, ``spec`` and
        ``runtime``; without paths all of it. NotFound, InvalidArgument.

        A spec or runtime options that are absent stay as they are; of extensions those that are named are set, and the
        others stay.
        """
        _check_names(sandbox)

        def work(tx: Transaction) -> Sandbox:
            new = replace(_updated(_found(tx, namespace, sandbox.id), sandbox, paths), updated=time.time_ns())
            schema.SANDBOXES.put(tx, namespace, new.id, value=new)
            return new

        return await self._database.write(work)

    async def delete(self, namespace: str, id_: str) -> None:
        """Remove the record of a sandbox; NotFound."""

        def work(tx: Transaction) -> None:
            if not schema.SANDBOXES.has(tx, namespace, id_):
                _none(tx, namespace)
                raise errors.NotFound(f"failed to delete sandbox {quoted(id_)}")
            schema.SANDBOXES.delete(tx, namespace, id_)

        await self._database.write(work, "deletion")


def _found(tx: Reader, namespace: str, id_: str) -> Sandbox:
    found = schema.SANDBOXES.get(tx, namespace, id_)
    if found is None:
        _none(tx, namespace)
        raise errors.NotFound.verbatim(f"bucket {quoted(id_)} not found: not found")
    return found


def _none(tx: Reader, namespace: str) -> None:
    """NotFound in containerd's words for a namespace without sandboxes."""
    if not schema.SANDBOXES.any(tx, namespace):
        raise errors.NotFound("no sandbox buckets")


def _check_names(sandbox: Sandbox) -> None:
    if "" in sandbox.extensions:
        raise errors.InvalidArgument(f"sandbox {quoted(sandbox.id)}: an extension has no name")


_ALL = ("labels", "extensions", "spec", "runtime")


def _updated(old: Sandbox, new: Sandbox, paths: Sequence[str]) -> Sandbox:
    """``old`` with what ``paths`` name taken from ``new``."""
    if not paths and old.runtime != new.runtime:
        raise errors.InvalidArgument("sandbox.Runtime.Name field is immutable")
    labels, rest = masked(old.labels, new.labels, paths or _ALL)
    result = replace(old, labels=present(labels))
    for path in rest:
        if path == "extensions":
            result = replace(result, extensions={**result.extensions, **new.extensions})
        elif path.startswith("extensions."):
            name = path.removeprefix("extensions.")
            if not name:
                raise errors.InvalidArgument(f"sandbox {quoted(old.id)}: an extension has no name")
            result = replace(result, extensions={**result.extensions, name: new.extensions.get(name, Opaque("", b""))})
        elif path == "spec":
            result = replace(result, spec=result.spec if new.spec is None else new.spec)
        elif path == "runtime":
            options = result.runtime_options if new.runtime_options is None else new.runtime_options
            result = replace(result, runtime=new.runtime, runtime_options=options)
        else:
            raise errors.InvalidArgument(f"cannot update {quoted(path)} field on sandbox {quoted(old.id)}")
    return result


def _field(sandbox: Sandbox, path: Sequence[str]) -> tuple[str, bool]:
    """The fields that filters can select sandboxes by."""
    match path:
        case ["id", *_]:
            return sandbox.id, True
        case ["labels", *rest]:
            return filters.of_map(rest, sandbox.labels)
    return "", False
