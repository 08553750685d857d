"""Records of snapshots: their names in each namespace, kinds, parents and labels. The snapshots themselves are in the
backends.

A backend gets only labels that are *inherited*: containerd.io/snapshot.ref and containerd.io/snapshot/*.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from services.kit import errors, filters
from services.kit.identifiers import quoted
from services.metadata import schema
from services.metadata.database import Busy, Database, check_lease, ensure_namespace, hold, release
from services.metadata.intents import Intents, check_target_not_sweeping, check_unclaimed, connected, open_intent
from services.metadata.store import (
    Event,
    Finished,
    Intent,
    Labels,
    Outcome,
    Resource,
    Snapshot,
    masked,
    present,
    snapshots_backend,
    validate_labels,
)
from services.metadata.transactions import Reader, Transaction

T = TypeVar("T")

REF = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"


def inherited(labels: Labels) -> dict[str, str]:
    """The labels that a backend gets."""
    return {key: value for key, value in labels.items() if key == REF or key.startswith(_INHERITED)}


@dataclass(frozen=True, slots=True)
class Updated:
    """A changed record, and the labels to change in the backend: ``raw_paths`` has a ``labels.KEY`` for each, and is
    empty if none are to change.
    """

    snapshot: Snapshot
    raw_labels: Labels
    raw_paths: tuple[str, ...]


class Snapshots:
    """The snapshots of each namespace, by snapshotter."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, snapshotter: str, name: str) -> Snapshot:
        """The record of a snapshot; NotFound."""

        def work(tx: Reader) -> Snapshot:
            check_snapshotter(tx, snapshotter)
            return _snapshot(tx, namespace, snapshotter, name)

        return self._database.view(work)

    def select(
        self, namespace: str, snapshotter: str, sources: Sequence[str], make: Callable[[Snapshot], T]
    ) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each snapshot that the filters match, in order of names and in pieces, as in
        ``Database.select``.
        """
        self._database.view(lambda tx: check_snapshotter(tx, snapshotter))
        return self._database.select(
            schema.SNAPSHOTS,
            namespace,
            snapshotter,
            sources=sources,
            field=_field,
            make=lambda _, snapshot: make(snapshot),
        )

    async def update(
        self, namespace: str, snapshotter: str, name: str, labels: Labels, paths: Sequence[str]
    ) -> Updated:
        """Change the labels that ``paths`` name, or replace all if there are no paths. NotFound, InvalidArgument."""
        if not name:
            raise errors.InvalidArgument

        def work(tx: Transaction) -> Updated:
            check_snapshotter(tx, snapshotter)
            old = _snapshot(tx, namespace, snapshotter, name)
            result, rest = masked(old.labels, labels, paths or ("labels",))
            if rest:
                raise errors.InvalidArgument(f"cannot update {quoted(rest[0])} field on snapshot {quoted(name)}")
            validate_labels(result, "info.Labels")
            snapshot = replace(old, labels=present(result), updated=time.time_ns())
            schema.put_snapshot(tx, namespace, snapshotter, snapshot)
            before, after = inherited(old.labels), inherited(snapshot.labels)
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            return Updated(
                snapshot, {key: after.get(key, "") for key in changed}, tuple(f"labels.{key}" for key in changed)
            )

        return await self._database.write(work)

    async def remove(self, namespace: str, lease: str, snapshotter: str, name: str) -> Finished:
        """Remove the record; the collector removes the raw snapshot. NotFound; FailedPrecondition while it has
        children.
        """

        def work(tx: Transaction) -> None:
            check_snapshotter(tx, snapshotter)
            snapshot = _snapshot(tx, namespace, snapshotter, name)
            if schema.CHILDREN.any(tx, namespace, snapshotter, name):
                raise errors.FailedPrecondition("cannot remove snapshot with child")
            schema.delete_snapshot(tx, namespace, snapshotter, snapshot)
            release(tx, namespace, lease, _resource(snapshotter, name))

        await self._database.write(work, "deletion")
        return Finished(events=(Event(namespace, "/snapshot/remove", {"key": name, "snapshotter": snapshotter}),))

    # -- Prepare, View

    async def begin(
        self,
        intents: Intents,
        namespace: str,
        lease: str,
        incarnation: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Labels,
        *,
        view: bool,
        backend: str = "",
    ) -> Intent:
        """Open the intent of a Prepare or View. AlreadyExists if there is the key, or the target of the label
        containerd.io/snapshot.ref; the lease then holds it. NotFound for the parent.

        ``backend`` is for a snapshot without a parent: a child lives where its parent lives.
        """
        work = self.beginning(
            namespace, lease, incarnation, snapshotter, key, parent, labels, view=view, backend=backend
        )
        return _raised(await intents.begin(work))

    def beginning(
        self,
        namespace: str,
        lease: str,
        incarnation: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Labels,
        *,
        view: bool,
        backend: str = "",
    ) -> Callable[[Transaction], Intent | errors.NodeError]:
        """The work of :meth:`begin`."""
        validate_labels(labels, "info.Labels")
        target = labels.get(REF, "")

        def work(tx: Transaction) -> Intent | errors.NodeError:
            gateway = connected(tx, incarnation)
            check_snapshotter(tx, snapshotter)
            check_lease(tx, namespace, lease)
            home = gateway.chosen(snapshots_backend(snapshotter), backend)
            if target and schema.SNAPSHOTS.has(tx, namespace, snapshotter, target):
                hold(tx, namespace, lease, _resource(snapshotter, target))
                return errors.AlreadyExists(f"target snapshot {quoted(target)}")
            if schema.SNAPSHOTS.has(tx, namespace, snapshotter, key):
                hold(tx, namespace, lease, _resource(snapshotter, key))
                return errors.AlreadyExists(f"snapshot {quoted(key)}")
            above = schema.SNAPSHOTS.get(tx, namespace, snapshotter, parent) if parent else None
            if parent and above is None:
                raise errors.NotFound(f"parent snapshot {parent} does not exist")
            lives = gateway.chosen(snapshots_backend(snapshotter), above.backend) if above is not None else home
            if target:
                check_target_not_sweeping(tx, lives, target)
            check_unclaimed(tx, self._database.started, f"snapshot {key}", namespace, snapshotter, key)
            ensure_namespace(tx, namespace)
            return open_intent(
                tx,
                Intent(
                    id="",
                    incarnation=incarnation,
                    operation="view" if view else "prepare",
                    namespace=namespace,
                    lease=lease,
                    backend=lives,
                    labels=present(labels),
                    snapshotter=snapshotter,
                    key=key,
                    parent=parent,
                    raw_key=schema.raw_name(tx, namespace, key),
                    raw_parent=above.raw_key if above else "",
                    target=target,
                ),
            )

        return work

    # -- Commit

    async def begin_commit(
        self,
        intents: Intents,
        namespace: str,
        lease: str,
        incarnation: str,
        snapshotter: str,
        name: str,
        key: str,
        parent: str,
        labels: Labels,
    ) -> Intent:
        """Open the intent of a commit. ``parent`` rebases a snapshot that has none; it exists, or its own commit has
        begun. AlreadyExists for the name, which the lease then holds; NotFound; FailedPrecondition for a parent in
        another backend.
        """
        return _raised(
            await intents.begin(
                self.beginning_commit(namespace, lease, incarnation, snapshotter, name, key, parent, labels)
            )
        )

    def beginning_commit(
        self,
        namespace: str,
        lease: str,
        incarnation: str,
        snapshotter: str,
        name: str,
        key: str,
        parent: str,
        labels: Labels,
    ) -> Callable[[Transaction], Intent | errors.NodeError]:
        """The work of :meth:`begin_commit`."""
        validate_labels(labels, "info.Labels")

        def work(tx: Transaction) -> Intent | errors.NodeError:
            connected(tx, incarnation)
            check_snapshotter(tx, snapshotter)
            check_lease(tx, namespace, lease)
            if schema.SNAPSHOTS.has(tx, namespace, snapshotter, name):
                hold(tx, namespace, lease, _resource(snapshotter, name))
                return errors.AlreadyExists(f"snapshot {quoted(name)}")
            active = _snapshot(tx, namespace, snapshotter, key)
            check_unclaimed(tx, self._database.started, f"snapshot {name}", namespace, snapshotter, name, key)
            rebased = parent if not active.parent else ""
            under = active.parent or parent
            raw_parent = _raw_parent(tx, namespace, snapshotter, under, active.backend) if under else ""
            return open_intent(
                tx,
                Intent(
                    id="",
                    incarnation=incarnation,
                    operation="commit-snapshot",
                    namespace=namespace,
                    lease=lease,
                    backend=active.backend,
                    labels=present(labels),
                    snapshotter=snapshotter,
                    key=key,
                    name=name,
                    parent=under,
                    raw_key=active.raw_key,
                    raw_name=schema.raw_name(tx, namespace, name),
                    raw_parent=raw_parent if rebased else "",
                ),
            )

        return work


def finish_snapshot(tx: Transaction, intent: Intent, outcome: Outcome) -> Finished | errors.NodeError:
    """Record the snapshot that was prepared, or those that the backend already had."""
    namespace, snapshotter = intent.namespace, intent.snapshotter
    if intent.lease and not schema.LEASES.has(tx, namespace, intent.lease):
        return errors.NotFound("lease does not exist")
    if outcome.adopted:
        return _adopt(tx, intent, outcome)
    above = schema.SNAPSHOTS.get(tx, namespace, snapshotter, intent.parent) if intent.parent else None
    if schema.SNAPSHOTS.has(tx, namespace, snapshotter, intent.key):
        hold(tx, namespace, intent.lease, _resource(snapshotter, intent.key))
        return errors.AlreadyExists(f"snapshot {quoted(intent.key)}")
    if intent.parent and (above is None or above.raw_key != intent.raw_parent):
        return errors.NotFound(f"parent snapshot {intent.parent} does not exist")
    now = time.time_ns()
    view = intent.operation == "view"
    schema.put_snapshot(
        tx,
        namespace,
        snapshotter,
        Snapshot(
            name=intent.key,
            raw_key=intent.raw_key,
            backend=intent.backend,
            kind="view" if view else "active",
            parent=intent.parent,
            labels=intent.labels,
            created=now,
            updated=now,
        ),
    )
    hold(tx, namespace, intent.lease, _resource(snapshotter, intent.key))
    if view:
        return Finished()
    return Finished(
        events=(
            Event(
                namespace, "/snapshot/prepare", {"key": intent.key, "parent": intent.parent, "snapshotter": snapshotter}
            ),
        )
    )


def _adopt(tx: Transaction, intent: Intent, outcome: Outcome) -> errors.NodeError:
    """Record the target, and its ancestors down to a parent that has a record. The answer is AlreadyExists, or the
    reason why they cannot be recorded.
    """
    namespace, snapshotter, adopted = intent.namespace, intent.snapshotter, outcome.adopted
    above = schema.SNAPSHOTS.get(tx, namespace, snapshotter, intent.parent) if intent.parent else None
    recorded = (*(raw.name for raw in adopted[1:]), above.raw_key if above else "")
    if tuple(raw.parent for raw in adopted) != recorded:
        return errors.InvalidArgument(f"mismatched parent {intent.parent} from target {intent.target}")
    parent = intent.parent
    for index in range(len(adopted) - 1, -1, -1):
        raw = adopted[index]
        name = intent.target if index == 0 else raw.labels.get(REF, "")
        if not name:
            return errors.InvalidArgument(f"snapshot {raw.name} below target {intent.target} has no name of its own")
        if not schema.SNAPSHOTS.has(tx, namespace, snapshotter, name):
            labels = {**raw.labels, **(intent.labels if index == 0 else {})}
            schema.put_snapshot(
                tx,
                namespace,
                snapshotter,
                Snapshot(
                    name=name,
                    raw_key=raw.name,
                    backend=intent.backend,
                    kind="committed",
                    parent=parent,
                    labels=present(labels),
                    created=raw.created,
                    updated=raw.updated,
                ),
            )
        parent = name
    hold(tx, namespace, intent.lease, _resource(snapshotter, intent.target))
    return errors.AlreadyExists(f"target snapshot {quoted(intent.target)} from snapshotter")


def finish_commit_snapshot(tx: Transaction, intent: Intent, _outcome: Outcome) -> Finished | errors.NodeError:
    """The active snapshot becomes the committed one."""
    namespace, snapshotter = intent.namespace, intent.snapshotter
    active = schema.SNAPSHOTS.get(tx, namespace, snapshotter, intent.key)
    # otherwise it was removed meanwhile, and another was made under its key
    if active is not None and active.raw_key == intent.raw_key:
        schema.delete_snapshot(tx, namespace, snapshotter, active)
        release(tx, namespace, intent.lease, _resource(snapshotter, intent.key))
    if intent.lease and not schema.LEASES.has(tx, namespace, intent.lease):
        return errors.NotFound("lease does not exist")
    hold(tx, namespace, intent.lease, _resource(snapshotter, intent.name))
    if schema.SNAPSHOTS.has(tx, namespace, snapshotter, intent.name):
        return errors.AlreadyExists(f"snapshot {quoted(intent.name)}")
    above = schema.SNAPSHOTS.get(tx, namespace, snapshotter, intent.parent) if intent.parent else None
    if (
        above is None
        and intent.parent
        and (commit := _committing(tx, namespace, snapshotter, intent.parent)) is not None
    ):
        raise Busy(f"parent snapshot {intent.parent} is being committed", commit.id)
    # the parent may by now be another snapshot of the same name
    if intent.parent and (above is None or intent.raw_parent not in ("", above.raw_key)):
        return errors.NotFound(f"parent snapshot {intent.parent} does not exist")
    now = time.time_ns()
    schema.put_snapshot(
        tx,
        namespace,
        snapshotter,
        Snapshot(
            name=intent.name,
            raw_key=intent.raw_name,
            backend=intent.backend,
            kind="committed",
            parent=intent.parent,
            labels=intent.labels,
            created=now,
            updated=now,
        ),
    )
    return Finished(
        events=(
            Event(namespace, "/snapshot/commit", {"key": intent.key, "name": intent.name, "snapshotter": snapshotter}),
        )
    )


def _raw_parent(tx: Reader, namespace: str, snapshotter: str, name: str, backend: str) -> str:
    """The raw name of a committed snapshot, or of one that is being committed: the commits of a chain of layers may all
    begin at once; they end in order. NotFound; FailedPrecondition if it is not in ``backend``.
    """
    found = schema.SNAPSHOTS.get(tx, namespace, snapshotter, name)
    if found is not None:
        raw, there = found.raw_key, found.backend
    elif (commit := _committing(tx, namespace, snapshotter, name)) is not None:
        raw, there = commit.raw_name, commit.backend
    else:
        raise errors.NotFound(f"parent snapshot {name} does not exist")
    if there != backend:
        raise errors.FailedPrecondition(
            f"parent snapshot {name} is in {there}, and the snapshot to commit in {backend}: prepare it on the parent"
        )
    return raw


def _committing(tx: Reader, namespace: str, snapshotter: str, name: str) -> Intent | None:
    """The open intent that will commit a snapshot under this name; the last one, since a dead gateway may have left
    others.
    """
    found = [
        intent
        for intent in schema.intents_claiming(tx, namespace, snapshotter, name)
        if intent.operation == "commit-snapshot" and intent.name == name
    ]
    return found[-1] if found else None


def check_snapshotter(tx: Reader, snapshotter: str) -> None:
    """InvalidArgument for a snapshotter that the gateway does not have."""
    if not snapshotter:
        raise errors.InvalidArgument("snapshotter argument missing")
    gateway = schema.GATEWAY.get(tx)
    if gateway is not None and snapshotter not in gateway.snapshotters:
        raise errors.InvalidArgument(f"snapshotter not loaded: {snapshotter}")


def _resource(snapshotter: str, name: str) -> Resource:
    return Resource(f"snapshots/{snapshotter}", name)


def _raised(result: Intent | errors.NodeError) -> Intent:
    if isinstance(result, errors.NodeError):
        raise result
    return result


def _snapshot(tx: Reader, namespace: str, snapshotter: str, name: str) -> Snapshot:
    found = schema.SNAPSHOTS.get(tx, namespace, snapshotter, name)
    if found is None:
        raise errors.NotFound(f"snapshot {name} does not exist")
    return found


def _field(snapshot: Snapshot, path: Sequence[str]) -> tuple[str, bool]:
    """The fields that filters can select snapshots by."""
    match path:
        case ["kind", *_]:
            return snapshot.kind, True
        case ["name", *_]:
            return snapshot.name, True
        case ["parent", *_]:
            return snapshot.parent, True
        case ["labels", *rest]:
            return filters.of_map(rest, snapshot.labels)
    return "", False
