#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2: a process with a BatchSpanProcessor forks a child that makes no span and exits at once.
# A good guess: the exporting thread stays in the parent, and a child that never makes a span has one thread.
# What it does: a hook of the SDK runs in each forked child and starts a thread there. The thread is in the child before the child's first own line. A program that forks because
# it has no other threads, to change its root directory or its namespaces, has one more than it knows of.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip install -q --disable-pip-version-check opentelemetry-sdk==1.45.2
cat >fork.py <<'PYTHON'
import os, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

class Nothing(SpanExporter):
    def export(self, spans): ...
    def shutdown(self): ...

def threads():
    return len(os.listdir("/proc/self/task"))

if sys.argv[1] == "with":
    TracerProvider().add_span_processor(BatchSpanProcessor(Nothing()))
child = os.fork()
if not child:
    print(f"{sys.argv[1]} a processor: {threads()} thread(s) in the child", flush=True)
    os._exit(0)
os.waitpid(child, 0)
PYTHON
for how in without with; do v/bin/python -W ignore fork.py $how; done | tee seen
diff seen - <<'SEEN'
without a processor: 1 thread(s) in the child
with a processor: 2 thread(s) in the child
SEEN
