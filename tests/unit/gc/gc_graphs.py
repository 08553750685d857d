"""Small record graphs for the collector's tests: each record is written by one line, into the memory store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc.mark import Marking, Node, mark, read_records
from services.metadata.memory import MemoryTransactions
from services.metadata.store import (
    Blob,
    Container,
    Gateway,
    Image,
    Ingest,
    Intent,
    Lease,
    Raw,
    Resource,
    Sandbox,
    Snapshot,
)
from services.metadata.transactions import Transaction

NOW = time.time_ns() // 10**9 * 10**9
SECOND = 10**9
HOUR = 3600 * SECOND
CONTENT, OVERLAY = "content", "snapshots.overlayfs"


def stamp(nanoseconds: int) -> str:
    """A time in RFC 3339, as labels have it."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass
class World:
    """A builder of records: every method returns what it wrote and takes ``labels`` with ``containerd.io/`` left
    out.
    """

    transactions: MemoryTransactions = field(default_factory=MemoryTransactions)

    def __post_init__(self) -> None:
        self.database = Database(self.transactions, patience=5.0)
        self._write(
            lambda tx: schema.GATEWAY.put(
                tx, value=Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",))
            )
        )

    def _write(self, work) -> None:
        work(self.transactions._state)

    def _labels(self, labels: Mapping[str, str] | None) -> dict[str, str]:
        return {f"containerd.io/{key}": value for key, value in (labels or {}).items()}

    def image(self, name: str, target: int, labels: Mapping[str, str] | None = None, ns: str = "ns") -> None:
        image = Image(name=name, digest=digest(target), media_type="m", size=1, labels=self._labels(labels))
        self._write(lambda tx: schema.IMAGES.put(tx, ns, name, value=image))

    def blob(self, number: int, labels: Mapping[str, str] | None = None, ns: str = "ns", created: int = 0) -> Raw:
        blob = Blob(digest=digest(number), size=1, backend=CONTENT, labels=self._labels(labels), created=created)
        self._write(lambda tx: schema.put_blob(tx, ns, blob))
        return Raw(CONTENT, "blob", blob.digest)

    def snapshot(
        self,
        name: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        ns: str = "ns",
        snapshotter: str = "overlayfs",
        kind: str = "committed",
    ) -> Raw:
        raw = ""

        def work(tx: Transaction) -> None:
            nonlocal raw
            raw = schema.raw_name(tx, ns, name)
            schema.put_snapshot(
                tx,
                ns,
                snapshotter,
                Snapshot(
                    name=name,
                    raw_key=raw,
                    backend=f"snapshots.{snapshotter}",
                    kind=kind,  # type: ignore[arg-type]
                    parent=parent,
                    labels=self._labels(labels),
                ),
            )

        self._write(work)
        return Raw(f"snapshots.{snapshotter}", "snapshot", raw)

    def ingest(self, ref: str, expires: int = 0, expected: str = "", ns: str = "ns", *, shared: bool = False) -> Raw:
        raw = ""

        def work(tx: Transaction) -> None:
            nonlocal raw
            raw = schema.raw_name(tx, ns, ref)
            schema.put_ingest(
                tx, ns, Ingest(ref=ref, raw_ref=raw, backend=CONTENT, expected=expected, expires=expires, shared=shared)
            )

        self._write(work)
        return Raw(CONTENT, "ingest", raw)

    def container(self, id_: str, snapshot: str = "", labels: Mapping[str, str] | None = None, ns: str = "ns") -> None:
        container = Container(
            id=id_, snapshotter="overlayfs" if snapshot else "", snapshot_key=snapshot, labels=self._labels(labels)
        )
        self._write(lambda tx: schema.CONTAINERS.put(tx, ns, id_, value=container))

    def sandbox(self, id_: str, labels: Mapping[str, str] | None = None, ns: str = "ns") -> None:
        sandbox = Sandbox(id=id_, labels=self._labels(labels))
        self._write(lambda tx: schema.SANDBOXES.put(tx, ns, id_, value=sandbox))

    def lease(self, id_: str, *held: tuple[str, str], labels: Mapping[str, str] | None = None, ns: str = "ns") -> None:
        def work(tx: Transaction) -> None:
            schema.LEASES.put(tx, ns, id_, value=Lease(id=id_, labels=self._labels(labels)))
            for resource in held:
                schema.put_resource(tx, ns, id_, Resource(*resource))

        self._write(work)

    def intent(self, operation: str, **fields: str) -> Intent:
        backend = fields.pop("backend", CONTENT if operation == "commit-ingest" else OVERLAY)
        intent = Intent(
            id=f"i{time.monotonic_ns()}",
            incarnation="g",
            operation=operation,  # type: ignore[arg-type]
            namespace="ns",
            backend=backend,
            snapshotter="" if backend == CONTENT else "overlayfs",
            **fields,  # type: ignore[arg-type]
        )

        def work(tx: Transaction) -> None:
            schema.INTENTS.put(tx, intent.id, value=intent)
            for raw in intent.raws():
                schema.NAMED.put(tx, *raw, value=None)

        self._write(work)
        return intent

    def end(self, intent: Intent) -> None:
        self._write(lambda tx: schema.INTENTS.delete(tx, intent.id))

    def drop(self, raw: Raw) -> None:
        """Remove the records of a raw thing, as a client does."""

        def work(tx: Transaction) -> None:
            for (ns, name), blob in list(schema.BLOBS.scan(tx)):
                if raw == Raw(blob.backend, "blob", name):
                    schema.delete_blob(tx, ns, name)
            for (ns, ref), ingest in list(schema.INGESTS.scan(tx)):
                if raw == Raw(ingest.backend, "ingest", ingest.raw_ref):
                    schema.INGESTS.delete(tx, ns, ref)
            for (ns, snapshotter, _), snapshot in list(schema.SNAPSHOTS.scan(tx)):
                if raw == Raw(snapshot.backend, "snapshot", snapshot.raw_key):
                    schema.delete_snapshot(tx, ns, snapshotter, snapshot)

        self._write(work)

    # -- what came of it

    def marking(self, now: int = NOW) -> Marking:
        return mark(read_records(self.transactions._state), now)

    def living(self, now: int = NOW) -> set[str]:
        """The records that live, as ``content 3``, ``snapshot name``, with ``ns2:`` before those of other
        namespaces.
        """
        records = read_records(self.transactions._state)
        every: list[Node] = [*records.leases, *records.snapshots, *records.ingests, *records.blobs, *records.images]
        return {_short(node) for node in every} - self.dead(now)

    def dead(self, now: int = NOW) -> set[str]:
        return {_short(node) for node in self.marking(now).dead}

    def marks(self) -> set[Raw]:
        return {raw for backend in (CONTENT, OVERLAY) for raw in schema.marked(self.transactions._state, backend)}

    def named(self) -> set[Raw]:
        return {Raw(*key) for key, _ in schema.NAMED.scan(self.transactions._state)}  # type: ignore[arg-type]


def _short(node: Node) -> str:
    name = str(int(node.key[7:], 16)) if node.type == "content" else node.key
    where = f"{node.snapshotter}/" if node.snapshotter not in ("", "overlayfs") else ""
    return f"{'' if node.namespace == 'ns' else node.namespace + ':'}{node.type} {where}{name}"
