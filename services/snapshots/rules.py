"""What may become of snapshots, as changes of the records: each function looks, refuses or changes, in one transaction.

The snapshotters of this service (``local``) and those of one's own (``records``) go by the same rules, and refuse with
containerd's words.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from services.kit import errors
from services.snapshots.store import Info, Kind, Usage, kept_labels, updated_labels
from services.snapshots.tree import Row, Rows


def existing(rows: Rows, key: str) -> Row:
    """The snapshot with this key or name; NotFound."""
    row = rows.get(key)
    if row is None:
        raise errors.NotFound("snapshot does not exist")
    return row


def mountable(rows: Rows, key: str) -> Row:
    """The active snapshot or view ``key``; FailedPrecondition for a committed one."""
    row = existing(rows, key)
    if row.info.kind is Kind.COMMITTED:
        raise errors.FailedPrecondition(f"requested snapshot {key} not active or view")
    return row


def base(rows: Rows, key: str, parent: str) -> Row | None:
    """The parent of a snapshot that is to be made under ``key``, which must be free."""
    found = rows.get(parent) if parent else None
    if parent and found is None:
        raise errors.NotFound(f'missing parent "{parent}" bucket')
    if found is not None and found.info.kind is not Kind.COMMITTED:
        raise errors.InvalidArgument(f'parent "{parent}" is not committed snapshot')
    if rows.get(key) is not None:
        raise errors.AlreadyExists(f"snapshot {key}")
    return found


def new(number: int, parent: Row | None, kind: Kind, key: str, labels: Mapping[str, str]) -> Row:
    """The record of a snapshot that is made now."""
    now = time.time_ns()
    name = parent.info.name if parent else ""
    return Row(number, parent.id if parent else None, Info(key, kind, now, now, name, kept_labels(labels)), Usage())


def commit(rows: Rows, active: Row, name: str, labels: Mapping[str, str], usage: Usage, parent: str = "") -> None:
    """Make ``active``, which was read before its files were made durable, a committed snapshot called ``name``;
    ``parent`` rebases it.
    """
    if rows.get(name) is not None:
        raise errors.AlreadyExists(f"committed snapshot {name}")
    key = active.info.name
    row = rows.get(key)
    if row is None or row.id != active.id:
        raise errors.NotFound(f'failed to get active snapshot "{key}"')
    if row.info.kind is not Kind.ACTIVE:
        raise errors.FailedPrecondition(f'snapshot "{key}" is not active')
    below = rebased(rows, row, parent)
    now = time.time_ns()
    rows.replace(Row(row.id, below, Info(name, Kind.COMMITTED, now, now, labels=kept_labels(labels)), usage))


def rebased(rows: Rows, row: Row, parent: str) -> int | None:
    """The id of the parent that a commit gives a snapshot: its own, or ``parent`` if it has none."""
    if not parent or parent == row.info.parent:
        return row.parent
    if row.info.parent:
        raise errors.InvalidArgument(f'cannot change parent of active snapshot "{row.info.name}" on commit')
    found = rows.get(parent)
    if found is None or found.id == row.id:
        raise errors.NotFound(f'missing parent "{parent}" of snapshot "{row.info.name}"')
    if found.info.kind is not Kind.COMMITTED:
        raise errors.FailedPrecondition(f'parent "{parent}" is not committed')
    return found.id


def update(rows: Rows, key: str, labels: Mapping[str, str], paths: Sequence[str]) -> Row:
    """Change a snapshot's labels as :func:`store.updated_labels` says."""
    row = existing(rows, key)
    old = row.info
    changed = Info(
        key, old.kind, old.created_at, time.time_ns(), old.parent, updated_labels(key, old.labels, labels, paths)
    )
    rows.replace(row := row._replace(info=changed))
    return row


def remove(rows: Rows, key: str, used: Mapping[int, int]) -> list[int]:
    """Remove the record of a snapshot. The result is its thing, unless others use that. ``used`` counts, by id, the
    children that have no records yet.
    """
    row = rows.get(key)
    if row is None:
        raise errors.NotFound(f"snapshot {key}")
    if used.get(row.id) or rows.has_children(row):
        raise errors.FailedPrecondition("cannot remove snapshot with child")
    thing = rows.thing(row.id)
    rows.delete(row)
    return [thing] if rows.left(row, thing) else []
