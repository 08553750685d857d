#!/usr/bin/env bash
# distribution (docker-registry), 2.8.2 of Debian 12, and curl.
# A good guess: the PUT that ends an upload takes its body whatever the Content-Type says.
# What it does: `curl --data-binary` says application/x-www-form-urlencoded, Go reads the body as a form to find `digest`, and the blob is empty: DIGEST_INVALID.
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
put() { # put CONTENT-TYPE: the status of a whole upload in one PUT
  location=$(curl -si -X POST $base/v2/a/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //p')
  curl -so got -w '%{http_code}' -X PUT -H "Content-Type: $1" --data-binary @blob "$location&digest=$digest"
}
{
  echo "form: $(put application/x-www-form-urlencoded) $(grep -o DIGEST_INVALID got)"
  echo "octets: $(put application/octet-stream)"
} | tee seen
diff seen - <<'SEEN'
form: 400 DIGEST_INVALID
octets: 201
SEEN
