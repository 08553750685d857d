#!/usr/bin/env bash
# A gzip file that is padded with zeros, as tapes and block devices do it: GNU gzip 1.12, isal 1.9.1, Go 1.26's compress/gzip.
# A good guess: all readers pass over the zeros, as gzip's manual says, or all refuse them.
# What they do: gzip, Python and igzip read it; Go reads the bytes, then fails with "gzip: invalid header". So such a layer is good here and bad in a program in Go.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install isal==1.9.1 2>/dev/null
{ printf hello | gzip; head -c 512 /dev/zero; } >padded.gz
cat >reader.go <<'GO'
package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
)

func main() {
	reader, err := gzip.NewReader(os.Stdin)
	if err == nil {
		var data []byte
		data, err = io.ReadAll(reader)
		fmt.Printf("Go: %s, %v\n", data, err)
	}
}
GO
{
  echo "gzip: $(gzip -dc padded.gz)"
  v/bin/python -c 'import gzip; from isal import igzip; [print(m.__name__ + ":", m.open("padded.gz").read().decode()) for m in (gzip, igzip)]'
  go run reader.go <padded.gz
} | tee seen
diff seen - <<'SEEN'
gzip: hello
gzip: hello
isal.igzip: hello
Go: hello, gzip: invalid header
SEEN
