"""How much a node claims at once, so that nodes that pull an image at the same time share its blobs.

Who is first by a moment could claim all layers, and would then fetch all, and give all of them to all others. So a node
with ``ENOUGH`` bytes that it has claimed, and that are still to come from a registry, leaves further blobs to others.
Its own link has work meanwhile. Blobs that wait are claimed in their order, and a blob that another node claims is
followed there.

A node that is alone would wait for nobody: after ``ALONE`` seconds in which no other node was seen to fetch from the
registry, it claims what it wants. So it does while the registry gives nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

ENOUGH = 64 << 20
"""Bytes: four parts of a large layer, which is as many as come at once."""
ALONE = 1.0
"""Seconds: nodes that are told at once to pull an image claim its layers within some tenths of that."""
STILL = 1.0
"""Seconds without a byte after which a registry is taken for one that gives nothing."""


@dataclass(slots=True)
class _Registry:
    """What this node does with one registry."""

    since: float
    """When it claimed the first blob."""
    moved: float
    """When bytes came last, as far as it was looked at."""
    left: int = 0
    """Bytes that were to come then."""
    others: bool = False
    """Whether another node fetches from it, too."""
    claimed: dict[object, Callable[[], int]] = field(default_factory=dict)
    """For each blob that this node has claimed, or asks for, the bytes that are still to come."""
    waiting: dict[object, None] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Claims:
    """The claims of a process. Registries are named by their hosts; a blob's key is any object."""

    def __init__(
        self,
        enough: int = ENOUGH,
        alone: float = ALONE,
        still: float = STILL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enough, self._alone, self._still = enough, alone, still
        self._clock = clock
        self._registries: dict[str, _Registry] = {}

    def take(self, host: str, key: object, left: Callable[[], int], *, must: bool = False) -> bool:
        """Whether this node may ask for the claim to a blob now; ``left`` says how much of it is still to come. If not,
        it waits in its place until it is asked again, or dropped. ``must``: it has the claim already.
        """
        now = self._clock()
        registry = self._registries.setdefault(host, _Registry(now, now))
        if not must and not self._may(registry, key, now):
            registry.waiting[key] = None
            return False
        registry.waiting.pop(key, None)
        registry.claimed[key] = left
        self._tell(registry)
        return True

    def _may(self, registry: _Registry, key: object, now: float) -> bool:
        left = sum(each() for each in registry.claimed.values())
        if left != registry.left:
            registry.left, registry.moved = left, now
        if next(iter(registry.waiting), key) is not key:
            return False
        alone = not registry.others and now >= registry.since + self._alone
        return left < self._enough or alone or now >= registry.moved + self._still

    def drop(self, host: str, key: object, *, others: bool = False) -> None:
        """The blob is fetched, or not to be fetched from the registry: with ``others``, since another node does so."""
        if (registry := self._registries.get(host)) is None:
            return
        registry.claimed.pop(key, None)
        registry.waiting.pop(key, None)
        registry.others |= others
        if not registry.claimed and not registry.waiting:
            del self._registries[host]
        self._tell(registry)

    async def changed(self, host: str, seconds: float) -> None:
        """Wait for a change that may let a blob have its turn, at most for so long."""
        if (registry := self._registries.get(host)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await registry.changed.wait()

    @staticmethod
    def _tell(registry: _Registry) -> None:
        changed, registry.changed = registry.changed, asyncio.Event()
        changed.set()
