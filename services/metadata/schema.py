"""Which keys there are, and the values below them. All that reads or writes keys does it through the tables here.

    namespace   NAMESPACE                             labels
    image       NAMESPACE NAME                        target, labels, times
    container   NAMESPACE ID                          its fields
    lease       NAMESPACE ID                          labels, time
    resource    NAMESPACE LEASE TYPE ID               nothing: the lease holds it, whether it exists or not. TYPE:
    content, ingests, images, snapshots/SNAPSHOTTER
    blob        NAMESPACE DIGEST                      size, backend, labels, times
    owner       DIGEST NAMESPACE                      nothing: the namespace has a record of the blob (its index)
    ingest      NAMESPACE REF                         raw ref, backend, expected digest, when it expires
    snapshot    NAMESPACE SNAPSHOTTER NAME            raw key, backend, kind, parent, labels, times. NAME: a key, or
    once committed a name
    child       NAMESPACE SNAPSHOTTER NAME CHILD      nothing: CHILD's parent is NAME (its index)
    sequence    NAMESPACE                             the last number given to a raw ref or raw key of the namespace
    intent      ID                                    what was begun
    claim       NAMESPACE SNAPSHOTTER NAME ID         nothing: NAME is what the intent makes or takes (their index, made
    anew at each start). SNAPSHOTTER: empty for content
    answer      ID                                    what an ended intent was answered, for repeated Finish and Cancel,
    until when.
                                                      IDs of intents begin with the time of their beginning, so the
                                                      oldest come first
    sweeping    BACKEND KIND RAW                      the collector is removing it. KIND: blob, ingest, snapshot
    removing    BACKEND DIGEST                        blobs that it is removing in one call, each on a line. DIGEST: the
    first of them
    named       BACKEND KIND RAW                      nothing: a record or an intent once named it, and it is not known
    to be gone.
                                                      All that a sweep of a foreign store may remove. Whatever comes to
                                                      name it writes this
    held                                              why only what is known here is collected, until an operator says
    otherwise (``gc/guard.py``)
    checked     BACKEND NAMESPACE                     the last number of the namespace by which the last good sweep of
    the backend went
    gateway                                           the one that connected last
    store                                             this store's id, a UUID

Values are JSON; bytes that must come back as they were (Any) stand behind it.

A table's methods take the parts of the key after its own name; ``scan`` takes as many as one likes, and yields the
whole rest of the key::

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
from typing import Any, Generic, TypeVar

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
    Namespace,
    Raw,
    Resource,
    Snapshot,
)
from services.metadata.transactions import Key, Reader, Transaction, decode
from services.oci.opaque import Opaque

V = TypeVar("V")

_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Table(Generic[V]):
    """The keys that begin with ``name``, and how their values are written."""

    name: str
    encode: Callable[[V], bytes]
    decode: Callable[[Key, bytes], V]
    read: Callable[[Key, bytes], V] | None = None
    """As ``decode``, for whoever reads all there are: nothing is remembered of them. None: ``decode`` remembers
    nothing.
    """

    def get(self, tx: Reader, *key: str) -> V | None:
        """The value, or None."""
        value = tx.get((self.name, *key))
        return None if value is None else self.decode(key, value)

    def raw(self, tx: Reader, *key: str) -> bytes | None:
        """The value as it is written, or None."""
        return tx.get((self.name, *key))

    def has(self, tx: Reader, *key: str) -> bool:
        """Whether there is a value."""
        return tx.get((self.name, *key)) is not None

    def scan(self, tx: Reader, *prefix: str, limit: int | None = None) -> Iterator[tuple[Key, V]]:
        """All below ``prefix``, or the first ``limit``, in order: the whole key after the table's name, and the
        value.
        """
        decode = self.read or self.decode
        for key, value in tx.scan((self.name, *prefix), limit=limit):
            yield key[1:], decode(key[1:], value)

    def under(self, tx: Reader, *prefix: str) -> Iterator[tuple[Key, V]]:
        """As ``scan``, but the keys without ``prefix``."""
        skip = len(prefix)
        for key, value in self.scan(tx, *prefix):
            yield key[skip:], value

    def any(self, tx: Reader, *prefix: str) -> bool:
        """Whether there is anything below ``prefix``."""
        return next(iter(tx.scan((self.name, *prefix), limit=1)), None) is not None

    def put(self, tx: Transaction, *key: str, value: V) -> None:
        """Set the value."""
        tx.put((self.name, *key), self.encode(value))

    def delete(self, tx: Transaction, *key: str) -> None:
        """Remove it, if it is there."""
        tx.delete((self.name, *key))

    def delete_all(self, tx: Transaction, *prefix: str, limit: int | None = None) -> None:
        """Remove all below ``prefix``, or the first ``limit``."""
        tx.delete_all((self.name, *prefix), limit=limit)


def _json(name: str, cls: type[V], *keyed: str, remembered: int = 0) -> Table[V]:
    """A table of dataclasses; the fields ``keyed`` are the last parts of the key, and not in the value. Empty fields
    that have a default are left out.

    So many decoded values are ``remembered``, for tables that are listed often; they are frozen, so that everybody may
    have the same.
    """
    known = [f for f in fields(cls) if f.name not in keyed]  # type: ignore[arg-type]
    names = [f.name for f in known]
    # such as the size of an empty blob
    required = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    loads = json.JSONDecoder().decode  # json.loads would look for the encoding each time
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

    return Table(name, encode, _remembering(remembered, decode), decode) if remembered else Table(name, encode, decode)


_REMEMBERED = 16 << 20
"""Bytes, as stored, that the remembered values of a table may have together: clients choose how large a record is."""


def _remembering(count: int, decode: Callable[[Key, bytes], V]) -> Callable[[Key, bytes], V]:
    """``decode`` that remembers what it made of the last ``count`` values, but for those that are more than their
    share of the bytes.
    """
    remembered = lru_cache(count)(decode)
    memory.when_idle(remembered.cache_clear)
    largest = _REMEMBERED // count
    return lambda key, value: remembered(key, value) if len(value) <= largest else decode(key, value)


_MAPS = frozenset({"labels", "annotations"})


def _nothing(name: str) -> Table[None]:
    return Table(name, lambda _: b"", lambda _key, _value: None)


# Any values of containers are bytes of up to some 100 KB: they follow the JSON as they are.


def _encode_container(value: Container) -> bytes:
    parts: list[bytes] = []

    def place(opaque: Opaque) -> list[Any]:
        parts.append(opaque.value)
        return [opaque.type_url, len(opaque.value)]

    head: dict[str, Any] = {n: v for n in _CONTAINER_TEXTS if (v := getattr(value, n))}
    head["labels"] = dict(value.labels)
    if value.spec is not None:
        head["spec"] = place(value.spec)
    if value.runtime_options is not None:
        head["runtime_options"] = place(value.runtime_options)
    head["extensions"] = {name: place(opaque) for name, opaque in value.extensions.items()}
    return _dumps(head).encode() + b"\0" + b"".join(parts)


def _decode_container(key: Key, value: bytes) -> Container:
    try:
        return _container_of(key, value)
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged("container", key, error) from None


def _damaged(name: str, key: Key, error: Exception) -> errors.DataLoss:
    """A value that is not what was written: pages of the database that are wrong in their contents look whole to
    SQLite.
    """
    return errors.DataLoss(
        f"metadata store: the record {name} {' '.join(key)} is damaged ({error}): {damage.WHAT_TO_DO}"
    )


def _container_of(key: Key, value: bytes) -> Container:
    end = value.index(b"\0")  # JSON escapes NUL
    head = json.loads(value[:end])
    position = end + 1

    def take(placed: list[Any]) -> Opaque:
        nonlocal position
        start, position = position, position + placed[1]
        return Opaque(placed[0], value[start:position])

    for name in ("spec", "runtime_options"):
        if name in head:
            head[name] = take(head[name])
    head["extensions"] = {name: take(placed) for name, placed in head["extensions"].items()}
    return Container(id=key[-1], **head)


_CONTAINER_TEXTS = ("image", "runtime", "snapshotter", "snapshot_key", "sandbox", "created", "updated")


def _decode_gateway(_key: Key, value: bytes) -> Gateway:
    found = json.loads(value)
    return Gateway(
        incarnation=found["incarnation"], content=found["content"], snapshotters=tuple(found["snapshotters"])
    )


def _encode_gateway(value: Gateway) -> bytes:
    return _dumps(
        {"incarnation": value.incarnation, "content": value.content, "snapshotters": list(value.snapshotters)}
    ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How an intent ended: by ``finish`` (with what it was answered, as its owner wrote it) or by ``cancel``."""

    ended: str
    until: int
    """Nanoseconds since the epoch: when it may be forgotten."""
    detail: dict[str, Any] | None = None


NAMESPACES = _json("namespace", Namespace)
IMAGES = _json("image", Image, "name", remembered=1024)
# a client that runs one gets it four times
CONTAINERS: Table[Container] = Table(
    "container", _encode_container, _remembering(64, _decode_container), _decode_container
)
LEASES = _json("lease", Lease, "id")
RESOURCES = _nothing("resource")
BLOBS = _json("blob", Blob, "digest", remembered=64)  # one that is read in pieces is asked for thousands of times
OWNERS = _nothing("owner")
INGESTS = _json("ingest", Ingest, "ref")
SNAPSHOTS = _json("snapshot", Snapshot, "name")
CHILDREN = _nothing("child")
SEQUENCES: Table[int] = Table("sequence", lambda value: b"%d" % value, lambda _key, value: int(value))
INTENTS = _json("intent", Intent, "id", remembered=256)
CLAIMS = _nothing("claim")
ANSWERS = _json("answer", Answer)
SWEEPING = _json("sweeping", Mark)
REMOVING: Table[str] = Table("removing", lambda value: value.encode(), lambda _key, value: value.decode())
NAMED = _nothing("named")
HELD = _json("held", Held)
CHECKED: Table[int] = Table("checked", lambda value: b"%d" % value, lambda _key, value: int(value))
GATEWAY: Table[Gateway] = Table("gateway", _encode_gateway, lru_cache(2)(_decode_gateway))
STORE: Table[str] = Table("store", lambda value: value.encode(), lambda _key, value: value.decode())


# ---------------------------------------------------------------------------------------------- what more than one
# caller does with them


def next_number(tx: Transaction, namespace: str) -> int:
    """A number that no raw name of the namespace had before."""
    number = (SEQUENCES.get(tx, namespace) or 0) + 1
    SEQUENCES.put(tx, namespace, value=number)
    return number


def raw_name(tx: Transaction, namespace: str, name: str) -> str:
    """A new raw ref or raw key for ``name``."""
    return f"{namespace}/{next_number(tx, namespace)}/{name}"


def put_blob(tx: Transaction, namespace: str, blob: Blob, encoded: bytes | None = None) -> None:
    """Write the record of a blob, and its index; ``encoded`` is the record if that is known."""
    tx.put((BLOBS.name, namespace, blob.digest), BLOBS.encode(blob) if encoded is None else encoded)
    OWNERS.put(tx, blob.digest, namespace, value=None)
    NAMED.put(tx, *Raw(blob.backend, "blob", blob.digest), value=None)


LARGE = 64 << 10
"""Bytes of a record that is read and written bit by bit where others wait: that of a manifest with thousands of
layers, each a label, has megabytes.
"""
_LABELS = '"labels":{'


def encoding_blob(blob: Blob) -> Steps[bytes]:
    """``BLOBS.encode``, in steps."""
    bare, labels = BLOBS.encode(replace(blob, labels={})).decode(), iter(blob.labels.items())
    parts: list[str] = []
    while some := dict(islice(labels, LABELS_PER_STEP)):
        parts.append(_dumps(some)[1:-1])
        yield
    return f"{bare[:-1]},{_LABELS}{','.join(parts)}}}}}".encode() if parts else bare.encode()


def reading_blob(key: Key, value: bytes) -> Steps[Blob]:
    """``BLOBS.read``, in steps; what is not as ``encode`` writes it is read in one."""
    try:
        text = value.decode()
        before, found, _ = text.partition(_LABELS)  # the text of a string has no bare quote
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
    """Remove the record of a blob, and its index."""
    BLOBS.delete(tx, namespace, digest)
    OWNERS.delete(tx, digest, namespace)


def delete_blobs(tx: Transaction, blobs: Sequence[tuple[str, str]]) -> None:
    """As ``delete_blob`` of each (namespace, digest)."""
    tx.delete_many([(BLOBS.name, namespace, digest) for namespace, digest in blobs])
    tx.delete_many([(OWNERS.name, digest, namespace) for namespace, digest in blobs])


def put_snapshot(tx: Transaction, namespace: str, snapshotter: str, snapshot: Snapshot) -> None:
    """Write the record of a snapshot, and its parent's index."""
    SNAPSHOTS.put(tx, namespace, snapshotter, snapshot.name, value=snapshot)
    if snapshot.parent:
        CHILDREN.put(tx, namespace, snapshotter, snapshot.parent, snapshot.name, value=None)
    NAMED.put(tx, *Raw(snapshot.backend, "snapshot", snapshot.raw_key), value=None)


def delete_snapshot(tx: Transaction, namespace: str, snapshotter: str, snapshot: Snapshot) -> None:
    """Remove the record of a snapshot, and what its parent's index has of it."""
    SNAPSHOTS.delete(tx, namespace, snapshotter, snapshot.name)
    if snapshot.parent:
        CHILDREN.delete(tx, namespace, snapshotter, snapshot.parent, snapshot.name)


_PLAIN = re.compile(rb'\{"size":\d+,"backend":"([^"\\]+)"(?:,"created":\d+)?(?:,"updated":\d+)?\}')
"""The record of a blob without labels, as it is written."""


def backends_and_labels(tx: Reader) -> Iterator[tuple[Key, str, Labels]]:
    """Of each blob namespace and digest, and what the collector goes by. Blobs are the most numerous records, and
    most have no labels: only the others are parsed.
    """
    backends: dict[bytes, str] = {}
    for key, value in tx.scan((BLOBS.name,)):
        plain = _PLAIN.fullmatch(value)
        backend = backends.get(plain[1]) if plain is not None else None
        if backend is not None:
            yield key[1:], backend, _NO_LABELS
            continue
        blob = BLOBS.decode(key[1:], value) if BLOBS.read is None else BLOBS.read(key[1:], value)
        if plain is not None:
            backends[plain[1]] = blob.backend
        yield key[1:], blob.backend, blob.labels


_NO_LABELS: Labels = {}


def owners(tx: Reader, digest: str) -> Iterator[str]:
    """The namespaces that have a record of the blob, read as they are asked for: the first will nearly always do."""
    after: Key | None = None
    while (found := next(iter(tx.scan((OWNERS.name, digest), after=after, limit=1)), None)) is not None:
        yield found[0][2]
        after = found[0]


def snapshotters(tx: Reader, namespace: str) -> Iterator[str]:
    """Those that have snapshots of the namespace; each is looked for behind the last one, not among all snapshots."""
    after: Key | None = None
    last = ""
    while (found := next(iter(tx.scan((SNAPSHOTS.name, namespace), after=after, limit=1)), None)) is not None:
        key, _ = found
        after = (*key[:3], _LAST) if key[2] != last else key  # some name may be behind even that
        if key[2] != last:
            last = key[2]
            yield last


_LAST = "\U0010ffff"
"""A name behind all that are in use."""


def put_ingest(tx: Transaction, namespace: str, ingest: Ingest) -> None:
    """Write the record of an ingest."""
    INGESTS.put(tx, namespace, ingest.ref, value=ingest)
    if not ingest.shared:
        NAMED.put(tx, *Raw(ingest.backend, "ingest", ingest.raw_ref), value=None)
    if ingest.expected:
        NAMED.put(tx, *Raw(ingest.backend, "blob", ingest.expected), value=None)


def put_intent(tx: Transaction, intent: Intent) -> None:
    """Write down what is begun, and its index."""
    INTENTS.put(tx, intent.id, value=intent)
    for name in intent.claims():
        CLAIMS.put(tx, intent.namespace, intent.snapshotter, name, intent.id, value=None)
    for raw in intent.raws():
        NAMED.put(tx, *raw, value=None)


def delete_intent(tx: Transaction, intent: Intent) -> None:
    """Remove what has ended, and its index."""
    INTENTS.delete(tx, intent.id)
    for name in intent.claims():
        CLAIMS.delete(tx, intent.namespace, intent.snapshotter, name, intent.id)


def claiming(tx: Reader, namespace: str, snapshotter: str, *names: str) -> Iterator[Intent]:
    """The open intents that claim one of ``names``; ``snapshotter`` is empty for content."""
    for name in names:
        if name:
            for key, _ in tx.scan((CLAIMS.name, namespace, snapshotter, name)):
                if (intent := INTENTS.get(tx, key[-1])) is not None:
                    yield intent


def index_intents(tx: Transaction) -> None:
    """Make the index of intents anew: a splitd that knew none may have written and ended some."""
    CLAIMS.delete_all(tx)
    for _, intent in INTENTS.scan(tx):
        put_intent(tx, intent)


def put_lease(tx: Transaction, namespace: str, lease: Lease) -> None:
    """Write a new lease. It holds nothing of what one before it held, of which some may be left."""
    if RESOURCES.any(tx, namespace, lease.id):
        RESOURCES.delete_all(tx, namespace, lease.id)
    LEASES.put(tx, namespace, lease.id, value=lease)


_HELD = 500
"""Resources that are removed in one transaction: half a millisecond. A lease may hold tens of thousands."""


def delete_lease(tx: Transaction, namespace: str, lease: str) -> None:
    """Remove a lease, and the first of what it held: without the lease nothing holds the rest, which goes by
    :func:`delete_left`, asked for by the collector.
    """
    LEASES.delete(tx, namespace, lease)
    RESOURCES.delete_all(tx, namespace, lease, limit=_HELD)


def delete_left(tx: Transaction, namespace: str, lease: str) -> bool:
    """Remove some of what a lease held that is no more; whether there is more to do."""
    if LEASES.has(tx, namespace, lease):
        return False
    RESOURCES.delete_all(tx, namespace, lease, limit=_HELD)
    return RESOURCES.any(tx, namespace, lease)


def held(tx: Reader) -> Iterator[tuple[str, str, Resource | None]]:
    """Namespace and id of each lease that has resources, and each of these; once None where there is no such lease
    any more.
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
    """The lease, which must exist, holds the resource."""
    RESOURCES.put(tx, namespace, lease, *resource, value=None)


def delete_resource(tx: Transaction, namespace: str, lease: str, resource: Resource) -> None:
    """The lease no longer holds the resource."""
    RESOURCES.delete(tx, namespace, lease, *resource)


def set_marks(tx: Transaction, raws: Sequence[Raw], mark: Mark) -> None:
    """The collector is about to remove raw things that no record and no intent names."""
    value = SWEEPING.encode(mark)
    tx.put_many([((SWEEPING.name, *raw), value) for raw in raws])


def mark_together(tx: Transaction, backend: str, digests: Sequence[str]) -> None:
    """The same of blobs that are removed in one call, in one row: to write one for each and to remove it again
    costs as much as to remove their records.
    """
    REMOVING.put(tx, backend, digests[0], value="".join(f"{digest}\n" for digest in digests))


def is_marked(tx: Reader, raw: Raw) -> bool:
    """Whether the collector is removing it."""
    return SWEEPING.has(tx, *raw) or (
        raw.kind == "blob" and any(f"{raw.name}\n" in digests for _, digests in REMOVING.scan(tx, raw.backend))
    )


def marked(tx: Reader, backend: str) -> Iterator[Raw]:
    """All that it is removing there."""
    for _, digests in REMOVING.scan(tx, backend):
        yield from (Raw(backend, "blob", digest) for digest in digests.splitlines())
    yield from (Raw(*key) for key, _ in SWEEPING.scan(tx, backend))  # type: ignore[arg-type]


def clear_marks(tx: Transaction, raws: Sequence[Raw], *, gone: bool) -> None:
    """The collector is through with them; ``gone``: the backend does not have them any more."""
    together = set[str]()
    for backend in {raw.backend for raw in raws if raw.kind == "blob"}:
        over = {raw.name for raw in raws}
        for (_, first), digests in REMOVING.scan(tx, backend):
            there = digests.splitlines()
            if left := [digest for digest in there if digest not in over]:
                if len(left) == len(there):
                    continue
                mark_together(tx, backend, left)
            if left[:1] != [first]:
                REMOVING.delete(tx, backend, first)
            together.update(there)
    tx.delete_many([(SWEEPING.name, *raw) for raw in raws if raw.name not in together])
    if gone:
        tx.delete_many([(NAMED.name, *raw) for raw in raws])


_TABLES = {table.name: table for table in list(globals().values()) if isinstance(table, Table)}


def readable(row: Sequence[Any]) -> bool:
    """Whether a row of the database, a key and its value, is a record: of what is read of damaged pages not all is."""
    try:
        key = decode(row[0])
        table = _TABLES[key[0]]
        (table.read or table.decode)(key[1:], row[1])
    except (errors.DataLoss, ValueError, TypeError, KeyError, IndexError):
        return False
    return True
