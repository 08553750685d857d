"""The collector's calls to the backends. They name no namespace: raw things have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.kit import errors
from services.metadata.store import Raw


@dataclass(frozen=True, slots=True)
class ListedSnapshot:
    """A snapshot as its snapshotter knows it: raw keys, and the value of the label ``containerd.io/snapshot.ref``, if
    any.
    """

    key: str
    parent: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All raw things that a backend had when it was listed."""

    backend: str
    blobs: frozenset[str] = frozenset()
    ingests: frozenset[str] = frozenset()
    snapshots: dict[str, ListedSnapshot] = field(default_factory=dict)
    """By raw key."""

    def raws(self) -> set[Raw]:
        """All of them."""
        return {
            *(Raw(self.backend, "blob", digest) for digest in self.blobs),
            *(Raw(self.backend, "ingest", ref) for ref in self.ingests),
            *(Raw(self.backend, "snapshot", key) for key in self.snapshots),
        }


class RawStores(Protocol):
    """The raw services, by the names of their backends. Errors are those of ``services.kit.errors``. Unavailable and
    DeadlineExceeded leave the outcome unknown.
    """

    async def stamp(self, backend: str) -> str | None:
        """The id of the metadata store that the raw store belongs to: empty if it belongs to none, None if the raw
        store is foreign and has no Stamp service.
        """
        ...

    async def set_stamp(self, backend: str, store_id: str, *, replaces: str = "") -> None:
        """Let the raw store, whose id is empty, ``store_id`` or ``replaces``, belong to this metadata store."""
        ...

    async def list(self, backend: str) -> Listing:
        """List all raw things."""
        ...

    async def remove(self, raw: Raw) -> None:
        """Remove one raw thing; NotFound if it does not exist."""
        ...

    async def remove_all(self, backend: str, raws: Sequence[Raw]) -> Sequence[errors.NodeError | None]:
        """Remove raw things, in this order and in one call. Returns the error of each, or None. Unimplemented if the
        backend removes one at a time only; after any other error, any of them may have been removed.
        """
        ...

    async def cleanup(self, backend: str) -> None:
        """Let a snapshotter free what removals left behind, and wait for it. Does nothing if it has no Cleanup."""
        ...
