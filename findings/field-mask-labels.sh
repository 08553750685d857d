#!/usr/bin/env bash
# The JSON of a google.protobuf.FieldMask by Go (google.golang.org/protobuf v1.36.6) and Python (protobuf 6.33.2), with paths as containerd's Update calls take them: labels.NAME.
# A good guess: the path goes through JSON as it is, by both.
# What they do: Go refuses names of labels with a slash or a hyphen, in both directions, so a tool by Go cannot send labels.containerd.io/gc.root as JSON; Python takes it. Both read
# labels.Foo as labels._foo, without an error, and a comma as the start of another path; Go writes neither of these, and Python writes the
# comma.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

cat >main.go <<'GO'
package main

import (
	"fmt"
	"os"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func main() {
	for _, path := range os.Args[1:] {
		var mask fieldmaskpb.FieldMask
		written, read := "taken", "refused"
		if _, err := protojson.Marshal(&fieldmaskpb.FieldMask{Paths: []string{path}}); err != nil {
			written = "refused"
		}
		if protojson.Unmarshal([]byte(`"`+path+`"`), &mask) == nil {
			read = fmt.Sprint(mask.Paths)
		}
		fmt.Printf("Go, %s: written %s, read %s\n", path, written, read)
	}
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.21

require google.golang.org/protobuf v1.36.6
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
python3 -m pip -q install --target lib protobuf==6.33.2 2>/dev/null
cat >main.py <<'PYTHON'
import sys
from google.protobuf import field_mask_pb2, json_format

for path in sys.argv[1:]:
    written, read = "taken", "refused"
    try:
        json_format.MessageToJson(field_mask_pb2.FieldMask(paths=[path]))
    except ValueError:
        written = "refused"
    try:
        read = f"[{' '.join(json_format.Parse(chr(34) + path + chr(34), field_mask_pb2.FieldMask()).paths)}]"
    except json_format.ParseError:
        pass
    print(f"Python, {path}: written {written}, read {read}")
PYTHON
paths="labels.containerd.io/gc.root labels.Foo labels.a,b"
{
  go run . $paths
  PYTHONPATH=lib python3 main.py $paths
} | tee seen
diff seen - <<'SEEN'
Go, labels.containerd.io/gc.root: written refused, read refused
Go, labels.Foo: written refused, read [labels._foo]
Go, labels.a,b: written refused, read [labels.a b]
Python, labels.containerd.io/gc.root: written taken, read [labels.containerd.io/gc.root]
Python, labels.Foo: written refused, read [labels._foo]
Python, labels.a,b: written taken, read [labels.a b]
SEEN
