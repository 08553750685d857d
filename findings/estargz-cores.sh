#!/usr/bin/env bash
# estargz v0.16.3, stargz-snapshotter's package for Go: Build of one tar, on one core and on several.
# A good guess: the same blob, and surely the same uncompressed content.
# What it does: it cuts the tar into as many parts as Go may use cores (GOMAXPROCS) and starts a gzip stream at each cut, so the blob is another one on a machine
# with more cores. The table of offsets is a file of the layer; so the uncompressed content, the diff ID and the image's ID are others, too.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

cat >main.go <<'GO'
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func main() {
	var data bytes.Buffer
	writer := tar.NewWriter(&data)
	for number := range 40 {
		writer.WriteHeader(&tar.Header{Name: fmt.Sprintf("directory%d/", number), Typeflag: tar.TypeDir, Mode: 0o755})
		writer.WriteHeader(&tar.Header{Name: fmt.Sprintf("directory%d/file", number), Typeflag: tar.TypeReg, Mode: 0o644, Size: 1000})
		writer.Write(bytes.Repeat([]byte{byte(number)}, 1000))
	}
	writer.Close()
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(data.Bytes()), 0, int64(data.Len())))
	if err != nil {
		panic(err)
	}
	sum := sha256.New()
	length, err := io.Copy(sum, blob)
	if err != nil {
		panic(err)
	}
	blob.Close()
	fmt.Printf("blob %x of %d bytes, content %.15s, table %.15s\n", sum.Sum(nil)[:4], length, blob.DiffID(), blob.TOCDigest())
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.22

require github.com/containerd/stargz-snapshotter/estargz v0.16.3
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
go build -o build .
for cores in 1 1 2 4; do
  echo "$cores cores: $(GOMAXPROCS=$cores ./build)"
done | tee seen
diff seen - <<'SEEN'
1 cores: blob 8ef3406c of 7694 bytes, content sha256:0b99b425, table sha256:f6396619
1 cores: blob 8ef3406c of 7694 bytes, content sha256:0b99b425, table sha256:f6396619
2 cores: blob 9e2b8a51 of 7721 bytes, content sha256:4f8fe956, table sha256:202fdee5
4 cores: blob d1005cb3 of 7770 bytes, content sha256:cb7e56c5, table sha256:0f22a30e
SEEN
