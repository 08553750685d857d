#!/usr/bin/env bash
# distribution (docker-registry), 2.8.2 of Debian 12.
# A good guess: `Accept: */*` accepts any manifest, as HTTP says.
# What it does: an OCI index is 404 (MANIFEST_UNKNOWN) to it, and to a client that sends no Accept; only its own media type gets it.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download docker-registry=2.8.2+ds1-1 && dpkg -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' "$work" "$port" >config.yml
usr/bin/docker-registry serve config.yml >log 2>&1 &
base=http://127.0.0.1:$port
for _ in $(seq 100); do curl -so /dev/null $base/v2/ && break; sleep 0.1; done

index=application/vnd.oci.image.index.v1+json
curl -sfo /dev/null -X PUT -H "Content-Type: $index" --data-binary "{\"schemaVersion\":2,\"mediaType\":\"$index\",\"manifests\":[]}" $base/v2/a/manifests/latest
for accept in '' '*/*' 'application/*' "$index"; do
  printf '"%s" %s\n' "$accept" "$(curl -so got -w '%{http_code}' -H "Accept: $accept" $base/v2/a/manifests/latest)"
done | tee seen
diff seen - <<'SEEN'
"" 404
"*/*" 404
"application/*" 404
"application/vnd.oci.image.index.v1+json" 200
SEEN
