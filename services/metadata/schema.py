"""The tables of the metadata store: its keys, and the values below them. All code reads and writes keys through these
tables.

    namespace   NAMESPACE                             labels
    image       NAMESPACE NAME                        target, labels, times
    container   NAMESPACE ID                          its fields
    sandbox     NAMESPACE ID                          its fields
    lease       NAMESPACE ID                          labels, time
    resource    NAMESPACE LEASE TYPE ID               empty: the lease holds the resource, whether that exists or not.
                                                      TYPE: content, ingests, images, snapshots/SNAPSHOTTER
    blob        NAMESPACE DIGEST                      size, backend, labels, times
    owner       DIGEST NAMESPACE                      empty: the namespace has a record of the blob (index of "blob")
    ingest      NAMESPACE REF                         raw ref, backend, expected digest, expiry
    snapshot    NAMESPACE SNAPSHOTTER NAME            raw key, backend, kind, parent, labels, times.
                                                      NAME: the key, or the name once committed
    child       NAMESPACE SNAPSHOTTER NAME CHILD      empty: the parent of CHILD is NAME (index of "snapshot")
    sequence    NAMESPACE                             the last number given to a raw ref or raw key of the namespace
    intent      ID                                    the operation that has begun.
                                                      IDs begin with the time, so the oldest come first
    claim       NAMESPACE SNAPSHOTTER NAME ID         empty: intent ID claims NAME (index of "intent", made anew at
                                                      each start). SNAPSHOTTER: empty for content
    answer      ID                                    the answer of an ended intent, for repeated Finish and Cancel,
                                                      and the time until which it is kept
    sweeping    BACKEND KIND RAW                      a mark: the collector is removing this raw thing.
                                                      KIND: blob, ingest, snapshot
    removing    BACKEND DIGEST                        marks of blobs that the collector removes in one call, one digest
                                                      a line. DIGEST: the first of them
    named       BACKEND KIND RAW                      empty: a record or an intent has named this raw thing, which may
                                                      still exist. A sweep of a foreign store removes nothing else.
                                                      Every write of such a record or intent sets it
    held                                              why the collector is held, until an operator releases it
                                                      (``gc/guard.py``)
    checked     BACKEND NAMESPACE                     the last number of the namespace that the last good sweep of
                                                      this backend relied on
    gateway                                           the gateway that connected last
    moving                                            the records are being moved, or have left (``moving.py``)
    store                                             this store's id, a UUID

Values are JSON. Bytes that must come back unchanged (Any) follow the JSON.

A table's methods take the parts of the key after the table's name. ``scan`` takes any number of leading parts, and
yields the whole key without the table's name::

    for (namespace, name), image in schema.IMAGES.scan(tx): ...
    for (name,), image in schema.IMAGES.under(tx, "default"): ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import lru_cache
from itertools import islice
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Generic, NamedTuple, TypeVar

from services.kit import damage, errors, memory
from services.kit.slices import Steps
from services.metadata.store import (
    LABELS_PER_STEP,
    Blob,
    Container,
    Gateway,
    Held,
    Image,
    Ingest,
    Intent,
    Labels,
    Lease,
    Mark,
    Move,
    Namespace,
    Raw,
    Resource,
    Sandbox,
    Snapshot,
)
from services.metadata.transactions import Key, Reader, Transaction, decode, encode, last_part
from services.oci.opaque import Opaque

V = TypeVar("V")

_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Table(Generic[V]):
    """A table: the keys that begin with ``name``, and the encoding of their values."""

    name: str
    encode: Callable[[V], bytes]
    decode: Callable[[Key, bytes], V]
    read: Callable[[Key, bytes], V] | None = None
    """As ``decode``, but without caching: for callers that read all records. None: ``decode`` does not cache either."""
    steps: Callable[[Key, bytes], Steps[V]] | None = None
    """As ``read``, in steps, for values of more than :data:`LARGE` bytes."""

    def get(self, tx: Reader, *key: str) -> V | None:
        """The value of a key, or None."""
        value = tx.get((self.name, *key))
        return None if value is None else self.decode(key, value)

    def raw(self, tx: Reader, *key: str) -> bytes | None:
        """The encoded value, or None."""
        return tx.get((self.name, *key))

    def has(self, tx: Reader, *key: str) -> bool:
        """Whether the key exists."""
        return tx.get((self.name, *key)) is not None

    def scan(self, tx: Reader, *prefix: str, limit: int | None = None) -> Iterator[tuple[Key, V]]:
        """All records below ``prefix``, or the first ``limit`` of them, in order: the key without the table's name, and
        the value.
        """
        decode = self.read or self.decode
        for key, value in tx.scan((self.name, *prefix), limit=limit):
            yield key[1:], decode(key[1:], value)

    def under(self, tx: Reader, *prefix: str) -> Iterator[tuple[Key, V]]:
        """As ``scan``, with ``prefix`` left out of the keys."""
        skip = len(prefix)
        for key, value in self.scan(tx, *prefix):
            yield key[skip:], value

    def any(self, tx: Reader, *prefix: str) -> bool:
        """Whether there is a record below ``prefix``."""
        return next(iter(tx.scan((self.name, *prefix), limit=1)), None) is not None

    def put(self, tx: Transaction, *key: str, value: V) -> None:
        tx.put((self.name, *key), self.encode(value))

    def delete(self, tx: Transaction, *key: str) -> None:
        """Remove the record, if it exists."""
        tx.delete((self.name, *key))

    def delete_all(self, tx: Transaction, *prefix: str, limit: int | None = None) -> None:
        """Remove all records below ``prefix``, or the first ``limit`` of them."""
        tx.delete_all((self.name, *prefix), limit=limit)


def _json(name: str, cls: type[V], *keyed: str, cached: int = 0) -> Table[V]:
    """A table of dataclasses. The fields ``keyed`` are the last parts of the key, and are left out of the value, as are
    empty fields that have a default.

    The table caches ``cached`` decoded values, for tables that are listed often. Values are frozen, so callers can
    share them.
    """
    known = [f for f in fields(cls) if f.name not in keyed]  # type: ignore[arg-type]
    names = [f.name for f in known]
    # empty values that are kept, for example the size of an empty blob
    required = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    loads = json.JSONDecoder().decode  # json.loads would detect the encoding each time
    last = keyed[0] if keyed else ""

    def encode(value: V) -> bytes:
        return _dumps(
            {n: dict(v) if n in _MAPS else v for n in names if (v := getattr(value, n)) or n in required}
        ).encode()

    def decode(key: Key, value: bytes) -> V:
        try:
            found = loads(value.decode())
            if last:
                found[last] = key[-1]
            return cls(**found)
        except (ValueError, TypeError) as error:
            raise _damaged(name, key, error) from None

    return Table(name, encode, _with_cache(cached, decode), decode) if cached else Table(name, encode, decode)


_CACHE_BYTES = 16 << 20
"""Bytes, as stored, that the cached values of one table may take: clients choose how large a record is."""


def _with_cache(count: int, decode: Callable[[Key, bytes], V]) -> Callable[[Key, bytes], V]:
    """``decode`` with a cache of the last ``count`` values. A value larger than its share of the bytes is not
    cached.
    """
    cached = lru_cache(count)(decode)
    memory.when_idle(cached.cache_clear)
    largest = _CACHE_BYTES // count
    return lambda key, value: cached(key, value) if len(value) <= largest else decode(key, value)


_MAPS = frozenset({"labels", "annotations"})


def _keys_only(name: str) -> Table[None]:
    return Table(name, lambda _: b"", lambda _key, _value: None)


# The Any values of a container or a sandbox are bytes, up to some 100 KB: they follow the JSON unchanged.


def _with_opaques(name: str, cls: Callable[..., V], *texts: str, cached: int = 0) -> Table[V]:
    """A table of records with ``labels``, ``spec``, ``runtime_options`` and ``extensions``, and the fields ``texts``;
    the key's last part is their ``id``. ``cached`` as in :func:`_json`.
    """

    def encode(value: Any) -> bytes:
        parts: list[bytes] = []

        def place(opaque: Opaque) -> list[Any]:
            parts.append(opaque.value)
            return [opaque.type_url, len(opaque.value)]

        head: dict[str, Any] = {n: v for n in texts if (v := getattr(value, n))}
        head["labels"] = dict(value.labels)
        if value.spec is not None:
            head["spec"] = place(value.spec)
        if value.runtime_options is not None:
            head["runtime_options"] = place(value.runtime_options)
        head["extensions"] = {name: place(opaque) for name, opaque in value.extensions.items()}
        return _dumps(head).encode() + b"\0" + b"".join(parts)

    def decode(key: Key, value: bytes) -> V:
        try:
            end = value.index(b"\0")  # JSON escapes NUL
            head, position = json.loads(value[:end]), end + 1

            def take(placed: list[Any]) -> Opaque:
                nonlocal position
                start, position = position, position + placed[1]
                return Opaque(placed[0], value[start:position])

            for each in ("spec", "runtime_options"):
                if each in head:
                    head[each] = take(head[each])
            head["extensions"] = {name: take(placed) for name, placed in head["extensions"].items()}
            return cls(id=key[-1], **head)
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(name, key, error) from None

    return Table(name, encode, _with_cache(cached, decode) if cached else decode, decode)


def _damaged(name: str, key: Key, error: Exception) -> errors.DataLoss:
    """The error for a value that cannot be decoded. SQLite does not notice a page whose contents are wrong."""
    return errors.DataLoss(
        f"metadata store: the record {name} {' '.join(key)} is damaged ({error}): {damage.WHAT_TO_DO}"
    )


def _decode_gateway(_key: Key, value: bytes) -> Gateway:
    found = json.loads(value)
    return Gateway(
        incarnation=found["incarnation"],
        content=found["content"],
        snapshotters=tuple(found["snapshotters"]),
        candidates=tuple(found.get("candidates", ())),  # absent in what an older splitd wrote
    )


def _encode_gateway(value: Gateway) -> bytes:
    return _dumps(
        {
            "incarnation": value.incarnation,
            "content": value.content,
            "snapshotters": list(value.snapshotters),
            "candidates": list(value.candidates),
        }
    ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How an intent ended: by ``finish``, with its answer in ``detail``, or by ``cancel``."""

    ended: str
    until: int
    """Nanoseconds since the epoch until which the answer is kept."""
    detail: dict[str, Any] | None = None


NAMESPACES = _json("namespace", Namespace)
IMAGES = _json("image", Image, "name", cached=1024)
CONTAINERS_CACHED = 512
"""A client that runs a container reads its record four times, and others list all of them. Of a list that is longer
than the cache, nothing is in the cache when the list is asked for again.
"""
CONTAINERS = _with_opaques(
    "container",
    Container,
    *("image", "runtime", "snapshotter", "snapshot_key", "sandbox", "created", "updated"),
    cached=CONTAINERS_CACHED,
)
SANDBOXES = _with_opaques("sandbox", Sandbox, "runtime", "sandboxer", "created", "updated")
LEASES = _json("lease", Lease, "id")
RESOURCES = _keys_only("resource")
# a client that reads a blob in pieces asks for its record thousands of times
BLOBS = replace(_json("blob", Blob, "digest", cached=64), steps=lambda key, value: read_blob_in_steps(key, value))  # noqa: PLW0108 - it is below
OWNERS = _keys_only("owner")
INGESTS = _json("ingest", Ingest, "ref")
SNAPSHOTS = _json("snapshot", Snapshot, "name")
CHILDREN = _keys_only("child")
SEQUENCES: Table[int] = Table("sequence", lambda value: b"%d" % value, lambda _key, value: int(value))
INTENTS = _json("intent", Intent, "id", cached=256)
CLAIMS = _keys_only("claim")
ANSWERS = _json("answer", Answer)
SWEEPING = _json("sweeping", Mark)
REMOVING: Table[str] = Table("removing", lambda value: value.encode(), lambda _key, value: value.decode())
NAMED = _keys_only("named")
HELD = _json("held", Held)
MOVING = _json("moving", Move)
CHECKED: Table[int] = Table("checked", lambda value: b"%d" % value, lambda _key, value: int(value))
GATEWAY: Table[Gateway] = Table("gateway", _encode_gateway, lru_cache(2)(_decode_gateway))
STORE: Table[str] = Table("store", lambda value: value.encode(), lambda _key, value: value.decode())


# ---------------------------------------------------------------------------------------------- what more than one
# caller does with them


def next_number(tx: Transaction, namespace: str) -> int:
    """A number that no raw name of the namespace has had before."""
    number = (SEQUENCES.get(tx, namespace) or 0) + 1
    SEQUENCES.put(tx, namespace, value=number)
    return number


def raw_name(tx: Transaction, namespace: str, name: str) -> str:
    """A new raw ref or raw key for ``name``."""
    return f"{namespace}/{next_number(tx, namespace)}/{name}"


def owner_of(raw: Raw) -> str:
    """The namespace that a raw thing's name tells; "" for a blob, and for a snapshot that its snapshotter named."""
    namespace, _, rest = raw.name.partition("/")
    return namespace if raw.kind != "blob" and rest.partition("/")[0].isdecimal() else ""


def put_blob(tx: Transaction, namespace: str, blob: Blob, encoded: bytes | None = None) -> None:
    """Write the record of a blob and its index. ``encoded`` is the encoded record, if the caller has it."""
    tx.put((BLOBS.name, namespace, blob.digest), BLOBS.encode(blob) if encoded is None else encoded)
    OWNERS.put(tx, blob.digest, namespace, value=None)
    NAMED.put(tx, *Raw(blob.backend, "blob", blob.digest), value=None)


LARGE = 64 << 10
"""Bytes above which a record is read and written in steps, so that other calls come between: the manifest of an image
with thousands of layers has as many labels, and its record takes megabytes.
"""
_LABELS = '"labels":{'


def encode_blob_in_steps(blob: Blob) -> Steps[bytes]:
    """As ``BLOBS.encode``, in steps."""
    bare, labels = BLOBS.encode(replace(blob, labels={})).decode(), iter(blob.labels.items())
    parts: list[str] = []
    while some := dict(islice(labels, LABELS_PER_STEP)):
        parts.append(_dumps(some)[1:-1])
        yield
    return f"{bare[:-1]},{_LABELS}{','.join(parts)}}}}}".encode() if parts else bare.encode()


def read_blob_in_steps(key: Key, value: bytes) -> Steps[Blob]:
    """As ``BLOBS.read``, in steps. A value that ``encode`` did not write like this is decoded in one step."""
    try:
        text = value.decode()
        before, found, _ = text.partition(_LABELS)  # a bare quote cannot occur inside a JSON string
        if not found:
            return BLOBS.decode(key, value)
        at = len(before) + len(found)
        labels: dict[str, str] = {}
        while text[at] == '"':
            name, at = scanstring(text, at + 1)
            if text[at : at + 2] != ':"':
                raise ValueError("a label without a value")
            labels[name], at = scanstring(text, at + 2)
            at += text[at] == ","
            if not len(labels) % LABELS_PER_STEP:
                yield
        return replace(BLOBS.decode(key, f"{before}{_LABELS}{text[at:]}".encode()), labels=labels)
    except (ValueError, IndexError) as error:
        raise _damaged("blob", key, error) from None


def delete_blob(tx: Transaction, namespace: str, digest: str) -> None:
    """Remove the record of a blob and its index."""
    BLOBS.delete(tx, namespace, digest)
    OWNERS.delete(tx, digest, namespace)


def delete_blobs(tx: Transaction, blobs: Sequence[tuple[str, str]]) -> None:
    """As ``delete_blob``, for each (namespace, digest)."""
    tx.delete_many([(BLOBS.name, namespace, digest) for namespace, digest in blobs])
    tx.delete_many([(OWNERS.name, digest, namespace) for namespace, digest in blobs])


def put_snapshot(tx: Transaction, namespace: str, snapshotter: str, snapshot: Snapshot) -> None:
    """Write the record of a snapshot, and its entry in the parent's index."""
    SNAPSHOTS.put(tx, namespace, snapshotter, snapshot.name, value=snapshot)
    if snapshot.parent:
        CHILDREN.put(tx, namespace, snapshotter, snapshot.parent, snapshot.name, value=None)
    NAMED.put(tx, *Raw(snapshot.backend, "snapshot", snapshot.raw_key), value=None)


def delete_snapshot(tx: Transaction, namespace: str, snapshotter: str, snapshot: Snapshot) -> None:
    """Remove the record of a snapshot, and its entry in the parent's index."""
    SNAPSHOTS.delete(tx, namespace, snapshotter, snapshot.name)
    if snapshot.parent:
        CHILDREN.delete(tx, namespace, snapshotter, snapshot.parent, snapshot.name)


_PLAIN = re.compile(rb'\{"size":\d+,"backend":"([^"\\]+)"(?:,"created":(\d+))?(?:,"updated":\d+)?\}')
"""The encoded record of a blob without labels."""


class BlobFacts(NamedTuple):
    """A blob, as far as the collector needs it."""

    backend: str
    labels: Labels
    created: int = 0
    """Nanoseconds since the epoch."""


def blob_facts(tx: Reader) -> Iterator[Sequence[tuple[str, str, BlobFacts]]]:
    """The namespace, the digest and what the collector needs of each blob, some at a time. Blobs are the most numerous
    records, and most have no labels; only the others are decoded, each by itself. None at all comes between the steps
    in which a large one is.
    """
    backends: dict[bytes, str] = {}
    namespace, prefix = "", b"\xff"
    for rows in tx.scan_encoded((BLOBS.name,)):
        found: list[tuple[str, str, BlobFacts]] = []
        for key, value in rows:
            if not key.startswith(prefix):
                namespace = decode(key)[1]
                prefix = encode((BLOBS.name, namespace))
            digest = last_part(key, prefix)
            plain = _PLAIN.fullmatch(value)
            backend = backends.get(plain[1]) if plain is not None else None
            if backend is not None:
                # BlobFacts(...) takes twice as long
                facts = tuple.__new__(BlobFacts, (backend, _NO_LABELS, int(plain[2] or 0)))  # type: ignore[index]
                found.append((namespace, digest, facts))
                continue
            if len(value) > LARGE:
                reading = read_blob_in_steps((namespace, digest), value)
                while True:
                    try:
                        next(reading)
                        yield ()
                    except StopIteration as end:
                        blob = end.value
                        break
            else:
                blob = (BLOBS.read or BLOBS.decode)((namespace, digest), value)
            if plain is not None:
                backends[plain[1]] = blob.backend
            found.append((namespace, digest, BlobFacts(blob.backend, blob.labels, blob.created)))
            if blob.labels:
                yield found
                found = []
        yield found


_NO_LABELS: Labels = {}


def owners(tx: Reader, digest: str) -> Iterator[str]:
    """The namespaces that have a record of the blob. Each is read when it is asked for: the first is nearly always
    enough.
    """
    after: Key | None = None
    while (found := next(iter(tx.scan((OWNERS.name, digest), after=after, limit=1)), None)) is not None:
        yield found[0][2]
        after = found[0]


def snapshotters(tx: Reader, namespace: str) -> Iterator[str]:
    """The snapshotters that have snapshots of the namespace. Each is found by a seek behind the last one, without
    reading all snapshots.
    """
    after: Key | None = None
    last = ""
    while (found := next(iter(tx.scan((SNAPSHOTS.name, namespace), after=after, limit=1)), None)) is not None:
        key, _ = found
        after = (*key[:3], _LAST) if key[2] != last else key  # a name may sort behind even _LAST
        if key[2] != last:
            last = key[2]
            yield last


_LAST = "\U0010ffff"
"""A name that sorts behind all names in use."""


def put_ingest(tx: Transaction, namespace: str, ingest: Ingest) -> None:
    INGESTS.put(tx, namespace, ingest.ref, value=ingest)
    if not ingest.shared:
        NAMED.put(tx, *Raw(ingest.backend, "ingest", ingest.raw_ref), value=None)
    if ingest.expected:
        NAMED.put(tx, *Raw(ingest.backend, "blob", ingest.expected), value=None)


def put_intent(tx: Transaction, intent: Intent) -> None:
    """Write an intent and its index."""
    INTENTS.put(tx, intent.id, value=intent)
    for name in intent.claims():
        CLAIMS.put(tx, intent.namespace, intent.snapshotter, name, intent.id, value=None)
    for raw in intent.raws():
        NAMED.put(tx, *raw, value=None)


def delete_intent(tx: Transaction, intent: Intent) -> None:
    """Remove an ended intent and its index."""
    INTENTS.delete(tx, intent.id)
    for name in intent.claims():
        CLAIMS.delete(tx, intent.namespace, intent.snapshotter, name, intent.id)


def intents_claiming(tx: Reader, namespace: str, snapshotter: str, *names: str) -> Iterator[Intent]:
    """The open intents that claim one of ``names``; ``snapshotter`` is empty for content."""
    for name in names:
        if name:
            for key, _ in tx.scan((CLAIMS.name, namespace, snapshotter, name)):
                if (intent := INTENTS.get(tx, key[-1])) is not None:
                    yield intent


def index_intents(tx: Transaction) -> None:
    """Rebuild the index of intents: an older splitd, which has no such index, may have written and ended intents."""
    CLAIMS.delete_all(tx)
    for _, intent in INTENTS.scan(tx):
        put_intent(tx, intent)


def put_lease(tx: Transaction, namespace: str, lease: Lease) -> None:
    """Write a new lease. Resources of an earlier lease of the same id, some of which may be left, are dropped."""
    if RESOURCES.any(tx, namespace, lease.id):
        RESOURCES.delete_all(tx, namespace, lease.id)
    LEASES.put(tx, namespace, lease.id, value=lease)


RESOURCES_PER_STEP = 500
"""Resources that one transaction removes: this takes half a millisecond. A lease may hold tens of thousands."""


def delete_lease(tx: Transaction, namespace: str, lease: str) -> None:
    """Remove a lease and the first of its resources. Without the lease, the rest protect nothing; the collector removes
    them by :func:`delete_orphaned`.
    """
    LEASES.delete(tx, namespace, lease)
    RESOURCES.delete_all(tx, namespace, lease, limit=RESOURCES_PER_STEP)


def delete_orphaned(tx: Transaction, namespace: str, lease: str) -> bool:
    """Remove some resources of a lease that no longer exists. Returns whether there are more."""
    if LEASES.has(tx, namespace, lease):
        return False
    RESOURCES.delete_all(tx, namespace, lease, limit=RESOURCES_PER_STEP)
    return RESOURCES.any(tx, namespace, lease)


def lease_resources(tx: Reader) -> Iterator[tuple[str, str, Resource | None]]:
    """Each resource of each lease, with the namespace and id of the lease. A lease that no longer exists comes once,
    with None.
    """
    after: Key | None = None
    known: tuple[str, str] | None = None
    more = True
    while more:
        more = False
        for key, _ in tx.scan((RESOURCES.name,), after=after):
            if key[1:3] != known:
                known = (key[1], key[2])
                if not LEASES.has(tx, *known):
                    yield *known, None
                    after, more = (*key[:3], _LAST), True
                    break
            yield key[1], key[2], Resource(*key[3:])


def put_resource(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """Let the lease, which must exist, hold the resource."""
    RESOURCES.put(tx, namespace, lease, *resource, value=None)


def delete_resource(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """Let the lease hold the resource no longer."""
    RESOURCES.delete(tx, namespace, lease, *resource)


def set_marks(tx: Transaction, raws: Sequence[Raw], mark: Mark) -> None:
    """Mark raw things that no record and no intent names: the collector is about to remove them."""
    value = SWEEPING.encode(mark)
    tx.put_many([((SWEEPING.name, *raw), value) for raw in raws])


def mark_blobs(tx: Transaction, backend: str, digests: Sequence[str]) -> None:
    """Mark blobs that are removed in one call, in one row: writing and removing a row for each would cost as much as
    removing their records.
    """
    REMOVING.put(tx, backend, digests[0], value="".join(f"{digest}\n" for digest in digests))


def is_marked(tx: Reader, raw: Raw) -> bool:
    """Whether the collector is removing the raw thing."""
    return SWEEPING.has(tx, *raw) or (
        raw.kind == "blob" and any(f"{raw.name}\n" in digests for _, digests in REMOVING.scan(tx, raw.backend))
    )


def marked(tx: Reader, backend: str) -> Iterator[Raw]:
    """All raw things of the backend that the collector is removing."""
    for _, digests in REMOVING.scan(tx, backend):
        yield from (Raw(backend, "blob", digest) for digest in digests.splitlines())
    yield from (Raw(*key) for key, _ in SWEEPING.scan(tx, backend))  # type: ignore[arg-type]


def clear_marks(tx: Transaction, raws: Sequence[Raw], *, gone: bool) -> None:
    """Clear the marks of raw things that the collector is done with; ``gone``: the backend no longer has them."""
    together = set[str]()
    for backend in {raw.backend for raw in raws if raw.kind == "blob"}:
        over = {raw.name for raw in raws}
        for (_, first), digests in REMOVING.scan(tx, backend):
            there = digests.splitlines()
            if left := [digest for digest in there if digest not in over]:
                if len(left) == len(there):
                    continue
                mark_blobs(tx, backend, left)
            if left[:1] != [first]:
                REMOVING.delete(tx, backend, first)
            together.update(there)
    tx.delete_many([(SWEEPING.name, *raw) for raw in raws if raw.name not in together])
    if gone:
        tx.delete_many([(NAMED.name, *raw) for raw in raws])


_TABLES = {table.name: table for table in list(globals().values()) if isinstance(table, Table)}


def readable(row: Sequence[Any]) -> bool:
    """Whether a row of the database, a key and its value, can be decoded: rows that come from damaged pages may not."""
    try:
        key = decode(row[0])
        table = _TABLES[key[0]]
        (table.read or table.decode)(key[1:], row[1])
    except (errors.DataLoss, ValueError, TypeError, KeyError, IndexError):
        return False
    return True
