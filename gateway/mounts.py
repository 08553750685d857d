"""The mounts that a snapshotter answered, kept while its process lives: clients ask for them twice more in each ``ctr
run``.

A snapshotter of the node announces whether they last (``services/snapshots/store.py``); of a proxy plugin the
configuration says it. Where they do not, none are kept. A raw key means one snapshot for ever. Another process may
answer otherwise, so all are forgotten when the snapshotter's hop has changed. metadata is asked each time whether the
namespace has the snapshot; its answer is never remembered here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from gateway.hop import Hop
from gateway.upstream import Upstream

T = TypeVar("T")

LIMIT = 256
"""Snapshots of a snapshotter whose mounts are kept."""


class Mounts(Generic[T]):
    """Mounts by raw key, of the snapshotter that is home of ``hop``: those that were answered last."""

    def __init__(self, hop: Hop, lasting: Callable[[], bool], *, limit: int = LIMIT) -> None:
        """``lasting`` says whether its mounts last, as far as is known now."""
        self._hop = hop
        self._lasting = lasting
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Upstream, Sequence[T]]] = OrderedDict()
        hop.changed.append(self._kept.clear)

    def get(self, upstream: Upstream, raw_key: str) -> Sequence[T] | None:
        """The mounts that ``upstream`` answered, if they are kept, and nobody wants to see each call to it."""
        if upstream.instruments.watched or not self._lasting():
            return None
        answerer, mounts = self._kept.get(raw_key, (None, ()))
        return mounts if answerer is upstream else None

    def put(self, upstream: Upstream, raw_key: str, mounts: Sequence[T]) -> None:
        """Keep the mounts that ``upstream`` answered, if they last. Of a candidate's that is not known."""
        if upstream is self._hop.home and self._lasting():
            self._kept[raw_key] = upstream, mounts
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
