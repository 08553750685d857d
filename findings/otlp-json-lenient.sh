#!/usr/bin/env bash
# The OpenTelemetry Collector's reader of OTLP/JSON: go.opentelemetry.io/collector/pdata v1.71.0.
# A good guess: it reads what the OTLP specification has ("JSON Protobuf Encoding"): numbers for enums, names in lowerCamelCase; other forms are refused, or as unknown fields left out.
# What it does: it takes names of enums and snake_case names as well, and a number that no enum has; so a producer that the Collector accepts may be refused elsewhere. A time in scientific
# notation, which protobuf's own JSON reads, is an error, and loses the whole request.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
printf 'module finding\n\ngo 1.25\n\nrequire go.opentelemetry.io/collector/pdata v1.71.0\n' >go.mod
cat >main.go <<'GO'
package main

import (
	"fmt"
	"strings"

	"go.opentelemetry.io/collector/pdata/ptrace"
)

const request = `{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174",
"name":"span","kind":2,"startTimeUnixNano":"1544712660000000000"}]}]}]}`

func main() {
	for _, each := range [][2]string{{`"kind":2`, `"kind":2`}, {`"kind":2`, `"kind":"SPAN_KIND_SERVER"`}, {`"kind":2`, `"kind":99`}, {`"traceId"`, `"trace_id"`},
		{`"resourceSpans"`, `"resource_spans"`}, {`"1544712660000000000"`, `1544712660000000000`}, {`"1544712660000000000"`, `1.54471266e18`}} {
		traces, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces([]byte(strings.Replace(request, each[0], each[1], 1)))
		if err != nil {
			fmt.Println(each[1]+":", strings.SplitN(err.Error(), ",", 2)[0])
			continue
		}
		if traces.SpanCount() == 0 {
			fmt.Println(each[1] + ": no span")
			continue
		}
		span := traces.ResourceSpans().At(0).ScopeSpans().At(0).Spans().At(0)
		fmt.Printf("%s: trace %s, kind %d, start %d\n", each[1], span.TraceID(), span.Kind(), span.StartTimestamp())
	}
}
GO
go mod tidy 2>/dev/null
go run . | tee seen
diff seen - <<'SEEN'
"kind":2: trace 5b8efff798038103d269b633813fc60c, kind 2, start 1544712660000000000
"kind":"SPAN_KIND_SERVER": trace 5b8efff798038103d269b633813fc60c, kind 2, start 1544712660000000000
"kind":99: trace 5b8efff798038103d269b633813fc60c, kind 99, start 1544712660000000000
"trace_id": trace 5b8efff798038103d269b633813fc60c, kind 2, start 1544712660000000000
"resource_spans": trace 5b8efff798038103d269b633813fc60c, kind 2, start 1544712660000000000
1544712660000000000: trace 5b8efff798038103d269b633813fc60c, kind 2, start 1544712660000000000
1.54471266e18: assertInteger: can not decode float as int
SEEN
