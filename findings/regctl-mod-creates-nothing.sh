#!/usr/bin/env bash
# regclient's regctl v0.11.7: `image mod --create TAG` with a change the image already has, as where a build runs again.
# A good guess: the tag is made, for the same manifest.
# What it does: it prints the new reference, as after a change, and succeeds; the tag is not made.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
export HOME=$work
echo content >file
./regctl artifact put --artifact-type application/vnd.example -f file ocidir://layout:1
{
  ./regctl image mod ocidir://layout:1 --annotation key=value --create 2 | sed 's/^/prints /'
  ./regctl image mod ocidir://layout:2 --annotation key=value --create 3 | sed 's/^/prints /'
  echo "tags: $(./regctl tag ls ocidir://layout | tr '\n' ' ')"
} | tee seen
diff seen - <<'SEEN'
prints ocidir://layout:2
prints ocidir://layout:3
tags: 1 2 
SEEN
