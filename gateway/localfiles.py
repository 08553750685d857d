"""LocalFiles on the internal socket: the content service's files by path, for namespaces that have them (design:
control goes through the gateway, bulk bytes by file).
"""

from __future__ import annotations

from api.splitd.localfiles.v1 import localfiles_pb2 as pb
from api.splitd.localfiles.v1 import localfiles_stubs
from gateway.config import Config
from gateway.hop import Hop
from gateway.store import Intent, Records
from gateway.upstream import Upstream, raw_headers
from gateway.writes import Commit
from services.kit import errors
from services.kit.rpc import Call, shielded

SERVICE = localfiles_stubs.LOCAL_FILES


class LocalFilesServicer:
    """splitd.localfiles.v1.LocalFiles with namespaces, records and leases."""

    SERVICE = SERVICE

    def __init__(self, content: Hop, records: Records, commit: Commit, config: Config) -> None:
        self._content = content
        self._records = records
        self._commit = commit
        self._stall = config.stall

    async def Locate(self, request: pb.LocateRequest, call: Call) -> pb.LocateResponse:
        blob = await self._records.blob(call, request.digest)
        raw = self._content.having(blob.backend, call.optional_namespace, request.digest)
        channel = await _local(raw).ready(call)
        answer: pb.LocateResponse = await channel.client(SERVICE).Locate(
            request, headers=raw_headers(call, self._content.name)
        )
        return answer

    async def Begin(self, request: pb.BeginRequest, call: Call) -> pb.BeginResponse:
        ingest = await self._records.open_ingest(
            call,
            ref=request.ref,
            total=request.total,
            expected=request.expected,
            backend=self._content.new(call.optional_namespace),
        )
        if ingest.shared:
            return pb.BeginResponse()
        raw = self._content.having(ingest.backend, call.optional_namespace, request.ref)
        channel = await _local(raw).ready(call)
        answer: pb.BeginResponse = await channel.client(SERVICE).Begin(
            pb.BeginRequest(ref=ingest.raw_ref, total=request.total), headers=raw_headers(call, self._content.name)
        )
        return answer

    async def _written(self, ref: str, call: Call) -> Upstream:
        """The raw store that has the bytes of an ingest. Nobody else does while the route has no candidates."""
        if not self._content.candidates:
            return self._content.to(call.optional_namespace, ref)
        try:
            ingest = await self._records.ingest(call, ref)
        except errors.NotFound:  # its commit says what is wrong
            return self._content.to(call.optional_namespace, ref)
        return self._content.having(ingest.backend, call.optional_namespace, ref)

    async def Commit(self, request: pb.CommitRequest, call: Call) -> pb.CommitResponse:
        return await shielded(self._commit_shielded(request, call))

    async def _commit_shielded(self, request: pb.CommitRequest, call: Call) -> pb.CommitResponse:
        raw = await self._written(request.ref, call)

        async def commit(intent: Intent) -> tuple[str, int]:
            done = await raw.channel.client(SERVICE).Commit(
                pb.CommitRequest(
                    ref=intent.raw_ref, size=request.size, digest=request.digest, computed=request.computed
                ),
                headers=raw_headers(call, self._content.name),
                timeout=None,
                stall=self._stall if raw.channel.ours else None,
            )
            return done.digest, done.size

        digest, size = await self._commit(
            call,
            raw,
            commit,
            ref=request.ref,
            size=request.size,
            expected=request.digest,
            labels=dict(request.labels),
            later=request.later,
        )
        return pb.CommitResponse(digest=digest, size=size)


def _local(raw: Upstream) -> Upstream:
    """``raw``; Unimplemented if it may be on another machine: a path of its files would name another file here, and
    bytes come by streams then.
    """
    if not raw.local:
        raise errors.Unimplemented(f"files of service {raw.name}, which is at {raw.address}")
    return raw
