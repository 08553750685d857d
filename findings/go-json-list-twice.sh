#!/usr/bin/env bash
# A list that a JSON document names more than once, to Go 1.26's encoding/json.
# A good guess: the last one counts, whole, as a number or a string that comes twice does it, and as Python's json does it.
# What Go does: it lays the later list over the earlier one, element by element. What the later one leaves out keeps its old value, and the elements behind its end come back
# when a third list is longer. An empty list or a null between them ends that.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

cat >documents <<'JSON'
{"list": [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "list": [{"b": 9}]}
{"list": [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "list": [{"b": 9}], "list": [{}, {}]}
{"list": [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "list": [], "list": [{}, {}]}
{"list": [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "list": null, "list": [{}, {}]}
JSON
cat >reader.go <<'GO'
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var document struct {
			List []struct{ A, B int }
		}
		err := json.Unmarshal(lines.Bytes(), &document)
		fmt.Println("Go:", document.List, err)
	}
}
GO
{
  python3 -c 'import json; [print("Python:", json.loads(line)["list"]) for line in open("documents")]'
  go run reader.go <documents
} | tee seen
diff seen - <<'SEEN'
Python: [{'b': 9}]
Python: [{}, {}]
Python: [{}, {}]
Python: [{}, {}]
Go: [{1 9}] <nil>
Go: [{1 9} {3 4}] <nil>
Go: [{0 0} {0 0}] <nil>
Go: [{0 0} {0 0}] <nil>
SEEN
