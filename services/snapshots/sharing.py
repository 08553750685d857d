"""The same layer once: a snapshot that needs no files of its own, since those of another are the same.

A client that unpacks a layer says which snapshot it is to become (label containerd.io/snapshot.ref, its chain id). A
snapshotter that can make that snapshot itself does so, and answers AlreadyExists, as containerd's remote snapshotters
do. Ours can if the same layer was unpacked on another parent: the new snapshot is a record that names the *thing* of
the other one (``tree.py``). No file is made, and nothing is copied.

That the layer is the same is said by its note (``diff/note.py``), which the worker wrote that digested it, and by the
name under which it was committed, which is the chain id of that layer on its parent. Whoever commits other files under
that name deceives those who look for the name, so within a namespace that was trusted before. Between namespaces
nothing is shared.

That its files would be the same on the other parent, the snapshotter decides
(:meth:`~.local.LocalSnapshotter.same`). One thing must not be twice in a stack, as overlayfs refuses that.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from services.kit import errors, tracing
from services.oci.digests import chain_ids
from services.snapshots import rules
from services.snapshots.store import DIFF_ID, GID_MAPPING, TARGET, UID_MAPPING, Info, Kind, Usage
from services.snapshots.tree import Layer, Row, Rows, Tree

log = logging.getLogger(__name__)

Same = Callable[[int, Sequence[int], Sequence[int]], bool]
_RAW = re.compile("([^/]+)/[0-9]+/")
"""What the gateway puts before a client's key: its namespace, and a number."""
_TRIED = 4
"""Copies of a layer that are looked at."""


def is_layer(name: str, parent: str, diff_id: str) -> bool:
    """Whether a snapshot is named as this layer on that parent: by their chain id."""
    below = [parent.rpartition("/")[2]] if parent else []
    return name.rpartition("/")[2] == chain_ids([*below, diff_id])[-1]


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is for a snapshot that is wanted."""

    parent: Row
    diff_id: str
    stack: Sequence[int]
    """The things of its parent, and of those below."""
    done: bool
    """It was made before."""
    candidates: Sequence[tuple[Layer, Sequence[int]]]
    """The layer on other parents, with their things."""


class Sharing:
    """Makes snapshots in ``tree`` that use the things of others. ``ids`` gives new ids; ``same`` is the snapshotter's,
    and is called in a thread.
    """

    def __init__(self, tree: Tree, ids: Iterator[int], same: Same) -> None:
        self._tree = tree
        self._ids = ids
        self._same = same

    async def made(self, key: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Whether the target of a Prepare is there, on ``parent``. If the same layer is there on another parent, it is
        made. Errors are those of the Prepare.
        """
        if not parent or TARGET not in labels or UID_MAPPING in labels or GID_MAPPING in labels:
            return False
        found = self._tree.view(lambda rows: _found(rows, key, parent, labels))
        if found is None or found.done:
            return found is not None
        for layer, below in found.candidates:
            with tracing.span("snapshots.share", **{"splitd.key": key}) as span:
                try:
                    same = await asyncio.to_thread(self._same, layer.thing, below, found.stack)
                except OSError as error:
                    log.warning("whether layer %s can be shared is not known: %s", found.diff_id, errors.words(error))
                    same = False
                span.put({"splitd.same": same})
                if same and await self._tree.write(partial(self._record, key, labels, found, layer)):
                    return True
        return False

    def _record(self, key: str, labels: Mapping[str, str], found: _Found, layer: Layer, rows: Rows) -> bool:
        """Record the snapshot; False if anything has changed meanwhile."""
        parent, target = found.parent.info.name, labels[TARGET]
        now = _found(rows, key, parent, labels)
        if now is None or now.parent.id != found.parent.id:
            return False
        if now.done:
            return True
        prefix = _RAW.match(key)
        name = f"{prefix.group() if prefix else ''}{target}"
        # while the record of the other one is there, its parents are, so they were when they were compared
        if layer not in [each for each, _ in now.candidates] or rows.get(name) is not None:
            return False
        number, when = next(self._ids), time.time_ns()
        rows.insert(Row(number, now.parent.id, Info(name, Kind.COMMITTED, when, when, parent, dict(labels)), Usage()))
        rows.add_layer(Layer(number, found.diff_id, layer.thing))
        return True


def _found(rows: Rows, key: str, parent: str, labels: Mapping[str, str]) -> _Found | None:
    """None if the target is no layer that is here."""
    base = rules.base(rows, key, parent)
    assert base is not None
    diff_id = _diff_id(rows, parent, labels)
    if not diff_id:
        return None
    stack = rows.stack(base.id)
    there = [(row, layer) for row, layer in rows.layers(diff_id) if space_of(row.info.name) == space_of(parent)]
    others: dict[int, tuple[Row, Layer]] = {}
    for row, layer in there:
        if layer.thing not in stack:
            others.setdefault(layer.thing, (row, layer))
    return _Found(
        base,
        diff_id,
        stack,
        any(row.parent == base.id and row.info.labels.get(TARGET) == labels[TARGET] for row, _ in there),
        [(layer, rows.ancestors(row)) for row, layer in list(others.values())[:_TRIED]],
    )


def _diff_id(rows: Rows, parent: str, labels: Mapping[str, str]) -> str:
    """The diff id of a target; "" if that is not known. Older clients do not say it."""
    target = labels[TARGET]
    said = labels.get(DIFF_ID)
    for each in rows.diff_ids() if said is None else [said]:
        if is_layer(target, parent, each):
            return each
    return ""


def space_of(name: str) -> str:
    """The namespace of a snapshot, by its name or key; "" without a gateway."""
    found = _RAW.match(name)
    return found.group(1) if found else ""
