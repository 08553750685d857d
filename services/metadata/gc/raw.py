"""What the collector asks of the backends. It names no namespace to them: raw things have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.kit import errors
from services.metadata.store import Raw


@dataclass(frozen=True, slots=True)
class ListedSnapshot:
    """A snapshot as its snapshotter knows it: raw keys, and the label ``containerd.io/snapshot.ref`` if it has one."""

    key: str
    parent: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All that a backend had when it was asked."""

    backend: str
    blobs: frozenset[str] = frozenset()
    ingests: frozenset[str] = frozenset()
    snapshots: dict[str, ListedSnapshot] = field(default_factory=dict)
    """By raw key."""

    def raws(self) -> set[Raw]:
        """All of it."""
        return {
            *(Raw(self.backend, "blob", digest) for digest in self.blobs),
            *(Raw(self.backend, "ingest", ref) for ref in self.ingests),
            *(Raw(self.backend, "snapshot", key) for key in self.snapshots),
        }


class RawStores(Protocol):
    """The raw services, by the names of their backends. Failures are ``services.kit.errors``: Unavailable and
    DeadlineExceeded say nothing about what happened.
    """

    async def stamp(self, backend: str) -> str | None:
        """The id of the metadata store that the raw store belongs to, empty if it belongs to none; None if it is
        foreign and has no such thing.
        """
        ...

    async def set_stamp(self, backend: str, store_id: str, *, replaces: str = "") -> None:
        """The raw store, which has no id, this one, or ``replaces``, belongs to this metadata store from now on."""
        ...

    async def list(self, backend: str) -> Listing:
        """All that is there."""
        ...

    async def remove(self, raw: Raw) -> None:
        """Remove one thing; NotFound if it is not there."""
        ...

    async def remove_all(self, backend: str, raws: Sequence[Raw]) -> Sequence[errors.NodeError | None]:
        """Remove them, in this order and in one call: what became of each. Unimplemented where a backend takes one
        at a time only; after any other error all may have happened.
        """
        ...

    async def cleanup(self, backend: str) -> None:
        """Let a snapshotter free what removals left behind, and wait for it; nothing where there is no such thing."""
        ...
