#!/usr/bin/env bash
# opencontainers/go-digest v1.0.0, with which containerd, docker and all of OCI's Go code read digests.
# A good guess: the library reads sha256 and sha512 digests, which are its own constants.
# What it does: a program that imports the library alone reads none: "unsupported digest algorithm", also for sha256. It reads those whose package another import of the program brings in: with
# crypto/sha256 not sha512; with net/http all. So one function accepts a digest in one program, and refuses it in another.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
printf 'module finding\n\ngo 1.24\n\nrequire github.com/opencontainers/go-digest v1.0.0\n' >go.mod
for import in none crypto/sha256 net/http; do
  mkdir -p "$import"
  cat >"$import/main.go" <<GO
package main

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
$([ $import = none ] || echo "	_ \"$import\"")
)

func main() {
	for name, length := range map[string]int{"sha256": 64, "sha512": 128} {
		_, err := digest.Parse(name + ":" + strings.Repeat("0", length))
		fmt.Println("$import,", name+":", err)
	}
}
GO
done
go mod tidy 2>/dev/null
for import in none crypto/sha256 net/http; do go run "./$import" | sort; done | tee seen
diff seen - <<'SEEN'
none, sha256: unsupported digest algorithm
none, sha512: unsupported digest algorithm
crypto/sha256, sha256: <nil>
crypto/sha256, sha512: unsupported digest algorithm
net/http, sha256: <nil>
net/http, sha512: <nil>
SEEN
