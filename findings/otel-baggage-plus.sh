#!/usr/bin/env bash
# OpenTelemetry's W3C baggage in Python (opentelemetry-api 1.45.2) and Go (go.opentelemetry.io/otel v1.38.0): one writes the header, the other reads it.
# A good guess: a value arrives as it was, since both follow one specification, in which a blank is %20 and + is a plain character.
# What they do: Python writes a blank as + and reads + as a blank, as forms on the web do: Go gets "a+b" for "a b", and Python gets "a b" for Go's "a+b". A property (";key=value") is part of the
# value for Python.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install opentelemetry-api==1.45.2 2>/dev/null
export GOFLAGS=-modcacherw
printf 'module finding\n\ngo 1.24\n\nrequire go.opentelemetry.io/otel v1.38.0\n' >go.mod
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
)

func main() {
	carrier := propagation.MapCarrier{}
	if os.Args[1] == "write" {
		member, err := baggage.NewMemberRaw("key", os.Args[2])
		if err != nil {
			panic(err)
		}
		all, err := baggage.New(member)
		if err != nil {
			panic(err)
		}
		propagation.Baggage{}.Inject(baggage.ContextWithBaggage(context.Background(), all), carrier)
		fmt.Print(carrier["baggage"])
		return
	}
	carrier["baggage"] = os.Args[2]
	fmt.Printf("%q", baggage.FromContext(propagation.Baggage{}.Extract(context.Background(), carrier)).Member("key").Value())
}
GO
cat >main.py <<'PYTHON'
import json
import sys

from opentelemetry.baggage import get_baggage, set_baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator

if sys.argv[1] == "write":
    carrier = {}
    W3CBaggagePropagator().inject(carrier, set_baggage("key", sys.argv[2]))
    print(carrier["baggage"], end="")
else:
    print(json.dumps(get_baggage("key", W3CBaggagePropagator().extract({"baggage": sys.argv[2]}))), end="")
PYTHON
go mod tidy 2>/dev/null
go build -o go-side .
python="v/bin/python main.py"
{
  for value in 'a b' 'a+b' 'a/b'; do
    header=$($python write "$value"); echo "\"$value\" by Python: $header, read by Go: $(./go-side read "$header")"
    header=$(./go-side write "$value"); echo "\"$value\" by Go: $header, read by Python: $($python read "$header")"
  done
  echo "key=a;property=1 read by Go: $(./go-side read 'key=a;property=1'), by Python: $($python read 'key=a;property=1')"
} | tee seen
diff seen - <<'SEEN'
"a b" by Python: key=a+b, read by Go: "a+b"
"a b" by Go: key=a%20b, read by Python: "a b"
"a+b" by Python: key=a%2Bb, read by Go: "a+b"
"a+b" by Go: key=a+b, read by Python: "a b"
"a/b" by Python: key=a%2Fb, read by Go: "a/b"
"a/b" by Go: key=a/b, read by Python: "a/b"
key=a;property=1 read by Go: "a", by Python: "a;property=1"
SEEN
