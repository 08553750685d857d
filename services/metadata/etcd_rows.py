"""How records lie in etcd, below the node's prefix.

PREFIX/owner                   the node whose records these are, as JSON (:class:`Owner`). Every transaction
compares its revision, so whoever was replaced as the owner can write nothing more
PREFIX/alive                   the process that serves them, with a lease: it goes some seconds after the process
PREFIX/last                    the id of the last transaction. Every transaction compares its revision and sets
it, so all of them are in one order
PREFIX/records/KEY             a zero byte and the value; or a byte 1, and the ID and the number of the pieces of a
value above :data:`WHOLE` bytes. KEY: ``transactions.encode``
PREFIX/pieces/HASH/ID/NUMBER   a piece. HASH: of the KEY. It is written before the transaction that names it
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from services.etcd.store import Delete, Operation, Put, end_of
from services.kit import damage, errors

ALIVE = 10.0
"""Seconds after which a node that ended without a word counts as gone."""
WHOLE = 256 << 10
"""Bytes of the largest value that lies in one key."""
TOGETHER = 768 << 10
"""Bytes of a transaction, which takes 1 MiB, above which smaller values lie in pieces, too: the largest first."""
LEAST = 4 << 10
"""Bytes of the smallest value that may lie in pieces."""
PIECE = 512 << 10
MOST_PIECES = 1 << 10
"""Pieces of a value, at most: 512 MiB."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A node: the id that it has in ROOT/metadata/owner, and where it is."""

    node: str
    host: str = ""
    machine: str = ""
    root: str = ""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Owner:
        """DataLoss if it is none."""
        try:
            found = json.loads(data)
            return cls(**{name: str(found.get(name, ""))[:1000] for name in ("node", "host", "machine", "root")})
        except (ValueError, AttributeError, TypeError):
            raise errors.DataLoss("metadata store: etcd's key of the owner cannot be read") from None

    def __str__(self) -> str:
        return f"the node {self.node} (host {self.host}, root {self.root})"


class Keys:
    """The keys below a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.rstrip("/").encode() + b"/"
        self.owner, self.alive, self.last = (self.prefix + name for name in (b"owner", b"alive", b"last"))
        self.records, self.pieces = self.prefix + b"records/", self.prefix + b"pieces/"

    def pieces_of(self, key: bytes) -> bytes:
        """The prefix of a record's pieces."""
        return self.pieces + hashlib.sha256(key).hexdigest()[:32].encode() + b"/"


@dataclass(frozen=True, slots=True)
class Pieces:
    """Where a large value is."""

    id: str
    count: int

    def encode(self) -> bytes:
        return b"\1" + f"{self.id} {self.count}".encode()


def decode(key: bytes, data: bytes) -> bytes | Pieces:
    """The value, or where it is; DataLoss."""
    if data[:1] == b"\0":
        return data[1:]
    words = data[1:].decode("ascii", "replace").split(" ")
    if data[:1] == b"\1" and len(words) == 2 and words[1].isdecimal() and 0 < int(words[1]) <= MOST_PIECES:
        return Pieces(words[0], int(words[1]))
    raise errors.DataLoss(f"metadata store: the record {key[:100]!r} in etcd cannot be read")


def joined(key: bytes, where: Pieces, pieces: list[bytes]) -> bytes:
    """A value that lies in pieces; DataLoss if some are missing."""
    if len(pieces) != where.count:
        raise errors.DataLoss(
            f"metadata store: of the record {key[:100]!r} in etcd {len(pieces)} of {where.count} pieces are there: "
            f"{damage.WHAT_TO_DO}"
        )
    return b"".join(pieces)


class Written:
    """What a transaction writes: ``pieces`` before it, ``operations`` in it, and ``rest``, which may be left out, after
    it.
    """

    def __init__(self, keys: Keys, changes: Mapping[bytes, bytes | None], large: frozenset[bytes]) -> None:
        """``large``: those of the keys whose last value may have pieces."""
        self.pieces: list[Put] = []
        self.operations: list[Operation] = []
        self.rest: list[Operation] = []
        apart = _apart(changes)
        for key, value in changes.items():
            pieces = keys.pieces_of(key)
            if value is not None and key in apart:
                made = Pieces(uuid.uuid4().hex, -(-len(value) // PIECE))
                if made.count > MOST_PIECES:
                    raise errors.ResourceExhausted(
                        f"metadata store: a record of {len(value)} bytes (of at most {MOST_PIECES * PIECE})"
                    )
                own = pieces + made.id.encode()
                self.pieces += [
                    Put(b"%s/%04d" % (own, number), value[number * PIECE : (number + 1) * PIECE])
                    for number in range(made.count)
                ]
                self.operations.append(Put(keys.records + key, made.encode()))
                if key in large:
                    self.rest += [Delete(pieces, own), Delete(end_of(own), end_of(pieces))]
                continue
            self.operations.append(
                Delete(keys.records + key) if value is None else Put(keys.records + key, b"\0" + value)
            )
            if key in large:
                self.operations.append(Delete(pieces, end_of(pieces)))


def _apart(changes: Mapping[bytes, bytes | None]) -> set[bytes]:
    """The keys whose values lie in pieces."""
    sizes = {key: len(value) for key, value in changes.items() if value is not None}
    found = {key for key, size in sizes.items() if size > WHOLE}
    left = sum(len(key) for key in changes) + sum(size for key, size in sizes.items() if key not in found)
    if left > TOGETHER:
        for key, size in sorted(sizes.items(), key=lambda each: -each[1]):
            if left <= TOGETHER or size < LEAST:
                break
            if key not in found:
                found.add(key)
                left -= size
    return found
