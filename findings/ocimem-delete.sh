#!/usr/bin/env bash
# cuelabs.dev/go/oci/ociregistry (ociserver before ocimem, a registry in memory for tests) of December 2025.
# A good guess: a manifest that was deleted by its digest is gone under its tags too; a list without entries is an empty list.
# What it does: the tag is still listed, HEAD of it says 200, and GET of it 404. A list of referrers without entries has "manifests": null, which the image specification's schema does not
# allow; a list of tags behind the last one is null too.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

export GOFLAGS=-modcacherw
printf 'module finding\n\ngo 1.25\n\nrequire cuelabs.dev/go/oci/ociregistry v0.0.0-20251212221603-3adeb8663819\n' >go.mod
cat >main.go <<'GO'
package main

import (
	"fmt"
	"net"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	panic(http.Serve(listener, ociserver.New(ocimem.New(), nil)))
}
GO
go mod tidy 2>/dev/null
go build -o registry .
./registry >address &
for _ in $(seq 100); do [ -s address ] && break; sleep 0.1; done
base=http://$(cat address)/v2/repository
type=application/vnd.oci.image.manifest.v1+json
config=sha256:$(printf '{}' | sha256sum | cut -d' ' -f1)
curl -so /dev/null -X POST -H 'Content-Type: application/octet-stream' -d '{}' "$base/blobs/uploads/?digest=$config"
printf '{"schemaVersion": 2, "mediaType": "%s", "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "%s", "size": 2}, "layers": []}' $type "$config" >manifest
digest=sha256:$(sha256sum manifest | cut -d' ' -f1)
status() { curl -so /dev/null -w '%{http_code}' "$@"; }
{
  echo "pushed: $(status -X PUT -H "Content-Type: $type" --data-binary @manifest "$base/manifests/tag")"
  echo "deleted by digest: $(status -X DELETE "$base/manifests/$digest")"
  echo "by digest: $(status "$base/manifests/$digest"), by tag: $(status "$base/manifests/tag"), HEAD by tag: $(status --head "$base/manifests/tag"), tags: $(curl -s "$base/tags/list")"
  echo "tags behind the last one: $(curl -s "$base/tags/list?last=tag")"
  echo "referrers: $(curl -s "$base/referrers/$digest")"
} | tee seen
diff seen - <<'SEEN'
pushed: 201
deleted by digest: 202
by digest: 404, by tag: 404, HEAD by tag: 200, tags: {"name":"repository","tags":["tag"]}
tags behind the last one: {"name":"repository","tags":null}
referrers: {"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":null}
SEEN
