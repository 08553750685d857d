"""Labels of blobs that an unpacking sets. Nobody waits for them before its end, so they are set beside it, a few at
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from services.images.concurrency.gather import run_all
from services.images.transfer import Node

_FEW = 8
"""As many are set at once, before the end: they are one call, and one wait for the disk."""


class Labels:
    """The labels of one unpacking."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: list[tuple[str, Mapping[str, str]]] = []
        self._changed = asyncio.Event()
        self._over = False

    def add(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels of a blob before :meth:`run` ends."""
        self._waiting.append((digest, labels))
        self._changed.set()

    def end(self) -> None:
        """No more will be added."""
        self._over = True
        self._changed.set()

    async def run(self) -> None:
        """Set them, until all are set. Errors are those of ``Node.label``."""
        while self._waiting or not self._over:
            if self._over or len(self._waiting) >= _FEW:
                some, self._waiting = self._waiting, []
                await run_all(self._node.label(*each) for each in some)
            else:
                self._changed.clear()
                await self._changed.wait()
