#!/usr/bin/env bash
# go-containerregistry v0.20.2: crane.Layer, which makes a layer of a map of names and contents, and with it crane.Image.
# A good guess: files that everybody may read, and the directories that they are in.
# What it does: each file has mode 0000 and there are no directories; in a container only root with CAP_DAC_OVERRIDE can read them, and nobody can run one.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

cat >main.go <<'GO'
package main

import (
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/crane"
)

func main() {
	layer, err := crane.Layer(map[string][]byte{"etc/app.conf": []byte("a"), "bin/run": []byte("b")})
	if err != nil {
		panic(err)
	}
	content, err := layer.Uncompressed()
	if err != nil {
		panic(err)
	}
	io.Copy(os.Stdout, content)
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.21

require github.com/google/go-containerregistry v0.20.2
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
go run . >layer.tar
tar tvf layer.tar --full-time | tee seen
diff seen - <<'SEEN'
---------- 0/0               1 1970-01-01 00:00:00 bin/run
---------- 0/0               1 1970-01-01 00:00:00 etc/app.conf
SEEN
