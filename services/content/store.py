"""Content: blobs named by the digest of their bytes, and ingests, which are blobs still being written.

This is the raw content service, a plain containerd content store (what containerd calls a content proxy plugin). It
knows nothing of namespaces, leases or sharing; those are metadata's records, and the gateway joins the two.

Words. A *digest* is ``ALGORITHM:HEX`` of a blob's bytes, and its name. A *ref* is the name that a client gives to an
ingest, so that it finds it again. An ingest has an *offset*, how many bytes it has, and may have a *total*, how many it
is to have.

A blob's life::

    writer(ref)            an ingest begins, or goes on at its offset; one writer at a time
    writer.write(bytes)    appends
    writer.close()         leaves it resumable: the ref is free again at once
    writer.commit(...)     checks size and digest; the ingest becomes a blob, or was wrong and is gone
    info, read, update     a blob never changes; its labels may
    delete                 it is gone; who still reads it reads on

An ingest is invisible as a blob until it is committed, and a blob's bytes are durable before a commit returns. An
ingest whose size or digest turns out wrong is removed, so that the next attempt begins at offset 0 and not with the
same wrong bytes. A crash leaves ingests resumable: whoever opens one again gets the offset that is really there, and
what is there is hashed again.

A writer may also fill an ingest as a file (:class:`Files`), for processes of the same node, and in several places at
once: the offset then is what is there without a gap.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.kit import errors, filters
from services.oci.digests import Digest

CHUNK = 1 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True, slots=True)
class Info:
    """A blob. Times are nanoseconds since the epoch; it is updated when its labels are."""

    digest: Digest
    size: int
    created_at: int
    updated_at: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def field(self, path: Sequence[str]) -> tuple[str, bool]:
        """What List can filter by: digest and labels (an adaptor of ``kit.filters``)."""
        match path:
            case ["digest", *_]:
                return str(self.digest), True
            case ["labels", *rest]:
                return filters.of_map(rest, self.labels)
        return "", False


@dataclass(frozen=True, slots=True)
class Status:
    """An ingest. ``total`` is 0 where it is not known; times are nanoseconds since the epoch."""

    ref: str
    offset: int
    total: int
    started_at: int
    updated_at: int
    expected: str = ""

    def field(self, path: Sequence[str]) -> tuple[str, bool]:
        """What ListStatuses can filter by: ref."""
        return (self.ref, True) if path and path[0] == "ref" else ("", False)


@dataclass(frozen=True, slots=True)
class Begun:
    """An ingest to be filled as a file. An empty ``path`` means that no bytes are needed: commit at once (never so
    in a raw store).
    """

    path: str
    offset: int


def updated_labels(
    digest: Digest, current: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str]
) -> dict[str, str]:
    """A blob's labels after an Update with these field paths; without any, ``new`` replaces all of them.

    ``labels.KEY`` sets one label, or removes it where ``new`` has it empty or not at all. Any other path is
    InvalidArgument: the rest of a blob never changes.
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
    """An open ingest, and the lock on its ref. Its methods are called one at a time; whoever opened it closes it."""

    @property
    def offset(self) -> int:
        """How many bytes the ingest has."""
        ...

    @property
    def digest(self) -> str:
        """The digest of those bytes, by the algorithm that was expected at the opening, else sha256; after a commit
        the blob's.
        """
        ...

    async def status(self) -> Status:
        """As :meth:`Store.status`, of this ingest."""
        ...

    async def write(self, data: bytes) -> None:
        """Append. ResourceExhausted where the disk is full; the ingest then is as it was before."""
        ...

    async def truncate(self) -> None:
        """Back to offset 0."""
        ...

    async def commit(
        self, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        """Make the ingest a blob with ``labels``, and close the writer, whatever the outcome.

        FailedPrecondition if the size (unless 0) or the digest is not as expected; where the opening named a total or a
        digest the ingest is then gone, so that the next attempt starts clean, else its bytes stay for another commit.
        AlreadyExists if the store has the blob; the ingest is gone. Aborted if somebody aborted the ingest meanwhile.
        """
        ...

    async def close(self) -> None:
        """Unlock the ref; the ingest stays and can be resumed. May be called again, and after a commit."""
        ...


class Store(Protocol):
    """Blobs by digest and ingests by ref: containerd's content store."""

    async def info(self, digest: Digest) -> Info:
        """Describe a blob, or NotFound."""
        ...

    async def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change labels as :func:`updated_labels` says; NotFound, InvalidArgument."""
        ...

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        """All blobs that any of the filters selects (``kit.filters``), in the order of their digests;
        InvalidArgument for a malformed one.
        """
        ...

    async def delete(self, digest: Digest) -> None:
        """Remove a blob and its labels, or NotFound."""
        ...

    def read(self, digest: Digest, offset: int = 0, size: int = 0) -> AsyncIterator[bytes]:
        """A blob's bytes from ``offset`` on, in pieces of at most :data:`CHUNK`.

        ``size`` 0, or one that reaches past the end, means to the end. NotFound; OutOfRange for an offset past the end.
        """
        ...

    async def status(self, ref: str) -> Status:
        """Describe an ingest, whether it has a writer or not; NotFound."""
        ...

    async def list_statuses(self, sources: Iterable[str] = ()) -> Sequence[Status]:
        """All ingests that any of the filters selects."""
        ...

    async def writer(self, ref: str, total: int = 0, expected: Digest | None = None) -> Writer:
        """Begin an ingest or go on with it.

        InvalidArgument without a ref, AlreadyExists if the store has a blob ``expected``, Unavailable while the ref has
        another writer.
        """
        ...

    async def abort(self, ref: str) -> None:
        """Remove an ingest, or NotFound. A writer that has it open fails when it commits."""
        ...


class Files(Protocol):
    """A store's bytes as files, for processes of the same node: no stream is open, and nothing is copied.

    Whoever fills an ingest's file holds an exclusive flock on it (without waiting: a failure means another writer) and
    has closed it before the commit is asked for.
    """

    async def locate(self, digest: Digest) -> tuple[str, int]:
        """The path and size of a blob; NotFound. It must only be read, and may be unlinked at any time: open it at
        once.
        """
        ...

    async def begin(self, ref: str, total: int = 0, expected: Digest | None = None) -> Begun:
        """As :meth:`Store.writer`, but the ingest's file is the caller's to lock and fill."""
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
        """As :meth:`Writer.commit`, of an ingest without a writer; the blob's digest and size. NotFound if there is no
        such ingest.

        ``computed``: the caller has computed ``expected`` from all that is in the file. It is believed where ``size``
        fits, else the file is read again.
        """
        ...
