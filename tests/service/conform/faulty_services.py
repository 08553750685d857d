"""Services with a fault: the examples with one place of their source changed, and ours with one method changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from services.content.local import LocalStore
from services.content.store import Info
from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.store import Info as Snapshot
from tests.support import TOP


def example(name: str, was: str, now: str) -> Any:
    """The class of an example whose source has ``now`` where it had ``was``."""
    path: Path = TOP / "examples" / f"{name.lower()}.py"
    source = path.read_text()
    assert source.count(was) == 1, f"{path} has not once {was!r}"
    module: dict[str, Any] = {"__name__": "faulty"}
    exec(compile(source.replace(was, now), path, "exec"), module)
    return module[name]


class IgnoresFilters(LocalStore):
    """Every List has every blob."""

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        return super().list()


class WalksEverything(OverlaySnapshotter):
    """Every List has every snapshot."""

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Snapshot]:
        return super().list()


class HangsInMounts(OverlaySnapshotter):
    """Mounts of a key that is not there is never answered."""

    async def mounts(self, key: str) -> list[Mount]:
        try:
            return await super().mounts(key)
        except errors.NotFound:
            await asyncio.Event().wait()
            raise
