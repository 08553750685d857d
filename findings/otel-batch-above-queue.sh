#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2 for Python.
# A good guess: a queue that is smaller than the default batch (512) bounds the batch.
# What it does: with OTEL_BSP_MAX_QUEUE_SIZE=100, a valid value by the specification, BatchSpanProcessor raises ValueError, and names no variable.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-sdk==1.45.2 opentelemetry-api==1.45.2 2>/dev/null
OTEL_BSP_MAX_QUEUE_SIZE=100 v/bin/python - <<'PYTHON' | tee seen
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

try:
    BatchSpanProcessor(ConsoleSpanExporter()).shutdown()
    print("ok")
except ValueError as error:
    print("ValueError:", error)
PYTHON
diff seen - <<'SEEN'
ValueError: max_export_batch_size must be less than or equal to max_queue_size.
SEEN
