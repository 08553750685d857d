#!/usr/bin/env bash
# distribution (docker-registry) 2.8.2 of Debian 12: a Range that begins behind the end of a blob, as whoever resumes a download that was complete asks for.
# A good guess: 416 with a body that says why, or an empty one.
# What it does: 416 with the whole blob's Content-Length, no byte of it, and the connection closed. A client that reads the body of an error reports a broken transfer instead.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download docker-registry=2.8.2+ds1-1 && dpkg -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' "$work" "$port" >config.yml
usr/bin/docker-registry serve config.yml >log 2>&1 &
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -so /dev/null $base/v2/ && break; sleep 0.1; done

printf hello >blob
digest=sha256:$(sha256sum blob | cut -d' ' -f1)
location=$(curl -si -X POST $base/v2/a/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //p')
curl -so /dev/null -X PUT -H 'Content-Type: application/octet-stream' --data-binary @blob "$location&digest=$digest"
{
  curl -s -D headers -o body -H 'Range: bytes=5-' $base/v2/a/blobs/"$digest" || echo "curl: error $?"
  tr -d '\r' <headers | grep -E '^(HTTP|Content-Length|Content-Range)'
  echo "body: $(cat body 2>/dev/null | wc -c) bytes"
} | tee seen
diff seen - <<'SEEN'
curl: error 18
HTTP/1.1 416 Requested Range Not Satisfiable
Content-Length: 5
Content-Range: bytes */5
body: 0 bytes
SEEN
