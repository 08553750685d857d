#!/usr/bin/env bash
# stargz-snapshotter's estargz v0.18.2: layers that are valid, and not what `tar -c directory` makes.
# A good guess: Build makes an eStargz of each layer, with all its files, and Open reads what Build made.
# What it does: a prioritized file whose directory has no entry of its own (ko's and Bazel's layers have none) is "not found". A file of the image that is called stargz.index.json is left
# out without a word. A hard link to a file of a lower layer is built, and then Open fails.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
cat >go.mod <<'MOD'
module finding

go 1.24

require github.com/containerd/stargz-snapshotter/estargz v0.18.2
MOD
cat >main.go <<'GO'
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func section(data []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
}

func build(what, wanted string, headers []tar.Header, options ...estargz.Option) {
	var layer bytes.Buffer
	writer := tar.NewWriter(&layer)
	for _, header := range headers {
		header.Mode = 0o644
		if err := writer.WriteHeader(&header); err != nil {
			panic(err)
		}
	}
	writer.Close()
	blob, err := estargz.Build(section(layer.Bytes()), options...)
	if err != nil {
		fmt.Println(what+":", err)
		return
	}
	defer blob.Close()
	data, err := io.ReadAll(blob)
	if err != nil {
		panic(err)
	}
	reader, err := estargz.Open(section(data))
	if err != nil {
		fmt.Println(what+": built;", err)
		return
	}
	_, found := reader.Lookup(wanted)
	fmt.Println(what+": built, found:", found)
}

func main() {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	build("a file", "dir/file", []tar.Header{file("dir/file")})
	build("prioritized", "dir/file", []tar.Header{file("dir/file")}, estargz.WithPrioritizedFiles([]string{"dir/file"}))
	build("stargz.index.json", "stargz.index.json", []tar.Header{file("stargz.index.json")})
	build("a link to a lower layer", "link", []tar.Header{{Name: "link", Typeflag: tar.TypeLink, Linkname: "lower"}})
}
GO
go mod tidy 2>/dev/null
go run . | tee seen
diff seen - <<'SEEN'
a file: built, found: true
prioritized: failed to sort tar entries: file: "dir": not found
stargz.index.json: built, found: false
a link to a lower layer: built; failed to initialize fields of entries: "link" is a hardlink but the linkname "lower" isn't found
SEEN
