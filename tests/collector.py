"""A collector of OTLP on Google's server, for tests that look at the spans of a whole node."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it came."""

    service: str
    """``service.name`` of its process."""
    name: str
    id: str
    parent: str
    """Empty for a root."""
    start: int
    end: int
    error: bool
    attributes: Mapping[str, Any]


class Collector:
    """The spans that came, by trace."""

    def __init__(self, path: Path) -> None:
        self._spans: dict[str, list[Span]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            self._export, otlp.ExportTraceServiceRequest.FromString, otlp.ExportTraceServiceResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": handler}
                ),
            )
        )
        self.endpoint = f"unix:{path}"
        self._server.add_insecure_port(self.endpoint)
        self._server.start()

    def _export(self, request: Any, context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self._spans[span.trace_id.hex()].append(
                            Span(
                                service,
                                span.name,
                                span.span_id.hex(),
                                span.parent_span_id.hex(),
                                span.start_time_unix_nano,
                                span.end_time_unix_nano,
                                span.status.code == 2,
                                _attributes(span.attributes),
                            )
                        )
        return otlp.ExportTraceServiceResponse()

    def traces(self) -> Mapping[str, Sequence[Span]]:
        """All spans, by trace id."""
        with self._lock:
            return {trace: list(spans) for trace, spans in self._spans.items()}

    def spans(self, trace: str) -> Sequence[Span]:
        return self.traces().get(trace, [])

    def processes(self, trace: str) -> set[str]:
        """The processes that took part in a trace."""
        return {span.service for span in self.spans(trace)}

    def stop(self) -> None:
        self._server.stop(None)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
