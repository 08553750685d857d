"""The victims of a backend: which raw things are removed, and in what order.

A raw thing stays if a record or an open intent names it, or if it may be what an open intent is about: any blob while
there is an open commit whose digest is unknown, and each snapshot whose label ``containerd.io/snapshot.ref`` has the
target of an open Prepare. All raw ancestors of a snapshot that stays also stay. Records else may go if the raw store
is this metadata store's *own* (the raw store carries its id). In any other raw store, only things that this metadata
store once named may go. A snapshot is removed before its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from services.kit.slices import Steps, sorting
from services.metadata import schema
from services.metadata.gc.mark import STEP
from services.metadata.gc.raw import Listing
from services.metadata.store import Intent, Nanoseconds, Raw
from services.metadata.transactions import Reader, decode, encode, last_part


@dataclass(frozen=True, slots=True)
class Uses:
    """How records and intents use the things of one backend."""

    raws: AbstractSet[Raw]
    """The raw things that they name."""
    references: frozenset[str]
    """The values of containerd.io/snapshot.ref that open intents look for."""
    every_blob: bool
    """There is an open commit whose digest is unknown."""


@dataclass(frozen=True, slots=True)
class Known:
    """The result for one backend of one reading of the records."""

    uses: Uses
    idle: tuple[Raw, ...]
    """The raw things that were once named and no longer are, in order."""

    @property
    def named(self) -> frozenset[Raw]:
        """All raw things that were once named and are not known to be gone; those in use are among them."""
        return frozenset((*self.uses.raws, *self.idle))

    @property
    def owners(self) -> frozenset[str]:
        """The namespaces whose things are among ``idle``, as their names say; "" if that of one does not."""
        return frozenset(schema.owner_of(raw) for raw in self.idle)

    def without(self, raws: Iterable[Raw]) -> Known:
        """The same, with ``raws`` in use."""
        used = self.uses.raws | set(raws)
        return Known(replace(self.uses, raws=used), tuple(raw for raw in self.idle if raw not in used))


def uses_of(backend: str, raws: AbstractSet[Raw], intents: Iterable[Intent]) -> Uses:
    """The uses of ``backend``: ``raws`` are the things there that records and ``intents`` name."""
    of_backend = [intent for intent in intents if intent.backend == backend]
    return Uses(
        raws,
        frozenset(intent.target for intent in of_backend if intent.target),
        any(intent.operation == "commit-ingest" and not intent.expected for intent in of_backend),
    )


def uses(tx: Reader, backend: str) -> Uses:
    """Read the uses of one backend from the store."""
    raws: set[Raw] = set()
    if backend.startswith("snapshots."):
        raws.update(
            Raw(backend, "snapshot", snapshot.raw_key)
            for _, snapshot in schema.SNAPSHOTS.scan(tx)
            if snapshot.backend == backend
        )
    else:
        raws.update(Raw(backend, "blob", blob.digest) for _, blob in schema.BLOBS.scan(tx) if blob.backend == backend)
        for _, ingest in schema.INGESTS.scan(tx):
            if ingest.backend == backend:
                raws.update(ingest.raws())
    intents = [intent for _, intent in schema.INTENTS.scan(tx)]
    raws.update(raw for intent in intents for raw in intent.raws() if raw.backend == backend)
    return uses_of(backend, raws, intents)


def named(tx: Reader, backend: str) -> frozenset[Raw]:
    """The raw things in the backend that this metadata store once named and that are not known to be gone."""
    return frozenset(Raw(*key) for key, _ in schema.NAMED.scan(tx, backend))  # type: ignore[arg-type]


def known_in_steps(
    tx: Reader,
    backends: Iterable[str],
    raws: Iterable[Raw],
    intents: Sequence[Intent],
    created: Mapping[str, Nanoseconds] = {},
    step: int = STEP,
) -> Steps[dict[str, Known]]:
    """Return the records' state of each of ``backends``; ``raws`` are the things that living records name, ``created``
    are the times of blobs, by their digests, as far as they are known.
    """
    used = {raw for intent in intents for raw in intent.raws()}
    for number, raw in enumerate(raws):
        used.add(raw)
        if not number % step:
            yield
    idle: dict[str, list[Raw]] = {backend: [] for backend in backends}
    of: dict[str, set[Raw]] = {backend: set() for backend in idle}
    names: dict[tuple[str, str], set[str]] = {}
    for number, raw in enumerate(used):
        if raw.backend in of:
            of[raw.backend].add(raw)
            names.setdefault((raw.backend, raw.kind), set()).add(raw.name)
        if not number % step:
            yield
    prefix = b"\xff"
    for rows in tx.scan_encoded((schema.NAMED.name,)):  # the most numerous rows
        for key, _ in rows:
            if not key.startswith(prefix):
                _, backend, kind, _ = decode(key)
                prefix = encode((schema.NAMED.name, backend, kind))
                of_kind, into = names.get((backend, kind), ()), idle.get(backend, [])
            name = last_part(key, prefix)
            if name not in of_kind:
                into.append(tuple.__new__(Raw, (backend, kind, name)))  # Raw(...) takes twice as long
        yield
    found: dict[str, Known] = {}
    for backend, some in idle.items():
        order = some if backend.startswith("snapshots.") else (yield from _by_creation(some, created, step))
        found[backend] = Known(uses_of(backend, of[backend], intents), tuple(order))
    return found


_UNKNOWN: Nanoseconds = 1 << 62


def _by_creation(raws: Sequence[Raw], created: Mapping[str, Nanoseconds], step: int) -> Steps[Sequence[Raw]]:
    """The oldest first: files that were made one after the other have their inodes, and their entries of the directory,
    side by side. To remove them in that order costs xfs a fifth less than in the order of their digests. Things whose
    time is unknown come last: most of them are ingests that are gone, and blobs need not wait for these.
    """

    def age(raw: Raw) -> Nanoseconds:
        return created.get(raw.name, _UNKNOWN)

    return sorting(raws, age, step)


def known_of(tx: Reader, backend: str) -> Known:
    """The same for one backend, read from the store, with all records."""
    used = uses(tx, backend)
    return Known(used, tuple(sorted(named(tx, backend) - used.raws)))


def victims(listing: Listing, used: Uses, once_named: frozenset[Raw], *, own: bool) -> list[Raw]:
    """The raw things to remove, in this order."""
    may_go = listing.raws() if own else listing.raws() & once_named
    stays = _lineage(
        listing,
        (
            key
            for key, snapshot in listing.snapshots.items()
            if (raw := Raw(listing.backend, "snapshot", key)) in used.raws
            or raw not in may_go
            or (snapshot.reference and snapshot.reference in used.references)
        ),
    )
    blobs = [] if used.every_blob else sorted(raw for raw in may_go if raw.kind == "blob" and raw not in used.raws)
    ingests = sorted(raw for raw in may_go if raw.kind == "ingest" and raw not in used.raws)
    going = {raw.name for raw in may_go if raw.kind == "snapshot"} - stays
    depths = _depths(listing, going)
    snapshots = [Raw(listing.backend, "snapshot", key) for key in sorted(going, key=lambda key: (-depths[key], key))]
    return [*ingests, *blobs, *snapshots]


def _depths(listing: Listing, keys: Iterable[str]) -> dict[str, int]:
    """The number of listed ancestors of each of ``keys`` and of these ancestors. Each parent is looked at once, however
    long the chain.
    """
    depths: dict[str, int] = {}
    for start in keys:
        path: list[str] = []
        key = start
        while key in listing.snapshots and key not in depths:
            depths[key] = 0  # until it is known; stays 0 if parents form a circle
            path.append(key)
            key = listing.snapshots[key].parent
        above = depths.get(key, 0)
        for key in reversed(path):
            above = depths[key] = above + 1
    return depths


def _lineage(listing: Listing, keys: Iterable[str]) -> set[str]:
    """``keys`` and all their ancestors."""
    found: set[str] = set()
    for start in keys:
        key = start
        while key and key not in found:
            found.add(key)
            snapshot = listing.snapshots.get(key)
            key = snapshot.parent if snapshot is not None else ""
    return found
