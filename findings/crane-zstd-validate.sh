#!/usr/bin/env bash
# go-containerregistry's crane v0.21.9: `crane append` of a layer that zstd or xz compressed.
# A good guess: an image that crane makes, crane calls valid; a compression that OCI does not have is refused, or taken off.
# What it does: `crane validate` of the image with a zstd layer fails with "gzip: invalid header", though `crane export` reads it. Its manifest is Docker's, with a media type of OCI's for the layer.
# An xz archive is taken for the tar itself, and gzipped: append succeeds, and the image cannot be unpacked.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.21.9 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
./crane registry serve --address "127.0.0.1:$port" >log 2>&1 &
for _ in $(seq 100); do curl -so /dev/null "http://127.0.0.1:$port/v2/" && break; sleep 0.1; done

echo content >file
tar -cf layer.tar file; gzip -k layer.tar; zstd -q layer.tar; xz -k layer.tar
for ending in gz zst xz; do
  image=127.0.0.1:$port/image:$ending
  if ./crane append -f layer.tar.$ending -t "$image" >/dev/null 2>&1; then echo "$ending: append succeeds"; else echo "$ending: append fails"; fi
  ./crane manifest "$image" | python3 -c 'import json, sys; m = json.load(sys.stdin); print(" ", m["mediaType"], "with", m["layers"][0]["mediaType"])'
  echo "  export: $({ ./crane export "$image" - 2>error || cat error; } | { tar -xO 2>/dev/null || true; } | head -1; tail -1 error)"
  echo "  validate: $({ ./crane validate --remote "$image" 2>&1 || true; } | sed "s/127.0.0.1:$port.//" | head -1)"
done | tee seen
diff seen - <<'SEEN'
gz: append succeeds
  application/vnd.docker.distribution.manifest.v2+json with application/vnd.docker.image.rootfs.diff.tar.gzip
  export: content
  validate: PASS: image:gz
zst: append succeeds
  application/vnd.docker.distribution.manifest.v2+json with application/vnd.oci.image.layer.v1.tar+zstd
  export: content
  validate: FAIL: image:zst: validating layers: gzip: invalid header
xz: append succeeds
  application/vnd.docker.distribution.manifest.v2+json with application/vnd.docker.image.rootfs.diff.tar.gzip
  export: Error: reading tar: unexpected EOF
  validate: FAIL: image:xz: validating layers: undersized layer[0] content: Manifest.Layers[0].Size=204
SEEN
