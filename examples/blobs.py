"""A content store in a directory.

    ROOT/blobs/ALGORITHM/HEX    a blob; its labels are its extended attribute user.labels
    ROOT/ingests/HASH-OF-REF    the bytes of an ingest so far, with what splitd.content.FileWriter notes of them

A blob appears by one rename, when its bytes and labels are on the disk. So a kill leaves the blob or its ingest.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from splitd import errors, service
from splitd.content import CHUNK, Digest, FileWriter, Info, RefLocks, Status, Store, ingest_status, updated_labels
from splitd.files import attribute, set_attribute, sync_directory

LABELS = "user.labels"


class Blobs(Store):
    def __init__(self, root: Path) -> None:
        self.root, self.refs, self.lock = root, RefLocks(), threading.Lock()
        for directory in ("ingests", "blobs/sha256", "blobs/sha384", "blobs/sha512"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        for unfit in (path for path in (root / "ingests").iterdir() if not ingest_status(path)):
            unfit.unlink()  # a kill left it before anything was noted of it

    def path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex

    def opened(self, digest: Digest) -> FileIO:
        try:
            return FileIO(self.path(digest))
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None

    def info(self, digest: Digest) -> Info:
        with self.opened(digest) as blob:
            found = os.fstat(blob.fileno())
            return Info(digest, found.st_size, found.st_mtime_ns, found.st_ctime_ns, attribute(blob, LABELS) or {})

    def list(self) -> Iterator[Info]:
        for path in self.root.glob("blobs/*/*"):
            with suppress(errors.NotFound):  # deleted meanwhile
                yield self.info(Digest(path.parent.name, path.name))

    def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        with self.lock, self.opened(digest) as blob:
            set_attribute(blob, LABELS, updated_labels(digest, attribute(blob, LABELS) or {}, labels, paths))
            os.fsync(blob.fileno())
        return self.info(digest)

    def delete(self, digest: Digest) -> None:
        with self.opened(digest):
            self.path(digest).unlink(missing_ok=True)

    def read(self, digest: Digest, offset: int, size: int) -> Iterator[bytes]:
        with self.opened(digest) as blob:
            length = os.fstat(blob.fileno()).st_size
            if offset > length:
                raise errors.OutOfRange(f"content {digest}: read past object length {length} bytes")
            end = min(length, offset + size) if size else length
            for at in range(offset, end, CHUNK):
                yield os.pread(blob.fileno(), min(CHUNK, end - at), at)

    def ingest(self, ref: str) -> Path:
        return self.root / "ingests" / hashlib.sha256(ref.encode()).hexdigest()

    def status(self, ref: str) -> Status:
        if status := ingest_status(self.ingest(ref)):
            return status
        raise errors.NotFound(f"ingest {ref}")

    def list_statuses(self) -> Iterator[Status]:
        return filter(None, map(ingest_status, self.root.glob("ingests/*")))

    def writer(self, ref: str, total: int, expected: Digest | None) -> "Ingest":
        if expected and self.path(expected).exists():
            raise errors.AlreadyExists(f"content {expected}")
        with self.refs.taking(ref):  # Unavailable while it has another writer; free again if the opening fails
            return Ingest(self, ref, total, expected)

    def abort(self, ref: str) -> None:
        self.status(ref)
        with self.lock:
            self.ingest(ref).unlink(missing_ok=True)


class Ingest(FileWriter):
    def __init__(self, store: Blobs, ref: str, total: int, expected: Digest | None) -> None:
        super().__init__(store.ingest(ref), ref, total, expected)  # goes on where the last writer ended
        self.store = store

    def commit(self, size: int, expected: Digest | None, labels: Mapping[str, str]) -> Digest:
        digest = self.checked(size, expected)
        set_attribute(self.file, LABELS, labels)
        os.utime(self.file.fileno())  # the time of the commit is the blob's
        os.fsync(self.file.fileno())
        blob = self.store.path(digest)
        with self.store.lock:
            if not os.fstat(self.file.fileno()).st_nlink:
                raise errors.Aborted(f"ingest {self.ref}")
            new = not blob.exists()
            self.path.rename(blob) if new else self.path.unlink()
        sync_directory(blob.parent)
        if not new:
            raise errors.AlreadyExists(f"content {digest}")
        return digest

    def close(self) -> None:
        super().close()
        self.store.refs.free(self.ref)


if __name__ == "__main__":
    service.main(Blobs)
