"""The writes since all records were read, as far as the collector needs them. So it can decide about all records
once, in steps, and afterwards look only at a few.

Each key that is written shows which record it belongs to (:func:`touched`). A record that was written meanwhile counts
as living, with everything that it refers to now, and so does every record that refers back to it. Nothing else can have
come back to life: what an unchanged record refers to either lived already, or died with that record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence, Sequence
from itertools import chain
from typing import Any

from services.kit.slices import Steps
from services.metadata import schema
from services.metadata.gc.mark import STEP, Marking, Node, Records, conditional, named_by, refers_to, resource_node
from services.metadata.gc.raw import Listing
from services.metadata.schema import BlobFacts
from services.metadata.store import Raw, Resource
from services.metadata.transactions import Key, Reader


def changed_nodes(tx: Reader, written: Iterable[Key]) -> set[Node]:
    """The existing records that the keys ``written`` belong to, and the nodes that written leases and intents name."""
    found: set[Node] = set()
    for key in {key for key in written if key[0] in _ABOUT and tx.get(key) is not None}:
        match key:
            case ("lease" | "image" | "container" | "sandbox" | "ingest" as kind, namespace, name):
                found.add(Node(kind, namespace, name))
                if kind == "lease":  # it may protect the resources that it had already in another way
                    found.update(
                        resource_node(namespace, Resource(*resource), flat=False)
                        for resource, _ in schema.RESOURCES.under(tx, namespace, name)
                    )
            case ("blob", namespace, digest):
                found.add(Node("content", namespace, digest))
            case ("snapshot", namespace, snapshotter, name):
                found.add(Node("snapshot", namespace, name, snapshotter))
            case ("resource", namespace, _, kind, name):
                found.add(resource_node(namespace, Resource(kind, name), flat=False))
            case ("intent", id_):
                if (intent := schema.INTENTS.get(tx, id_)) is not None:
                    found.update(
                        resource_node(intent.namespace, resource, flat=False) for resource in intent.resources()
                    )
    return found


_ABOUT = frozenset({"lease", "image", "container", "sandbox", "ingest", "blob", "snapshot", "resource", "intent"})


def revived(tx: Reader, records: Records, marking: Marking, changed: set[Node]) -> set[Node]:
    """The dead nodes that live since ``changed`` were written. All other ``records`` are as they were when ``marking``
    was made.
    """
    fresh = Records()
    for node in changed:
        _read(tx, fresh, node)
    seen = set(changed)
    stack = list(changed)
    while stack:
        node = stack.pop()
        current = fresh if node in changed else records
        for other in (*marking.back_references.get(node, ()), *refers_to(current, node), *conditional(current, node)):
            reached = other._replace(flat=False) if other.flat else other
            if reached not in seen and (
                reached in marking.flat or reached in marking.back_references or is_dead(records, marking, reached)
            ):
                seen.add(reached)
                stack.append(reached)
    return {node for node in seen if is_dead(records, marking, node)}


def is_dead(records: Records, marking: Marking, node: Node) -> bool:
    """Whether ``marking`` found the node dead."""
    return node not in marking.living and any(
        node in table for table in (records.blobs, records.snapshots, records.ingests, records.images, records.leases)
    )


def _read(tx: Reader, into: Records, node: Node) -> None:
    """Read the current record of ``node``, if it exists."""
    tables: dict[str, tuple[schema.Table[Any], dict[Node, Any]]] = {
        "snapshot": (schema.SNAPSHOTS, into.snapshots),
        "ingest": (schema.INGESTS, into.ingests),
        "image": (schema.IMAGES, into.images),
        "container": (schema.CONTAINERS, into.containers),
        "sandbox": (schema.SANDBOXES, into.sandboxes),
    }
    if node.type == "content":
        if (blob := schema.BLOBS.get(tx, node.namespace, node.key)) is not None:
            into.blobs[node] = BlobFacts(blob.backend, blob.labels, blob.created)
    elif node.type in tables:
        table, records = tables[node.type]
        key = (node.namespace, node.snapshotter, node.key) if node.type == "snapshot" else (node.namespace, node.key)
        if (found := table.get(tx, *key)) is not None:
            records[node] = found


def removal_order(records: Records, marking: Marking, step: int = STEP) -> Steps[list[Node]]:
    """The dead nodes, each before the nodes it refers to. So at no time during the removal does a record refer to one
    that is gone.
    """

    def below(node: Node) -> Iterable[Node]:
        back = marking.back_references.get(node, ())
        return named_by(records, node) if node.type == "lease" else chain(back, refers_to(records, node))

    def is_leaf(node: Node) -> bool:
        """Whether it refers to nothing, as nearly all blobs: then any place behind the others will do."""
        return node.type == "content" and not records.blobs[node].labels and not marking.back_references.get(node)

    leaves: list[Node] = []
    others: list[Node] = []
    for number, node in enumerate(marking.dead):
        if not number % step:
            yield
        (leaves if is_leaf(node) else others).append(node)
    order = yield from _topological(
        others, below, lambda node: is_dead(records, marking, node) and not is_leaf(node), step
    )
    order.extend(leaves)
    return order


def _topological(
    nodes: Iterable[Node], below: Callable[[Node], Iterable[Node]], wanted: Callable[[Node], bool], step: int
) -> Steps[list[Node]]:
    """The nodes among ``nodes`` and below them that are wanted, in topological order."""
    seen: set[Node] = set()
    order: list[Node] = []
    looked = 0
    for number, start in enumerate(nodes):
        if not number % step:
            yield
        if start in seen:
            continue
        seen.add(start)
        stack = [(start, iter(below(start)))]
        while stack:
            node, rest = stack[-1]
            for each in rest:  # an index may have ten thousand references
                looked += 1
                if not looked % step:
                    yield
                other = each._replace(flat=False) if each.flat else each
                if other not in seen and wanted(other):
                    seen.add(other)
                    stack.append((other, iter(below(other))))
                    break
            else:
                order.append(node)
                stack.pop()
    return order[::-1]


class Spared:
    """The raw things of a backend that must stay because they were named, or asked for, after the victims were chosen.
    ``listing`` is what the backend had.
    """

    def __init__(self, listing: Listing, written: MutableSequence[Key]) -> None:
        self._listing = listing
        self._written = written
        self._raws: set[Raw] = set()
        self._references: dict[str, list[str]] | None = None
        self.every_blob = False
        """A commit whose digest is unknown was begun."""

    @property
    def backlog(self) -> int:
        """The number of keys that were written since the last look."""
        return len(self._written)

    def look(self, tx: Reader, most: int = 1 << 62) -> Spared:
        """Look at the keys written until now, at most ``most`` of them. Call it in a transaction, which may run again:
        it then spares too much, never too little.
        """
        written = self._written[:most]
        del self._written[:most]  # a sweep may take hours
        for key in set(written):
            if key[0] == schema.NAMED.name and key[1] == self._listing.backend:
                self._stays(Raw(*key[1:]))  # type: ignore[arg-type]
            elif (
                key[0] == schema.INTENTS.name
                and (intent := schema.INTENTS.get(tx, key[1])) is not None
                and intent.backend == self._listing.backend
            ):
                self.every_blob = self.every_blob or (intent.operation == "commit-ingest" and not intent.expected)
                for name in self._referring(intent.target):
                    self._stays(Raw(self._listing.backend, "snapshot", name))
        return self

    def _referring(self, reference: str) -> Sequence[str]:
        """The snapshots that were made for ``reference``."""
        if self._references is None:
            self._references = {}
            for key, snapshot in self._listing.snapshots.items():
                if snapshot.reference:
                    self._references.setdefault(snapshot.reference, []).append(key)
        return self._references.get(reference, ())

    def _stays(self, raw: Raw) -> None:
        """Spare the raw thing and all its ancestors."""
        while raw not in self._raws:
            self._raws.add(raw)
            snapshot = self._listing.snapshots.get(raw.name) if raw.kind == "snapshot" else None
            if snapshot is not None and snapshot.parent:
                raw = raw._replace(name=snapshot.parent)

    def __contains__(self, raw: Raw) -> bool:
        return raw in self._raws or (self.every_blob and raw.kind == "blob")
