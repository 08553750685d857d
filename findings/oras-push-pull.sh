#!/usr/bin/env bash
# oras v1.3.0: `push` of a file without a media type, and of a directory with a symbolic link that leads out of it, such as a build's output with a link to a tool; then `pull`.
# A good guess: a file of an unknown kind is application/octet-stream, and what could be pushed can be pulled.
# What it does: the file's media type is that of an OCI layer, application/vnd.oci.image.layer.v1.tar, though it is no tar. The directory is pushed with the link in it, and pull
# refuses the whole directory for the link.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install oras.land/oras/cmd/oras@v1.3.0 2>/dev/null
mkdir -p from/out one two
echo text >from/file
echo text >from/out/file; ln -s ../../tool from/out/tool
(cd from && ../oras push --oci-layout ../layout:file file >/dev/null && ../oras push --oci-layout ../layout:directory out >/dev/null)
{
  ./oras manifest fetch --oci-layout layout:file | python3 -c 'import json, sys; print("file:", json.load(sys.stdin)["layers"][0]["mediaType"])'
  (cd one && ../oras pull --oci-layout ../layout:file >/dev/null && echo "file pulled: $(cat file)")
  (cd two && ../oras pull --oci-layout ../layout:directory 2>&1 >/dev/null || true) | grep -o 'failed to extract tar\|is outside of "out"'
} | tee seen
diff seen - <<'SEEN'
file: application/vnd.oci.image.layer.v1.tar
file pulled: text
failed to extract tar
is outside of "out"
SEEN
