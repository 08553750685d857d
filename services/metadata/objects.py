"""The objects that one backend holds, of all namespaces: to count and name them, and to forget those of a candidate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from services.kit import errors
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.intents import Intents
from services.metadata.store import Container, Event, Object, Objects, Raw, is_candidate
from services.metadata.transactions import Key, Transaction

NAMED_AT_MOST = 10_000
"""So many objects are named in one answer."""
_NAMED_BYTES = 4 << 20
"""Characters of their names in one answer, since clients choose these."""
_STEP = 500
"""Records that one transaction removes."""


class _InBackend(Protocol):
    @property
    def backend(self) -> str: ...


V = TypeVar("V", bound=_InBackend)


async def objects(database: Database, backend: str, limit: int = 0) -> Objects:
    """Count what ``backend`` holds, and name ``limit`` objects, at most :data:`NAMED_AT_MOST`. Objects that are written
    meanwhile may be missing.
    """
    if not backend:
        raise errors.InvalidArgument("backend must not be empty")
    found, used, room = Objects(), set[Raw](), _NAMED_BYTES
    limit = min(limit, NAMED_AT_MOST)
    users = await _users(database) if limit > 0 else {}

    def name(each: Object) -> None:
        nonlocal room
        size = len(each.name) + len(each.namespace) + sum(map(len, each.containers))
        if len(found.some) < limit and size <= room:
            room -= size
            found.some.append(each)

    async for (namespace, digest), _ in _records(database, schema.BLOBS, backend):
        found.blobs += 1
        used.add(Raw(backend, "blob", digest))
        name(Object(namespace=namespace, kind="blob", name=digest))
    async for (namespace, ref), ingest in _records(database, schema.INGESTS, backend):
        found.ingests += 1
        used.update(ingest.raws())
        name(Object(namespace=namespace, kind="ingest", name=ref))
    async for (namespace, snapshotter, key), snapshot in _records(database, schema.SNAPSHOTS, backend):
        found.snapshots += 1
        used.add(Raw(backend, "snapshot", snapshot.raw_key))
        containers = tuple(users.get((namespace, snapshotter, key), ()))
        name(Object(namespace=namespace, kind="snapshot", name=key, snapshotter=snapshotter, containers=containers))
    async for _, intent in _records(database, schema.INTENTS, backend):
        found.intents += 1
        used.update(intent.raws())
    async for some in database.select(schema.NAMED, backend, make=lambda key, _: Raw._make(key)):
        found.uncollected += sum(raw not in used for raw in some)
    return found


async def forget(database: Database, intents: Intents, backend: str, publish: Callable[[Event], None]) -> Objects:
    """Drop the records of all objects in the backend of a candidate, and return what was dropped. Nothing is removed in
    the backend. An interrupted call is finished by the next one.

    FailedPrecondition for a backend that is no candidate's, and while the gateway that connected last names it: that
    gateway could make objects there meanwhile.
    """
    if not is_candidate(backend):
        raise errors.FailedPrecondition(f"{backend} is no candidate's backend, so its objects are not forgotten")
    gateway = database.view(schema.GATEWAY.get)
    if gateway is None or backend in gateway.candidates:
        raise errors.FailedPrecondition(f"the gateway still uses {backend}")
    dropped = await objects(database, backend, NAMED_AT_MOST)
    for (id_,) in [key async for key, _ in _records(database, schema.INTENTS, backend)]:
        await intents.cancel(id_)
    removals: Sequence[tuple[schema.Table[Any], Callable[[str, Sequence[Key], Transaction], list[Event]]]] = (
        (schema.INGESTS, _remove_ingests),
        (schema.BLOBS, _remove_blobs),
        (schema.SNAPSHOTS, _remove_snapshots),
    )
    for table, remove in removals:
        keys = [key async for key, _ in _records(database, table, backend)]
        for start in range(0, len(keys), _STEP):
            for event in await database.write(partial(remove, backend, keys[start : start + _STEP]), "deletion"):
                publish(event)
    marked = database.view(lambda tx: list(schema.marked(tx, backend)))
    for name in (schema.SWEEPING.name, schema.REMOVING.name, schema.NAMED.name, schema.CHECKED.name):
        while await database.write(partial(_remove_some, (name, backend)), None):
            pass
    database.wake(*marked)
    return dropped


def _remove_ingests(backend: str, keys: Sequence[Key], tx: Transaction) -> list[Event]:
    for key in keys:
        if _is_in(backend, schema.INGESTS.get(tx, *key)):
            schema.INGESTS.delete(tx, *key)
    return []


def _remove_blobs(backend: str, keys: Sequence[Key], tx: Transaction) -> list[Event]:
    events = []
    for namespace, digest in keys:
        if _is_in(backend, schema.BLOBS.get(tx, namespace, digest)):
            schema.delete_blob(tx, namespace, digest)
            events.append(Event(namespace, "/content/delete", {"digest": digest}))
    return events


def _remove_snapshots(backend: str, keys: Sequence[Key], tx: Transaction) -> list[Event]:
    events = []
    for namespace, snapshotter, name in keys:
        found = schema.SNAPSHOTS.get(tx, namespace, snapshotter, name)
        if found is not None and _is_in(backend, found):
            schema.delete_snapshot(tx, namespace, snapshotter, found)
            events.append(Event(namespace, "/snapshot/remove", {"key": name, "snapshotter": snapshotter}))
    return events


def _is_in(backend: str, record: _InBackend | None) -> bool:
    return record is not None and record.backend == backend


def _remove_some(prefix: Key, tx: Transaction) -> bool:
    """Remove some rows, and return whether there are more."""
    tx.delete_all(prefix, limit=_STEP)
    return next(iter(tx.scan(prefix, limit=1)), None) is not None


async def _records(database: Database, table: schema.Table[V], backend: str) -> AsyncIterator[tuple[Key, V]]:
    """The records of the objects in ``backend``, with their keys."""
    async for some in database.select(
        table, make=lambda key, record: (key, record) if record.backend == backend else None
    ):
        for each in some:
            yield each


async def _users(database: Database) -> Mapping[Key, list[str]]:
    """The containers on each snapshot: by namespace, snapshotter and key."""
    found: dict[Key, list[str]] = {}

    def user(key: Key, container: Container) -> tuple[Key, str]:
        return (key[0], container.snapshotter, container.snapshot_key), container.id

    async for some in database.select(schema.CONTAINERS, make=user):
        for snapshot, container in some:
            found.setdefault(snapshot, []).append(container)
    return found
