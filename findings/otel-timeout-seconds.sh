#!/usr/bin/env bash
# opentelemetry-exporter-otlp-proto-http 1.45.2 for Python: OTEL_EXPORTER_OTLP_TIMEOUT, and a backend that answers after four seconds.
# A good guess: it is in milliseconds, as the specification of the exporter has it, and as the exporters of Go and Java read it: 2000 is two seconds, and 10000 the default.
# What it does: it is in seconds: with 2000 the exporter waits for more than half an hour, so a deployment that sets one value for all of its services blocks those in Python.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2 2>/dev/null
v/bin/python - 2>/dev/null <<'PYTHON' | tee seen
import http.server
import os
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Slow(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(4)
        try:
            self.send_response(200)
            self.end_headers()
        except OSError:
            pass  # the exporter has gone

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
memory = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
provider.get_tracer("tracer").start_span("span").end()
for value in "2000", "2":
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = value
    began = time.monotonic()
    result = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{server.server_port}").export(memory.get_finished_spans())
    print(f"{value}: {result.name}, after {'the answer' if time.monotonic() - began >= 4 else 'less than four seconds'}")
PYTHON
diff seen - <<'SEEN'
2000: SUCCESS, after the answer
2: FAILURE, after less than four seconds
SEEN
