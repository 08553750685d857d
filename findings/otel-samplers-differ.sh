#!/usr/bin/env bash
# OpenTelemetry's TraceIdRatioBased sampler in Python (opentelemetry-sdk 1.45.2), Go (v1.38.0) and JavaScript (@opentelemetry/sdk-trace-base 2.12.1): ten thousand trace ids, a ratio of 0.1.
# A good guess: all three keep the same traces, since the decision comes from the trace id alone.
# What they do: Python and Go keep the same ones, JavaScript others: a tenth of its own are among theirs, as by chance. So a service in JavaScript behind one in Python, each with this
# sampler and no parent-based one around it, leaves a hundredth of the traces whole. (The specification leaves the algorithm open.)
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-sdk==1.45.2 2>/dev/null
npm install --silent --no-audit --no-fund @opentelemetry/sdk-trace-base@2.12.1 @opentelemetry/api@1.9.0 >/dev/null 2>&1
export GOFLAGS=-modcacherw
printf 'module finding\n\ngo 1.24\n\nrequire (\n\tgo.opentelemetry.io/otel v1.38.0\n\tgo.opentelemetry.io/otel/sdk v1.38.0\n)\n' >go.mod
python3 -c 'import hashlib; [print(hashlib.md5(str(number).encode()).hexdigest()) for number in range(10000)]' >ids
cat >sample.py <<'PYTHON'
import sys

from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

sampler = TraceIdRatioBased(0.1)
for line in sys.stdin:
    if sampler.should_sample(None, int(line, 16), "span").decision.is_sampled():
        print(line.strip())
PYTHON
cat >sample.mjs <<'JS'
import { readFileSync } from "node:fs";
import { ROOT_CONTEXT } from "@opentelemetry/api";
import { SamplingDecision, TraceIdRatioBasedSampler } from "@opentelemetry/sdk-trace-base";

const sampler = new TraceIdRatioBasedSampler(0.1);
for (const id of readFileSync("ids", "utf8").trim().split("\n")) {
  if (sampler.shouldSample(ROOT_CONTEXT, id).decision === SamplingDecision.RECORD_AND_SAMPLED) console.log(id);
}
JS
cat >main.go <<'GO'
package main

import (
	"bufio"
	"fmt"
	"os"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func main() {
	sampler := sdk.TraceIDRatioBased(0.1)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		id, err := trace.TraceIDFromHex(lines.Text())
		if err != nil {
			panic(err)
		}
		if sampler.ShouldSample(sdk.SamplingParameters{TraceID: id}).Decision == sdk.RecordAndSample {
			fmt.Println(id)
		}
	}
}
GO
go mod tidy 2>/dev/null
v/bin/python sample.py <ids | sort >python
go run . <ids | sort >go
node sample.mjs | sort >javascript
for one in python go javascript; do for other in go javascript; do echo "$one and $other: $(comm -12 $one $other | wc -l)"; done; done | tee seen
diff seen - <<'SEEN'
python and go: 992
python and javascript: 106
go and go: 992
go and javascript: 106
javascript and go: 106
javascript and javascript: 937
SEEN
