#!/usr/bin/env bash
# opentelemetry-exporter-otlp-proto-http 1.45.2 for Python: a backend that redirects (307, 308), and an endpoint with a query.
# A good guess: a redirect is followed, as the library below (requests) does, or is a failure; the path v1/traces comes before the query.
# What it does: a redirect is a success: the exporter does not follow it, says nothing, and the spans are gone. The path is put behind the query.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2 2>/dev/null
v/bin/python - 2>log <<'PYTHON' | tee seen
import http.server
import os
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

asked = []


class Backend(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        asked.append(self.path)
        code = int(self.path[1:4]) if self.path.startswith("/30") else 200
        self.send_response(code)
        if code != 200:
            self.send_header("Location", "/moved")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Backend)
threading.Thread(target=server.serve_forever, daemon=True).start()
memory = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
provider.get_tracer("tracer").start_span("span").end()
for base in ("/307", "/308", "/base?key=value"):
    asked.clear()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}{base}"
    print(base + ":", OTLPSpanExporter().export(memory.get_finished_spans()).name, "asked for", asked)
PYTHON
echo "in the log: $(wc -l <log) lines" | tee -a seen
diff seen - <<'SEEN'
/307: SUCCESS asked for ['/307/v1/traces']
/308: SUCCESS asked for ['/308/v1/traces']
/base?key=value: SUCCESS asked for ['/base?key=value/v1/traces']
in the log: 0 lines
SEEN
