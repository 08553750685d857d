"""Content: blobs, named by the digest of their bytes, and ingests, which are blobs that are still being written.

This is the raw content service: a plain containerd content store, as containerd's content proxy plugins are. It knows
no namespaces, leases or sharing. Those are records of the metadata service; the gateway joins the two.

Words. A *digest*, ``ALGORITHM:HEX``, is computed from a blob's bytes and is its name. A *ref* is the name that a client
gives to an ingest so that it can find the ingest again. The *offset* of an ingest is the number of bytes it has. Its
*total*, if known, is the number of bytes it will have.

The life of a blob::

    writer(ref)            an ingest begins, or continues at its offset; one writer at a time
    writer.write(bytes)    appends
    writer.close()         unlocks the ref at once; the ingest can be resumed
    writer.commit(...)     checks size and digest: the ingest becomes a blob, or is removed if they are wrong
    info, read, update     the bytes never change; labels may
    delete                 the blob is gone; reads that have begun go on to the end

An ingest is not visible as a blob until it is committed. A blob's bytes are durable before commit returns. An ingest
whose size or digest turns out wrong is removed, so that the next attempt begins at offset 0 and not with the same wrong
bytes. After a crash, ingests can be resumed: the next writer gets the offset that the file really has, and the bytes
that are there are hashed again.

A process of the same node may also fill an ingest as a file (:class:`Files`), in several places at once. The offset is
then the number of bytes that are there without a gap.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from services.kit import errors, filters
from services.oci.digests import Digest

CHUNK = 1 << 20
"""Bytes in one piece of a read."""


@dataclass(frozen=True, slots=True)
class Info:
    """A committed blob. Times are nanoseconds since the epoch; ``updated_at`` changes with the labels."""

    digest: Digest
    size: int
    created_at: int
    updated_at: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def field(self, path: Sequence[str]) -> tuple[str, bool]:
        """The fields that a List filter can select by: digest and labels (an adaptor of ``kit.filters``)."""
        match path:
            case ["digest", *_]:
                return str(self.digest), True
            case ["labels", *rest]:
                return filters.of_map(rest, self.labels)
        return "", False


@dataclass(frozen=True, slots=True)
class Status:
    """An ingest. ``total`` is 0 if it is not known; times are nanoseconds since the epoch."""

    ref: str
    offset: int
    total: int
    started_at: int
    updated_at: int
    expected: str = ""

    def field(self, path: Sequence[str]) -> tuple[str, bool]:
        """The field that a ListStatuses filter can select by: ref."""
        return (self.ref, True) if path and path[0] == "ref" else ("", False)


@dataclass(frozen=True, slots=True)
class Begun:
    """An ingest that its caller fills as a file. An empty ``path`` means that no bytes are needed and that the caller
    commits at once; a raw store never answers that.
    """

    path: str
    offset: int


def updated_labels(
    digest: Digest, current: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str]
) -> dict[str, str]:
    """A blob's labels after an Update with these field paths. Without paths, ``new`` replaces all labels.

    ``labels.KEY`` sets one label, or removes it if it is empty or missing in ``new``. Any other path is
    InvalidArgument: nothing else of a blob ever changes.
    """
    for path in paths:
        if path != "labels" and not path.startswith("labels."):
            raise errors.InvalidArgument(f'cannot update "{path}" field on content info "{digest}"')
    if not paths or "labels" in paths:
        return dict(new)
    labels = dict(current)
    for path in paths:
        key = path.removeprefix("labels.")
        if new.get(key):
            labels[key] = new[key]
        else:
            labels.pop(key, None)
    return labels


class Writer(Protocol):
    """An open ingest, and the lock on its ref. Its methods are called one at a time. The caller that opened it closes
    it.
    """

    @property
    def offset(self) -> int:
        """The number of bytes in the ingest."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the ingest's bytes, computed with the algorithm of the digest that was expected at the opening,
        or with sha256. After a commit it is the blob's digest.
        """
        ...

    async def status(self) -> Status:
        """As :meth:`Store.status`, of this ingest."""
        ...

    async def write(self, data: bytes) -> None:
        """Append. ResourceExhausted if the disk is full; the ingest is then as it was before."""
        ...

    async def truncate(self) -> None:
        """Go back to offset 0."""
        ...

    async def commit(
        self, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        """Make the ingest a blob with ``labels``, and close the writer, whatever the outcome.

        FailedPrecondition if the size (unless it is 0) or the digest is not as expected. If the opening named a total
        or a digest, the ingest is then removed, so that the next attempt starts clean; otherwise its bytes stay for
        another commit. AlreadyExists if the store has the blob; the ingest is removed. Aborted if the ingest was
        aborted meanwhile.
        """
        ...

    async def close(self) -> None:
        """Unlock the ref. The ingest stays and can be resumed. May be called again, and after a commit."""
        ...


class Store(Protocol):
    """containerd's content store: blobs by digest and ingests by ref."""

    async def info(self, digest: Digest) -> Info:
        """Describe a blob; NotFound."""
        ...

    async def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change labels as :func:`updated_labels` says; NotFound, InvalidArgument."""
        ...

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        """All blobs that any of the filters selects (``kit.filters``), ordered by digest. InvalidArgument for a
        malformed filter.
        """
        ...

    async def delete(self, digest: Digest) -> None:
        """Remove a blob and its labels; NotFound."""
        ...

    def read(self, digest: Digest, offset: int = 0, size: int = 0) -> AsyncIterator[bytes]:
        """A blob's bytes from ``offset`` on, in pieces of at most :data:`CHUNK` bytes.

        A ``size`` of 0, or one that reaches past the end, means to the end. NotFound; OutOfRange for an offset past the
        end.
        """
        ...

    async def status(self, ref: str) -> Status:
        """Describe an ingest, whether it has a writer or not; NotFound."""
        ...

    async def list_statuses(self, sources: Iterable[str] = ()) -> Sequence[Status]:
        """All ingests that any of the filters selects."""
        ...

    async def writer(self, ref: str, total: int = 0, expected: Digest | None = None) -> Writer:
        """Begin an ingest or resume it.

        InvalidArgument without a ref, AlreadyExists if the store has the blob ``expected``, Unavailable while the ref
        has another writer.
        """
        ...

    async def abort(self, ref: str) -> None:
        """Remove an ingest; NotFound. A writer that has it open fails when it commits."""
        ...


class Commit(NamedTuple):
    """What :meth:`Files.commit` is asked for; ``computed`` is as there."""

    ref: str
    size: int
    expected: Digest | None
    labels: Mapping[str, str]
    computed: bool


class Files(Protocol):
    """A store's bytes as files, for processes of the same node: nothing is streamed, and nothing is copied.

    The process that fills an ingest's file holds an exclusive flock on it, taken without waiting: if it cannot be
    taken, there is another writer. The process closes the file before it asks for the commit.
    """

    async def locate(self, digest: Digest) -> tuple[str, int]:
        """The path and size of a blob; NotFound. The file may only be read, and may be unlinked at any time: open it at
        once.
        """
        ...

    async def begin(self, ref: str, total: int = 0, expected: Digest | None = None) -> Begun:
        """As :meth:`Store.writer`, but the caller locks and fills the ingest's file."""
        ...

    async def commit(
        self,
        ref: str,
        size: int = 0,
        expected: Digest | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        computed: bool = False,
    ) -> tuple[Digest, int]:
        """As :meth:`Writer.commit`, for an ingest without a writer. Returns the blob's digest and size. NotFound if
        there is no such ingest.

        ``computed``: the caller has computed ``expected`` over the whole file. The store believes it if ``size``
        matches the file, and otherwise reads the file again.
        """
        ...


@runtime_checkable
class ManyFiles(Files, Protocol):
    """Files that begin or commit many small ingests at once for less than one by one."""

    async def begin_all(self, wanted: Sequence[tuple[str, int, Digest | None]]) -> Sequence[Begun | errors.NodeError]:
        """As :meth:`begin` for each ref, total and expected digest. Returns results and errors."""
        ...

    async def commit_all(self, commits: Sequence[Commit]) -> Sequence[tuple[Digest, int] | errors.NodeError]:
        """As :meth:`commit` for each, which waits for all of them. Returns results and errors."""
        ...
