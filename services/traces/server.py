"""opentelemetry.proto.collector.trace.v1.TraceService, which takes spans in, and splitd.traces.v1.Traces, which tells
of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from itertools import islice

from google.protobuf.message import DecodeError

from api.splitd.traces.v1 import traces_pb2 as pb
from api.splitd.traces.v1 import traces_stubs
from services.kit import errors
from services.kit.otlp_messages import collector, otlp
from services.kit.rpc import Call
from services.kit.slices import Lane
from services.traces import convert
from services.traces.intake import Intake
from services.traces.live import SPANS, OpenSpans
from services.traces.store import Store

_LIST = 8 << 20
"""Bytes of a list; a message has at most 16 MiB."""
_CAUSES = 50
"""Causes of a verdict, at most."""
_NAME = 200
"""Characters of a process's name."""


class CollectorServicer:
    """OTLP over gRPC. What is dropped is said in ``partial_success``, so that nobody sends it again."""

    SERVICE = collector.DESCRIPTOR.services_by_name["TraceService"]

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._lane = Lane()

    async def Export(
        self, request: collector.ExportTraceServiceRequest, call: Call
    ) -> collector.ExportTraceServiceResponse:
        sent = request.resource_spans
        refused, dropped = convert.refuse(sent), 0
        sender, piece = convert.sender(sent), self._lane.slice()
        for each in convert.pieces(sent):
            dropped += self._intake.offer(sender, each)
            if piece.over():
                await piece.next()
        answer = collector.ExportTraceServiceResponse()
        if refused or dropped:
            answer.partial_success.rejected_spans = refused + dropped
            answer.partial_success.error_message = "; ".join(
                [
                    *([f"{refused} spans have ids of a wrong length"] if refused else []),
                    *([f"{dropped} spans are too many for now"] if dropped else []),
                ]
            )
        return answer


class TracesServicer:
    """What the store holds, and what is open now."""

    SERVICE = traces_stubs.TRACES

    def __init__(self, store: Store, live: OpenSpans, told: Callable[[], None] = lambda: None) -> None:
        """``told`` is called after each report of open spans."""
        self._store = store
        self._live = live
        self._told = told
        self._judging = asyncio.Lock()

    async def List(self, request: pb.ListRequest, call: Call) -> pb.ListResponse:
        """The newest that there is room for in one message."""
        response, room = pb.ListResponse(), _LIST
        for each in await self._store.traces(convert.query_from_pb(request)):
            summary = convert.summary_to_pb(each)
            if (room := room - summary.ByteSize()) < 0:
                break
            response.traces.append(summary)
        return response

    async def Get(self, request: pb.GetRequest, call: Call) -> AsyncIterator[pb.GetResponse]:
        for data in await self._store.encoded(request.id):
            yield pb.GetResponse(data=data)

    async def Judge(self, request: pb.JudgeRequest, call: Call) -> pb.JudgeResponse:
        from services.traces.verdict import judge  # kept by the process (later.Code)

        async with self._judging:
            found = await self._store.trace(request.id)
            judged = await asyncio.to_thread(judge, found)
        causes = [
            pb.Cause(kind=each.kind, part=each.part, seconds=each.seconds, what=each.what) for each in judged.causes
        ]
        return pb.JudgeResponse(sentence=judged.sentence, advice=judged.advice, causes=causes[:_CAUSES])

    async def Delete(self, request: pb.DeleteRequest, call: Call) -> pb.DeleteResponse:
        await self._store.delete(request.id)
        return pb.DeleteResponse()

    async def Live(self, request: pb.LiveRequest, call: Call) -> pb.LiveResponse:
        live = self._live.asked()
        return pb.LiveResponse(data=convert.spans_to_pb(live.spans).SerializeToString(), now=live.now)

    async def Report(self, request: pb.ReportRequest, call: Call) -> pb.ReportResponse:
        try:
            sent = [otlp.ResourceSpans.FromString(request.data)]
        except DecodeError as error:
            raise errors.InvalidArgument(f"open spans of {request.service}: {error}") from None
        convert.refuse(sent)
        self._live.report(
            request.service[:_NAME],
            convert.begun(sent),
            lambda: islice(convert.spans_from_pb(sent), SPANS),
            request.lifetime,
            request.dropped,
        )
        self._told()
        return pb.ReportResponse()

    async def Figures(self, request: pb.FiguresRequest, call: Call) -> pb.FiguresResponse:
        found = await self._store.figures()
        return convert.figures_to_pb(dataclasses.replace(found, dropped=found.dropped + self._live.dropped()))
