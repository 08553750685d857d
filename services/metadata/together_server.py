"""Calls that came as one (``kit.many``), answered together: their work is queued at once, and is one transaction, or a
few.

Each function answers several requests of one method, in their order. It answers a message, an error, or None for a
request that its own handler is to answer (:data:`services.kit.transport.Together`): one that waits for another
operation, or is not of the usual kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from api.containerd.services.content.v1 import content_pb2 as content_pb
from api.splitd.records.v1 import records_pb2 as pb
from services.kit import errors
from services.kit.rpc import Call, shielded
from services.metadata import convert
from services.metadata.content import FEW, Content
from services.metadata.database import Busy, Database
from services.metadata.intents import Intents
from services.metadata.snapshots import Snapshots, inherited
from services.metadata.store import Finished, Ingest, Intent
from services.oci.digests import digest_problem

T = TypeVar("T")
Answers = Sequence[Any]


class Together:
    """The methods of Records and Content that a pull calls for each of its layers."""

    def __init__(self, database: Database, content: Content, snapshots: Snapshots, intents: Intents) -> None:
        self._database = database
        self._content = content
        self._snapshots = snapshots
        self._intents = intents

    async def open_ingests(self, requests: Sequence[pb.OpenIngestRequest], call: Call) -> Answers:
        """Records.OpenIngest."""
        namespace, lease = call.namespace, call.lease

        def work(request: pb.OpenIngestRequest) -> Callable[[Any], Ingest | None] | None:
            if self._content.exists(namespace, request.expected):
                return None
            return self._content.opening(
                namespace, lease, request.incarnation, request.ref, request.total, request.expected, request.backend
            )

        done = _Done(requests, work)
        found = await self._database.write_all(done.works, lasting=False)
        return done.answers(found, lambda _, ingest: None if ingest is None else convert.ingest_to_pb(ingest))

    async def begin_commits_ingest(self, requests: Sequence[pb.BeginCommitIngestRequest], call: Call) -> Answers:
        """Records.BeginCommitIngest."""
        done = _Done(
            requests,
            lambda request: self._content.beginning_commit(
                call.namespace,
                call.lease,
                request.incarnation,
                request.ref,
                request.size,
                request.expected,
                dict(request.labels),
            ),
        )

        def answer(_: pb.BeginCommitIngestRequest, begun: Intent | tuple[Intent, Finished]) -> pb.Intent:
            intent, finished = (begun, None) if isinstance(begun, Intent) else begun
            return convert.intent_to_pb(intent, {}, finished)

        return done.answers(await self._intents.begin_all(done.works), answer)

    async def begin_snapshots(self, requests: Sequence[pb.BeginSnapshotRequest], call: Call) -> Answers:
        """Records.BeginSnapshot."""
        done = _Done(
            requests,
            lambda request: self._snapshots.beginning(
                call.namespace,
                call.lease,
                request.incarnation,
                request.snapshotter,
                request.key,
                request.parent,
                dict(request.labels),
                view=request.view,
                backend=request.backend,
            ),
        )
        return done.answers(await self._intents.begin_all(done.works), _intent)

    async def begin_commits_snapshot(self, requests: Sequence[pb.BeginCommitSnapshotRequest], call: Call) -> Answers:
        """Records.BeginCommitSnapshot."""
        done = _Done(
            requests,
            lambda request: self._snapshots.beginning_commit(
                call.namespace,
                call.lease,
                request.incarnation,
                request.snapshotter,
                request.name,
                request.key,
                request.parent,
                dict(request.labels),
            ),
        )
        return done.answers(await self._intents.begin_all(done.works), _intent)

    async def finish(self, requests: Sequence[pb.FinishRequest], call: Call) -> Answers:
        """Records.Finish."""
        ends = [(request.intent, convert.outcome_from_pb(request), not request.later) for request in requests]
        found = await shielded(self._intents.finish_all(ends))
        return [_answer(each, convert.finished_to_pb) for each in found]

    async def update_content(self, requests: Sequence[content_pb.UpdateRequest], call: Call) -> Answers:
        """Content.Update."""

        def work(request: content_pb.UpdateRequest) -> Callable[[Any], Any] | None:
            digest, labels, paths = request.info.digest, dict(request.info.labels), request.update_mask.paths
            if digest_problem(digest) or len(labels) > FEW or len(paths) > FEW:
                return None
            return self._content.updating(call.namespace, digest, labels, list(paths))

        done = _Done(requests, work)
        found = await self._database.write_all(done.works)
        return done.answers(
            found,
            lambda _, blob: (
                content_pb.UpdateResponse(info=convert.info_to_pb(blob)) if len(blob.labels) <= FEW else None
            ),
        )


class _Done:
    """Requests and the work of each."""

    def __init__(self, requests: Sequence[Any], work: Callable[[Any], Callable[[Any], Any] | None]) -> None:
        """``work`` may raise the answer; None: the request is answered by its own handler."""
        self._answers: list[Any] = [None] * len(requests)
        self._asked: list[tuple[int, Any]] = []
        self.works: list[Callable[[Any], Any]] = []
        for number, request in enumerate(requests):
            try:
                made = work(request)
            except errors.NodeError as error:
                self._answers[number] = error
                continue
            if made is not None:
                self._asked.append((number, request))
                self.works.append(made)

    def answers(self, found: Sequence[Any], answer: Callable[[Any, Any], Any]) -> Answers:
        """The answers to all requests, of what the works have ``found``."""
        for (number, request), each in zip(self._asked, found, strict=True):
            self._answers[number] = _answer(each, lambda result, request=request: answer(request, result))  # type: ignore[misc]
        return self._answers


def _answer(found: Any, answer: Callable[[Any], Any]) -> Any:
    if found is None or isinstance(found, (Busy, errors.Unavailable)):  # its own handler knows what to do then
        return None
    if isinstance(found, Exception):
        if not isinstance(found, errors.NodeError):
            raise found
        return found
    return answer(found)


def _intent(request: Any, intent: Intent) -> pb.Intent:
    return convert.intent_to_pb(intent, inherited(dict(request.labels)))
