"""A file with all records of a node: ``splitd metadata export`` writes it and ``import`` reads it. Numbers are
big-endian.

    magic       8 bytes   "splitdmd"
    version     4 bytes   1
    header      4 bytes   its length, at most 64 KiB; then JSON: "splitd", the version that wrote the file, "store", the
                          id of the metadata store, "made", nanoseconds since the epoch
    record      4 bytes   the length of the key, more than 0
                4 bytes   the length of the value; both together are at most 64 MiB
                          then the key (transactions.encode) and the value. Keys ascend.
    ...
    end         4 bytes   0
                8 bytes   the number of records
                32 bytes  SHA-256 of everything before it

A file is written beside its place under the name ``FILE.part``, and renamed when it is on the disk. Its mode is 0600:
the environment of a container may have secrets. A reader trusts no length: it refuses what is above the limits before
it makes room for it, and believes no record before the digest at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from services.kit import errors, files, version
from services.metadata.transactions import Key, decode, encode

Row = tuple[Key, bytes]

MAGIC = b"splitdmd"
VERSION = 1
LARGEST_HEADER = 64 << 10
LARGEST_RECORD = 64 << 20
"""Bytes of a key and its value. A call to the node has at most 16 MiB; the labels of a record may be of several."""

_NUMBER = struct.Struct(">I")
_PAIR = struct.Struct(">II")
_COUNT = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    splitd: str
    """The version that wrote it."""
    store: str
    """The id of the metadata store that it came from; "" if that had none yet."""
    made: int
    """Nanoseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Sum:
    """All records of a store, as far as comparing needs them."""

    records: int
    digest: str
    """SHA-256 of the records as a file has them, in hexadecimal. Stores with equal records have equal digests."""

    def __str__(self) -> str:
        return f"{self.records:,} {'record' if self.records == 1 else 'records'} (sha256:{self.digest})"


class Summing:
    """Makes the :class:`Sum` of rows that are added in order."""

    def __init__(self) -> None:
        self._count = 0
        self._hash = hashlib.sha256()

    def add(self, key: bytes, value: bytes) -> None:
        """Add one record, with its encoded key."""
        self._count += 1
        self._hash.update(_PAIR.pack(len(key), len(value)))
        self._hash.update(key)
        self._hash.update(value)

    def sum(self) -> Sum:
        """The sum of what was added."""
        return Sum(self._count, self._hash.hexdigest())


# ---------------------------------------------------------------------------------------------- writing


def write(path: Path, store: str, made: int, rows: Iterable[Row]) -> Sum:
    """Write ``rows``, in order of their keys, to the file ``path``; an export that is there is replaced.

    AlreadyExists if something else is there, ResourceExhausted for a record above :data:`LARGEST_RECORD`. Then, and
    after an OSError, what was at ``path`` stays as it was.
    """
    _check_place(path)
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            found = _write(file, store, made, rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    files.sync_directory(path.parent)
    return found


def _check_place(path: Path) -> None:
    """Refuse to replace anything but an export."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                if file.read(len(MAGIC)) == MAGIC:
                    return
        raise errors.AlreadyExists(f"{path} exists, and is no export of metadata: name another file")


def _write(file: BinaryIO, store: str, made: int, rows: Iterable[Row]) -> Sum:
    whole, sum_ = hashlib.sha256(), Summing()

    def put(*pieces: bytes) -> None:
        for piece in pieces:
            whole.update(piece)
            file.write(piece)

    header = json.dumps({"splitd": version.SPLITD, "store": store, "made": made}).encode()
    put(MAGIC, _NUMBER.pack(VERSION), _NUMBER.pack(len(header)), header)
    for key, value in rows:
        encoded = encode(key)
        if len(encoded) + len(value) > LARGEST_RECORD:
            raise errors.ResourceExhausted(
                f"the record {shown(key)} has {len(encoded) + len(value):,} bytes; an export has records of up to "
                f"{LARGEST_RECORD:,}"
            )
        sum_.add(encoded, value)
        put(_PAIR.pack(len(encoded), len(value)), encoded, value)
    found = sum_.sum()
    put(_NUMBER.pack(0), _COUNT.pack(found.records))
    file.write(whole.digest())
    return found


# ---------------------------------------------------------------------------------------------- reading


class Archive:
    """An opened file. InvalidArgument if it is none of ours, DataLoss if it is damaged or cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = hashlib.sha256()
        self._records = 0
        self._file = path.open("rb")
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise errors.InvalidArgument(f"{path} is not a regular file")
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def rows(self) -> Iterator[Row]:
        """All records. Only after the last one it is known whether the file is whole: DataLoss if it is not."""
        self._file.seek(0)
        self._whole = hashlib.sha256()
        self._read_header()
        self._records = 0
        last = b""
        while length := self._number():
            size = self._number()
            if length + size > LARGEST_RECORD:
                self._damaged(f"its record {self._records + 1:,} would have {length + size:,} bytes")
            encoded = self._read(length)
            value = self._read(size)
            if encoded <= last:
                self._damaged(f"its record {self._records + 1:,} is not in order")
            yield self._key(encoded), value
            last = encoded
            self._records += 1
        (count,) = _COUNT.unpack(self._read(_COUNT.size))
        digest = self._whole.digest()
        if self._exactly(len(digest)) != digest:
            self._damaged("its contents do not have the digest that it ends with")
        if count != self._records:
            self._damaged(f"it has {self._records:,} records and says {count:,}")
        if self._file.read(1):
            self._damaged("something follows its end")

    def _read_header(self) -> Header:
        if self._file.read(len(MAGIC)) != MAGIC:
            raise errors.InvalidArgument(f"{self.path} is no export of metadata")
        self._whole.update(MAGIC)
        if (number := self._number()) != VERSION:
            raise errors.InvalidArgument(
                f"{self.path} has format {number:,}, and this splitd reads {VERSION}: import it with the splitd that "
                "wrote it, or a newer one"
            )
        if (length := self._number()) > LARGEST_HEADER:
            self._damaged(f"its header would have {length:,} bytes")
        try:
            found = json.loads(self._read(length))
            return Header(str(found["splitd"]), str(found["store"]), int(found["made"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            self._damaged("its header cannot be read")

    def _key(self, encoded: bytes) -> Key:
        try:
            key = decode(encoded)
        except errors.DataLoss:
            key = ()
        if encode(key) != encoded or not key:
            self._damaged(f"the key of its record {self._records + 1:,} cannot be read")
        return key

    def _number(self) -> int:
        number: int = _NUMBER.unpack(self._read(_NUMBER.size))[0]
        return number

    def _read(self, size: int) -> bytes:
        data = self._exactly(size)
        self._whole.update(data)
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            self._damaged(f"it was cut off after {self._records:,} records")
        return data

    def _damaged(self, how: str) -> NoReturn:
        raise errors.DataLoss(f"{self.path} is damaged: {how}; nothing of it was imported")


def shown(key: Key) -> str:
    """A key in a message."""
    return " ".join(key)[:200]
