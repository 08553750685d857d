"""The sizes of a process's stores, as metrics. They are measured in a thread when somebody asks, and at most once a
minute, since a store may have a hundred thousand files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.kit import metrics
from services.kit.metrics import Family, Sample

FRESH = 60.0
"""Seconds for which a size is good."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a store holds: bytes, and the number of things of each kind."""

    bytes: int
    items: Mapping[str, int] = field(default_factory=dict)


def measured(stores: Mapping[str, Callable[[], Size]], *, fresh: float = FRESH) -> None:
    """Show the size of each store, by its name. The functions run in a thread, and may raise OSError: then the store is
    not shown.
    """
    metrics.source(_Stores(stores, fresh).families)


class _Stores:
    def __init__(self, stores: Mapping[str, Callable[[], Size]], fresh: float) -> None:
        self._stores = stores
        self._fresh = fresh
        self._sizes: dict[str, Size] = {}
        self._until = 0.0

    async def families(self) -> Sequence[Family]:
        if time.monotonic() >= self._until:
            self._sizes = await asyncio.to_thread(self._measured)
            self._until = time.monotonic() + self._fresh
        return [
            Family(
                "splitd_store_bytes",
                "Bytes in a store.",
                "gauge",
                [Sample(float(size.bytes), {"store": name}) for name, size in self._sizes.items()],
            ),
            Family(
                "splitd_store_items",
                "Things in a store, by their kind.",
                "gauge",
                [
                    Sample(float(count), {"store": name, "kind": kind})
                    for name, size in self._sizes.items()
                    for kind, count in size.items.items()
                ],
            ),
        ]

    def _measured(self) -> dict[str, Size]:
        found = {}
        for name, measure in self._stores.items():
            try:
                found[name] = measure()
            except OSError:
                continue
        return found


def of_files(*paths: Path) -> Size:
    """The bytes of those files that exist: a database and its log."""
    return Size(sum(path.stat().st_size for path in paths if path.exists()))
