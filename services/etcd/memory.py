"""etcd in memory: the fake. It has revisions, compaction, watches and leases, and stores nothing.

A test lets things happen: :meth:`MemoryEtcd.cut` makes every call fail as if no server answered, ``uncertain`` loses
the answer of the next commit, and :meth:`MemoryEtcd.compact` and :meth:`MemoryEtcd.revoke` do what their names say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

from services.etcd.store import (
    PAGE,
    Change,
    Changes,
    ClusterStatus,
    Committed,
    Compacted,
    Conflict,
    KeyValue,
    MemberStatus,
    Mod,
    Operation,
    Page,
    Put,
    Uncertain,
    check,
)
from services.kit import errors

State = dict[bytes, KeyValue]


class MemoryLease:
    """A lease that lives until it is revoked."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.lost = asyncio.Event()


class MemoryEtcd:
    """A cluster that ends with its process. What would be several clients of it share this object. It forgets
    revisions when ``kept`` others have followed.
    """

    def __init__(self, *, kept: int = 500) -> None:
        self.uncertain: Literal["", "before", "after"] = ""
        """Lose the answer of the next commit, before or after it is written."""
        self.calls = 0
        """How often anything was asked for."""
        self._away = False
        self._kept = kept
        self._states: dict[int, State] = {1: {}}
        """The state at each revision that is not forgotten."""
        self._changes: dict[int, tuple[Change, ...]] = {}
        """What each of these revisions changed."""
        self._changed = asyncio.Event()
        self._leases: dict[int, MemoryLease] = {}
        self._numbers = itertools.count(7_000_000_000)

    @property
    def revision(self) -> int:
        """The current revision."""
        return next(reversed(self._states))

    @property
    def state(self) -> Mapping[bytes, KeyValue]:
        """All keys as they are now."""
        return self._states[self.revision]

    def cut(self, away: bool = True) -> None:
        """Let the servers go away, or come back. Watches end when they go."""
        self._away = away
        self._tell()

    def compact(self, revision: int) -> None:
        """Forget what was before ``revision``."""
        for each in [each for each in self._states if each < revision]:
            del self._states[each]
            self._changes.pop(each, None)
        self._tell()

    def revoke(self, lease: int) -> None:
        """End a lease, and remove its keys."""
        found = self._leases.pop(lease, None)
        if found is not None:
            found.lost.set()
            state = self._states[self.revision]
            self._write({}, [key for key, pair in state.items() if pair.lease == lease])

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _asked(self) -> None:
        await asyncio.sleep(0)
        self.calls += 1
        if self._away:
            raise errors.Unavailable("etcd: no server answers")

    def _at(self, revision: int) -> State:
        if revision > self.revision:
            raise Compacted(f"etcd: revision {revision} is still to come")
        if revision not in self._states:
            raise Compacted(f"etcd: revision {revision} is gone")
        return self._states[revision]

    async def get(self, key: bytes, *, seconds: float = 0.0) -> KeyValue | None:
        await self._asked()
        return self._states[self.revision].get(key)

    async def pages(
        self, prefix: bytes, *, revision: int = 0, after: bytes = b"", count: int = PAGE
    ) -> AsyncIterator[Page]:
        await self._asked()
        at = revision or self.revision
        keys = sorted(key for key in self._at(at) if key.startswith(prefix) and (not after or key > after))
        for start in range(0, len(keys) or 1, count):
            if start:
                await self._asked()
            state = self._at(at)
            yield Page(at, tuple(state[key] for key in keys[start : start + count]))

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        check(operations, compares)
        await self._asked()
        uncertain, self.uncertain = self.uncertain, ""
        if uncertain == "before":
            raise Uncertain("etcd: the answer was lost")
        state = self._states[self.revision]
        if any((found.mod if (found := state.get(each.key)) else 0) != each.revision for each in compares):
            return Conflict(self.revision)
        put: dict[bytes, Put] = {}
        gone: list[bytes] = []
        for each in operations:
            if isinstance(each, Put):
                if each.lease and each.lease not in self._leases:
                    raise errors.NotFound(f"etcd: lease {each.lease}")
                put[each.key] = each
            elif each.end is None:
                gone += [each.key] if each.key in state else []
            else:
                gone += [key for key in state if each.key <= key and (each.end == b"\0" or key < each.end)]
        self._write(put, gone)
        if uncertain == "after":
            raise Uncertain("etcd: the answer was lost")
        return Committed(self.revision)

    def _write(self, put: dict[bytes, Put], gone: Sequence[bytes]) -> None:
        if not put and not gone:
            return
        revision, state = self.revision + 1, dict(self._states[self.revision])
        changes = [Change(key, None, revision) for key in dict.fromkeys(gone) if state.pop(key, None)]
        for key, each in put.items():
            old = state.get(key)
            create, version = (old.create, old.version + 1) if old else (revision, 1)
            state[key] = KeyValue(key, each.value, revision, create, version, each.lease)
            changes.append(Change(key, state[key], revision))
        self._states[revision], self._changes[revision] = state, tuple(changes)
        if len(self._states) > self._kept:
            self.compact(revision - self._kept + 1)
        self._tell()

    @contextlib.asynccontextmanager
    async def watch(self, prefix: bytes, *, after: int) -> AsyncIterator[AsyncIterator[Changes]]:
        await self._asked()
        changes = self._watched(prefix, after)
        try:
            yield changes
        finally:
            await changes.aclose()  # type: ignore[attr-defined]

    async def _watched(self, prefix: bytes, after: int) -> AsyncIterator[Changes]:
        while True:
            changed = self._changed
            if self._away:
                raise errors.Unavailable("etcd: no server answers")
            if after < self.revision:
                if after + 1 not in self._changes:
                    raise Compacted(f"etcd: revision {after + 1} is gone")
                found = [
                    change
                    for revision in range(after + 1, self.revision + 1)
                    for change in self._changes[revision]
                    if change.key.startswith(prefix)
                ]
                after = self.revision
                yield Changes(after, tuple(found))
            else:
                await changed.wait()

    @contextlib.asynccontextmanager
    async def lease(self, ttl: float) -> AsyncIterator[MemoryLease]:
        await self._asked()
        made = MemoryLease(next(self._numbers))
        self._leases[made.id] = made
        try:
            yield made
        finally:
            self.revoke(made.id)

    async def status(self) -> ClusterStatus:
        error = "it is away" if self._away else ""
        member = MemberStatus(
            endpoint="memory",
            reachable=not error,
            error=error,
            version="" if error else "3.5.0",
            leader=not error,
            revision=0 if error else self.revision,
        )
        return ClusterStatus(members=(member,), available=not error, error=error, cluster=1, revision=member.revision)

    async def close(self) -> None:
        """Nothing to close."""
