"""What a content store is: containerd's content proxy plugin as a class, its types, and locks on refs.

A blob is named by the digest of its bytes, which never change. An *ingest* is a blob that is still being written, under
a *ref* that its client has chosen. It has one writer at a time. When that writer closes, for whatever reason, its bytes
stay, and the next writer goes on at their end. A commit checks size and digest, and makes the ingest a blob.

What must hold whenever the process is killed: a blob that was answered is there, with its bytes and labels; no blob has
other bytes than its name says; and an ingest can be resumed, or is gone.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

from services.content.locks import RefLocks
from services.content.store import CHUNK, Info, Status, updated_labels
from services.kit import errors
from services.oci.digests import CANONICAL, Digest
from splitd.files import attribute, set_attribute

__all__ = [
    "CHUNK",
    "Digest",
    "FileWriter",
    "Info",
    "RefLocks",
    "Status",
    "Store",
    "Writer",
    "ingest_status",
    "updated_labels",
]

_ABOUT = "user.ingest"
"""The attribute of an ingest's file: its ref, its total, and when it was begun."""


class Writer(ABC):
    """An open ingest. Its methods are called one at a time; :meth:`close` is called in the end, in any case."""

    offset: int
    """The number of bytes in the ingest."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """The digest of the bytes so far, as ``sha256:HEX``; with the algorithm that the opening expects, if it named a
        digest. It is asked for after each write.
        """

    @abstractmethod
    def status(self) -> Status:
        """As :meth:`Store.status`, of this ingest."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append. If that fails, the ingest is as it was before."""

    @abstractmethod
    def truncate(self) -> None:
        """Go back to offset 0."""

    @abstractmethod
    def commit(self, size: int, expected: Digest | None, labels: Mapping[str, str]) -> Digest:
        """Make the ingest a blob with ``labels``, durably.

        FailedPrecondition if the size (unless it is 0) or the digest is not as expected: ``unexpected commit size 3,
        expected 4``. If the opening named a total or a digest, the ingest is then removed, so that the next attempt
        does not begin with the same wrong bytes; otherwise it stays. AlreadyExists if the store has the blob; the
        ingest is removed. Aborted if it was aborted meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the next writer have the ref. The ingest stays, unless it was committed."""


class Store(ABC):
    """A content store of one's own. A method is plain, and then runs in a thread, several at once; or it is ``async
    def`` (:meth:`read` an async generator). One that has begun is finished, whatever becomes of the client.

    Every method raises :class:`~splitd.errors.NotFound` for a blob or an ingest that does not exist.
    """

    @abstractmethod
    def info(self, digest: Digest) -> Info:
        """Describe a blob: ``content sha256:...: not found`` if there is none."""

    @abstractmethod
    def list(self) -> Iterable[Info]:
        """All blobs. Which of them a client's filters select is found out elsewhere, and they are sorted there."""

    @abstractmethod
    def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Change labels as :func:`updated_labels` says."""

    @abstractmethod
    def delete(self, digest: Digest) -> None:
        """Remove a blob. Reads that have begun go on to its end."""

    @abstractmethod
    def read(self, digest: Digest, offset: int, size: int) -> Iterator[bytes]:
        """A blob's bytes from ``offset`` on, in pieces of :data:`CHUNK` bytes; the last may be shorter. A ``size`` of
        0, or one that reaches past the end, means to the end. OutOfRange for an offset past the end.
        """

    @abstractmethod
    def status(self, ref: str) -> Status:
        """Describe an ingest, whether it has a writer or not."""

    @abstractmethod
    def list_statuses(self) -> Iterable[Status]:
        """All ingests."""

    @abstractmethod
    def writer(self, ref: str, total: int, expected: Digest | None) -> Writer:
        """Begin an ingest or resume it. AlreadyExists if the store has the blob ``expected``, Unavailable while the ref
        has another writer (:class:`RefLocks`). ``total`` is 0 if it is not known. An ingest that was begun with another
        total begins anew: its bytes belong to something else.
        """

    @abstractmethod
    def abort(self, ref: str) -> None:
        """Remove an ingest. A writer that has it open fails when it commits."""

    def close(self) -> None:  # noqa: B027 - not every store holds anything
        """End: no method will be called any more."""


class FileWriter(Writer):
    """A writer that appends to the file ``path``, which is the ingest, and hashes what it appends. A subclass has
    :meth:`commit`.

    An ingest whose file exists is resumed: its bytes are hashed again, so they may be any that a crash has left. Ref,
    total and the time of its beginning are an extended attribute of the file. A file without one, which a crash has
    left, begins anew, and so does one that was begun with another total.
    """

    def __init__(self, path: Path, ref: str, total: int, expected: Digest | None) -> None:
        self.path, self.ref = path, ref
        self.promised = bool(total or expected)
        """The opening named a total or a digest: bytes that do not match are of no use."""
        self.file = FileIO(path, "a+")
        try:
            about = attribute(self.file, _ABOUT)
            if about is None or (total and about["total"] not in (0, total)):
                self.file.truncate(0)
                about = {"ref": ref, "total": 0, "started_at": time.time_ns()}
            set_attribute(self.file, _ABOUT, {**about, "total": total or about["total"]})
            self._digester = self._hashed(expected.algorithm if expected else CANONICAL)
            self.offset = os.fstat(self.file.fileno()).st_size
        except BaseException:
            self.file.close()
            raise

    def _hashed(self, algorithm: str) -> hashlib._Hash:
        self.file.seek(0)
        return hashlib.file_digest(self.file, algorithm)

    @property
    def digest(self) -> str:
        return f"{self._digester.name}:{self._digester.hexdigest()}"

    def status(self) -> Status:
        status = _status(self.file)
        assert status is not None
        return status

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError:
            self.file.truncate(self.offset)
            raise
        self._digester.update(data)
        self.offset += len(data)

    def truncate(self) -> None:
        self.file.truncate(0)
        self._digester, self.offset = hashlib.new(self._digester.name), 0

    def checked(self, size: int, expected: Digest | None) -> Digest:
        """The digest of the bytes. FailedPrecondition if it, or their number, is not as a commit expects; the file is
        then removed if the opening promised anything.
        """
        if expected and expected.algorithm != self._digester.name:
            self._digester = self._hashed(expected.algorithm)
        digest = Digest.parse(self.digest)
        wrong = ""
        if size not in (0, self.offset):
            wrong = f"size {self.offset}, expected {size}"
        elif expected not in (None, digest):
            wrong = f"digest {digest}, expected {expected}"
        if wrong and self.promised:
            self.path.unlink(missing_ok=True)
        if wrong:
            raise errors.FailedPrecondition(f"unexpected commit {wrong}")
        return digest

    def close(self) -> None:
        self.file.close()


def ingest_status(path: Path) -> Status | None:
    """The ingest in a file of :class:`FileWriter`; None if there is none, or only what a crash has left of one."""
    try:
        with FileIO(path) as file:
            return _status(file)
    except FileNotFoundError:
        return None


def _status(file: FileIO) -> Status | None:
    about, found = attribute(file, _ABOUT), os.fstat(file.fileno())
    if about is None:
        return None
    return Status(about["ref"], found.st_size, about["total"], about["started_at"], found.st_mtime_ns)
