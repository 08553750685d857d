"""metadata's Records in its process: what :class:`gateway.store.Records` promises, over its hop.

metadata must know which gateway calls it before that begins anything. So the gateway announces itself each time that
metadata comes up, is another, or other snapshotters are known; its calls wait until metadata has heard it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.splitd.records.v1 import records_pb2 as pb
from api.splitd.records.v1 import records_stubs
from gateway import convert
from gateway.hop import Hop
from gateway.store import Blob, Committed, Ingest, Intent, Labels, Objects, Outcome, Snapshot, Updated
from gateway.upstream import Upstream
from services.kit import errors, loops, rpc, tracing
from services.kit.rpc import Call, Question, Remembered, method_path

log = logging.getLogger(__name__)
T = TypeVar("T")

SERVICE = records_stubs.RECORDS
_RESOLVE_BLOB = method_path(SERVICE.methods_by_name["ResolveBlob"])
_STALL = 30.0
"""Seconds for which a call may make no progress."""
_PATIENCE = 600.0
"""Seconds for which the end of an intent is told again to a metadata that is away. After that the intent ends when
metadata hears of another gateway.
"""
_PAUSE, _FULL = 0.1, 1.0
"""Seconds until the end of an intent is told again, at first; and until whoever waits for it is told of a full disk."""
_REPEATED = frozenset(
    {
        "OpenIngest",
        "GetIngest",
        "ListIngests",
        "BeginCommitIngest",
        "ResolveBlob",
        "BeginSnapshot",
        "BeginCommitSnapshot",
        "ResolveSnapshot",
    }
)
"""Calls that are made again if metadata dies in the middle of them: those that change nothing, and those that begin. An
intent whose answer was lost comes to its end when the gateway announces itself to the next metadata.
"""


async def _at_once() -> None:
    return


class Publish(Protocol):
    """Where events go."""

    def publish(self, namespace: str, topic: str, event: Any) -> None:
        """Queue one event."""
        ...


class RemoteRecords:
    """The ``Records`` of the metadata behind a hop, for one gateway."""

    def __init__(
        self,
        metadata: Hop,
        events: Publish,
        *,
        content: str,
        snapshotters: Sequence[str],
        known: Callable[[], Awaitable[None]] = _at_once,
        pause: float = _PAUSE,
        full: float = _FULL,
        remembered: Mapping[str, Remembered] = {},
    ) -> None:
        """``content`` names the backend of new blobs, ``snapshotters`` those of the node. ``remembered`` has what is
        remembered of metadata's answers, by method (:mod:`gateway.remembered`).

        ``known`` returns once it is known which snapshotters there are (:meth:`snapshotters`), or need not be waited
        for any longer; before that the gateway is not announced. ``pause`` and ``full`` are in seconds: until the end
        of an intent is told again, at first; and until whoever waits for it is told of a full disk.
        """
        self._known = known
        self._pause = pause
        self._full = full
        self._remembered = remembered
        self._hop = metadata
        self._metadata = metadata.usual
        """To whom this gateway announces itself."""
        self._events = events
        self._hello = pb.ConnectRequest(incarnation=str(uuid.uuid4()), content=content, snapshotters=snapshotters)
        self._open: dict[str, Upstream] = {}
        """Intents that have not ended, and the metadata that began each, which is told its end."""
        self._connected = asyncio.Event()
        self._saying = asyncio.Lock()
        self._tasks = loops.Tasks()
        metadata.changed.append(self._announce)

    # -- which gateway this is

    @property
    def incarnation(self) -> str:
        """The gateway's UUID, new at each start."""
        return self._hello.incarnation

    def snapshotters(self, names: Sequence[str]) -> None:
        """Tell metadata that the node has these now."""
        self._hello.snapshotters[:] = names
        self._announce()

    def lead_to(self, backends: Sequence[str]) -> None:
        """Tell metadata of these backends of candidates the next time that it is told anything."""
        self._hello.candidates[:] = backends

    async def candidates(self, backends: Sequence[str]) -> None:
        """Tell metadata that the gateway leads to these backends of candidates. It has heard it when this returns;
        Unavailable if it does not answer in time.
        """
        self.lead_to(backends)
        metadata = self._hop.usual
        await metadata.ready()
        await self._say(metadata)

    def _announce(self) -> None:
        metadata = self._hop.usual
        if metadata is not self._metadata:
            self._metadata = metadata
            self._connected.clear()
        if metadata.up:
            self._tasks.start("the announcement of this gateway", self._connect(metadata))

    async def _connect(self, metadata: Upstream) -> None:
        await self._known()
        while metadata.up and metadata is self._metadata:
            try:
                await self._say(metadata)
            except errors.NodeError as error:
                log.warning("metadata did not take this gateway's announcement: %s", error)
            except Exception:  # a fault of ours, after which no intent could be begun until metadata comes up anew
                log.exception("this gateway could not be announced to metadata")
            else:
                if metadata is self._metadata:
                    self._connected.set()
                return
            await asyncio.sleep(0.2)

    async def _say(self, metadata: Upstream) -> None:
        async with self._saying:  # the last word is the last that metadata hears
            self._hello.open.SetInParent()
            self._hello.open.ids[:] = sorted(intent for intent, begun in self._open.items() if begun is metadata)
            await metadata.channel.client(SERVICE).Connect(self._hello)

    # -- calls

    async def open_ingest(self, call: Call, *, ref: str, total: int, expected: str, backend: str) -> Ingest:
        request = pb.OpenIngestRequest(
            incarnation=self.incarnation, ref=ref, total=total, expected=expected, backend=backend
        )
        return convert.ingest_from_pb(await self._asked("OpenIngest", request, call))

    async def ingest(self, call: Call, ref: str) -> Ingest:
        return convert.ingest_from_pb(await self._asked("GetIngest", pb.GetIngestRequest(ref=ref), call))

    async def ingests(self, call: Call) -> Iterator[Ingest]:
        answer: pb.ListIngestsResponse = await self._asked("ListIngests", Empty(), call)
        return map(convert.ingest_from_pb, answer.ingests)

    async def forget_ingest(self, call: Call, ref: str) -> Ingest:
        return convert.ingest_from_pb(await self._asked("ForgetIngest", pb.GetIngestRequest(ref=ref), call))

    async def blob(self, call: Call, digest: str) -> Blob:
        return convert.blob_from_pb(await self._asked("ResolveBlob", pb.ResolveBlobRequest(digest=digest), call))

    def blob_question(
        self, call: Call, ask: Callable[[bytes], tuple[str, Callable[[Blob], Any], Callable[[], None]]]
    ) -> Question:
        """:meth:`blob` as the question of a route, for calls where nothing has to be waited for.

        Of the request of a call, ``ask`` answers the digest that it is about, what the blob means for it, and what to
        do meanwhile.
        """

        def asked(request: bytes) -> tuple[bytes, Callable[[bytes], Any], Callable[[], None]]:
            digest, meaning, meanwhile = ask(request)
            return (
                pb.ResolveBlobRequest(digest=digest).SerializeToString(),
                lambda answer: meaning(convert.blob_from_pb(pb.Blob.FromString(answer))),
                meanwhile,
            )

        return Question(
            self._hop,
            _RESOLVE_BLOB,
            call.passed_on(),
            _STALL,
            self._is_ready,
            asked,
            self._remembered.get(_RESOLVE_BLOB),
        )

    async def delete_blob(self, call: Call, digest: str) -> None:
        self._publish(await self._asked("DeleteBlob", pb.ResolveBlobRequest(digest=digest), call))

    async def snapshot(self, call: Call, snapshotter: str, key: str) -> Snapshot:
        request = pb.ResolveSnapshotRequest(snapshotter=snapshotter, key=key)
        return convert.snapshot_from_pb(await self._asked("ResolveSnapshot", request, call))

    async def update_snapshot(
        self, call: Call, snapshotter: str, key: str, labels: Labels, paths: Sequence[str]
    ) -> Updated:
        request = snapshots_pb2.UpdateSnapshotRequest(
            snapshotter=snapshotter,
            info=snapshots_pb2.Info(name=key, labels=labels),
            update_mask=FieldMask(paths=paths),
        )
        return convert.updated_from_pb(await self._asked("UpdateSnapshot", request, call))

    async def remove_snapshot(self, call: Call, snapshotter: str, key: str) -> None:
        request = pb.ResolveSnapshotRequest(snapshotter=snapshotter, key=key)
        self._publish(await self._asked("RemoveSnapshot", request, call))

    async def begin_commit(
        self, call: Call, *, ref: str, size: int, expected: str, labels: Labels
    ) -> Intent | Committed:
        request = pb.BeginCommitIngestRequest(
            incarnation=self.incarnation, ref=ref, size=size, expected=expected, labels=labels
        )
        answer: pb.Intent = await self._asked("BeginCommitIngest", request, call)
        if answer.HasField("finished"):
            self._publish(answer.finished)
            return Committed(answer.finished.digest, answer.finished.size)
        return convert.intent_from_pb(answer)

    async def begin_snapshot(
        self, call: Call, *, snapshotter: str, key: str, parent: str, view: bool, labels: Labels, backend: str
    ) -> Intent:
        request = pb.BeginSnapshotRequest(
            incarnation=self.incarnation,
            snapshotter=snapshotter,
            key=key,
            parent=parent,
            view=view,
            labels=labels,
            backend=backend,
        )
        return convert.intent_from_pb(await self._asked("BeginSnapshot", request, call))

    async def begin_commit_snapshot(
        self, call: Call, *, snapshotter: str, name: str, key: str, parent: str, labels: Labels
    ) -> Intent:
        request = pb.BeginCommitSnapshotRequest(
            incarnation=self.incarnation, snapshotter=snapshotter, name=name, key=key, labels=labels, parent=parent
        )
        return convert.intent_from_pb(await self._asked("BeginCommitSnapshot", request, call))

    # -- backends of candidates

    async def objects(self, backend: str, limit: int = 0) -> Objects:
        """What a backend holds; so many of the things are named."""
        metadata = self._hop.usual
        await metadata.ready()
        request = pb.ListObjectsRequest(backend=backend, limit=limit)
        return convert.objects_from_pb(await _method(metadata, "ListObjects")(request, stall=_STALL))

    async def forget(self, backend: str) -> Objects:
        """Drop the records of all that a candidate's backend holds; answers what was dropped. It must not be among
        :meth:`candidates` any more.
        """
        metadata = self._hop.usual
        await metadata.ready()
        request = pb.ForgetObjectsRequest(backend=backend)
        return convert.objects_from_pb(await _method(metadata, "ForgetObjects")(request, timeout=None))

    def _is_ready(self, metadata: rpc.Upstream) -> bool:
        return metadata.is_ready() and self._connected.is_set()

    async def _asked(self, name: str, request: Any, call: Call) -> Any:
        """One call on behalf of ``call``'s client, once metadata has heard of this gateway."""
        metadata = self._hop.to(call.optional_namespace)
        await metadata.ready(call)
        if not self._connected.is_set():
            known = tracing.wait("lock", **{"splitd.wait.for": "service metadata, which has not heard of this gateway"})
            try:
                with known:
                    async with asyncio.timeout(metadata.hold):
                        await self._connected.wait()
            except TimeoutError:
                raise errors.Unavailable("service metadata has not accepted this gateway yet") from None
        try:
            answer = await _method(metadata, name)(request, headers=call.passed_on(), stall=_STALL)
        except errors.Disconnected:
            if name not in _REPEATED:
                raise
            metadata = self._hop.to(call.optional_namespace)
            await metadata.ready(call)
            answer = await _method(metadata, name)(request, headers=call.passed_on(), stall=_STALL)
        except errors.NodeError as error:
            if error.lost:
                self._not_heard(name, error.lost, call, metadata)
            raise
        if isinstance(answer, pb.Intent) and answer.id and not answer.HasField("finished"):
            self._open[answer.id] = metadata
        return answer

    def _not_heard(self, name: str, lost: bytes, call: Call, metadata: Upstream) -> None:
        """An answer was lost by an injected fault. What it says has happened. An intent that it began is cancelled,
        since nobody carries it out.
        """
        if name in ("DeleteBlob", "RemoveSnapshot"):
            self._publish(pb.Finished.FromString(lost))
        elif name.startswith("Begin"):
            intent = pb.Intent.FromString(lost)
            if intent.HasField("finished"):
                self._publish(intent.finished)
            else:
                request = pb.CancelRequest(intent=intent.id)
                self._tasks.start("Cancel of an intent", self._told_alone("Cancel", request, call, metadata))

    # -- the ends of intents

    async def finish(self, call: Call, intent: Intent, outcome: Outcome) -> None:
        try:
            finished: pb.Finished = await self._told("Finish", convert.finish_to_pb(intent, outcome), call)
        finally:
            self._open.pop(intent.id, None)
        self._publish(finished)

    async def cancel(self, call: Call, intent: Intent) -> None:
        try:
            await self._told("Cancel", pb.CancelRequest(intent=intent.id), call)
        finally:
            self._open.pop(intent.id, None)

    async def _told(self, name: str, request: Any, call: Call, *, alone: bool = False) -> Any:
        """The answer of the metadata that began the intent, which is told again until it answers. Where its disk is
        full, whoever waits is told so soon, and the telling goes on ``alone``.
        """
        headers = call.passed_on()
        metadata = self._open.get(request.intent) or self._hop.to(call.optional_namespace)
        begun, pause, said = time.monotonic(), self._pause, ""
        while True:
            try:
                return await _method(metadata, name)(request, headers=headers, stall=_STALL)
            except (errors.Unavailable, errors.ResourceExhausted, errors.DeadlineExceeded, errors.Cancelled) as error:
                passed = time.monotonic() - begun
                if passed > _PATIENCE:
                    raise
                if str(error) != said:
                    log.warning("%s of an intent is repeated: %s", name, error)
                said = str(error)
                if isinstance(error, errors.ResourceExhausted) and not alone and passed > self._full:
                    self._tasks.start(f"{name} of an intent", self._told_alone(name, request, call, metadata))
                    raise
                with tracing.wait("lock", **{"splitd.wait.for": f"service metadata: {error}"}):
                    await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def _told_alone(self, name: str, request: Any, call: Call, metadata: Upstream) -> None:
        self._open[request.intent] = metadata  # else the next metadata would resolve it, and tell of it too
        try:
            answer = await self._told(name, request, call, alone=True)
        except errors.NodeError as error:  # metadata's next start, or its patience, ends the intent
            log.warning("%s of an intent came to nothing: %s", name, error)
        else:
            if isinstance(answer, pb.Finished):
                self._publish(answer)
        finally:
            self._open.pop(request.intent, None)

    def _publish(self, finished: pb.Finished) -> None:
        for event in finished.events:
            self._events.publish(event.namespace, event.topic, event.event)


async def asked_for_records(channel: rpc.Channel, seconds: float) -> None:
    """Ask a process something that changes nothing; Unimplemented if it has no Records."""
    await channel.client(SERVICE).GetHeld(Empty(), timeout=seconds)


def _method(metadata: Upstream, name: str) -> Any:
    return getattr(metadata.channel.client(SERVICE), name)
