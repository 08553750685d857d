"""The mounts that a snapshotter answered, kept while its process lives: clients ask for them twice more in each ``ctr
run``.

The mounts of a snapshot of our own snapshotters never change, and a raw key means one snapshot for ever. Another
process may answer otherwise, so all are forgotten when the snapshotter's hop has changed. Those of erofs are not kept:
somebody may unmount a layer, and its directory would be taken for it. metadata is asked each time
whether the namespace has the snapshot; its answer is never remembered here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from gateway.hop import Hop
from gateway.upstream import Upstream

T = TypeVar("T")

LIMIT = 256
"""Snapshots of a snapshotter whose mounts are kept."""
_LOOKS = "snapshots.erofs"
"""The route of a snapshotter that looks at each call whether its layers are still mounted, and mounts them again."""


class Mounts(Generic[T]):
    """Mounts by raw key, of the snapshotter behind ``hop``: those that were answered last."""

    def __init__(self, hop: Hop, *, limit: int = LIMIT) -> None:
        self._limit = 0 if hop.name == _LOOKS else limit
        self._kept: OrderedDict[str, tuple[Upstream, Sequence[T]]] = OrderedDict()
        hop.changed.append(self._kept.clear)

    def get(self, upstream: Upstream, raw_key: str) -> Sequence[T] | None:
        """The mounts that ``upstream`` answered, if they are kept, and nobody wants to see each call to it."""
        if upstream.instruments.watched:
            return None
        answerer, mounts = self._kept.get(raw_key, (None, ()))
        return mounts if answerer is upstream else None

    def put(self, upstream: Upstream, raw_key: str, mounts: Sequence[T]) -> None:
        """Keep the mounts that ``upstream`` answered, if it is one of ours: a foreign one may mount the same snapshot
        otherwise tomorrow.
        """
        if upstream.program:
            self._kept[raw_key] = upstream, mounts
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
