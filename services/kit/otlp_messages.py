"""OTLP's messages, for the service that takes them in. Only the kit imports OpenTelemetry; these are generated modules
of its protocol, without its SDK.
"""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

__all__ = ["AnyValue", "KeyValue", "Resource", "collector", "otlp"]
