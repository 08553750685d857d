#!/usr/bin/env bash
# go-containerregistry's `crane registry serve`, v0.20.6.
# A good guess: it serves ranges as RFC 9110 says: `1-` to the end, `-2` the last two bytes, `2-99` what there is of it.
# What it does: only a closed range inside the blob is served; the other three answer 416. Of two ranges it serves the first.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

GOBIN=$work GOFLAGS=-modcacherw go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
./crane registry serve --address "127.0.0.1:$port" >log 2>&1 &
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -so /dev/null $base/v2/ && break; sleep 0.1; done

printf hello >blob
digest=sha256:$(sha256sum blob | cut -d' ' -f1)
location=$(curl -si -X POST $base/v2/a/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //p')
curl -sfo /dev/null -X PUT "$base$location?digest=$digest" --data-binary @blob

for range in 1-2 1- -2 2-99 0-0,4-4; do
  printf '%s %s\n' "$range" "$(curl -so got -w '%{http_code}' -H "Range: bytes=$range" $base/v2/a/blobs/$digest)"
done | tee seen
diff seen - <<'SEEN'
1-2 206
1- 416
-2 416
2-99 416
0-0,4-4 206
SEEN
