#!/usr/bin/env bash
# opentelemetry-exporter-otlp-proto-http 1.45.2 for Python: a span is called by a file name that is not UTF-8, as os.fsdecode and os.listdir hand it out.
# A good guess: that span is lost, or its name repaired; the other spans of the batch go out, as they do where an attribute has such a value (that attribute alone is left out).
# What it does: the whole batch is dropped, good spans too. One line in the log says so; force_flush answers True.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2 2>/dev/null
v/bin/python - 2>log <<'PYTHON' | tee seen
import http.server
import os
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

received = []


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        received.extend(span.name for batch in request.resource_spans for scope in batch.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"http://127.0.0.1:{server.server_port}/v1/traces")))
tracer = provider.get_tracer("names")
name = os.fsdecode(b"caf\xe9")

tracer.start_span("attribute", attributes={"file": name}).end()
print("an attribute: flushed", provider.force_flush(), "received", received)
received.clear()
tracer.start_span("good").end()
tracer.start_span(name).end()
tracer.start_span("good too").end()
print("a span's name: flushed", provider.force_flush(), "received", received)
PYTHON
grep -o 'Failed to encode span batch' log | tee -a seen
diff seen - <<'SEEN'
an attribute: flushed True received ['attribute']
a span's name: flushed True received []
Failed to encode span batch
SEEN
