"""The traces service in another process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from api.splitd.traces.v1 import traces_pb2 as pb
from api.splitd.traces.v1 import traces_stubs
from services.kit.otlp_messages import collector, otlp
from services.kit.rpc import Channel
from services.traces import convert
from services.traces.store import Figures, Live, Piece, Query, Span, Summary, Trace

_TOGETHER = 1 << 20
"""Bytes of an Export; the last piece may exceed it."""


class RemoteStore:
    """A ``Store`` over a channel to STATE/traces.sock."""

    def __init__(self, channel: Channel) -> None:
        self._traces = channel.client(traces_stubs.TRACES)
        self._collector = channel.client(collector.DESCRIPTOR.services_by_name["TraceService"])

    async def add(self, spans: Sequence[Span]) -> None:
        """Raises nothing for what is dropped; :meth:`export` tells of it."""
        await self.export(spans)

    async def export(self, spans: Sequence[Span]) -> tuple[int, str]:
        """Send spans, many together. The result is how many were dropped, and why."""
        return await self._sent(convert.pieces(convert.spans_to_pb(spans).resource_spans))

    async def take(self, pieces: Sequence[Piece]) -> None:
        await self._sent(iter(pieces))

    async def _sent(self, pieces: Iterable[Piece]) -> tuple[int, str]:
        dropped, why, request = 0, "", collector.ExportTraceServiceRequest()
        size = 0
        for piece in pieces:
            request.MergeFromString(piece.data)  # both messages are a list of ResourceSpans, under the same number
            size += len(piece.data)
            if size >= _TOGETHER:
                dropped, why = await self._exported(request, dropped, why)
                size = 0
        return await self._exported(request, dropped, why)

    async def _exported(self, request: collector.ExportTraceServiceRequest, dropped: int, why: str) -> tuple[int, str]:
        answer = (await self._collector.Export(request)).partial_success
        request.Clear()
        return dropped + answer.rejected_spans, answer.error_message or why

    async def traces(self, query: Query) -> list[Summary]:
        response = await self._traces.List(convert.query_to_pb(query))
        return [*map(convert.summary_from_pb, response.traces)]

    async def trace(self, prefix: str) -> Trace:
        parts = await self.encoded(prefix)
        spans = convert.trace("", parts)
        return Trace(spans.spans[0].trace, spans.spans)

    async def encoded(self, prefix: str) -> Sequence[bytes]:
        return [response.data async for response in self._traces.Get(pb.GetRequest(id=prefix))]

    async def delete(self, trace: str) -> None:
        await self._traces.Delete(pb.DeleteRequest(id=trace))

    async def figures(self) -> Figures:
        return convert.figures_from_pb(await self._traces.Figures(pb.FiguresRequest()))

    async def live(self) -> Live:
        """The open spans of all processes."""
        response = await self._traces.Live(pb.LiveRequest())
        return Live(response.now, [*convert.spans(response.data)])

    async def report(self, service: str, spans: Sequence[Span], lifetime: float = 5.0, dropped: int = 0) -> None:
        """Tell which spans of a process are open."""
        data = otlp.ResourceSpans()
        for resource in convert.spans_to_pb(spans).resource_spans:
            data.MergeFrom(resource)
        await self._traces.Report(
            pb.ReportRequest(data=data.SerializeToString(), service=service, lifetime=lifetime, dropped=dropped)
        )
