"""Raw stores in a dict: the fake. Tests make races and failures with ``before``, which is called before each call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from services.kit import errors
from services.metadata.gc.raw import ListedSnapshot, Listing
from services.metadata.store import Raw


class MemoryRawStores:
    """Several raw stores. ``stamps`` has their ids: None for a foreign one."""

    def __init__(self, **stamps: str | None) -> None:
        self.stamps: dict[str, str | None] = {name.replace("_", "."): stamp for name, stamp in stamps.items()}
        self.blobs: set[Raw] = set()
        self.ingests: set[Raw] = set()
        self.snapshots: dict[Raw, ListedSnapshot] = {}
        self.calls: list[tuple[str, str]] = []
        """The calls, as (method, name of its argument)."""
        self.together = False
        """Whether many things can be removed in one call."""
        self.before: Callable[[str, str], Awaitable[None]] | None = None

    def add(self, raw: Raw, *, parent: str = "", reference: str = "") -> None:
        """Add a raw thing."""
        if raw.kind == "snapshot":
            self.snapshots[raw] = ListedSnapshot(raw.name, parent, reference)
        else:
            (self.blobs if raw.kind == "blob" else self.ingests).add(raw)

    def __contains__(self, raw: Raw) -> bool:
        return raw in self.blobs or raw in self.ingests or raw in self.snapshots

    async def _called(self, method: str, name: str) -> None:
        self.calls.append((method, name))
        if self.before is not None:
            await self.before(method, name)

    async def stamp(self, backend: str) -> str | None:
        await self._called("stamp", backend)
        return self.stamps[backend]

    async def set_stamp(self, backend: str, store_id: str, *, replaces: str = "") -> None:
        await self._called("set_stamp", backend)
        if self.stamps[backend] not in ("", store_id, replaces):
            raise errors.FailedPrecondition(backend)
        self.stamps[backend] = store_id

    async def list(self, backend: str) -> Listing:
        found = Listing(
            backend,
            frozenset(r.name for r in self.blobs if r.backend == backend),
            frozenset(r.name for r in self.ingests if r.backend == backend),
            {r.name: s for r, s in self.snapshots.items() if r.backend == backend},
        )
        await self._called("list", backend)
        return found

    async def remove(self, raw: Raw) -> None:
        await self._called("remove", raw.name)
        if raw not in self:
            raise errors.NotFound(raw.name)
        if any(s.parent == raw.name for s in self.snapshots.values()):
            raise errors.FailedPrecondition(f"cannot remove snapshot {raw.name} with child")
        self.blobs.discard(raw)
        self.ingests.discard(raw)
        self.snapshots.pop(raw, None)

    async def remove_all(self, backend: str, raws: Sequence[Raw]) -> Sequence[errors.NodeError | None]:
        if not self.together:
            raise errors.Unimplemented("service splitd.removals.v1.Removals")
        await self._called("remove_all", backend)
        found: list[errors.NodeError | None] = []
        for raw in raws:
            try:
                await self.remove(raw)
            except (errors.Unavailable, errors.DeadlineExceeded):  # the process went away
                raise
            except errors.NodeError as error:
                found.append(error)
            else:
                found.append(None)
        return found

    async def cleanup(self, backend: str) -> None:
        await self._called("cleanup", backend)
