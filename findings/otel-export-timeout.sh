#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2 for Python, and a backend that takes two seconds for an answer.
# A good guess: OTEL_BSP_EXPORT_TIMEOUT=200 bounds an export to 200 ms, and what is not a number is complained about, as it is for the other OTEL_BSP variables.
# What it does: the variable is read and used by nothing; the export takes its two seconds. Only a wrong value can be noticed: by a line in the log.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-sdk==1.45.2 opentelemetry-api==1.45.2 2>/dev/null
OTEL_BSP_EXPORT_TIMEOUT=200 v/bin/python - <<'PYTHON' | tee seen
import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class Slow(SpanExporter):
    def export(self, spans):
        time.sleep(2)
        print("exported", len(spans))
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Slow()))
provider.get_tracer("slow").start_span("span").end()
start = time.monotonic()
print("flushed", provider.force_flush(), "after two seconds:", time.monotonic() - start >= 2)
PYTHON
diff seen - <<'SEEN'
exported 1
flushed True after two seconds: True
SEEN
