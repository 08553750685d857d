"""Snapshots: each operation of a raw snapshotter joined with its record.

Stat and List are metadata's alone and are relayed. All other methods resolve the client's key to the raw one
(``NAMESPACE/NUMBER/KEY``) and the backend that has it, and call the snapshotter. Prepare, View and Commit do so under
an intent (:mod:`gateway.store`). Remove takes only the record: the collector removes the raw snapshot, as in
containerd.

The mounts of a snapshotter that says that they last are kept (:mod:`gateway.mounts`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.containerd.types.mount_pb2 import Mount
from gateway.config import Config
from gateway.hop import Hop
from gateway.intents import Intents
from gateway.mounts import Mounts
from gateway.operation import CURRENT
from gateway.routes import Routes
from gateway.store import Intent, Outcome, Records
from gateway.upstream import Upstream, raw_headers
from services.kit import errors
from services.kit.rpc import Call, Headers, method_path, shielded
from services.snapshots.convert import info_from_pb, info_to_pb
from services.snapshots.store import Info, Kind

SERVICE = snapshots_stubs.SNAPSHOTS
_MOUNTS = method_path(SERVICE.methods_by_name["Mounts"])
_REF = "containerd.io/snapshot.ref"
_NUMBERS_SKIPPED = 10
"""So many new names of one snapshot may be taken in the backend: only a lost database can have given them out, and each
of them was this very name under another number.
"""

log = logging.getLogger(__name__)
T = TypeVar("T")
_Creation = pb.PrepareSnapshotRequest | pb.ViewSnapshotRequest


class _NumberTakenError(errors.Unknown):
    """A backend has a raw key whose number is new."""

    def __init__(self, backend: str, message: str) -> None:
        super().__init__(message)
        self.backend = backend


class _Raw(NamedTuple):
    """The raw snapshotter of one operation."""

    upstream: Upstream
    mounts: Mounts[Mount]
    """Its mounts, as far as they are kept."""

    def client(self) -> snapshots_stubs.Snapshots:
        return self.upstream.channel.client(SERVICE)

    async def explained(
        self, error: errors.NotFound, snapshotter: str, key: str, name: str, headers: Headers
    ) -> errors.NodeError:
        """The error of a call about the snapshot ``name``, which is recorded with the raw ``key``. If the snapshotter
        has it, it means another thing, as nydus does whose daemon did not start.
        """
        try:
            await self.client().Stat(pb.StatSnapshotRequest(snapshotter=snapshotter, key=key), headers=headers)
        except errors.NotFound as missing:
            if not missing.injected:
                return errors.NotFound.verbatim(
                    f"snapshot {name} is recorded, and {self.upstream.name} does not have it "
                    f"(docs/damaged-database.md): {error}"
                )
        except errors.NodeError as unanswered:
            log.warning("%s: whether it has %s is not known: %s", self.upstream.name, key, unanswered)
        return error


class SnapshotsServicer:
    """containerd.services.snapshots.v1.Snapshots, without the methods that metadata answers itself."""

    SERVICE = SERVICE

    def __init__(
        self, routes: Routes, records: Records, intents: Intents, config: Config, lasting: Callable[[str], bool]
    ) -> None:
        """``lasting`` says of a snapshotter, by its name, whether its mounts last."""
        self._routes = routes
        self._lasting = lasting
        self._records = records
        self._intents = intents
        self._stall = config.raw_timeout
        self._mounts: dict[str, Mounts[Mount]] = {}
        """By the name of the snapshotter's hop."""

    async def _hop(self, snapshotter: str, call: Call) -> Hop:
        if (operation := CURRENT.get()) is not None and not operation.snapshotter:
            operation.snapshotter = snapshotter
        return await self._routes.snapshotter(snapshotter, call)

    def _raw(self, hop: Hop, backend: str, key: str, call: Call) -> _Raw:
        """The snapshotter that has the snapshot ``key``, or is to have it, by the name of its backend."""
        mounts = self._mounts.get(hop.name)
        if mounts is None:
            snapshotter = hop.name.removeprefix("snapshots.")
            mounts = self._mounts[hop.name] = Mounts(hop, lambda: self._lasting(snapshotter))
        return _Raw(hop.having(backend, call.optional_namespace, key), mounts)

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        return pb.PrepareSnapshotResponse(mounts=await self._create(request, call))

    async def View(self, request: pb.ViewSnapshotRequest, call: Call) -> pb.ViewSnapshotResponse:
        return pb.ViewSnapshotResponse(mounts=await self._create(request, call))

    async def _create(self, request: _Creation, call: Call) -> Sequence[Mount]:
        hop = await self._hop(request.snapshotter, call)
        backend = "" if request.parent else hop.new(call.optional_namespace)
        return await shielded(self._numbered(lambda: self._created(request, call, hop, backend), hop))

    async def _created(self, request: _Creation, call: Call, hop: Hop, backend: str) -> Sequence[Mount]:
        headers = raw_headers(call, hop.name)
        intent = await self._records.begin_snapshot(
            call,
            snapshotter=request.snapshotter,
            key=request.key,
            parent=request.parent,
            view=isinstance(request, pb.ViewSnapshotRequest),
            labels=dict(request.labels),
            backend=backend,
        )
        raw = await self._begun(hop, intent, request.key, call)
        creating = _RawCreation(request, intent, raw, headers, self._stall)
        return (await self._intents.carry_out(intent, creating, raw.upstream, call)).mounts

    async def Commit(self, request: pb.CommitSnapshotRequest, call: Call) -> Empty:
        hop = await self._hop(request.snapshotter, call)
        return await shielded(self._numbered(lambda: self._committed(request, call, hop), hop))

    async def _committed(self, request: pb.CommitSnapshotRequest, call: Call, hop: Hop) -> Empty:
        headers = raw_headers(call, hop.name)
        intent = await self._records.begin_commit_snapshot(
            call,
            snapshotter=request.snapshotter,
            name=request.name,
            key=request.key,
            parent=request.parent,
            labels=dict(request.labels),
        )
        raw = await self._begun(hop, intent, request.key, call)
        committing = _RawCommit(request, intent, raw, headers, self._stall)
        await self._intents.carry_out(intent, committing, raw.upstream, call)
        return Empty()

    async def _begun(self, hop: Hop, intent: Intent, key: str, call: Call) -> _Raw:
        """The snapshotter of an intent, which is cancelled if there is no way to that."""
        try:
            return self._raw(hop, intent.backend, key, call)
        except errors.NodeError:
            await self._records.cancel(call, intent)
            raise

    async def _numbered(self, attempt: Callable[[], Awaitable[T]], hop: Hop) -> T:
        """Attempt it a few times, each under another number. A raw key is new: if the backend has it all the same, a
        database that was lost gave it out.
        """
        said, name = "", hop.name
        for _ in range(_NUMBERS_SKIPPED):
            try:
                return await attempt()
            except _NumberTakenError as taken:
                name, said = taken.backend, str(taken)
                log.warning("%s: a number that this metadata store never gave out is taken: %s", name, said)
        raise errors.FailedPrecondition(
            f"{name} says of {_NUMBERS_SKIPPED} new names, one after the other, that it has them ({said}): "
            "it holds snapshots of many other metadata stores, or does not look at names"
        )

    async def Mounts(self, request: pb.MountsRequest, call: Call) -> pb.MountsResponse:
        raw, key = await self._resolve(request, call)
        kept = raw.mounts.get(raw.upstream, key)
        if kept is not None:
            answered = pb.MountsResponse(mounts=kept)
            if raw.upstream.instruments.remembering:
                asked = pb.MountsRequest(snapshotter=request.snapshotter, key=key)
                raw.upstream.instruments.remembered(_MOUNTS, asked.SerializeToString(), answered.SerializeToString())
            return answered
        answer: pb.MountsResponse = await self._ask(
            raw, "Mounts", pb.MountsRequest(snapshotter=request.snapshotter, key=key), call, request.key
        )
        raw.mounts.put(raw.upstream, key, list(answer.mounts))
        return answer

    async def Usage(self, request: pb.UsageRequest, call: Call) -> pb.UsageResponse:
        raw, key = await self._resolve(request, call)
        answer: pb.UsageResponse = await self._ask(
            raw, "Usage", pb.UsageRequest(snapshotter=request.snapshotter, key=key), call, request.key
        )
        return answer

    async def Remove(self, request: pb.RemoveSnapshotRequest, call: Call) -> Empty:
        await self._routes.snapshotter(request.snapshotter, call)
        await self._records.remove_snapshot(call, request.snapshotter, request.key)
        return Empty()

    async def Update(self, request: pb.UpdateSnapshotRequest, call: Call) -> pb.UpdateSnapshotResponse:
        hop = await self._hop(request.snapshotter, call)
        updated = await self._records.update_snapshot(
            call, request.snapshotter, request.info.name, dict(request.info.labels), tuple(request.update_mask.paths)
        )
        if updated.raw_labels or updated.raw_paths:
            down = pb.UpdateSnapshotRequest(
                snapshotter=request.snapshotter,
                update_mask=FieldMask(paths=updated.raw_paths),
                info=pb.Info(name=updated.raw_key, labels=updated.raw_labels),
            )
            raw = self._raw(hop, updated.backend, request.info.name, call)
            await self._ask(raw, "Update", down, call, request.info.name)
        return pb.UpdateSnapshotResponse(info=info_to_pb(updated.info))

    async def Cleanup(self, request: pb.CleanupRequest, call: Call) -> Empty:
        hop = await self._hop(request.snapshotter, call)
        await self._ask(self._raw(hop, "", "", call), "Cleanup", request, call)
        for candidate in hop.candidates:
            raw = self._raw(hop, candidate.terms.backend, "", call)
            try:
                await self._ask(raw, "Cleanup", request, call)
            except errors.Unimplemented as error:
                if error.injected:
                    raise
                log.info("%s has no Cleanup", raw.upstream.name)
        return Empty()

    async def _resolve(self, request: Any, call: Call) -> tuple[_Raw, str]:
        hop = await self._hop(request.snapshotter, call)
        found = await self._records.snapshot(call, request.snapshotter, request.key)
        return self._raw(hop, found.backend, request.key, call), found.raw_key

    async def _ask(self, raw: _Raw, method: str, request: Any, call: Call, name: str = "") -> Any:
        """A raw call that may be repeated; about the snapshot ``name``."""
        headers = raw_headers(call, raw.upstream.name)
        for attempt in (1, 2):
            await raw.upstream.ready(call)
            try:
                return await getattr(raw.client(), method)(request, headers=headers, stall=self._stall)
            except errors.NotFound as error:  # of what metadata has just resolved
                if error.injected or not name:
                    raise
                key = request.info.name if method == "Update" else request.key
                raise await raw.explained(error, request.snapshotter, key, name, headers) from None
            except errors.Disconnected:
                if attempt == 2:
                    raise
        raise AssertionError


@dataclass(frozen=True, slots=True)
class _RawCreation:
    """The raw Prepare or View of an intent."""

    request: _Creation
    intent: Intent
    raw: _Raw
    headers: Headers
    stall: float

    async def make(self) -> Outcome:
        client, intent = self.raw.client(), self.intent
        wanted = type(self.request)(
            snapshotter=self.request.snapshotter, key=intent.raw_key, parent=intent.raw_parent, labels=intent.raw_labels
        )
        try:
            if isinstance(wanted, pb.ViewSnapshotRequest):
                viewed = await client.View(wanted, headers=self.headers, stall=self.stall)
                return self._made(viewed.mounts)
            prepared = await client.Prepare(wanted, headers=self.headers, stall=self.stall)
            return self._made(prepared.mounts)
        except errors.AlreadyExists as error:
            if error.injected:
                raise
            if not intent.target:
                raise _NumberTakenError(self.raw.upstream.name, str(error)) from None
        except errors.NotFound as error:
            if not intent.raw_parent or error.injected:
                raise
            raise await self.raw.explained(
                error, self.request.snapshotter, intent.raw_parent, self.request.parent, self.headers
            ) from None
        return Outcome(adopted=[await self._target()])  # the backend has it already, as remote snapshotters do

    async def happened(self) -> Outcome | None:
        asked = pb.MountsRequest(snapshotter=self.request.snapshotter, key=self.intent.raw_key)
        try:
            return self._made((await self.raw.client().Mounts(asked, headers=self.headers)).mounts)
        except errors.NotFound:
            return None

    def _made(self, mounts: Iterable[Mount]) -> Outcome:
        """Keep the mounts as soon as they are answered: while metadata is told, another process may come."""
        outcome = Outcome(mounts=list(mounts))
        self.raw.mounts.put(self.raw.upstream, self.intent.raw_key, outcome.mounts)
        return outcome

    async def _target(self) -> Info:
        """The committed snapshot that the backend has in the place of the intent's target; NotFound if it has none."""
        target, parent = self.intent.target, self.intent.raw_parent
        wanted = pb.ListSnapshotsRequest(
            snapshotter=self.request.snapshotter, filters=[f'labels."{_REF}"=={target},parent=="{parent}"']
        )
        async for response in self.raw.client().List(wanted, headers=self.headers):
            for message in response.info:  # a snapshotter need not respect filters
                info = info_from_pb(message)
                if info.kind is Kind.COMMITTED and info.labels.get(_REF) == target and info.parent == parent:
                    return info
        raise errors.NotFound(f'target snapshot "{target}" in backend')


@dataclass(frozen=True, slots=True)
class _RawCommit:
    """The raw Commit of an intent."""

    request: pb.CommitSnapshotRequest
    intent: Intent
    raw: _Raw
    headers: Headers
    stall: float

    async def make(self) -> Outcome:
        intent = self.intent
        wanted = pb.CommitSnapshotRequest(
            snapshotter=self.request.snapshotter,
            name=intent.raw_name,
            key=intent.raw_key,
            labels=intent.raw_labels,
            parent=intent.raw_parent,
        )
        try:
            await self.raw.client().Commit(wanted, headers=self.headers, stall=self.stall)
        except errors.AlreadyExists as error:  # of a name that has a new number: not what a client means by it
            if error.injected:
                raise
            raise _NumberTakenError(self.raw.upstream.name, str(error)) from None
        return Outcome()

    async def happened(self) -> Outcome | None:
        asked = pb.StatSnapshotRequest(snapshotter=self.request.snapshotter, key=self.intent.raw_name)
        try:
            await self.raw.client().Stat(asked, headers=self.headers)
        except errors.NotFound:
            return None
        return Outcome()
